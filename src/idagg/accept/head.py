"""What a plain head is: one that the hot door answers itself. All others are aiohttp's to look at.

Pure decisions; the parser is httptools'.
"""

from __future__ import annotations

import enum

import httptools

# Precedents: aiohttp's and nginx's line limits, 8 KiB; aiohttp's and Apache's field limits, 128 and 100.
MAX_HEAD_BYTES = 8192
MAX_FIELDS = 128
# What a connection expects of its first request; judged plain like any other (tests).
USUAL_TAIL = b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
# More than one of these makes a message ambiguous; aiohttp refuses it.
_SINGLE = frozenset({b"host", b"user-agent", b"content-type", b"max-forwards", b"transfer-encoding"})


class Style(enum.IntEnum):
    """How the connection goes on after the answer, and what the answer says of it."""

    KEEP = 0  # HTTP/1.1
    CLOSE = 1
    KEEP_10 = 2  # HTTP/1.0 with Connection: keep-alive


class _Judge:
    """What the parser says of one head."""

    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.fields: list[bytes] = []
        self.keep = False
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append(name.lower())

    def on_headers_complete(self) -> None:
        self.keep = self.parser.should_keep_alive()  # forgotten once the message is complete

    def on_message_complete(self) -> None:
        self.complete = True


def judge(head: bytes, tail: bytes) -> Style | None:
    """The style of a plain request; None where aiohttp has to look at it.

    ``tail`` is the head from behind the target on: version, fields, blank line.
    """
    seen = _Judge()
    try:
        seen.parser.feed_data(head)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    fields = seen.fields
    if not seen.complete or len(fields) > MAX_FIELDS or b"expect" in fields or b"upgrade" in fields:
        return None
    if any(fields.count(name) > 1 for name in _SINGLE):
        return None
    if tail.startswith(b" HTTP/1.1\r\n") and b"host" in fields:
        return Style.KEEP if seen.keep else Style.CLOSE
    if tail.startswith(b" HTTP/1.0\r\n"):
        return Style.KEEP_10 if seen.keep else Style.CLOSE
    return None
