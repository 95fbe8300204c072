"""What a valid request is. Both doors ask here, so that they cannot differ.

The input is the raw query, as it came over the wire, so that nothing is decoded twice or in two ways.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from urllib.parse import unquote_to_bytes, urlsplit

PATH = "/api/verve/accept"

MAX_ENDPOINT_BYTES = 2048
_MAX_HOST_BYTES = 253  # RFC 1035, less the two bytes that the wire form adds
_INT64_DIGITS = 19
_ZERO = ord("0")
_VISIBLE = bytes(range(0x21, 0x7F))
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
# A DNS name as resolvers take it: letters, digits, hyphens, underscores (common, though not legal) and dots.
_HOST = re.compile(rb"[0-9A-Za-z_-]{1,63}(\.[0-9A-Za-z_-]{1,63})*\.?")
# RFC 3986's characters: no space, control, quote or bracket but those around an IPv6 address.
_URL = re.compile(rb"[!#-;=?-Z\[\]_a-z~]+")

Hit = tuple[bytes, bytes | None]


def parse(query: bytes) -> Hit | None:
    """The id, canonical, and the endpoint or None; None for what is answered 400.

    Unknown parameters are ignored; ``id`` and ``endpoint`` may stand once.
    """
    if query.translate(None, _VISIBLE):
        return None
    ids: bytes | None = None
    endpoint: bytes | None = None
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        if name == b"id":
            if ids is not None:
                return None
            ids = canonical_id(value)
            if ids is None:
                return None
        elif name == b"endpoint":
            if endpoint is not None:
                return None
            endpoint = canonical_endpoint(value)
            if endpoint is None:
                return None
        elif b"%" in name and unquote_to_bytes(name) in (b"id", b"endpoint"):
            # Another reader of this URL would see one of the two a second time.
            return None
    if ids is None:
        return None
    return ids, endpoint


def is_canonical(value: bytes) -> bool:
    """Whether this is an id as it stands: no sign, no zero in front, and too short to leave 64 bits."""
    return value.isdigit() and len(value) < _INT64_DIGITS and value[0] != _ZERO


def canonical_id(value: bytes) -> bytes | None:
    """``007`` → ``7``, ``-0`` → ``0``; None unless it is a decimal integer of signed 64 bits."""
    if is_canonical(value):
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


@functools.lru_cache(maxsize=1024)  # most callers send one of a few
def canonical_endpoint(value: bytes) -> bytes | None:
    """The percent-decoded URL; None unless it is absolute http or https with a host and without userinfo."""
    url = unquote_to_bytes(value)
    if not 0 < len(url) <= MAX_ENDPOINT_BYTES or not _URL.fullmatch(url):
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # a bad port or bracket
        return None
    if parts.scheme not in (b"http", b"https") or b"@" in parts.netloc or port == 0:
        return None
    return url if _is_host(parts.netloc) else None


def _is_host(netloc: bytes) -> bool:
    """A DNS name, an IPv4 address or a bracketed IPv6 address; the port has been looked at."""
    if not netloc.startswith(b"["):
        host = netloc.partition(b":")[0]
        return len(host) <= _MAX_HOST_BYTES and _HOST.fullmatch(host) is not None
    address, _, rest = netloc[1:].partition(b"]")
    if b"%" in address or rest[:1] not in (b"", b":"):
        return False
    try:
        ipaddress.IPv6Address(address.decode("ascii"))
    except ValueError:
        return False
    return True
