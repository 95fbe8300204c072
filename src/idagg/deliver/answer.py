"""A bounded parser of endpoints' answers. Pure: bytes come in, an answer or an error comes out.

These bytes are untrusted. An HTTP library reads interim answers without limit, and refuses a head that is
long or has a field twice. A callback needs only the final status line and at most two fields. So this parser
reads line by line, each byte once, and at most ``max_bytes``, interim answers included. It ignores the rest,
and keeps no complete line.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# Statuses that ask for a retry: request timeout, too early (RFC 8470), too many requests, and all of 5xx.
RETRIED = frozenset({408, 425, 429, *range(500, 600)})

_SWITCHING_PROTOCOLS = 101  # the one 1xx that is final
_FIELDS = (b"retry-after", b"location")
_BEGINNING = re.compile(rb"HTTP/1\.|(?:H?|HT|HTT|HTTP|HTTP/|HTTP/1)\Z")
_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] ([1-5][0-9]{2})(?: |\Z)")


class Answer(NamedTuple):
    """The final status, and the fields that were read before the parser stopped."""

    status: int
    retry_after: str | None = None
    location: str | None = None


class AnswerError(Exception):
    """No final status arrived. The text is the reason, as the log file shows it."""


class AnswerReader:
    """Parses one answer. ``feed`` takes its bytes in pieces of any size, and returns the answer once known.

    The head of a redirect or a retried status is read to its end, for Location and Retry-After, but not past
    ``max_bytes``; after that, only the complete lines count. If ``whole_head`` is true, every final head is
    read like this.
    """

    def __init__(self, max_bytes: int = 16_384, *, whole_head: bool = False) -> None:
        self._left = max_bytes
        self._whole_head = whole_head
        self._line = bytearray()  # has not ended yet
        self._is_interim = False
        self._status: int | None = None
        self._fields: dict[bytes, str] = {}
        self._is_over = False

    @property
    def so_far(self) -> Answer | None:
        """The answer as far as it is known, for a caller that stops waiting."""
        fields = map(self._fields.get, _FIELDS)
        return None if self._status is None else Answer(self._status, *fields)

    def feed(self, data: bytes) -> Answer | None:
        """Take bytes. Returns the answer, or None if more bytes are needed. Raises AnswerError."""
        if self._is_over:
            return self.so_far
        data = data[: self._left]
        self._left -= len(data)
        *ended, rest = data.split(b"\n")
        for text in ended:
            line = bytes(self._line + text).removesuffix(b"\r")
            self._line.clear()
            if self._take(line):
                return self._end("")
        self._line += rest
        if self._status is None and not self._is_interim and not _BEGINNING.match(self._line):
            raise AnswerError("not an HTTP answer")  # at once, because its line may never end
        return None if self._left else self._end("answer too long")

    def eof(self) -> Answer:
        """End the input. Returns the answer so far. Raises AnswerError if it has no final status."""
        return self._end("connection closed")

    def _end(self, error: str) -> Answer:
        self._is_over = True
        if (answer := self.so_far) is None:
            raise AnswerError(error)
        return answer

    def _take(self, line: bytes) -> bool:
        """Parse one line. Returns whether it was the last one needed."""
        if self._is_interim:
            self._is_interim = bool(line)
            return False
        if self._status is not None:
            name, _, value = line.partition(b":")
            if (name := name.lower()) in _FIELDS:
                self._fields.setdefault(name, value.strip(b" \t").decode("latin-1"))
            return not line
        if not (found := _STATUS_LINE.match(line)):
            raise AnswerError("not an HTTP answer")
        status = int(found[1])
        self._is_interim = status < 200 and status != _SWITCHING_PROTOCOLS
        self._status = None if self._is_interim else status
        ends_here = not (self._whole_head or 300 <= status < 400 or status in RETRIED)
        return ends_here and not self._is_interim
