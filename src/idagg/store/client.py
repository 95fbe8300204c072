"""Connections to Redis, with the client library's defaults set on purpose, and its errors in our words."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.resources
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,  # noqa: A004  the library's own name; the builtin is not used here
    MaxConnectionsError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TimeoutError,  # noqa: A004  likewise
)

from idagg.errors import FencedError, StoreAwayError, StoreError, StoreRefusedError

_LUA = importlib.resources.files("idagg.store") / "lua"
# Scripts of the leader: fenced by its epoch.
_FENCED = frozenset({"seal", "mark", "called"})


def source(name: str) -> str:
    """A script whole, its prelude included."""
    parts = ["prelude", "fence", name] if name in _FENCED else ["prelude", name]
    return "\n".join((_LUA / f"{part}.lua").read_text(encoding="utf-8") for part in parts)


def address(url: str) -> str:
    """The URL without what is secret in it."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    return f"{parts.scheme}://{parts.hostname or 'localhost'}:{parts.port or 6379}{parts.path}"


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
        self._source = source
        self._sha: dict[str, str] = {}
        self._text: dict[str, str] = {}

    async def script(self, name: str, tag: str, *args: bytes | str | int) -> Any:
        """Run ``store/lua/NAME.lua`` on the shard TAG.

        Raises StoreAwayError where the outcome is unknown, StoreRefusedError where nothing was done.
        """
        try:
            sha = self._sha.get(name)
            if sha is None:
                sha = self._load(name)
            try:
                return await self._redis.evalsha(sha, 1, tag, *args)
            except NoScriptError:
                return await self._redis.eval(self._text[name], 1, tag, *args)
        except (RedisError, OSError) as error:
            raise self.in_our_words(error) from error

    async def command(self, *args: bytes | str | int) -> Any:
        """Run one plain command; errors as for ``script``."""
        try:
            return await self._redis.execute_command(*args)  # type: ignore[no-untyped-call]  # untyped there
        except (RedisError, OSError) as error:
            raise self.in_our_words(error) from error

    async def close(self) -> None:
        await self._redis.aclose()

    def _load(self, name: str) -> str:
        self._text[name] = text = self._source(name)
        # EVALSHA's name for a script; nothing is protected by it.
        self._sha[name] = sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        return sha

    def in_our_words(self, error: Exception) -> StoreError:
        text = str(error)
        if isinstance(error, AuthenticationError) or text.startswith(("NOAUTH", "WRONGPASS")):
            return StoreAwayError(f"Redis at {self.address} refuses the password or user: {text}")
        if isinstance(error, BusyLoadingError):
            return StoreAwayError(f"Redis at {self.address} is still loading its data")
        if isinstance(error, MaxConnectionsError):
            return StoreAwayError(f"Redis at {self.address}: {text}")
        if isinstance(error, TimeoutError | asyncio.TimeoutError):
            return StoreAwayError(f"Redis at {self.address} did not answer in time")
        if isinstance(error, ConnectionError | OSError):
            return StoreAwayError(f"Redis at {self.address} cannot be reached: {text}")
        if isinstance(error, ReadOnlyError) or text.startswith(("MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN")):
            return StoreAwayError(f"Redis at {self.address} takes no writes now: {text}")
        if isinstance(error, OutOfMemoryError):
            return StoreRefusedError(f"Redis at {self.address} is out of memory (maxmemory)")
        if text.startswith("FENCED"):
            return FencedError(f"another leader has taken over (epoch {text.removeprefix('FENCED ')})")
        if text.startswith("LENGTH"):
            return StoreRefusedError(
                f"Redis at {self.address} counts in windows of {text.removeprefix('LENGTH ')} s for another "
                "instance: give this one the same --window, or a --namespace of its own"
            )
        return StoreRefusedError(f"Redis at {self.address} refused: {text}")
