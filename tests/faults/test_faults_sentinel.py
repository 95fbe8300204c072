"""Faults of a primary with replicas, which Sentinel watches."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from idagg import failpoints
from idagg.run.combiner_keeper import MAX_ALONE
from kit.faults import SOON, SUCCESSOR_S, sealed
from kit.figures import Row
from kit.groups import Node, SentinelGroup, wait_for
from kit.oracle import Consumer, Journal, Load, changed, lines, open_parts, together
from kit.servers import RabbitServer
from kit.serving import Serving
from kit.told import FIRST_ID, STARTING_S, tell
from kit.waiting import eventually, long_window, next_window, until

# Both instances together have 2,000 requests a second.
PER_S = 1000
# Bounds of what is measured, on a machine that is shared. Sentinels that get no time elect again and again.
RECOVERS_S = 10.0
ANSWER_S = 2.5
# More requests a second than two cores take, with the group and the generator on them.
FLOOD, FLOOD_S = 25_000, 12
KILLED_AFTER_S = 4
CONNECTIONS = 256
# Longer than a leader waits for replicas once.
WAITS_S = 1.5


@pytest.fixture
def group() -> Iterator[SentinelGroup]:
    with SentinelGroup() as group:
        yield group


class Two(NamedTuple):
    """Two instances on one group. The ids of the first, whose window stays open, are looked for one by one;
    the windows of the second are sealed and delivered."""

    ids: Serving
    sums: Serving
    of_ids: Load
    of_sums: Load

    async def recover(self, row: Row, since_s: float) -> None:
        for load in (self.of_ids, self.of_sums):
            await load.goes_on()
            assert row.not_recovered(load, since_s, within_s=RECOVERS_S) == []


@contextlib.asynccontextmanager
async def two(group: SentinelGroup, replicas: int, *of_ids: str) -> AsyncIterator[Two]:
    flags = ("--redis-url", group.url, "--replicas", str(replicas), *SOON)
    with (
        Serving(*flags, *of_ids, "--namespace", "ids", window=long_window()) as ids,
        Serving(*flags, "--namespace", "sums", window=2) as sums,
    ):
        yield Two(ids, sums, Load(ids, per_s=PER_S), Load(sums, per_s=PER_S))
        for serving in (ids, sums):
            serving.stop()


async def kill_primary(group: SentinelGroup) -> Node:
    old = await asyncio.to_thread(lambda: group.primary)
    old.kill()
    return old


async def kept(row: Row, group: SentinelGroup, both: Two) -> None:
    """The verdict where every ``ok`` has to survive."""
    assert await sealed(row, both.sums, both.of_sums, answer_s=ANSWER_S) == []
    parts = await asyncio.to_thread(lambda: open_parts([group.primary], namespace="ids"))
    assert row.wrong_ids(both.of_ids, parts) == []
    assert row.late(both.of_ids, ANSWER_S) == []


async def lost(row: Row, group: SentinelGroup, both: Two) -> None:
    """The verdict where the replication's tail may be lost: nothing counts twice, and all is answered."""
    parts = await asyncio.to_thread(lambda: open_parts([group.primary], namespace="ids"))
    assert row.wrong_ids(both.of_ids, parts, may_lose=both.of_ids.ok) == []
    for load in (both.of_ids, both.of_sums):
        assert row.late(load, ANSWER_S) == []
    print(f"{row.granted} lost; windows sealed again: {len(changed(lines(both.sums)))}")  # noqa: T201  a figure


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(
            (),
            marks=pytest.mark.fault(
                "29", "primary of a Sentinel group killed, --replicas all", recovery_must_s=1.0
            ),
        ),
        pytest.param(
            ("--workers", str(MAX_ALONE + 2)),
            marks=[
                pytest.mark.slow,
                pytest.mark.fault(
                    "29", "primary killed, --replicas all, a combiner and its workers", recovery_must_s=1.0
                ),
            ],
        ),
    ],
)
async def test_29_primary_killed(group: SentinelGroup, row: Row, flags: tuple[str, ...]) -> None:
    """Every id that got its ok is there, once, and no window changes its count.

    With ``--replicas`` for all of them nothing counts before the old primary is back: recovery is from then.
    It comes back as the primary that it was, as a service manager starts it, which a sentinel then mends; in
    turn as a replica.
    """
    async with two(group, 2, *flags) as both:
        async with both.of_ids, both.of_sums:
            async for number in row.inject(1):
                old = await kill_primary(group)
                new, promoted_s = await asyncio.to_thread(group.promoted, old)
                await asyncio.to_thread(group.restart, old, of=new, as_replica=number % 2 == 1)
                whole_s = await asyncio.to_thread(group.whole, 2)
                print(f"promoted {whole_s - promoted_s:.2f} s before it had 2 replicas")  # noqa: T201  a figure
                await both.recover(row, whole_s)
                await asyncio.to_thread(group.in_sync)
        await kept(row, group, both)


@pytest.mark.slow
@pytest.mark.fault("29", "another primary by SENTINEL FAILOVER, --replicas all", recovery_must_s=1.0)
async def test_29_failover_asked_for(group: SentinelGroup, row: Row) -> None:
    """The same where an administrator asks for it. For seconds the old one still thinks to be the primary."""
    async with two(group, 2) as both:
        async with both.of_ids, both.of_sums:
            async for _ in row.inject(2):
                await asyncio.to_thread(group.failover)
                whole_s = await asyncio.to_thread(group.whole, 2)
                await both.recover(row, whole_s)
                await asyncio.to_thread(group.in_sync)
        await kept(row, group, both)


async def primary_killed(group: SentinelGroup, row: Row, replicas: int) -> None:
    """Another counts once it is promoted, and with ``--replicas 1`` has one: recovery is from then. What was
    lost is stated, as is each window that came again."""
    async with two(group, replicas) as both:
        async with both.of_ids, both.of_sums:
            async for _ in row.inject(2):
                old = await kill_primary(group)
                _, promoted_s = await asyncio.to_thread(group.promoted, old)
                whole_s = await asyncio.to_thread(group.whole, replicas)
                print(f"promoted {whole_s - promoted_s:.2f} s before it had {replicas}")  # noqa: T201  a figure
                await both.recover(row, whole_s if replicas else promoted_s)
                await asyncio.to_thread(group.restart, old)
        await lost(row, group, both)


@pytest.mark.slow
@pytest.mark.fault("29", "primary killed, --replicas 1 of 2", recovery_must_s=1.0)
async def test_29_primary_killed_one_of_two(group: SentinelGroup, row: Row) -> None:
    await primary_killed(group, row, 1)


@pytest.mark.slow
@pytest.mark.fault("29", "primary killed, --replicas 0", recovery_must_s=1.0)
async def test_29_primary_killed_none(group: SentinelGroup, row: Row) -> None:
    await primary_killed(group, row, 0)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(
    "replicas",
    [
        pytest.param(2, marks=pytest.mark.fault("29", "primary killed in overload, --replicas all")),
        pytest.param(1, marks=pytest.mark.fault("29", "primary killed in overload, --replicas 1 of 2")),
        pytest.param(0, marks=pytest.mark.fault("29", "primary killed in overload, --replicas 0")),
    ],
)
async def test_29_overload(group: SentinelGroup, row: Row, replicas: int) -> None:
    """More requests than this machine takes, the group and the generator on it. What is lost is stated; with
    ``--replicas`` for all of them, nothing is. The generator is late itself: no time is judged."""
    flags = ("--redis-url", group.url, "--replicas", str(replicas), *SOON)
    spawn = multiprocessing.get_context("spawn")
    told = Journal()
    with Serving(*flags, window=long_window()) as serving, spawn.Pool(1) as pool:
        async for number in row.inject(2):
            first_id, start_s = FIRST_ID + number * FLOOD * FLOOD_S, time.time() + STARTING_S
            load = (serving.port, first_id, FLOOD, FLOOD_S)
            flood = pool.apply_async(tell, load, {"connections": CONNECTIONS, "start_s": start_s})
            await asyncio.sleep(start_s + KILLED_AFTER_S - time.time())
            old = await kill_primary(group)
            new, _ = await asyncio.to_thread(group.promoted, old)
            await asyncio.to_thread(group.restart, old, of=new)
            part = (await asyncio.to_thread(flood.get)).journal
            rate = len(part.ok) / FLOOD_S
            print(f"{rate:,.0f} ok/s of {FLOOD:,}, slowest {part.slowest_s:.2f} s")  # noqa: T201  figures
            told = together(told, part)
            await asyncio.to_thread(group.in_sync)
        assert told.ok
        assert told.failed
        parts = await asyncio.to_thread(lambda: open_parts([group.primary]))
        assert row.wrong_ids(told, parts, may_lose=set() if replicas == 2 else told.ok) == []
        print(f"{row.granted} of {len(told.ok)} lost")  # noqa: T201  a figure
        serving.stop()


@pytest.mark.slow
@pytest.mark.fault("29", "primary killed with a seal that no replica has, --replicas 0")
async def test_29_seal_lost(group: SentinelGroup, row: Row, rabbit: RabbitServer, rabbit_queue: str) -> None:
    """The window is sealed again. Its message comes again under the same id, and its epoch tells which one is
    valid."""
    amqp = ("--amqp-url", rabbit.url, "--amqp-queue", rabbit_queue)
    consumer = Consumer(rabbit, rabbit_queue)
    lost: set[str] = set()
    with Serving("--redis-url", group.url, *amqp, *SOON, window=2) as serving:
        async with Load(serving, per_s=PER_S) as load:
            async for _ in row.inject(1):
                await next_window(2)
                behind = await asyncio.to_thread(Behind, group)
                await asyncio.to_thread(behind.seals)
                message_id = f"idagg:{behind.says('sealed_through') - 2}"
                lost.add(message_id)
                await eventually(consumer.epochs, lambda epochs: lost <= {*epochs})
                await behind.fail_over()
                await load.goes_on()
        present = f"idagg:{int(time.time()) // 2 * 2}"
        epochs = await eventually(consumer.epochs, lambda epochs: present in epochs)
        assert row.wrong_sum(load, await consumer.deliveries()) == []
        again = {message_id for message_id, found in epochs.items() if len(found) > 1}
        print(f"{row.granted} lost; sealed again: {again}")  # noqa: T201  figures
        assert lost <= again
        for found in epochs.values():
            assert found == sorted(set(found))
        serving.stop()


@pytest.mark.slow
@pytest.mark.fault("30", "primary frozen for 10 s, then back", recovery_must_s=1.0)
async def test_30_primary_frozen(group: SentinelGroup, row: Row) -> None:
    """What it answers when it is back, as it still thinks to be the primary, makes no ok."""
    async with two(group, 2) as both:
        async with both.of_ids, both.of_sums:
            async for _ in row.inject(1):
                old = await asyncio.to_thread(lambda: group.primary)
                old.freeze()
                frozen_s = time.monotonic()
                try:
                    await asyncio.to_thread(group.promoted, old)
                    await until(lambda: time.monotonic() > frozen_s + 10, within_s=11)
                    for load in (both.of_ids, both.of_sums):
                        assert [at for at in load.ok_at if frozen_s + ANSWER_S < at] == []
                finally:
                    old.thaw()
                whole_s = await asyncio.to_thread(group.whole, 2)
                await both.recover(row, whole_s)
                await asyncio.to_thread(group.in_sync)
        await kept(row, group, both)


class Behind:
    """Replicas that get nothing more of what the primary does: frozen ones, to which it has no connection any
    more, as what is on its way would reach them after all."""

    def __init__(self, group: SentinelGroup) -> None:
        self._group = group
        self.primary, self._replicas = group.primary, group.replicas
        for node in self._replicas:
            node.freeze()
        self.primary.ask("CLIENT", "KILL", "TYPE", "replica")
        self.sealed_through = self.says("sealed_through")

    def says(self, field: str) -> int:
        """What the primary alone knows of its state."""
        return int(self.primary.ask("HGET", "{idagg:0}:state", field))

    def seals(self) -> None:
        """Wait until it has sealed a window."""
        wait_for(lambda: self.says("sealed_through") > self.sealed_through)

    async def fail_over(self) -> None:
        """The primary dies, and one of the replicas is promoted; it comes back as a replica."""
        self.primary.kill()
        for node in self._replicas:
            node.thaw()
        new, _ = await asyncio.to_thread(self._group.promoted, self.primary)
        await asyncio.to_thread(self._group.restart, self.primary, of=new)
        await asyncio.to_thread(self._group.in_sync)


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [
        pytest.param(
            "before-wait-seal",
            marks=pytest.mark.fault("31", "leader killed with a seal that no replica has, then failover"),
        ),
        pytest.param(
            "",
            marks=pytest.mark.fault("31", "failover without the seal for which the leader waits"),
        ),
    ],
)
async def test_31_seal_lost(place: str, group: SentinelGroup, row: Row, tmp_path: Path) -> None:
    """The primary alone has the seal and dies: the window is sealed anew, and there is one count of it."""
    file = tmp_path / "now"
    environment = {failpoints.VARIABLE: f"{place}=kill@{file}"} if place else {}
    flags = ("--redis-url", group.url, "--replicas", "2", *SOON)
    with Serving(*flags, window=2, environment=environment) as serving:
        async with Load(serving, per_s=PER_S) as load:
            async for _ in row.inject(1):
                start = await next_window(2)
                # A leader that cannot renew its lease on replicas stops within some second.
                await until(lambda: time.time() > start + 1.3)
                behind = await asyncio.to_thread(Behind, group)
                assert behind.sealed_through <= start  # so it is sealed by the primary alone
                file.touch()  # whether it asks again hangs on when its lease was to be renewed
                await asyncio.to_thread(behind.seals)
                sealed_s = time.monotonic()
                if place:
                    await until(lambda: not file.exists())
                else:
                    await until(lambda: time.monotonic() > sealed_s + WAITS_S)
                await behind.fail_over()
                await load.goes_on()
                file.unlink(missing_ok=True)
        assert await sealed(row, serving, load, answer_s=SUCCESSOR_S) == []
        serving.stop()


@pytest.mark.slow
@pytest.mark.fault("31", "leader killed with an epoch that no replica has, then failover")
async def test_31_election_lost(group: SentinelGroup, row: Row, tmp_path: Path) -> None:
    """A leader elected by the primary alone, which dies, has done nothing: each window has one count."""
    file = tmp_path / "now"
    environment = {failpoints.VARIABLE: f"before-wait-lead=kill@{file}"}
    flags = ("--redis-url", group.url, "--replicas", "2", *SOON)
    with Serving(*flags, window=2, environment=environment) as serving:
        async with Load(serving, per_s=PER_S) as load:
            async for _ in row.inject(1):
                behind = await asyncio.to_thread(Behind, group)
                file.touch()
                await asyncio.to_thread(behind.primary.ask, "PEXPIRE", "{idagg:0}:lock", "1")
                await asyncio.to_thread(wait_for, lambda: behind.says("epoch") > 1)
                await until(lambda: not file.exists())
                await behind.fail_over()
                await load.goes_on()
        assert await sealed(row, serving, load, answer_s=SUCCESSOR_S) == []
        serving.stop()
