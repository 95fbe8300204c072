"""A plain or TLS connection that reads only on demand.

The socket is read only while a caller waits for bytes, so nothing accumulates in memory. TLS runs over two
memory buffers, so that its bytes count towards the limit, too. To hang up is to close the socket, without a
TLS shutdown to wait for. asyncio's transports do not fit: they read ahead, and they drop an answer that
arrives before the whole request is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import Callable
from typing import Any, TypeVar

from idagg.deliver.answer import Answer, AnswerError, AnswerReader

T = TypeVar("T")

_CHUNK = 4096


class Connection:
    """A connection over ``sock``, plain or TLS. It receives at most ``max_bytes``."""

    def __init__(self, sock: socket.socket, max_bytes: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._left = max_bytes
        self._tls: ssl.SSLObject | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()

    async def open_tls(self, context: ssl.SSLContext, host: str) -> None:
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        await self._drive(self._tls.do_handshake)

    async def ask(self, request: bytes, reader: AnswerReader) -> Answer:
        """Send the request and read the answer. Raises AnswerError, OSError."""
        with contextlib.suppress(ConnectionError):  # an endpoint may answer without reading the rest
            if self._tls is None:
                await self._loop.sock_sendall(self._socket, request)
            else:
                await self._drive(functools.partial(self._tls.write, request))
        while True:
            try:
                data = await self._read()
            except (AnswerError, OSError):
                if reader.so_far is None:
                    raise
                data = b""
            if answer := reader.feed(data) if data else reader.eof():
                return answer

    async def _read(self) -> bytes:
        """Receive some bytes; none at the end."""
        if self._tls is None:
            return await self._receive()
        return await self._drive(functools.partial(self._tls.read, _CHUNK))

    async def _drive(self, step: Callable[[], T]) -> T:
        """Exchange bytes between TLS and the socket until ``step`` succeeds."""
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await self._flush()
                if data := await self._receive():
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            else:
                await self._flush()
                return result

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self._loop.sock_sendall(self._socket, self._outgoing.read())

    async def _receive(self) -> bytes:
        data = await self._loop.sock_recv(self._socket, _CHUNK)
        self._left -= len(data)
        if self._left < 0:
            raise AnswerError("answer too long")
        return data


async def connected(places: list[Any]) -> socket.socket:
    """Connect to the first address of ``getaddrinfo``'s result that accepts. Raises OSError if none does."""
    trouble = OSError()
    for family, kind, proto, _, place in places:
        sock = socket.socket(family, kind, proto)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            await asyncio.get_running_loop().sock_connect(sock, place)
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError):
                raise
            trouble = error
        else:
            return sock
    raise trouble


def tls_context(ca: str | None = None) -> ssl.SSLContext:
    """A TLS context that trusts the system's CAs and, if given, those in the file ``ca``."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if ca is not None:
        context.load_verify_locations(ca)
    return context
