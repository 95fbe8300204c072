"""Faults of a cluster, whose masters have some shards each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from statistics import quantiles
from typing import NamedTuple

import pytest

from idagg import failpoints
from idagg.run.combiner_keeper import MAX_ALONE
from idagg.store.shards import shard_of, shard_tag, slot_of
from kit.faults import SOON, SUCCESSOR_S, sealed
from kit.figures import Row
from kit.groups import Node, RedisCluster, wait_for
from kit.oracle import Load, epoch_s, grid, held, lines, open_parts
from kit.serving import Serving
from kit.waiting import long_window, next_window, until
from kit.wire import connect, ids

HOME = shard_tag("idagg")
# What a cluster has unless it is told otherwise.
SHARDS = 16
PER_S = 1000
# Ids of a request.
MOST = 4096
# Callers who wait for a shard that is away are not there for the others.
CALLERS = 64
# Bounds of what is measured, on a machine that is shared.
RECOVERS_S = 10.0
ANSWER_S = 2.5
# Ids of shards that nothing was done to: each caller's last one, as often as a machine that is shared stands
# still.
MAY_FAIL = 4 * CALLERS


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as cluster:
        yield cluster


def shards_of(cluster: RedisCluster, master: Node, namespace: str) -> set[int]:
    return {index for index in range(SHARDS) if cluster.master_of(shard_tag(namespace, index)) is master}


class Sharded(Load):
    """It knows by shard what came of its ids, and how long those waited that got their ok."""

    def __init__(self, serving: Serving, *, callers: int = CALLERS, per_s: float = PER_S) -> None:
        super().__init__(serving, callers=callers, per_s=per_s)
        self.took: list[tuple[int, float, float]] = []  # shard, asked at, seconds

    def _note(self, number: int, began_s: float, ended_s: float) -> None:
        self.took.append((shard(number), began_s, ended_s - began_s))

    def failed_elsewhere(self, before: set[int], its: set[int]) -> set[int]:
        """Ids that failed, but for these before and those of these shards."""
        return {number for number in self.failed - before if shard(number) not in its}

    def p99_ms(self, shards: set[int], since_s: float, until_s: float) -> float:
        took = [s for shard, at, s in self.took if shard in shards and since_s <= at < until_s]
        return quantiles(took, n=100)[-1] * 1000


def shard(number: int) -> int:
    return shard_of(str(number).encode(), SHARDS)


class Two(NamedTuple):
    """Two instances on one cluster. The ids of the first, whose window stays open, are looked for one by one;
    the windows of the second are sealed and delivered."""

    ids: Serving
    sums: Serving
    of_ids: Sharded
    of_sums: Sharded

    async def recover(self, row: Row, since_s: float) -> None:
        for load in (self.of_ids, self.of_sums):
            await load.goes_on()
            assert row.not_recovered(load, since_s, within_s=RECOVERS_S) == []

    async def kept(self, row: Row, cluster: RedisCluster) -> None:
        """The verdict where every ``ok`` has to survive."""
        assert await sealed(row, self.sums, self.of_sums, answer_s=ANSWER_S) == []
        parts = await asyncio.to_thread(open_parts, cluster.masters, namespace="ids")
        assert row.wrong_ids(self.of_ids, parts) == []
        assert row.late(self.of_ids, ANSWER_S) == []


@contextlib.asynccontextmanager
async def two(cluster: RedisCluster, *flags: str, of_ids: Iterable[str] = ()) -> AsyncIterator[Two]:
    """With the default deadline. This keeps two cores busy: nodes wait for one until half of a shorter one is
    over, and ids fail that nothing was done to."""
    flags = ("--redis-url", cluster.url, *flags)
    with (
        Serving(*flags, *of_ids, "--namespace", "ids", window=long_window()) as ids,
        Serving(*flags, "--namespace", "sums", window=2) as sums,
    ):
        yield Two(ids, sums, Sharded(ids), Sharded(sums))
        for serving in (ids, sums):
            serving.stop()


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(
            (),
            marks=pytest.mark.fault("32", "master of a cluster killed, --replicas all", recovery_must_s=1.0),
        ),
        pytest.param(
            ("--workers", str(MAX_ALONE + 2)),
            marks=[
                pytest.mark.slow,
                pytest.mark.fault(
                    "32", "master killed, --replicas all, a combiner and its workers", recovery_must_s=1.0
                ),
            ],
        ),
    ],
)
async def test_32_master_killed(cluster: RedisCluster, row: Row, flags: tuple[str, ...]) -> None:
    """Only ids of its shards fail; every id that got its ok is there, once, and no window changes its count.

    With ``--replicas`` for all of them its ids do not count before it is back: recovery is from then.
    """
    async with two(cluster, "--replicas", "1", of_ids=flags) as both:
        loads = {"ids": both.of_ids, "sums": both.of_sums}
        async with both.of_ids, both.of_sums:
            async for number in row.inject(1):
                old = (await asyncio.to_thread(lambda: cluster.masters))[number % 3]
                its = {name: await asyncio.to_thread(shards_of, cluster, old, name) for name in loads}
                before = {name: load.failed.copy() for name, load in loads.items()}
                slot = slot_of(shard_tag("ids", min(its["ids"])))
                old.kill()
                await asyncio.to_thread(cluster.promoted, old, slot)
                await asyncio.to_thread(old.start)
                whole_s = await asyncio.to_thread(cluster.whole, slot, 1)
                await both.recover(row, whole_s)
                await asyncio.to_thread(cluster.in_sync)
                for name, load in loads.items():
                    strays = load.failed_elsewhere(before[name], its[name])
                    assert len(strays) <= (MAY_FAIL if row.patience > 1 else 0), name
        await both.kept(row, cluster)


@pytest.mark.slow
@pytest.mark.fault("32", "all nodes of a cluster restarted in turn", recovery_must_s=1.0)
async def test_32_nodes_restarted(cluster: RedisCluster, row: Row) -> None:
    """As an administrator does it: each replica, then each master, once it has failed over to its replica."""
    async with two(cluster, "--replicas", "1") as both:
        async with both.of_ids, both.of_sums:
            async for _ in row.inject(1, most=5):
                for old in await asyncio.to_thread(lambda: cluster.masters):
                    new = await asyncio.to_thread(cluster.replica_of, old)
                    await asyncio.to_thread(cluster.failover, new)
                    await asyncio.to_thread(old.stop)
                    await asyncio.to_thread(cluster.restart, old)
                    await both.recover(row, time.monotonic())
        await both.kept(row, cluster)


async def fill(serving: Serving, load: Load, count: int) -> None:
    """Send so many ids more, in requests of many."""
    wire = await connect(serving.port)
    try:
        while count > 0:
            numbers = [next(ids) for _ in range(min(count, MOST))]
            body = "\n".join(map(str, numbers))
            head = "POST /api/verve/accept HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
            await wire.send(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            answer = await wire.answer()
            assert answer is not None
            assert answer.status in (200, 503)
            (load.ok if answer.status == 200 else load.failed).update(numbers)
            count -= len(numbers)
    finally:
        wire.close()


async def reshard(cluster: RedisCluster, row: Row, filled: int, slots: int) -> None:
    """A fourth master joins and gets slots; then it leaves them to another, and goes."""
    async with two(cluster) as both:
        await fill(both.ids, both.of_ids, filled)
        async with both.of_ids, both.of_sums:
            async for _ in row.inject(1, most=1):
                others = await asyncio.to_thread(lambda: cluster.masters)
                new = await asyncio.to_thread(cluster.add_master)
                await asyncio.to_thread(cluster.reshard, others, new, slots)
                assert await asyncio.to_thread(shards_of, cluster, new, "ids") != set()
                await both.recover(row, time.monotonic())
                await asyncio.to_thread(cluster.reshard, [new], others[0], slots)
                await asyncio.to_thread(cluster.forget, new)
                await both.recover(row, time.monotonic())
        await both.kept(row, cluster)


@pytest.mark.slow
@pytest.mark.fault("33", "half of all slots move to a fourth master", recovery_must_s=1.0)
async def test_33_half_of_all_slots_moved(cluster: RedisCluster, row: Row) -> None:
    """Every id that got its ok is there, once."""
    await reshard(cluster, row, 1_000_000, 8192)


@pytest.mark.slow
@pytest.mark.fault("33", "shards move to a fourth master, which leaves again", recovery_must_s=1.0)
async def test_33_shards_moved(row: Row) -> None:
    """Some shards, the home shard too, move to a master that joins, and back; every id that got its ok is
    there, once."""
    with RedisCluster(replicas_each=0) as cluster:
        async with two(cluster) as both:
            async with both.of_ids, both.of_sums:
                async for _ in row.inject(1, most=5):
                    new = await asyncio.to_thread(cluster.add_master)
                    slots = [
                        slot_of(shard_tag(name, i)) for name in ("ids", "sums") for i in (0, SHARDS // 2)
                    ]
                    sources = {slot: await asyncio.to_thread(cluster.holder, slot) for slot in slots}
                    for slot in slots:
                        await asyncio.to_thread(cluster.move, slot, new)
                    await both.recover(row, time.monotonic())
                    for slot, source in sources.items():
                        await asyncio.to_thread(cluster.move, slot, source)
                    await asyncio.to_thread(cluster.forget, new)
                    await both.recover(row, time.monotonic())
            await both.kept(row, cluster)


@pytest.mark.slow
@pytest.mark.fault("34", "a shard's node frozen over two boundaries", recovery_must_s=1.0)
async def test_34_node_frozen(row: Row) -> None:
    """Windows are late, and right; ids of other nodes' shards are served as before."""
    with (
        RedisCluster(replicas_each=0) as cluster,
        Serving("--redis-url", cluster.url, *SOON) as serving,
    ):
        home = cluster.master_of(shard_tag("idagg"))
        frozen = next(node for node in cluster.masters if node is not home)
        its = shards_of(cluster, frozen, "idagg")
        others = set(range(SHARDS)) - its
        async with Sharded(serving) as load:
            since = await next_window(2)
            async for _ in row.inject(1):
                before, quiet_s = load.failed.copy(), time.monotonic()
                await load.goes_on()
                start = await next_window(2)
                frozen.freeze()
                while time.time() >= start + 2:  # we stood still: the window has ended before
                    frozen.thaw()
                    start = await next_window(2)
                    frozen.freeze()
                frozen_s = time.monotonic()
                try:
                    await until(lambda: time.time() > start + 4.5, within_s=6)
                    late = {line.window for line in lines(serving)}
                finally:
                    frozen.thaw()
                thawed_s = time.monotonic()
                assert late.isdisjoint(grid(start, start + 2, 2))
                await load.goes_on()
                assert row.not_recovered(load, thawed_s, within_s=RECOVERS_S) == []
                strays = load.failed_elsewhere(before, its)
                assert len(strays) <= (MAY_FAIL if row.patience > 1 else 0)
                quiet_ms = load.p99_ms(others, quiet_s, frozen_s)
                away_ms = load.p99_ms(others, frozen_s, thawed_s)
                print(f"p99 of the others, ms: {quiet_ms:.1f} before, {away_ms:.1f} meanwhile")  # noqa: T201  a figure
                assert row.patience > 1 or away_ms <= 2 * quiet_ms
        last = int(epoch_s(max(await serving.delivered())))
        expected = held(load, since, last)
        assert row.verdict(load, lines(serving), expected=expected, answer_s=ANSWER_S) == []
        serving.stop()


@pytest.mark.slow
@pytest.mark.fault("35", "shards changed with a plan that no replica has, then failover, --replicas all")
async def test_35_plan_lost(cluster: RedisCluster, row: Row, tmp_path: Path) -> None:
    """The home shard's master alone has the plan, past its begin, and dies: nobody has spread ids by it."""
    file = tmp_path / "now"
    environment = {failpoints.VARIABLE: f"before-plan=stall@{file}"}
    flags = ("--redis-url", cluster.url, "--replicas", "1", "--workers", "2", "--shards")
    with Serving(*flags, "1", window=10, environment=environment) as serving:
        async with Load(serving, per_s=PER_S) as load:
            async for number in row.inject(1):
                start = await next_window(10)
                # Another leader takes over some 7 s later, and has most of a window until its plan begins.
                await until(lambda: time.time() > start + 5)
                serving.stop()
                shards = (4, 1)[number % 2]
                serving.flags = (*flags, str(shards))
                file.touch()
                serving.start()
                await until(lambda: not file.exists())
                home = await asyncio.to_thread(cluster.master_of, HOME)
                replica = await asyncio.to_thread(cluster.replica_of, home)
                replica.freeze()
                home.ask("CLIENT", "KILL", "TYPE", "replica")
                for pid in serving.workers():
                    os.kill(pid, signal.SIGCONT)
                asked = "HGET", f"{HOME}:state", "plan"
                plan = await asyncio.to_thread(wait_for, lambda: home.ask(*asked).split())
                await until(lambda: time.time() > int(plan[0]) + 5)
                # Else its ids are on shards that the replica knows nothing of.
                assert f"spread over {shards} shards" not in serving.said.rpartition("leading: ")[2]
                home.kill()
                replica.thaw()
                await asyncio.to_thread(cluster.promoted, home, slot_of(HOME))
                await asyncio.to_thread(home.start)
                await asyncio.to_thread(cluster.whole, slot_of(HOME), 1)
                await load.goes_on()
                await asyncio.to_thread(cluster.in_sync)
        assert await sealed(row, serving, load, answer_s=SUCCESSOR_S) == []
        serving.stop()
