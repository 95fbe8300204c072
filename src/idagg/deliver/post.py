"""One POST to one address: dial it, say the request, read the answer as far as is needed, hang up.

No HTTP library, since none was found that fits both ends: they read interim answers and heads without limit,
at the expense of all that the loop does, and refuse answers whose status stands (a head over 8 KiB, a length
that is given twice). What is needed of HTTP is a request of known length and `AnswerReader`.

A task that is cancelled closes its socket at once, and nothing of it is left.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import ssl
from collections.abc import Mapping

from idagg.deliver.answer import Answer, AnswerError, AnswerReader
from idagg.deliver.connection import Connection, connected, tls_context
from idagg.deliver.target import Proxy, Target

__all__ = ["PostError", "Poster", "Proxy", "Target", "tls_context"]

# What a handshake may take: OpenSSL takes chains of certificates of up to 100 KiB.
_TLS_BYTES = 131_072


class PostError(Exception):
    """No answer; the text says why, in the words of the log."""


class Poster:
    """Makes POSTs, each on a connection of its own. The caller limits their time and their number."""

    def __init__(
        self, *, tls: ssl.SSLContext | None = None, proxy: Proxy | None = None, max_bytes: int = 16_384
    ) -> None:
        self._tls = tls or tls_context()
        self._proxy = proxy
        self._max_bytes = max_bytes

    async def post(
        self,
        target: Target,
        address: str | None,
        headers: Mapping[str, str],
        body: bytes,
        *,
        reader: AnswerReader | None = None,
    ) -> Answer:
        """POST to ``target`` at ``address``, a literal, or through the proxy, which resolves the host itself.

        A caller that ends this by time-out gives a ``reader`` and finds in its ``so_far`` what stood by then.
        Raises PostError.
        """
        reader = reader or AnswerReader(self._max_bytes)
        try:
            with await self._dial(target, address) as sock:
                connection = Connection(sock, self._max_bytes + _TLS_BYTES)
                place, proxy_field = target.path, b""
                if target.is_tls:
                    if self._proxy is not None:
                        await self._tunnel(self._proxy, target, connection)
                    await connection.open_tls(self._tls, target.host.removesuffix("."))
                elif self._proxy is not None:
                    place = b"http://%b%b" % (target.authority, target.path)
                    proxy_field = self._proxy.field
                fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
                answer = await connection.ask(
                    b"POST %b HTTP/1.1\r\nHost: %b\r\n%b%bAccept: */*\r\nContent-Length: %d\r\n"
                    b"Connection: close\r\n\r\n%b"
                    % (place, target.authority, proxy_field, fields, len(body), body),
                    reader,
                )
        except (AnswerError, OSError) as error:
            raise PostError(in_words(error)) from error
        if answer.status == 407 and self._proxy is not None and not target.is_tls:
            raise PostError("proxy: 407")
        return answer

    async def _dial(self, target: Target, address: str | None) -> socket.socket:
        if self._proxy is None:
            literal = str(ipaddress.ip_address(address or ""))  # ValueError: else it might be resolved
            return await connected(
                socket.getaddrinfo(literal, target.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
            )
        try:
            lookup = asyncio.get_running_loop().getaddrinfo
            return await connected(await lookup(self._proxy.host, self._proxy.port, type=socket.SOCK_STREAM))
        except OSError as error:
            raise PostError(f"proxy: {in_words(error)}") from error

    async def _tunnel(self, proxy: Proxy, target: Target, connection: Connection) -> None:
        place = target.full_authority
        request = b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (place, place, proxy.field)
        try:
            answer = await connection.ask(request, AnswerReader(self._max_bytes, whole_head=True))
        except (AnswerError, OSError) as error:
            raise PostError(f"proxy: {in_words(error)}") from error
        if not 200 <= answer.status < 300:
            raise PostError(f"proxy: {answer.status}")


def in_words(error: Exception) -> str:
    """What went wrong, in the words of the log."""
    match error:
        case AnswerError():
            return str(error)
        case TimeoutError():  # the kernel's own
            return "timeout"
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return "connection closed"
        case ssl.SSLCertVerificationError():
            return f"tls: {error.verify_message}"
        case ssl.SSLError():
            return f"tls: {error.reason or 'failed'}".replace("_", " ").lower()
        case socket.gaierror():
            return "name not resolved"
        case OSError(errno=int(number)):
            return os.strerror(number).lower()
    return "connection failed"
