"""What reading back costs: records of 35 days, estimates, the roll-up behind them, and the fleet's states."""

from __future__ import annotations

import argparse
import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

from bench.samples import Findings
from bench.tools import say
from idagg.read import listing
from idagg.read.estimate import Estimates
from idagg.read.fleet import Report, Status
from idagg.store.client import Client
from idagg.store.fleet import FleetStore
from idagg.store.kept import Kept
from idagg.store.shards import shard_tag
from idagg.store.sketches import AT_ONCE
from idagg.window import DAY_S
from kit.servers import RedisServer
from kit.staging import keep_records, window_store

_TAG = shard_tag("t")
_DAYS = 35
_PAGE = 10_000
# The first second of a day.
_BEGIN_S = 1_800_057_600
# Ids in each sketch: enough for it to be dense, which takes Redis longest.
_IDS = 60_000
_MACHINES = 20
# The leader's state is published each second, the others' every 3 s.
_PUBLISHED_PER_S = 1 + (_MACHINES - 1) / 3
_PUBLICATIONS = 500
_EXAMPLE = Path(__file__).parents[1] / "tests/examples/status.json"


def add_options(group: argparse._ArgumentGroup, *, quick: bool) -> None:
    group.add_argument("--reading-rounds", type=int, default=2 if quick else 7, help="default: %(default)s")


def measure(found: Findings, options: argparse.Namespace) -> None:
    uvloop.run(_measure(found, options.reading_rounds))


async def _measure(found: Findings, rounds: int) -> None:
    async def each(row: str, work: Callable[[], Awaitable[float | None]], client: Client) -> None:
        for number in range(1, rounds + 1):
            say(str(found.add("reading", row, await _cost(client, work), number)))

    async with _store() as client:
        await keep_records(client, _TAG, _BEGIN_S, _DAYS * 1440)
        kept = Kept(client, _TAG)
        await each(f"records of {_DAYS} days", lambda: _records(kept), client)
        await each("the same as the API's pages of 10,000", lambda: _pages(kept), client)
    async with _store() as client:
        await _sketch(client)
        estimates = Estimates(client, namespace="t", client_of=lambda _: client)
        end_s = _BEGIN_S + 31 * DAY_S
        for row, from_s, to_s in (
            ("estimate of 30 days", _BEGIN_S + DAY_S, end_s),
            ("estimate of 30 days, odd ends", _BEGIN_S + DAY_S // 2 + 60, end_s - 50 * 60),
            ("estimate of 48 hours, windows at both ends", end_s - 2 * DAY_S + 180, end_s - 60),
        ):
            await each(row, lambda a=from_s, b=to_s: _estimate(estimates, a, b), client)  # type: ignore[misc]  # mypy infers no type of such a lambda
        epoch = (await window_store(client).election.lead("a", lease_ms=10**9)).epoch
        await each(f"a step of a roll-up, {AT_ONCE} windows", lambda: _roll(client, epoch, end_s), client)
    async with _store(appendonly="yes", appendfsync="always") as client:
        state = _state()
        for number in range(1, rounds + 1):
            cost = await _cost(client, lambda: _publish(client, state))
            cpu_ms = cost["Redis ms"] / _PUBLICATIONS
            figures = {"bytes": len(state), "Redis ms": cpu_ms, "% of a core": cpu_ms / 10 * _PUBLISHED_PER_S}
            say(str(found.add("heartbeats", f"{_MACHINES} machines", figures, number)))


@asynccontextmanager
async def _store(**options: Any) -> AsyncIterator[Client]:
    with RedisServer("redis", **options) as server:
        client = Client(server.url, timeout_s=60)
        try:
            yield client
        finally:
            await client.close()


async def _cost(client: Client, work: Callable[[], Awaitable[float | None]]) -> dict[str, float]:
    """How long it takes, and what of Redis' CPU and ours. ``work`` may return ms that are not of it."""
    redis_s, own_s, began = await _cpu_s(client), time.process_time(), time.perf_counter()
    without_ms = await work() or 0.0
    took_ms, own_ms = (time.perf_counter() - began) * 1000, (time.process_time() - own_s) * 1000
    redis_ms = (await _cpu_s(client) - redis_s) * 1000
    return {"ms": took_ms - without_ms, "our CPU ms": own_ms, "Redis ms": redis_ms}


async def _cpu_s(client: Client) -> float:
    said: bytes = await client.command("INFO", "cpu")
    return sum(float(value) for value in re.findall(rb"used_cpu_(?:sys|user):([\d.]+)", said))


async def _records(kept: Kept) -> None:
    """As a reader has them, who keeps none."""
    count = 0
    async for piece in kept.pieces(0, 2**40, limit=10**9):
        count += len(piece)
    assert count == _DAYS * 1440


async def _pages(kept: Kept) -> None:
    from_s: int | None = 0
    count = 0
    while from_s is not None:
        page = await listing.read(kept, from_s, 2**40, limit=_PAGE, order="oldest", namespace="t")
        count, from_s = count + len(page.rows), page.next_s
    assert count == _DAYS * 1440


async def _sketch(client: Client) -> None:
    """31 days and their hours, and the windows of the last 48 hours, each with the same dense sketch."""
    for first in range(0, _IDS, 1000):
        await client.command("PFADD", f"{_TAG}:x", *range(first, first + 1000))
    sketch = await client.command("GET", f"{_TAG}:x")
    for kind, length_s in (("day", DAY_S), ("hour", 3600)):
        for start_s in range(_BEGIN_S, _BEGIN_S + 31 * DAY_S, length_s):
            await client.command("SET", f"{_TAG}:{kind}:{start_s}", sketch)
            await client.command("HSET", f"{_TAG}:{kind}s", start_s, f"{length_s} 0 9 {_IDS} 0")
    end_s = _BEGIN_S + 31 * DAY_S
    await client.command("HSET", f"{_TAG}:state", "hours_through", end_s)
    for start_s in range(end_s - 2 * DAY_S, end_s, 60):
        await client.command("SET", f"{_TAG}:w:{start_s}:hll", sketch)
        await client.command("ZADD", f"{_TAG}:sketches", start_s + 60, f"{start_s} 1")


async def _estimate(estimates: Estimates, from_s: int, to_s: int) -> None:
    assert (await estimates.estimate(from_s, to_s)).unique_ids > _IDS * 0.9


async def _roll(client: Client, epoch: int, end_s: int) -> float:
    """The time of what comes before it is not of it."""
    began = time.perf_counter()
    first_s = end_s - 2 * DAY_S
    for start_s in range(first_s, first_s + AT_ONCE * 60, 60):
        await client.command("ZADD", f"{_TAG}:rolling", start_s + 60, f"{start_s} 1 9 {_IDS} 0")
    rollups = window_store(client).rollups
    queue = await rollups.queue()
    assert len(queue.windows) == AT_ONCE
    before_ms = (time.perf_counter() - began) * 1000
    await rollups.roll(epoch, first_s // 3600 * 3600, queue.windows, [], 0)
    return before_ms


def _state() -> bytes:
    """Of a machine of four workers, as it is published."""
    status = Status.model_validate_json(_EXAMPLE.read_bytes())
    machine = status.machines[0]
    machine = machine.model_copy(update={"workers": [*machine.workers, *machine.workers]})
    report = Report(machine=machine, recent=status.recent, current=status.current, last=status.last)
    return report.model_dump_json(exclude_defaults=True).encode()


async def _publish(client: Client, state: bytes) -> None:
    fleet = FleetStore(client, _TAG)
    for number in range(_PUBLICATIONS):
        await fleet.publish(f"{number % _MACHINES:016x}", state)


if __name__ == "__main__":  # by itself, without what the rest of the bench needs
    asyncio.run(_measure(Findings({}, {}), 3))
