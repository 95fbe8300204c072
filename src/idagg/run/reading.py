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
from idagg.read.estimate import Estimates
from idagg.run import stores
from idagg.settings import Settings
from idagg.store.client import Client
from idagg.store.kept import Kept
from idagg.store.servers import Servers
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


class View(NamedTuple):
    """What can be read of a namespace."""

    kept: Kept
    windows: WindowStore
    estimates: Estimates


class _Clients:
    """Clients of the shards, each made when it is first asked for."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._made: dict[str, Client] = {}

    def of(self, tag: str) -> Client:
        if tag not in self._made:
            self._made[tag] = self._servers.client(tag, timeout_s=TIMEOUT_S)
        return self._made[tag]

    async def close(self) -> None:
        for client in self._made.values():
            await client.close()


class Reading:
    """Connects when something is read, and again after settings have changed."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._view: View | None = None
        self._clients: _Clients | None = None
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
        clients, self._view, self._clients = self._clients, None, None
        if clients is not None:
            await clients.close()

    async def _present(self) -> View:
        url, settings = self._asked.store_url, self._asked.settings
        if not url:
            raise StoreAwayError("the embedded store has not started yet: nothing can be read for a moment")
        if self._view is None or self._of != (url, settings):
            # No other reader may come between the look above and the assignments below: nothing waits there.
            old, in_force = self._clients, settings.in_force()
            clients = _Clients(stores.servers(url, in_force))
            tag = shard_tag(settings.namespace)
            home = clients.of(tag)
            windows = WindowStore(
                home,
                namespace=settings.namespace,
                window_s=settings.window,
                exact_limit=settings.exact_limit,
                shards=stores.shards(in_force),
                client_of=clients.of,
            )
            estimates = Estimates(home, namespace=settings.namespace, client_of=clients.of)
            self._clients, self._of = clients, (url, settings)
            view = self._view = View(Kept(home, tag), windows, estimates)
            if old is not None:
                await old.close()
            return view
        return self._view
