"""Connections to Redis, with the client library's defaults set on purpose, and its errors in our words."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.resources
from typing import Any, Protocol
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,  # noqa: A004  the library's own name; the builtin is not used here
    InvalidResponse,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TimeoutError,  # noqa: A004  likewise
)

from idagg.errors import (
    FencedError,
    StoreAwayError,
    StoreError,
    StoreRefusedError,
    UnknownRefusalError,
    WrongTypeError,
)

_LUA = importlib.resources.files("idagg.store") / "lua"
# What scripts begin with, after the prelude; the leader's are fenced by its epoch.
_LEADERS = ("damage", "fence")
_OPENINGS = {
    "seal": _LEADERS,
    "mark": _LEADERS,
    "attempts": _LEADERS,
    "called": _LEADERS,
    "aside": _LEADERS,
    "inspect": ("damage",),
}

# Error replies that say "not now"; whether to ask again is the caller's to decide.
_NOT_NOW = {
    "LOADING": "is still loading its data",
    "READONLY": "takes no writes, it is a replica",
    "MASTERDOWN": "takes no writes, its master is down",
    "CLUSTERDOWN": "is part of a cluster that is down",
    "TRYAGAIN": "is part of a cluster that moves its data",
    "NOAUTH": "wants a password",
    "WRONGPASS": "refuses the password or the user",
    "NOPERM": "does not permit this user what is needed",
}
# The library's errors whose text has lost the code that it began with.
_CODES: dict[type[Exception], str] = {
    BusyLoadingError: "LOADING",
    ReadOnlyError: "READONLY",
    OutOfMemoryError: "OOM",
    NoPermissionError: "NOPERM",
    AuthenticationError: "WRONGPASS",
}
# What it makes a plain ConnectionError of, by a part of the text.
_LOST = {"username-password pair": "WRONGPASS", "Authentication required": "NOAUTH"}

# What answers there speaks something else; with what the parser says of it.
NO_REDIS = "what answers does not speak Redis' protocol ({})"


def source(name: str) -> str:
    """A script whole, its prelude included."""
    parts = ("prelude", *_OPENINGS.get(name, ()), name)
    return "\n".join((_LUA / f"{part}.lua").read_text(encoding="utf-8") for part in parts)


@dataclasses.dataclass(frozen=True, slots=True)
class Script:
    text: str
    sha: str  # EVALSHA's name for it

    @classmethod
    def of(cls, text: str) -> Script:
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())

    @classmethod
    @functools.cache
    def load(cls, name: str) -> Script:
        return cls.of(source(name))


def address(url: str) -> str:
    """The URL without what is secret in it."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    return f"{parts.scheme}://{parts.hostname or 'localhost'}:{parts.port or 6379}{parts.path}"


class Scripts(Protocol):
    """What runs scripts: a Client, or a Link."""

    @property
    def address(self) -> str: ...

    async def script(self, name: str, tag: str, *args: bytes | str | int) -> Any: ...


class Client:
    """One Redis server or proxy, and the scripts that run there.

    A command is sent once: the library would re-send one that timed out up to ten times. Callers bound their
    waiting with ``timeout_s`` or by cancelling, which costs the connection and leaves the outcome unknown.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self.address = address(url)
        self._redis: Redis = Redis.from_url(
            url,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            health_check_interval=0,
        )

    async def script(self, name: str, tag: str, *args: bytes | str | int) -> Any:
        """Run ``store/lua/NAME.lua`` on the shard TAG.

        Raises StoreAwayError where the outcome is unknown, StoreRefusedError where nothing was done.
        """
        script = self._script(name)
        try:
            try:
                return await self._redis.evalsha(script.sha, 1, tag, *args)
            except NoScriptError:
                return await self._redis.eval(script.text, 1, tag, *args)
        except (RedisError, OSError) as error:
            raise await explained(await self._took(error), self, name, tag) from error

    async def command(self, *args: bytes | str | int) -> Any:
        """Run one plain command; errors as for ``script``."""
        try:
            return await self._redis.execute_command(*args)  # type: ignore[no-untyped-call]  # untyped there
        except (RedisError, OSError) as error:
            words = await self._took(error)
            if isinstance(words, UnknownRefusalError):
                words = type(words)(f"{words} (to {' '.join(map(str, args[:2]))})")
            raise words from error

    async def close(self) -> None:
        await self._redis.aclose()

    def _script(self, name: str) -> Script:
        return Script.load(name)

    async def _took(self, error: Exception) -> StoreError:
        words = self._in_our_words(error)
        if isinstance(words, StoreAwayError):  # as a replica says, for good: another may be there by now
            await self._redis.connection_pool.disconnect(inuse_connections=False)
        return words

    def _in_our_words(self, error: Exception) -> StoreError:
        if isinstance(error, InvalidResponse):
            return unreachable(self.address, NO_REDIS.format(error))
        code = _CODES.get(type(error)) or next((_LOST[part] for part in _LOST if part in str(error)), None)
        if code is None and isinstance(error, ConnectionError | TimeoutError | OSError):
            return unreachable(self.address, str(error))
        return refusal(self.address, f"{code} {error}" if code else str(error))


def unreachable(where: str, why: str) -> StoreAwayError:
    return StoreAwayError(f"Redis at {where} cannot be reached: {why}")


def refusal(where: str, reply: str) -> StoreError:
    """An error reply, code and all, as the error to raise."""
    if "Error running script" in reply:  # Redis 6.2's, around what a command in the script was answered
        reply = reply.rpartition(": -")[2]
    code, _, rest = reply.partition(" ")
    if "unauthenticated" in rest:  # said in place of NOAUTH to commands of more than ten words
        code = "NOAUTH"
    if code in _NOT_NOW:
        return StoreAwayError(f"Redis at {where} {_NOT_NOW[code]}")
    if code == "OOM":
        return StoreRefusedError(f"Redis at {where} is out of memory (maxmemory)")
    if code == "FENCED":
        return FencedError(f"another leader has taken over (epoch {rest})")
    if code == "SCHEMA":
        return StoreRefusedError(
            f"Redis at {where} holds what another version of idagg wrote (schema {rest}): "
            "run that version here, or give this one a --namespace of its own"
        )
    if code == "DAMAGED":
        return StoreRefusedError(f"Redis at {where} is damaged: {rest}")
    if code == "LENGTH" and rest.isdecimal():
        return StoreRefusedError(
            f"Redis at {where} counts in windows of {rest} s for another instance: "
            "give this one the same --window, or a --namespace of its own"
        )
    unknown = WrongTypeError if code == "WRONGTYPE" else UnknownRefusalError
    return unknown(f"Redis at {where} refused: {reply}")


async def explained(error: StoreError, scripts: Scripts, name: str, tag: str) -> StoreError:
    """A script's error; for a refusal that nothing we know of explains, what is wrong in the store."""
    if isinstance(error, UnknownRefusalError) and name != "inspect":
        found = await scripts.script("inspect", tag)
        if found:
            return StoreRefusedError(f"Redis at {scripts.address} is damaged: {found[0].decode()}")
    return error
