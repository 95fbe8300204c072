"""The body of a request, by its length or in chunks (RFC 9112 6 and 7.1). Pure.

Only the strict form of chunks is accepted, because lenient parsers have been abused to smuggle requests.
"""

from __future__ import annotations

import re

from idagg.accept.head import FIELD, MAX_FIELDS, MAX_LINE_BYTES, Body, Head, RefusedError
from idagg.accept.request import MAX_BULK_BYTES

_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t -~\x80-\xff]*)?\r\n").match


class BodyReader:
    """Collects the bytes after a head until the body is complete; ``content`` is the body."""

    def __init__(self, head: Head) -> None:
        """Raises RefusedError if the body is too large, or if the method takes no body."""
        self.head = head
        self.content = bytearray()
        self._length = head.length
        self._limit = MAX_BULK_BYTES if head.method == b"POST" else 0
        self._raw = bytearray()  # bytes of an incomplete chunk
        self._trailers = -1  # trailer lines so far; -1: the last chunk has not arrived
        if head.length > self._limit or (head.expects and not self._limit):
            raise RefusedError(413)

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes. Returns those after the body, or None if the body goes on. Raises RefusedError."""
        if self._length == Body.CHUNKED:
            self._raw += data
            return self._chunks()
        missing = self._length - len(self.content)
        self.content += data[:missing]
        return data[missing:] if len(data) >= missing else None

    def _chunks(self) -> bytes | None:
        raw, at = self._raw, 0
        while self._trailers < 0:
            found = _CHUNK(raw, at)
            if found is None:
                _check_line(raw, at)
                break
            size, begin = int(found[1], 16), found.end()
            if begin - at > MAX_LINE_BYTES + 2:
                raise RefusedError(400)
            if len(self.content) + size > self._limit:
                raise RefusedError(413)
            if size == 0:
                at, self._trailers = begin, 0
                continue
            end = begin + size
            if raw[end : end + 2] != b"\r\n"[: max(0, len(raw) - end)]:
                raise RefusedError(400)
            if len(raw) < end + 2:
                break
            self.content += raw[begin:end]
            at = end + 2
        while self._trailers >= 0 and (end := raw.find(b"\r\n", at)) >= 0:
            if end == at:
                return bytes(raw[end + 2 :])
            self._trailers += 1
            if self._trailers > MAX_FIELDS or end - at > MAX_LINE_BYTES:
                raise RefusedError(431)
            if not FIELD(raw, at, end):
                raise RefusedError(400)
            at = end + 2
        del raw[:at]
        if self._trailers >= 0 and len(raw) > MAX_LINE_BYTES + 1:
            raise RefusedError(431)
        return None


def _check_line(raw: bytearray, at: int) -> None:
    """Refuse a chunk line that is complete or too long; an incomplete one may become valid."""
    if raw.find(b"\n", at) >= 0 or len(raw) - at > MAX_LINE_BYTES + 1:
        raise RefusedError(400)
