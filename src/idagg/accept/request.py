"""The id and endpoint of a valid accept request. Pure. All request paths use it, so they cannot differ.

The query is read as every web framework reads it: split at ``&`` and ``=``, then percent-encoding and ``+``
are decoded once. An ambiguous query is refused.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TypeVar
from urllib.parse import unquote_to_bytes

import orjson

MAX_ENDPOINT_BYTES = 2048
_MAX_HOST_BYTES = 253  # RFC 1035: 255 in the wire form, which adds two
_MAX_PORT = 65_535
_INT64_DIGITS = 19
# An id that is canonical already: no sign, no leading zero, and too short to exceed 64 bits.
PLAIN_ID = rb"[1-9][0-9]{0,17}+"
_is_plain = re.compile(PLAIN_ID).fullmatch
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
# A DNS name as resolvers accept it: letters, digits, hyphens, underscores (common, but not legal) and dots.
# After it: RFC 3986's characters, no space, control, quote or backslash.
_ENDPOINT = re.compile(
    rb"(?i:https?)://(?:([0-9A-Za-z_-]{1,63}(?:\.[0-9A-Za-z_-]{1,63})*\.?)|\[([0-9A-Fa-f:.]+)\])"
    rb"(?::([0-9]{0,5}))?(?:[/?#][!#-;=?-Z\[\]_a-z~]*)?"
).fullmatch
# The most common form with an endpoint: parsed three times as fast.
_COMMON = re.compile(rb"id=(%b)&endpoint=([^&]*+)" % PLAIN_ID).fullmatch
_WHITE = b" \t\r\n"
# The two forms of a bulk body, if all ids are canonical already: three times as fast as parsing each id.
_LINES = re.compile(rb"(?:%b\n)*%b\n?" % (PLAIN_ID, PLAIN_ID)).fullmatch
_ARRAY = re.compile(
    rb"%(gap)b\[(?:%(gap)b%(id)b%(gap)b,)*%(gap)b%(id)b%(gap)b\]%(gap)b"
    % {b"gap": rb"[ \t\r\n]*+", b"id": PLAIN_ID}
).fullmatch

T = TypeVar("T")
Hit = tuple[bytes, bytes | None]

# Limits of a bulk request. The store accepts no more ids in one batch.
MAX_BULK_IDS = 4096
MAX_BULK_BYTES = 131_072


class TooManyError(Exception):
    """A bulk request has more than MAX_BULK_IDS ids."""


def parse(query: bytes) -> Hit | None:
    """The canonical id, and the endpoint or None. Returns None for a request to answer 400.

    Unknown parameters are ignored. ``id`` and ``endpoint`` may occur once.
    """
    common = _COMMON(query)
    if common is not None:
        return _with_endpoint(common[1], _decoded(common[2]))
    values = _parameters(query)
    if values is None or values[0] is None:
        return None
    number = canonical_id(values[0])
    return None if number is None else _with_endpoint(number, values[1])


def parse_bulk(query: bytes, body: bytes) -> tuple[list[bytes], bytes | None] | None:
    """The canonical ids of a bulk request, in their order, and the endpoint or None.

    Returns None for a request to answer 400. The body is a JSON array of integers or strings of digits, or
    has one id per line. Raises TooManyError.
    """
    values = _parameters(query)
    if values is None or values[0] is not None:
        return None
    ids = _bulk_ids(body)
    return None if ids is None else _with_endpoint(ids, values[1])


def _bulk_ids(body: bytes) -> list[bytes] | None:
    """The canonical ids of the body. Raises TooManyError before it checks each id."""
    if _LINES(body):
        return _few_enough(body.split())
    if _ARRAY(body):
        return _few_enough(body.translate(None, _WHITE)[1:-1].split(b","))
    if body.lstrip(_WHITE).startswith(b"["):
        try:
            items = orjson.loads(body)
        except orjson.JSONDecodeError:
            return None
        raw = [str(item).encode() if type(item) in (int, str) else b"" for item in _few_enough(items)]
    else:
        raw = _few_enough(body.rstrip(_WHITE).replace(b"\r\n", b"\n").split(b"\n"))
    ids = list(filter(None, map(canonical_id, raw)))
    return ids if ids and len(ids) == len(raw) else None


def _few_enough(items: list[T]) -> list[T]:
    if len(items) > MAX_BULK_IDS:
        raise TooManyError
    return items


def _with_endpoint(ids: T, value: bytes | None) -> tuple[T, bytes | None] | None:
    """Add the endpoint. An empty value means none, because HTML forms send one for an empty field."""
    if not value:
        return ids, None
    endpoint = canonical_endpoint(value)
    return None if endpoint is None else (ids, endpoint)


def _parameters(query: bytes) -> tuple[bytes | None, bytes | None] | None:
    """The decoded values of ``id`` and ``endpoint``; None if one of them occurs twice."""
    found: dict[bytes, bytes] = {}
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        name = _decoded(name)
        if name in (b"id", b"endpoint"):
            if name in found:
                return None
            found[name] = _decoded(value)
    return found.get(b"id"), found.get(b"endpoint")


def _decoded(text: bytes) -> bytes:
    text = text.replace(b"+", b" ")
    if b"%" not in text:
        return text
    # An endpoint often has no other escapes, and the library takes four times as long.
    text = text.replace(b"%3A", b":").replace(b"%2F", b"/")
    return unquote_to_bytes(text) if b"%" in text else text


def canonical_id(value: bytes) -> bytes | None:
    """``007`` → ``7``, ``-0`` → ``0``; None unless it is a decimal integer of signed 64 bits."""
    if _is_plain(value):
        return value
    digits = value[1:] if value[:1] == b"-" else value
    if not digits.isdigit():
        return None
    digits = digits.lstrip(b"0") or b"0"
    if len(digits) > _INT64_DIGITS:
        return None
    number = -int(digits) if value[:1] == b"-" else int(digits)
    if not _INT64_MIN <= number <= _INT64_MAX:
        return None
    return b"%d" % number


def canonical_endpoint(url: bytes) -> bytes | None:
    """The URL; None unless it is absolute http or https with a host and without userinfo."""
    if len(url) > MAX_ENDPOINT_BYTES:
        return None
    found = _ENDPOINT(url)
    if found is None:
        return None
    name, address, port = found.groups()
    if port and not 0 < int(port) <= _MAX_PORT:
        return None
    if address is None:
        return url if len(name) <= _MAX_HOST_BYTES else None
    try:
        ipaddress.IPv6Address(address.decode("ascii"))
    except ValueError:
        return None
    return url
