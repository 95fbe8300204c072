"""Parsers of an endpoint's and a proxy's URL. Pure.

The patterns are as strict as the API's own: no byte of an endpoint can end a line of the request.
"""

from __future__ import annotations

import base64
import dataclasses
import re
from urllib.parse import unquote_to_bytes

_URL = re.compile(
    r"(https?)://(?:((?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?)|\[([0-9a-f:.]+)\])(?::([0-9]{0,5}))?"
    r"((?:[/?#][!-~]*)?)",
    re.IGNORECASE | re.ASCII,
)
_PROXY = re.compile(
    r"http://(?:([^\s:@/]*)(?::([^\s@/]*))?@)?(?:([A-Za-z0-9._-]+)|\[([0-9A-Fa-f:.]+)\]):([0-9]{1,5})/?"
)


@dataclasses.dataclass(frozen=True)
class Target:
    """The parts of an endpoint. ``host`` is as it was written, but in lower case."""

    is_tls: bool
    host: str
    port: int
    path: bytes  # and query

    @classmethod
    def parse(cls, endpoint: str) -> Target:
        """Parse an endpoint. Raises ValueError for a form that the API does not accept."""
        if not (found := _URL.fullmatch(endpoint)):
            raise ValueError("not an absolute http or https URL")
        scheme, name, literal, port, path = found.groups()
        is_tls = scheme.lower() == "https"
        path = path.partition("#")[0]
        return cls(
            is_tls=is_tls,
            host=(name or literal).lower(),
            port=_port(port) if port else 443 if is_tls else 80,
            path=(path if path.startswith("/") else f"/{path}").encode(),
        )

    def with_count(self, count: int) -> Target:
        """The same target, byte for byte, with ``count`` appended to the query."""
        joint = b"" if self.path.endswith(b"?") else b"&" if b"?" in self.path else b"?"
        return dataclasses.replace(self, path=b"%b%bcount=%d" % (self.path, joint, count))

    @property
    def authority(self) -> bytes:
        """The value of the Host field, without the scheme's default port."""
        return self.full_authority.removesuffix(b":443" if self.is_tls else b":80")

    @property
    def full_authority(self) -> bytes:
        return (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}").encode()


@dataclasses.dataclass(frozen=True)
class Proxy:
    """An HTTP proxy and the Basic credentials for it."""

    host: str
    port: int
    credentials: bytes | None = dataclasses.field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """Parse ``http://[user:pass@]host:port``. Raises ValueError."""
        if not (found := _PROXY.fullmatch(url)):
            raise ValueError("not http://[user:pass@]host:port")
        user, password, name, literal, port = found.groups()
        both = None if user is None else f"{user}:{password or ''}"
        return cls(name or literal, _port(port), None if both is None else unquote_to_bytes(both))

    @property
    def field(self) -> bytes:
        if self.credentials is None:
            return b""
        return b"Proxy-Authorization: Basic %b\r\n" % base64.b64encode(self.credentials)


def _port(digits: str) -> int:
    if not 0 < (port := int(digits)) <= 65_535:
        raise ValueError("not a port")
    return port
