"""One POST to one address: dial, send the request, read the needed part of the answer, hang up.

No HTTP library was found that fits. They read interim answers and heads without limit, which blocks the event
loop. They also refuse answers with a valid status for a head over 8 KiB or a repeated length. A request of
known length and `AnswerReader` are all that is needed of HTTP.

If its task is cancelled, the socket is closed at once.
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

# Limit of a handshake: OpenSSL accepts certificate chains of up to 100 KiB.
_TLS_BYTES = 131_072


class PostError(Exception):
    """No answer arrived. The text is the reason, as the log file shows it."""


class Poster:
    """Makes POSTs, each on its own connection. The caller limits their time and number."""

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

        If the caller may stop this by a timeout, it passes a ``reader``, whose ``so_far`` then has the answer
        as far as it is known. Raises PostError.
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
            literal = str(ipaddress.ip_address(address or ""))  # ValueError, or a name would be resolved
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
    """The text of an error, as the log file shows it."""
    match error:
        case AnswerError():
            return str(error)
        case TimeoutError():  # the kernel's connection timeout
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
