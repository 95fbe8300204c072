"""Leaders and workers of a store with several shards, whose clock is cranked by hand: tests start, end and
hold up what they like."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from idagg.errors import StoreAwayError, StoreError
from idagg.flush.flusher import Flusher
from idagg.flush.leader import Leadership
from idagg.store.hits import HitStore
from idagg.store.shards import Regime, shard_of, shard_tag
from idagg.store.windows import WindowStore
from idagg.window import Counts, Period, Record, Rollup
from kit.cranked import CrankedClient
from kit.staging import end
from kit.waiting import LIMIT_S, NOON

IDS = range(40)


class Figures:
    """An observer that keeps what is pending now."""

    def __init__(self) -> None:
        self.counts = Counts(0, 0, 0, 0)
        self.dropped = 0

    def sealed(self, record: Record, *, dropped_endpoints: int) -> None:
        self.dropped += dropped_endpoints

    def delivered(self, record: Record, *, sink: str, lag_s: float) -> None: ...

    def rolled(self, *, lag_s: float, gone: int) -> None:
        pass

    def pending(self, counts: Counts) -> None:
        self.counts = counts


class KilledError(Exception):
    pass


class Fate:
    """The process dies before the step after so many, or that step's answer is lost. ``steps``: the scripts
    that count; none: all do."""

    def __init__(self, survives: int, *, fatal: bool, steps: Collection[str] = ()) -> None:
        self.left = survives
        self._fatal = fatal
        self._steps = steps

    def strikes(self, name: str) -> bool:
        if self._steps and name not in self._steps:
            return False
        self.left -= 1
        if self._fatal and self.left < 0:
            raise KilledError
        return self.left == -1


class ShardClient(CrankedClient):
    """Of one shard: it can be away, meets the process' fate, and holds scripts until an event."""

    away: frozenset[str] = frozenset()
    held: Mapping[str, asyncio.Event] = {}

    def __init__(self, url: str, fate: Fate | None = None, *, tag: str = "") -> None:
        super().__init__(url, tag=tag)
        self._fate = fate

    async def script(self, name: str, tag: str, *args: bytes | str | int) -> Any:
        if held := self.held.get(name):
            await held.wait()
        if tag in self.away:
            raise StoreAwayError(f"{tag} is away")
        lost = self._fate and self._fate.strikes(name)
        answer = await super().script(name, tag, *args)
        if lost:
            raise StoreAwayError("the reply was lost")
        return answer


class Process:
    """What a worker has to lead and to flush; its lines go to ``records`` and ``rollups``."""

    def __init__(
        self,
        url: str,
        records: list[Record],
        rollups: list[Rollup],
        *,
        shards: int,
        window_s: int,
        fate: Fate | None,
        deliver: Collection[Period],
    ) -> None:
        home = home_tag(url)
        self._clients = CrankedClient(url, tag=home), ShardClient(url, fate, tag=home)
        self._records, self._rollups = records, rollups
        settings: dict[str, Any] = {"namespace": "t", "window_s": window_s, "exact_limit": 1000}
        bidding = WindowStore(self._clients[0], **settings, shards=shards)
        self.windows = WindowStore(
            self._clients[1],
            **settings,
            shards=shards,
            client_of=lambda tag: ShardClient(url, fate, tag=tag if home else ""),
        )
        self.leadership = Leadership(bidding.election, bidding.election.agreed, patience_s=0)
        self.figures = Figures()
        self.flusher = Flusher(
            *(self.windows, self.leadership),
            broker=None,
            lines=self,
            observer=self.figures,
            rollups=deliver,
        )
        self.bid = asyncio.create_task(self.leadership.run())
        self.flush = asyncio.create_task(self.flusher.run())

    async def rollup(self, rollup: Rollup, *, reason: str | None) -> None:
        self._rollups.append(rollup)

    async def window(self, record: Record, *, reason: str | None) -> None:
        self._records.append(record)

    async def kill(self) -> None:
        await end(self.bid, self.flush)
        if not self.flush.cancelled():
            self.flush.exception()  # of a process that died by itself
        await self.windows.close()
        for client in self._clients:
            await client.close()


def home_tag(url: str) -> str:
    """Of a cluster, clients of different nodes, each with a clock of its own; else one server has all."""
    return shard_tag("t") if "+cluster://" in url else ""


class Stage:
    """A store at noon, workers that count by a regime, and leaders."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = CrankedClient(url, tag=home_tag(url))
        self._clients = {shard_tag("t"): self.client}
        self.records: list[Record] = []
        self.rollups: list[Rollup] = []
        self.processes: list[Process] = []
        self._stores: dict[tuple[Regime, int, int], HitStore] = {}
        self._seq = itertools.count(1)

    def client_of(self, tag: str) -> CrankedClient:
        """A client of the shard's server."""
        if not home_tag(self.url):
            return self.client
        if tag not in self._clients:
            self._clients[tag] = CrankedClient(self.url, tag=tag)
        return self._clients[tag]

    async def at(self, second: float) -> None:
        """So long after noon, on all servers that were asked before."""
        for client in self._clients.values():
            await client.at(NOON + second)

    async def start(
        self,
        shards: int,
        *,
        window_s: int = 60,
        fate: Fate | None = None,
        deliver: Collection[Period] = (),
    ) -> Process:
        """The leader from now on."""
        await self.kill()
        await self.client.command("DEL", "{t:0}:lock")
        process = Process(
            *(self.url, self.records, self.rollups),
            shards=shards,
            window_s=window_s,
            fate=fate,
            deliver=deliver,
        )
        self.processes.append(process)
        async with asyncio.timeout(LIMIT_S):
            await process.leadership.answered.wait()
        return process

    async def add(
        self,
        regime: Regime,
        ids: Iterable[int] = IDS,
        *,
        window_s: int = 60,
        endpoints: Iterable[bytes] = (),
    ) -> dict[int, StoreError]:
        """Count as a worker of this regime does; returns by shard why it did not."""
        batches: dict[int, list[bytes]] = {}
        for number in ids:
            identity = b"%d" % number
            batches.setdefault(shard_of(identity, regime.shards), []).append(identity)
        failed: dict[int, StoreError] = {}
        for shard, batch in batches.items():
            known = regime, shard, window_s
            if known not in self._stores:
                self._stores[known] = HitStore(
                    self.client_of(shard_tag("t", shard)),
                    namespace="t",
                    shard=shard,
                    regime=regime,
                    window_s=window_s,
                    exact_limit=1000,
                    endpoint_limit=5,
                )
            try:
                await self._stores[known].add(next(self._seq), batch, list(endpoints))
            except StoreError as error:
                failed[shard] = error
        return failed

    async def counted(self, regime: Regime, ids: Iterable[int] = IDS, **options: Any) -> None:
        """As soon as the leader has told all shards."""
        async with asyncio.timeout(LIMIT_S):
            left = list(ids)
            while failed := await self.add(regime, left, **options):
                left = [number for number in left if shard_of(b"%d" % number, regime.shards) in failed]
                await asyncio.sleep(0.01)

    @property
    def told(self) -> list[tuple[int, int, int]]:
        """Start after noon, unique ids and hits of what was delivered, in its order."""
        return [(record.start_s - NOON, record.unique_ids, record.hits) for record in self.records]

    async def left(self) -> set[str]:
        """Kinds of keys with something that is not delivered."""
        keys = [key.decode().split(":") for key in await self.client.command("KEYS", "{t:*")]
        return {key[2] for key in keys} & {"open", "parts", "part", "deliveries", "record"}

    async def kill(self) -> None:
        while self.processes:
            await self.processes.pop().kill()

    async def begin_anew(self) -> None:
        await self.kill()
        await self.client.command("FLUSHALL")
        self._stores.clear()
        self.records.clear()
        self.rollups.clear()

    async def close(self) -> None:
        await self.kill()
        for client in self._clients.values():
            await client.close()
