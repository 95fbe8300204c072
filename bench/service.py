"""What is measured, and the store that it has: idagg, or another server, each in a folder on a real disk."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import math
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import redis

from idagg.store.client import Client
from idagg.store.hits import MAX_BATCH, HitStore
from idagg.store.shards import ONE_SHARD, Regime, shard_of
from kit.servers import RedisServer
from kit.serving import Serving

# How Redis keeps its log.
ALWAYS = {"appendonly": "yes", "appendfsync": "always"}
EVERY_SECOND = {"appendonly": "yes", "appendfsync": "everysec"}
NO_LOG = {"appendonly": "no"}

ACCEPT = "/api/verve/accept?id=1"
_EXACT_LIMIT = 10_000_000
_LAG = "idagg_flush_lag_seconds_sum"
# Every server here keeps its ids in sets.
_COUNT = """
local ids = 0
for _, key in ipairs(redis.call('KEYS', '*ids*')) do
  if redis.call('TYPE', key).ok == 'set' then
    ids = ids + redis.call('SCARD', key)
  end
end
return ids
"""


class Store(RedisServer):
    def __init__(self, parent: Path, options: Mapping[str, str] = ALWAYS, *, tcp: bool = False) -> None:
        self.parent = parent
        super().__init__("redis", tcp=tcp, **options)

    def ask(self, *command: str | int) -> Any:
        with redis.Redis.from_url(self.url, decode_responses=True) as client:
            return client.execute_command(*command)

    def ids(self) -> int:
        return int(self.ask("EVAL", _COUNT, 0))

    def used_memory(self) -> int:
        return int(self.ask("INFO", "memory")["used_memory"])


class Idagg(Serving):
    """``first`` is what it must answer for its start to be over: by default what counts no id."""

    def __init__(self, parent: Path, *flags: str, store: Store | None, window_s: int, first: str) -> None:
        url = ("--redis-url", store.url) if store else ()
        self.parent = parent
        super().__init__(*url, *flags, window=window_s)
        self._store = store
        self._first = first
        self.start_s = math.inf  # that it took

    def start(self) -> None:
        began_s = time.monotonic()
        super().start()
        self.start_s = time.monotonic() - began_s

    @property
    def redis(self) -> Store:
        assert self._store is not None, "it has a store of its own"
        return self._store

    @property
    def running(self) -> Running:
        return Running(self.pid, self.port, self.start_s, self._store, idagg=self)

    def lag_ms(self) -> float:
        """From windows' ends until their deliveries, in all."""
        found = re.search(rf"^{_LAG}(?:{{.*}})? (\S+)$", _get(self.admin_port, "/metrics")[1], re.MULTILINE)
        return float(found[1]) * 1e3 if found else 0

    async def fill(self, first_id: int, count: int, *, shards: int = 1) -> set[int]:
        """Put ids in faster than requests could; returns the starts of the windows that they are in."""
        starts = set()
        regime = ONE_SHARD if shards == 1 else Regime(1, shards)
        async with contextlib.AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(self._hits(shard, regime)) for shard in range(shards)]
            step = MAX_BATCH * shards // 2 if shards > 1 else MAX_BATCH  # no shard gets twice its share
            for seq, done in enumerate(range(0, count, step), 1):
                ids = [b"%d" % (first_id + number) for number in range(done, min(done + step, count))]
                for shard, hits in enumerate(stores):
                    its = [one for one in ids if shard_of(one, shards) == shard]
                    starts.add((await hits.add(seq, its)).start_s)
        return starts

    async def put(self, urls: Sequence[bytes], *, at_a_time: int = MAX_BATCH, pause_s: float = 0) -> None:
        """Have them called at the end of the window that is open now."""
        async with self._hits() as hits:
            for seq, first in enumerate(range(0, len(urls), at_a_time), 1):
                await hits.add(seq, [b"1"], urls[first : first + at_a_time])
                await asyncio.sleep(pause_s)

    @contextlib.asynccontextmanager
    async def _hits(self, shard: int = 0, regime: Regime = ONE_SHARD) -> AsyncIterator[HitStore]:
        """As a worker has them."""
        client = Client(self.redis.url)
        try:
            yield HitStore(
                client,
                namespace="idagg",
                shard=shard,
                regime=regime,
                window_s=self.window,
                exact_limit=_EXACT_LIMIT,
            )
        finally:
            await client.close()

    def _environment(self) -> dict[str, str]:
        return {}  # temporary files where they are by default

    def _answers(self) -> bool:
        return super()._answers() and _get(self.port, self._first)[0] == 200

    def _tell(self) -> None:
        """What it says is in its folder."""


@dataclasses.dataclass(frozen=True)
class Running:
    """A server that answers, ``start_s`` after its start. Where there is a load balancer, the port is its."""

    pid: int
    port: int
    start_s: float
    store: Store | None = None
    balancer: int | None = None
    idagg: Idagg | None = None

    def stored(self) -> int | None:
        """Ids in the store, and those of windows that idagg has sealed meanwhile; None without a store."""
        sealed = sum(self.idagg.counts().values()) if self.idagg else 0
        return None if self.store is None else self.store.ids() + sealed


@contextlib.contextmanager
def idagg(
    parent: Path,
    *flags: str,
    window_s: int = 3600,
    workers: int = 1,
    redis_options: Mapping[str, str] | None = ALWAYS,
    first: str = "/readyz",
) -> Iterator[Idagg]:
    """Without options for Redis it has its own store."""
    with contextlib.ExitStack() as stack:
        store = None if redis_options is None else stack.enter_context(Store(parent, redis_options))
        flags = ("--workers", str(workers), *flags)
        yield stack.enter_context(Idagg(parent, *flags, store=store, window_s=window_s, first=first))


def answers(port: int, path: str = ACCEPT) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return _get(port, path)[0] == 200
    return False


def _get(port: int, path: str) -> tuple[int, str]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
