"""The public listener on a socket of its own, before any store."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import math
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Literal

from idagg.accept.admission import Admission
from idagg.accept.commit import Hits
from idagg.accept.connection import EXCHANGE_S
from idagg.accept.fallback import Fallback, accept_routes, health_routes
from idagg.accept.fast_path import FastPath
from idagg.accept.listener import Listener
from idagg.accept.routing import Router
from idagg.store.client import Client
from idagg.store.hits import MAX_BATCH, HitStore
from idagg.store.shards import Regime
from kit.fakes import Batches
from kit.waiting import LIMIT_S
from kit.wire import Wire

PathName = Literal["fast", "fallback"]


@dataclasses.dataclass
class OpenListener:
    router: Router
    public: FastPath
    port: int
    tally: collections.Counter[int]
    wires: list[Wire] = dataclasses.field(default_factory=list)

    async def connect(self) -> Wire:
        """A new connection; closed with the listener, if it is not before."""
        wire = Wire()
        self.wires.append(wire)
        await asyncio.get_running_loop().sock_connect(wire.socket, ("127.0.0.1", self.port))
        return wire


@contextlib.asynccontextmanager
async def open_listener(
    hits: Hits,
    *,
    more: Sequence[Hits] = (),
    path: PathName = "fast",
    deadline_s: float = 20.0,
    max_waiting: int = 65_536,
    keepalive_s: int = 75,
    max_age_s: float = math.inf,
    cors_origin: str | None = None,
) -> AsyncIterator[OpenListener]:
    """``path`` says what answers accept requests: the fast path, as clients find it, or the fallback app
    alone. ``more`` are the stores of the shards behind the first."""
    loop = asyncio.get_running_loop()
    tally = collections.Counter[int]()
    shards = [hits, *more]
    router = Router(
        lambda shard, regime: shards[shard],
        Regime(1, len(shards)),
        Batches(),
        tally,
        deadline_s=deadline_s,
        max_batch=MAX_BATCH,
        max_waiting=max_waiting,
        now=loop.time,
    )
    admission = Admission(router, tally)
    routes = [*accept_routes(admission, cors_origin), *health_routes(lambda: router.commits[0].trouble)]
    fallback = Fallback(routes, tally, cors_origin=cors_origin)
    await fallback.start()
    public = FastPath(
        admission if path == "fast" else None,
        fallback,
        epoch_s=0,
        deadline_s=deadline_s,
        keepalive_s=keepalive_s,
        max_age_s=max_age_s,
        cors_origin=cors_origin,
    )
    running = asyncio.create_task(router.run())
    server = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port = server.getsockname()[1]
    accepting = Listener(server, public)
    try:
        yield (listener := OpenListener(router, public, port, tally))
    finally:
        for wire in listener.wires:
            wire.close()
        await accepting.close()
        if not await _empty(public):
            await public.close(EXCHANGE_S)  # it gives those who are left time to read
        await fallback.close()
        router.stop()
        await running


async def _empty(public: FastPath) -> bool:
    """Whether all connections have ended with their clients, in a moment."""
    for _ in range(20):
        if not public.connections:
            return True
        await asyncio.sleep(0.001)
    return False


@contextlib.asynccontextmanager
async def open_listener_before(
    url: str, path: PathName = "fast", *, shards: int = 1
) -> AsyncIterator[OpenListener]:
    """A listener before the store at ``url``, which is emptied first. Each of several shards is a namespace,
    since nobody leads who could make them one."""
    await forget(url)
    async with contextlib.AsyncExitStack() as stack:
        stores = []
        for shard in range(shards):
            stack.push_async_callback((link := Client(url)).close)
            stores.append(HitStore(link, namespace=f"t{shard}", window_s=3600, exact_limit=10**6))
        async with open_listener(stores[0], more=stores[1:], path=path) as listener:
            yield listener


async def forget(url: str) -> None:
    """Empty the store."""
    client = Client(url, timeout_s=LIMIT_S)
    await client.command("FLUSHALL")
    await client.close()


async def counted(url: str) -> set[bytes]:
    """The ids in the store."""
    client = Client(url, timeout_s=LIMIT_S)
    try:
        return await stored(client)
    finally:
        await client.close()


async def stored(client: Client) -> set[bytes]:
    """The same, by a client that stays open."""
    found: set[bytes] = set()
    for key in await client.command("KEYS", "*:ids"):
        found |= set(await client.command("SMEMBERS", key))
    return found
