"""The supervisor's own view of the store, for what the admin listener is asked.

Readers must not hurt the supervisor, whose event loop judges the workers: each command has a time limit, and
only some readers are served at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol

from idagg.errors import StoreAwayError
from idagg.read.counts import Estimated
from idagg.run import stores
from idagg.settings import Settings
from idagg.store.client import Client
from idagg.store.kept import Kept
from idagg.store.shards import shard_tag
from idagg.store.windows import WindowStore

# Of one command. Browsers and scripts wait longer.
TIMEOUT_S = 2.0
# Readers served at a time, and those that may wait for them. Others are answered 503.
AT_ONCE = 4
MAX_WAITING = 32


class Asked(Protocol):
    """The supervisor, as this needs it."""

    @property
    def settings(self) -> Settings: ...

    @property
    def store_url(self) -> str:
        """Empty until the embedded store runs."""


class Estimates(Protocol):
    """Estimates of unique ids over ranges."""

    async def estimate(self, from_s: int, to_s: int) -> Estimated: ...


class View(NamedTuple):
    """What can be read of a namespace."""

    kept: Kept
    windows: WindowStore
    home: Client
    shards: int


class Reading:
    """Connects when something is read, and again after settings have changed."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._view: View | None = None
        self._of: tuple[str, Settings] | None = None
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    @contextlib.asynccontextmanager
    async def view(self) -> AsyncIterator[View]:
        """A turn at the store. Raises StoreAwayError if too many wait for one."""
        if self._waiting >= MAX_WAITING:
            raise StoreAwayError(f"{MAX_WAITING} readers wait for their turn: ask again later")
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        try:
            yield await self._present()
        finally:
            self._turns.release()

    async def close(self) -> None:
        if self._view is not None:
            view, self._view = self._view, None
            await view.windows.close()
            await view.home.close()

    async def _present(self) -> View:
        url, settings = self._asked.store_url, self._asked.settings
        if not url:
            raise StoreAwayError("the embedded store has not started yet: nothing can be read for a moment")
        if self._view is None or self._of != (url, settings):
            await self.close()
            in_force = settings.in_force()
            servers = stores.servers(url, in_force)
            tag, shards = shard_tag(settings.namespace), stores.shards(in_force)
            home = servers.client(tag, timeout_s=TIMEOUT_S)
            windows = WindowStore(
                home,
                namespace=settings.namespace,
                window_s=settings.window,
                exact_limit=settings.exact_limit,
                shards=shards,
                client_of=lambda tag: servers.client(tag, timeout_s=TIMEOUT_S),
            )
            self._view, self._of = View(Kept(home, tag), windows, home, shards), (url, settings)
        return self._view
