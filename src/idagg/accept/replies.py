"""The fixed answers of the public listener as prepared bytes, so that an answer is a single ``write``."""

from __future__ import annotations

import email.utils
from http import HTTPStatus

OK, UNAVAILABLE = 200, 503
_REFUSALS = (400, 408, 413, 414, 417, 431, 500, 501, 503, 505)
# The Connection field, by style.
_CONNECTION = ("", "Connection: close\r\n", "Connection: keep-alive\r\n")


def fixed_fields(cors_origin: str | None) -> dict[str, str]:
    """Header fields of every answer. ``no-store``, because a cached ``ok`` would answer for uncounted ids."""
    fields = {"Cache-Control": "no-store"}
    if cors_origin:
        fields["Access-Control-Allow-Origin"] = cors_origin
    return fields


class Replies:
    """The bytes of every answer, by status and style. ``at`` renews them for ``Date`` (RFC 9110 6.6.1)."""

    __slots__ = ("_fixed", "by_status", "ok")

    def __init__(self, epoch_s: float, cors_origin: str | None = None) -> None:
        self._fixed = "".join(f"{name}: {value}\r\n" for name, value in fixed_fields(cors_origin).items())
        self.at(epoch_s)

    def at(self, epoch_s: float) -> None:
        date = email.utils.formatdate(epoch_s, usegmt=True)
        self.by_status = {OK: self._each(OK, "ok", date)}
        self.by_status |= {status: self._each(status, "failed", date) for status in _REFUSALS}
        self.ok = self.by_status[OK][0]  # the most frequent one, without a look-up

    def _each(self, status: int, body: str, date: str) -> list[bytes]:
        retry = "Retry-After: 1\r\n" if status == UNAVAILABLE else ""
        return [
            (
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
                "Content-Type: text/plain; charset=utf-8\r\n"
                f"Content-Length: {len(body)}\r\nDate: {date}\r\n{self._fixed}{retry}{connection}\r\n{body}"
            ).encode()
            for connection in _CONNECTION
        ]
