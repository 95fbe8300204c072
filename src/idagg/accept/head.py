"""The parser of request heads. Pure; no sockets, no state.

There are two parsers, which always agree:

- ``FAST`` is one regular expression for the most frequent request: ``GET`` of the accept path in HTTP/1.1,
  without a body. ``CLOSING`` is its variant for requests that close their connection. ``FAST`` reads the
  whole head, because any header field may matter. It caches nothing, because load balancers make every head
  different. Its time is linear in the length of any input.
- ``judge`` reads every other head by RFC 9112, field by field. It raises RefusedError with the status.

``FAST`` matches a subset of the heads that ``judge`` finds to be plain accept requests (tests).
"""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
import re

from idagg.accept.request import PLAIN_ID

PATH = "/api/verve/accept"

# Precedents: nginx's large_client_header_buffers (8 KiB a line, 32 KiB in all); Node.js and HAProxy 16 KiB
# in all; aiohttp and Apache 128 and 100 fields.
MAX_LINE_BYTES = 8192
MAX_HEAD_BYTES = 32_768
MAX_FIELDS = 128

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_VALUE = rb"[\t -~\x80-\xff]"  # with obs-text (RFC 9110 5.5)
_NO_C = rb"[\t -BD-bd-~\x80-\xff]"
_TARGET = rb"[!-~\x80-\xff]"  # bytes from 0x80 on are illegal (RFC 3986), harmless, and sent by many clients


class Style(enum.IntEnum):
    """Whether the connection stays open after the answer, and the answer's Connection field."""

    KEEP = 0  # HTTP/1.1
    CLOSE = 1
    KEEP_10 = 2  # HTTP/1.0 with Connection: keep-alive


class Body(enum.IntEnum):
    """Values of ``Head.length`` that are not a length."""

    CHUNKED = -1


class RefusedError(Exception):
    """The head is refused with ``status``, and the connection ends after that answer."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclasses.dataclass(frozen=True, slots=True)
class Head:
    """A valid request head.

    ``target`` is in origin-form. ``length`` is the body's length in bytes, or Body.CHUNKED. If ``expects`` is
    true, the client waits for 100 (Continue) before it sends the body.
    """

    method: bytes
    target: bytes
    style: Style
    length: int
    expects: bool

    @property
    def query(self) -> bytes | None:
        """The query of a plain accept request; None for every other request."""
        plain = self.method == b"GET" and self.length == 0 and self.target.startswith(_ACCEPT)
        return self.target[len(_ACCEPT) :] if plain else None

    def message(self, body: bytes) -> bytes:
        """The request for the fallback app, without the client's header fields.

        The app needs none of them, so its parser cannot read them in another way than ``judge``.
        """
        method = self.method if self.method in _METHODS else _OTHER_METHOD
        target = _HIGH.sub(_percent_encoded, self.target)
        head = b"%b %b HTTP/1.1\r\nHost: idagg\r\nContent-Length: %d\r\n\r\n" % (method, target, len(body))
        return head + body


_ACCEPT = PATH.encode() + b"?"


def _any_case(word: str) -> bytes:
    """A case-insensitive pattern, faster than the regular expression engine's own flag."""
    return "".join(f"[{c.upper()}{c}]" if c.isalpha() else re.escape(c) for c in word).encode()


# RFC 9112 3.2, RFC 3986 3.2.2: a name or an IPv4 address; ``judge`` accepts IPv6 addresses, too.
_HOST = rb"[0-9A-Za-z._~%!$&'()*+,;=\-]++"
_PORT = rb"(?:[0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3})"  # not all; ``judge`` accepts the others, too
# Fields that matter. Upgrade does not: idagg ignores every offer, as RFC 9110 7.8 allows.
_DECIDING = b"|".join(map(_any_case, ("host", "content-length", "transfer-encoding", "expect", "connection")))
# Most other fields are recognized by their first letter alone, which is cheaper.
_OTHER = rb"[ABDFGI-SU-Zabdfgi-su-z]%b*+:%b*+\r\n" % (_TOKEN, _VALUE)
_OTHER_YET = rb"(?!(?:%b):)[!#$%%&'*+\-.^_`|~0-9CEHTceht]%b*+:%b*+\r\n" % (_DECIDING, _TOKEN, _VALUE)
# Of the connection options, only close matters.
_KEEP = rb"%b:%b*+(?:[Cc](?!%b)%b*+)*\r\n" % (_any_case("connection"), _NO_C, _any_case("lose"), _NO_C)
_CLOSE = rb"%b:[ ]?%b\r\n" % (_any_case("connection"), _any_case("close"))
_HOST_LINE = rb"%b:[ ]?%b(?::%b)?\r\n" % (_any_case("host"), _HOST, _PORT)
# Java's standard client sends Content-Length: 0 with a GET.
_NO_BODY = rb"%b:[ ]?0\r\n" % _any_case("content-length")
# These match disjoint sets of lines, disjoint from the three patterns above, too. So a mismatch causes no
# backtracking. (A possessive group would state this, but it matches wrongly in Debian 12's Python 3.11.2.)
_FIELDS = rb"(?:%b|%b|%b){0,31}" % (_OTHER, _OTHER_YET, _KEEP)


def _head(*must: bytes, may: tuple[bytes, ...] = ()) -> bytes:
    """The rest of a head: each line of ``must`` once, each of ``may`` at most once, in any order.

    Other lines may stand between them. MAX_FIELDS lines at most.
    """
    ways = [line + _head(*(other for other in must if other != line), may=may) for line in must]
    ways += [line + _head(*must, may=tuple(other for other in may if other != line)) for line in may]
    return rb"%b(?:%b)" % (_FIELDS, b"|".join(ways if must else [rb"\r\n", *ways]))


_LINE = rb"GET %b(?:id=(%b)|(%b*+)) HTTP/1\.1\r\n" % (re.escape(_ACCEPT), PLAIN_ID, _TARGET)
FAST = re.compile(_LINE + _head(_HOST_LINE, may=(_NO_BODY,))).match
"""Matches one complete plain accept request that keeps its connection: ``match(data, start, end)``.

``end`` is at most MAX_LINE_BYTES after ``start``. If the query is a canonical id and nothing else, group
PLAIN is the id; else group QUERY is the query.
"""
PLAIN, QUERY = 1, 2
CLOSING = re.compile(_LINE + _head(_HOST_LINE, _CLOSE, may=(_NO_BODY,))).fullmatch
"""Matches data that is exactly one plain accept request that closes its connection."""


def query_of(match: re.Match[bytes]) -> bytes:
    return b"id=%b" % match[PLAIN] if match[QUERY] is None else match[QUERY]


_REQUEST_LINE = re.compile(rb"(%b++) (%b++) HTTP/([0-9])\.([0-9])" % (_TOKEN, _TARGET)).fullmatch
_LINE_BEGUN = re.compile(rb"%b*+(?: %b*+(?: [!-~]*+\r?)?)?" % (_TOKEN, _TARGET)).fullmatch
FIELD = re.compile(rb"(%b++):[ \t]*+(%b*)" % (_TOKEN, _VALUE)).fullmatch
_HOST_FIELD = re.compile(rb"(?:%b|\[([0-9A-Fa-f:.]++)\])(?::([0-9]{0,5}))?" % _HOST).fullmatch
# RFC 9112 3.2.2: the authority, and the rest, which becomes the origin-form.
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#]++)(.*+)").fullmatch
# The methods that idagg accepts, and one in place of all others: these are refused alike, and aiohttp's
# parser does not know every token.
_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"OPTIONS"})
_OTHER_METHOD = b"PATCH"
_LENGTH = re.compile(rb"[0-9]{1,18}").fullmatch
_HIGH = re.compile(rb"[\x80-\xff]")
_MAX_PORT = 65_535


def judge(head: bytes) -> Head:
    """Read a complete head, its blank line included. Raises RefusedError."""
    line, *lines = head[:-4].split(b"\r\n")
    method, target, minor = _request_line(line)
    if (
        len(head) > MAX_HEAD_BYTES
        or len(lines) > MAX_FIELDS
        or any(len(field) > MAX_LINE_BYTES for field in lines)
    ):
        raise RefusedError(431)
    values: dict[bytes, list[bytes]] = {}
    for field in lines:
        found = FIELD(field)
        if found is None:
            raise RefusedError(400)
        values.setdefault(found[1].lower(), []).append(found[2].rstrip(b" \t"))
    if minor or b"host" in values:
        _check_host(values.get(b"host", []))
    if minor and any(value.lower() != b"100-continue" for value in values.get(b"expect", [])):
        raise RefusedError(417)
    length = _length(values.get(b"content-length", []), values.get(b"transfer-encoding", []), minor)
    options = {
        option.strip().lower() for value in values.get(b"connection", []) for option in value.split(b",")
    }
    if b"close" in options or method == b"CONNECT":
        style = Style.CLOSE
    elif minor:
        style = Style.KEEP
    else:
        style = Style.KEEP_10 if b"keep-alive" in options else Style.CLOSE
    expects = bool(minor and length and b"expect" in values)
    return Head(method, target, style, length, expects)


def check_begun(begun: bytes) -> None:
    """Check the first bytes of an incomplete head.

    Raises RefusedError if it cannot become a valid request within the size limits, so that the client gets
    its answer at once.
    """
    if begun == b"\r":
        return
    line, *lines = begun.split(b"\r\n")
    if lines:
        _request_line(line)
    elif len(line) > MAX_LINE_BYTES + 1:
        raise RefusedError(414)
    elif not _LINE_BEGUN(line):
        raise RefusedError(400)
    # The last line is incomplete, and may end in CR.
    if (
        len(begun) > MAX_HEAD_BYTES
        or len(lines) > MAX_FIELDS + 1
        or any(len(one) > MAX_LINE_BYTES + 1 for one in lines)
    ):
        raise RefusedError(431)
    if begun.count(b"\n") != begun.count(b"\r\n"):
        raise RefusedError(400)


def _request_line(line: bytes) -> tuple[bytes, bytes, int]:
    """The method, the target, and the minor version of HTTP/1."""
    if len(line) > MAX_LINE_BYTES:
        raise RefusedError(414)
    found = _REQUEST_LINE(line)
    if found is None:
        raise RefusedError(400)
    method, target, major, minor = found.groups()
    if major != b"1" or minor not in (b"0", b"1"):
        raise RefusedError(505)
    return method, _origin_form(method, target), int(minor)


def _origin_form(method: bytes, target: bytes) -> bytes:
    """The target without an authority, which clients send to proxies; idagg serves every host name."""
    if target.startswith(b"/") or (method, target) == (b"OPTIONS", b"*"):
        return target
    absolute = _ABSOLUTE(target)
    if absolute is None:
        raise RefusedError(400)
    _check_host([absolute[1]])
    return absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]


def _check_host(hosts: list[bytes]) -> None:
    found = _HOST_FIELD(hosts[0]) if len(hosts) == 1 else None
    if found is None or int(found[2] or 0) > _MAX_PORT:
        raise RefusedError(400)
    if found[1] is not None:
        try:
            ipaddress.IPv6Address(found[1].decode())
        except ValueError as error:
            raise RefusedError(400) from error


def _length(lengths: list[bytes], codings: list[bytes], minor: int) -> int:
    """The body's length by RFC 9112 6.3. Every ambiguous form is refused."""
    if codings:
        if lengths or not minor:
            raise RefusedError(400)
        if [coding.lower() for coding in codings] != [b"chunked"]:
            raise RefusedError(501)
        return Body.CHUNKED
    if not lengths:
        return 0
    if len(lengths) > 1 or not _LENGTH(lengths[0]):
        raise RefusedError(400)
    return int(lengths[0])


def _percent_encoded(byte: re.Match[bytes]) -> bytes:
    return b"%%%02X" % byte[0][0]
