"""Who may read the admin listener: its names, against DNS rebinding, and the operator's tokens."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import socket
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from aiohttp import web

from idagg.run.problems import Handler, ProblemError
from idagg.settings import Settings

# Load balancers and health checks ask for these; they tell no count. To others than readers, no cause either.
OPEN_PATHS = frozenset({"/livez", "/readyz"})
_METRICS = "/metrics"
# Names under which clients put a token in a query, where logs and browser histories would keep it.
_IN_QUERY = frozenset({"token", "access_token", "admin_token", "api_key", "apikey", "auth", "authorization"})
_HOW = "send Authorization: Bearer TOKEN, or Basic with the token as the password"


def name_of(host: str) -> str | None:
    """The name or address in a Host field, without port; None if it has none."""
    try:
        parts = urlsplit(f"//{host}")
        name = parts.hostname
        _ = parts.port  # raises
    except ValueError:
        return None
    return name.rstrip(".") if name and parts.netloc == host and "@" not in host else None


def is_ours(name: str, ours: Collection[str]) -> bool:
    """Whether a client may address this listener so.

    A page of another site that has its own name point here (DNS rebinding) sends that name. An address cannot
    be pointed elsewhere.
    """
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in ours
    return True


def token_of(authorization: str) -> str | None:
    """The token in an Authorization field; None if it has none."""
    scheme, _, value = authorization.strip().partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value
    if scheme.lower() != "basic":
        return None
    try:
        pair = base64.b64decode(value, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    return pair.partition(":")[2]


def is_token(given: str, tokens: str) -> bool:
    """Compare with all tokens, in a time that tells nothing about them."""
    sent = given.encode(errors="surrogateescape")  # aiohttp's way for bytes that are not UTF-8
    return any([hmac.compare_digest(sent, token.encode()) for token in tokens.split(",")])  # noqa: C419  a generator would stop at the first that is equal


class Access:
    """The check of each request. ``settings`` are those in force now, which a reload changes."""

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._machine: frozenset[str] = frozenset()  # names of this machine, once they are needed

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in OPEN_PATHS:
            await self._check(request)
        return await handler(request)

    async def is_reader(self, request: web.Request) -> bool:
        """Whether the client of an open path may read what is not open."""
        try:
            await self._check(request)
        except ProblemError:
            return False
        return True

    async def _check(self, request: web.Request) -> None:
        """Raises ProblemError."""
        await self._check_host(request.headers.getall("Host", []))
        if named := _IN_QUERY & {name.lower() for name in request.query}:
            raise ProblemError(
                400,
                f"a token does not belong in a query, where logs keep it: {_HOW}; replace this token",
                parameter=min(named),
            )
        self._check_token(request)

    async def _check_host(self, hosts: list[str]) -> None:
        name = name_of(hosts[0]) if len(hosts) == 1 else None
        if name is None:
            raise ProblemError(400, "the request has no Host field that can be read, or several")
        settings = self._settings()
        given = {"localhost", settings.admin_host.lower().rstrip("."), *map(str.lower, settings.admin_name)}
        if not is_ours(name, given) and name not in await self._names():
            raise ProblemError(
                403,
                "this admin listener has another name: address it by an address or a name of this machine, "
                "or give it this name with --admin-name",
            )

    async def _names(self) -> frozenset[str]:
        if not self._machine:
            host = socket.gethostname()
            full = await asyncio.to_thread(socket.getfqdn, host)  # asks name servers, which takes time
            self._machine = frozenset(name.lower().rstrip(".") for name in (host, host.split(".")[0], full))
        return self._machine

    def _check_token(self, request: web.Request) -> None:
        settings = self._settings()
        tokens = settings.admin_token
        if tokens is None or (request.path == _METRICS and settings.admin_metrics == "open"):
            return
        given = request.headers.getall("Authorization", [])
        token = token_of(given[0]) if len(given) == 1 else None
        if token is None:
            raise ProblemError(401, f"this needs the token of --admin-token: {_HOW}")
        if not is_token(token, tokens):
            raise ProblemError(401, f"the token is none of --admin-token: {_HOW}")
