"""What tests of a leader's work stand on: a store at noon, and processes that lead and are ended."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from idagg.store.client import Client
from idagg.store.hits import HitStore
from idagg.store.parts import complete, parts_of, total
from idagg.store.windows import WindowStore
from kit.cranked import CrankedClient
from kit.waiting import LIMIT_S, NOON


class Mortal(Protocol):
    async def kill(self) -> None: ...


P = TypeVar("P", bound=Mortal)


class StoreStage(Generic[P]):
    """A store at noon, whose clock is cranked, a log file's path, and as many processes as a test starts."""

    def __init__(self, url: str, path: Path) -> None:
        self.url = url
        self.path = path
        self.client = CrankedClient(url)
        self.windows = window_store(self.client)
        self.hits = self.worker()
        self.processes: list[P] = []
        self._seq = itertools.count(1)

    def worker(self, *, endpoint_limit: int = 100) -> HitStore:
        return HitStore(
            self.client, namespace="t", window_s=60, exact_limit=1000, endpoint_limit=endpoint_limit
        )

    async def at(self, second: float) -> None:
        """So long after noon."""
        await self.client.at(NOON + second)

    async def add(self, *ids: int, endpoints: list[bytes] | None = None) -> None:
        await self.hits.add(next(self._seq), [b"%d" % number for number in ids], endpoints or ())

    async def lease_runs_out(self) -> None:
        await self.client.command("DEL", "{t:0}:lock")

    async def close(self) -> None:
        for process in self.processes:
            await process.kill()
        await self.client.close()


def window_store(client: Client) -> WindowStore:
    return WindowStore(client, namespace="t", window_s=60, exact_limit=1000)


async def end(*tasks: asyncio.Task[None]) -> None:
    """Cancel them, again and again: Python 3.11's wait_for, in which a command is sent, loses some."""
    async with asyncio.timeout(LIMIT_S):
        while pending := [task for task in tasks if not task.done()]:
            for task in pending:
                task.cancel()
            await asyncio.wait(pending, timeout=0.01)


async def seal(windows: WindowStore, epoch: int) -> int:
    """Do what a leader with one shard does: seal the oldest window that has ended, and merge what can be.
    Returns 0, or the ms until the next one ends."""
    wait_ms = await windows.sealing.seal(epoch)
    progress, course, _ = await windows.sealing.look(epoch)
    assert course is not None
    for start_s in complete({0: progress}, course):
        parts = parts_of(start_s, {0: progress}).values()
        await windows.merging.merge(epoch, total(parts, course.exact_limit))
    return wait_ms


async def keep_records(client: Client, tag: str, first_s: int, count: int) -> None:
    """Have the store keep the records of so many windows of a minute, as ``merge.lua`` does: a month of them
    would take it half an hour. The first one has no ids, the next one has 1, …"""
    hours: dict[int, list[int | str]] = {}
    for number in range(count):
        start_s = first_s + 60 * number
        row = f"[60,{number},{number + 1},{2 * number},1,0,0,7,null,{number % 1000}]"
        hours.setdefault(start_s - start_s % 3600, []).extend((start_s, row))
    for hour_s, entries in hours.items():
        await client.command("HSET", f"{tag}:kept:{hour_s}", *entries)
    for hour_s in hours:
        await client.command("ZADD", f"{tag}:kept", hour_s, hour_s)
