"""A client that speaks bytes, and the requests that it sends."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import socket
import struct
from email.message import Message
from email.parser import BytesParser

from kit.waiting import LIMIT_S

ids = itertools.count(1)  # no id is sent twice, whoever sends it


@dataclasses.dataclass
class Answer:
    status: int
    headers: Message
    body: bytes
    version: str = "HTTP/1.1"


@functools.lru_cache  # answers are many, and differ in their second only
def _parsed(fields: bytes) -> Message:
    return BytesParser().parsebytes(fields)


class Wire:
    """A connection, seen from the client. A bare socket: what came in before a reset can still be read."""

    def __init__(self) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._got = b""

    async def send(self, data: bytes, *, step: int | None = None) -> None:
        """Send it whole, or in pieces that arrive one by one. A server that hangs up early is no error."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(data), step or len(data)):
                await loop.sock_sendall(self.socket, data[start : start + (step or len(data))])
                if step:
                    await asyncio.sleep(0)

    async def answer(self, *, bodiless: bool = False) -> Answer | None:
        """The next answer; None where the connection is closed instead. ``bodiless``: to a HEAD request."""
        while b"\r\n\r\n" not in self._got:
            if not await self._receive():
                return None
        head, _, self._got = self._got.partition(b"\r\n\r\n")
        line, _, fields = head.partition(b"\r\n")
        headers = _parsed(fields)
        length = 0 if bodiless else int(headers.get("Content-Length", "0"))
        while len(self._got) < length:
            if not await self._receive():
                return None
        body, self._got = self._got[:length], self._got[length:]
        version, status, *_ = line.split()
        return Answer(int(status), headers, body, version.decode())

    async def closed(self) -> bool:
        """Whether the server closes the connection and says nothing more."""
        return not self._got and not await self._receive()

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Vanish: the server gets a reset, not an end."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    async def _receive(self) -> bool:
        async with asyncio.timeout(LIMIT_S):
            try:
                data = await asyncio.get_running_loop().sock_recv(self.socket, 65536)
            except ConnectionError:
                return False
        self._got += data
        return bool(data)


def request(number: int, query: str = "", fields: str = "") -> bytes:
    return f"GET /api/verve/accept?id={number}{query} HTTP/1.1\r\nHost: x\r\n{fields}\r\n".encode()


async def connect(port: int, host: str = "127.0.0.1") -> Wire:
    wire = Wire()
    try:
        await asyncio.get_running_loop().sock_connect(wire.socket, (host, port))
    except BaseException:
        wire.close()
        raise
    return wire
