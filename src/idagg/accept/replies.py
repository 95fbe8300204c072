"""What the hot door answers, whole, so that an answer is one ``write`` of bytes that are there already."""

from __future__ import annotations

import email.utils
from http import HTTPStatus

# By style.
_CONNECTION = ("", "Connection: close\r\n", "Connection: keep-alive\r\n")


class Replies:
    """The bytes of every answer, by style. Made anew once a second, for ``Date`` (RFC 9110, 6.6.1)."""

    __slots__ = ("bad", "ok", "unavailable")

    def __init__(self, epoch_s: float) -> None:
        date = email.utils.formatdate(epoch_s, usegmt=True)

        def each(status: HTTPStatus, body: str, extra: str = "") -> list[bytes]:
            return [
                (
                    f"HTTP/1.1 {status.value} {status.phrase}\r\n"
                    "Content-Type: text/plain; charset=utf-8\r\n"
                    f"Content-Length: {len(body)}\r\nDate: {date}\r\n{extra}{connection}\r\n{body}"
                ).encode()
                for connection in _CONNECTION
            ]

        self.ok = each(HTTPStatus.OK, "ok")
        self.bad = each(HTTPStatus.BAD_REQUEST, "failed")
        self.unavailable = each(HTTPStatus.SERVICE_UNAVAILABLE, "failed", "Retry-After: 1\r\n")
