"""Where the store is: what a URL says. Nothing is dialled here.

URLs of one server are read as redis-py reads them (a test compares the two). That library would take 9 MB of
each process for these few lines. It has no URLs of groups, so these are split here into one URL for each
host:

    redis[s]+sentinel://[USER:PASSWORD@]HOST[:26379],HOST…/SERVICE[/DB]
    redis[s]+cluster://[USER:PASSWORD@]HOST[:6379],HOST…
"""

from __future__ import annotations

import contextlib
import re
import ssl
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from idagg.errors import UnfitError
from idagg.store import tls

Kind = Literal["server", "sentinel", "cluster"]

# What may stand in the query: the rest could undo our time limits, or be refused late.
_LOGIN = "db|username|password"
_TLS = "|".join(sorted(tls.OPTIONS))
_SENTINEL_LOGIN = {"sentinel_username": "username", "sentinel_password": "password"}
_GROUP_URL = re.compile(r"(rediss?)\+(sentinel|cluster)://(?:([^/?#]*)@)?([^/?#@]+)(/[^?#]*)?(?:\?([^#]*))?")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::([0-9]{1,5}))?", re.ASCII)
_PORTS: dict[Kind, int] = {"server": 6379, "sentinel": 26379, "cluster": 6379}


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
        """Raises ValueError; OSError where a file that it names cannot be read."""
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ValueError("not a URL of this kind")
        given = dict(reversed(parse_qsl(parts.query)))  # of two alike, the first
        login = (
            unquote(parts.username or "") or given.get("username"),
            unquote(parts.password or "") or given.get("password"),
        )
        database = int(given.get("db", 0))
        if parts.scheme == "unix":
            return cls(unquote(parts.path), "", 0, None, *login, database)
        if "db" not in given and (place := unquote(parts.path).strip("/")):
            if not place.isdecimal():
                raise ValueError("the path of the URL is no database")
            database = int(place)
        return cls(
            None,
            unquote(parts.hostname or "localhost"),
            parts.port or 6379,
            tls.context(given) if parts.scheme == "rediss" else None,
            *login,
            database,
        )

    @property
    def shown(self) -> str:
        """As ``shown`` shows a URL."""
        if self.path is not None:
            return self.path
        host = f"[{self.host}]" if ":" in self.host else self.host
        database = f"/{self.database}" if self.database else ""
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}{database}"


class Place(NamedTuple):
    """What a URL says of the store.

    ``seeds`` are the servers that know where the others are: sentinels, nodes of the cluster; or the one
    server. ``node`` is what the servers with data have in common: of a group, without their host and port.
    """

    kind: Kind
    seeds: tuple[Address, ...]
    node: Address
    service: str

    @classmethod
    def parse(cls, url: str) -> Place:
        """Raises ValueError (UnfitError, where it says more), OSError; as ``Address.parse``."""
        if kind_of(url) == "server":
            address = Address.parse(url)
            return cls("server", (address,), address, "")
        seeds, node, service = _urls(url)
        return cls(kind_of(url), tuple(map(Address.parse, seeds)), Address.parse(node), service)


def kind_of(url: str) -> Kind:
    match url.partition("://")[0].partition("+")[2]:
        case "sentinel":
            return "sentinel"
        case "cluster":
            return "cluster"
    return "server"


def default_shards(url: str | None) -> int:
    """How many shards a namespace has where nobody says it: several for each master of a small cluster."""
    return 16 if url and kind_of(url) == "cluster" else 1


def shown(url: str) -> str:
    """The URL without what is secret in it."""
    if group := _GROUP_URL.fullmatch(url):
        scheme, kind, _, hosts, path, _ = group.groups()
        return f"{scheme}+{kind}://{hosts}{path or ''}"
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    return f"{parts.scheme}://{parts.hostname or 'localhost'}:{parts.port or 6379}{parts.path}"


def check(url: str) -> None:
    """Raises ValueError for what could never be connected to; UnfitError, where it can say why."""
    scheme, _, rest = url.partition("://")
    allowed = "|".join([_LOGIN] + [_TLS] * scheme.startswith("rediss"))
    if kind_of(url) == "sentinel":
        allowed = "|".join([allowed, *_SENTINEL_LOGIN])
    names = {name for name, _ in parse_qsl(rest.partition("?")[2].partition("#")[0], keep_blank_values=True)}
    for name in names:
        if not re.fullmatch(allowed, name):
            raise ValueError("not in the query of this kind of URL")
    with contextlib.suppress(OSError):  # of a file that may be there when it is needed
        Place.parse(url)


def _urls(url: str) -> tuple[list[str], str, str]:
    """Of a group: the seeds' URLs, the nodes', and the service's name."""
    match = _GROUP_URL.fullmatch(url)
    if not match or re.search(r"\s", url):
        raise ValueError("not a URL of this kind")
    scheme, kind, login, hosts, path, query = match.groups()
    service, _, database = (path or "").strip("/").partition("/")
    pairs = parse_qsl(query or "", keep_blank_values=True)
    if kind == "cluster" and (service not in ("", "0") or database or dict(pairs).get("db", "0") != "0"):
        raise UnfitError("a cluster has the database 0 alone: leave out what follows its hosts")
    if kind == "sentinel" and not service:
        raise UnfitError("it needs the name of the service after its hosts, as in sentinel.conf: /mymaster")
    if database and not database.isdecimal():
        raise ValueError("not a database")

    def one(login: str | None, host: str, database: str, query: list[tuple[str, str]]) -> str:
        return f"{scheme}://{login + '@' if login else ''}{host}/{database}?{urlencode(query)}"

    options = [(name, value) for name, value in pairs if name in tls.OPTIONS]
    theirs = [(name, value) for name, value in pairs if name not in _SENTINEL_LOGIN]
    ours = [(_SENTINEL_LOGIN[name], value) for name, value in pairs if name in _SENTINEL_LOGIN]
    seeds = []
    for host in hosts.split(","):
        found = _HOST.fullmatch(host)
        if not found or (found[2] and not 0 < int(found[2]) < 65536):
            raise ValueError("not a host")
        port = found[2] or _PORTS["sentinel" if kind == "sentinel" else "cluster"]
        seeds.append(
            one(None, f"{found[1]}:{port}", "", options + ours)
            if kind == "sentinel"
            else one(login, f"{found[1]}:{port}", "", theirs)
        )
    return seeds, one(login, "node", database, theirs), unquote(service)
