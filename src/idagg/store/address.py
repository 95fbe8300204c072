"""Where the store is: what a URL says. Nothing is dialled here.

The library reads URLs, as its documentation describes them. It is not loaded before there is one to be read.
"""

from __future__ import annotations

import contextlib
import re
import ssl
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

# What may stand in the query, by whether it is TLS: the rest could undo our time limits, or be refused late.
_QUERY = re.compile("db|username|password"), re.compile("db|username|password|ssl_.+")


class Address(NamedTuple):
    """A server to connect to: ``path`` of a Unix socket, or ``host`` and ``port``, perhaps in TLS; and what
    to say first."""

    path: str | None
    host: str
    port: int
    tls: ssl.SSLContext | None
    username: str | None
    password: str | None
    database: int

    @classmethod
    def parse(cls, url: str) -> Address:
        """Raises ValueError, in the library's words; OSError where a file that it names cannot be read."""
        from redis.asyncio.connection import ConnectionPool, SSLConnection, UnixDomainSocketConnection
        from redis.exceptions import RedisError

        try:
            plan = ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]  # untyped there
            tls = plan.ssl_context.get() if isinstance(plan, SSLConnection) else None
        except (RedisError, TypeError) as error:
            raise ValueError(str(error)) from error
        is_unix = isinstance(plan, UnixDomainSocketConnection)
        return cls(
            plan.path if is_unix else None,
            "" if is_unix else plan.host,
            0 if is_unix else plan.port,
            tls,
            plan.username,
            plan.password,
            int(plan.db),
        )


def shown(url: str) -> str:
    """The URL without what is secret in it."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    return f"{parts.scheme}://{parts.hostname or 'localhost'}:{parts.port or 6379}{parts.path}"


def check(url: str) -> None:
    """Raises ValueError for what could never be connected to."""
    parts = urlsplit(url)
    names = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    if any(not _QUERY[parts.scheme == "rediss"].fullmatch(name) for name in names):
        raise ValueError("not in the query of this kind of URL")
    with contextlib.suppress(OSError):  # of a file that may be there when it is needed
        Address.parse(url)
