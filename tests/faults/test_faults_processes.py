"""Faults of our own processes: workers, the supervisor, the leader."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from idagg import failpoints
from idagg.run.combiner_keeper import MAX_ALONE
from kit.faults import (
    ANSWER_S,
    GIVEN_AWAY_MS,
    RECOVERS_S,
    STEADY,
    SUCCESSOR_S,
    Handovers,
    arrived,
    beside,
    lease_runs_out,
    sealed,
    store_client,
    tells,
    unconfirmed,
    worker,
)
from kit.figures import Row
from kit.memory import MemoryGroup
from kit.oracle import Consumer, Load, epoch_s, held, lines, open_windows
from kit.proxy import Proxy
from kit.servers import RabbitServer, RedisServer, free_port
from kit.serving import Serving
from kit.waiting import eventually, long_window, next_window, until


@pytest.mark.fault("1", "worker killed")
async def test_1_workers_killed(any_server: RedisServer, row: Row) -> None:
    """Workers die in turn, the leader among them: every ok id is in the store, and others take over."""
    with Serving("--redis-url", any_server.url, *row.patient, window=long_window()) as serving:
        async with Load(serving) as load:
            async for number in row.inject(2):
                victim = serving.workers()[number % 2]
                since_s = time.monotonic()
                os.kill(victim, signal.SIGKILL)
                await serving.replaces(victim)
                await load.goes_on()
                assert row.not_recovered(load, since_s, within_s=RECOVERS_S) == []
        assert row.wrong_ids(load, await open_windows(any_server.url)) == []
        assert load.failed == set()
        assert row.late(load, SUCCESSOR_S) == []  # those in a dead worker's backlog wait for the next
        serving.stop()


@pytest.mark.slow  # it needs a machine: in a container cgroups cannot be made
@pytest.mark.fault("1", "worker killed by the kernel, out of memory in its cgroup")
async def test_1_out_of_memory(any_server: RedisServer, row: Row) -> None:
    """One worker is killed and replaced, and no other process."""
    with (
        MemoryGroup() as group,
        Serving("--redis-url", any_server.url, window=long_window(), prefix=group.prefix) as serving,
    ):
        async with Load(serving) as load:
            async for number in row.inject(2):
                victim, before = serving.workers()[number % 2], serving.processes()
                since_s = time.monotonic()
                await asyncio.to_thread(group.kill, victim)
                await serving.replaces(victim)
                await load.goes_on()
                assert row.not_recovered(load, since_s, within_s=RECOVERS_S) == []
                assert before - serving.processes() == {victim}
        assert row.wrong_ids(load, await open_windows(any_server.url)) == []
        assert load.failed == set()
        serving.stop()


@pytest.mark.slow
@pytest.mark.fault("2", "worker stands still, replaced after 2 s")
async def test_2_worker_hung(any_server: RedisServer, row: Row) -> None:
    """A worker that stands still is replaced by the watchdog; whom it held up may come again."""
    tuned = {"idagg.run.child.HUNG_S": 2.0}
    with Serving("--redis-url", any_server.url, window=long_window(), tuned=tuned) as serving:
        async with Load(serving) as load:
            async for number in row.inject(2):
                victim = serving.workers()[number % 2]
                os.kill(victim, signal.SIGSTOP)
                await serving.replaces(victim)
                since_s = time.monotonic()
                await load.goes_on()
                assert row.not_recovered(load, since_s, within_s=RECOVERS_S) == []
        assert row.wrong_ids(load, await open_windows(any_server.url)) == []
        assert row.late(load, 3 + SUCCESSOR_S) == []
        serving.stop()


@pytest.mark.parametrize(
    ("number", "shards"),
    [
        pytest.param(signal.SIGKILL, 4, marks=pytest.mark.fault("1", "combiner killed, 4 shards")),
        pytest.param(signal.SIGSTOP, 1, marks=pytest.mark.fault("2", "combiner stands still for 1 s")),
    ],
)
async def test_combiner_fails(any_server: RedisServer, number: signal.Signals, shards: int, row: Row) -> None:
    """Workers send their batches themselves: none fails, and what the combiner sends late counts nothing."""
    soon = {"idagg.store.combining.ALONE_S": 0.3}
    flags = ("--workers", str(MAX_ALONE + 1), "--shards", str(shards), "--deadline", "10")
    with Serving("--redis-url", any_server.url, *flags, window=long_window(), workers_have=soon) as serving:
        async with Load(serving, callers=32) as load:
            async for _ in row.inject(1):
                combiner = await until(serving.combiner)
                # Its own listener, and for each shard those of its workers and of Redis.
                await until(lambda: len(_sockets(combiner)) >= 1 + shards * (MAX_ALONE + 2))
                since_s = time.monotonic()
                os.kill(combiner, number)
                await load.goes_on(500)
                if number == signal.SIGSTOP:
                    await asyncio.sleep(1 - (time.monotonic() - since_s))
                    with contextlib.suppress(ProcessLookupError):  # we stood still, and it was replaced
                        os.kill(combiner, signal.SIGCONT)
                else:
                    await until(lambda: serving.combiner() not in (None, combiner))
                await load.goes_on()
                assert row.not_recovered(load, since_s, within_s=RECOVERS_S) == []
        assert row.wrong_ids(load, await open_windows(any_server.url)) == []
        assert load.failed == set()
        assert load.unknown == set()
        assert row.late(load, 10 + ANSWER_S) == []
        serving.stop()


def _sockets(pid: int) -> list[str]:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if (target := str(entry.readlink())).startswith("socket:"):
                found.append(target)
    return found


@pytest.mark.fault("3", "supervisor killed, then another instance")
async def test_3_supervisor_killed(row: Row) -> None:
    """Nobody stays behind, and a new instance on the same port and folder delivers the rest."""
    # Of those that the kernel gives to nobody meanwhile.
    port = ("--port", str(free_port()))
    with Serving(*port, window=1) as serving:
        async with Load(serving) as load:
            async for _ in row.inject(1):
                serving.kill()
                await until(lambda: not serving.processes())
                # A process that ends gives up its memory, by which it is found, before its sockets.
                await eventually(serving.is_refused, bool)
                await asyncio.to_thread(serving.start)
                since_s = time.monotonic()
                await load.goes_on()
                assert row.not_recovered(load, since_s, within_s=RECOVERS_S) == []
        assert await sealed(row, serving, load) == []
        serving.stop()


@pytest.mark.fault("5", "leader killed, and its lease runs out", takeover_must_s=6.0)
async def test_leader_killed(any_server: RedisServer, row: Row) -> None:
    """The leader dies: another leads once the lease has run out, and no window is lost or counted anew."""
    with Serving("--redis-url", any_server.url) as serving:
        async with Load(serving) as load:
            since = await next_window(2)
            async for deaths in row.inject(1):
                await tells(serving, f"leading: epoch {deaths + 1}\n")
                leader = worker(serving, serving.leader())
                killed_s = time.monotonic()
                os.kill(leader, signal.SIGKILL)
                await until(lambda: f"leading: epoch {deaths + 2}\n" in serving.said)
                row.taken_over(time.monotonic() - killed_s)
                await serving.replaces(leader)
                await load.goes_on()
        assert await sealed(row, serving, load, since=since, answer_s=SUCCESSOR_S) == []
        await eventually(serving.figures, lambda figures: figures["idagg_leader"] == 1)
        serving.stop()


@pytest.mark.fault("5", "leading instance stopped by SIGTERM", takeover_must_s=0.5)
async def test_leader_stopped(any_server: RedisServer, row: Row) -> None:
    """Of two instances the one that leads is stopped: the other leads at once."""
    flags = ("--redis-url", any_server.url, *row.patient)
    with Serving(*flags, workers_have=STEADY) as leading, Serving(*flags, workers_have=STEADY) as other:
        async with Load(leading) as load, Handovers(any_server.url) as handovers:
            since = await next_window(2)
            async for _ in row.inject(1):
                stopped_s = time.monotonic()
                stopping = asyncio.create_task(asyncio.to_thread(leading.stop))
                await tells(other, "INFO leading: epoch")
                row.taken_over(time.monotonic() - stopped_s)
                await stopping
                await asyncio.to_thread(leading.start)
                await load.goes_on()
                leading, other = other, leading
            assert handovers.left_ms
            assert min(handovers.left_ms) > GIVEN_AWAY_MS
        last = int(epoch_s(max(await leading.delivered())))
        deliveries = [*lines(leading), *lines(other)]
        assert load.failed == set()
        assert row.verdict(load, deliveries, expected=held(load, since, last), answer_s=ANSWER_S) == []
        leading.stop()
        other.stop()


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("before-seal", marks=pytest.mark.fault("5", "leader killed before it seals")),
        pytest.param("after-seal", marks=pytest.mark.fault("6", "leader killed when it has sealed")),
        pytest.param("after-confirm", marks=pytest.mark.fault("8", "leader killed after the confirm")),
        pytest.param("before-mark", marks=pytest.mark.fault("8", "leader killed before its mark")),
        pytest.param("after-mark", marks=pytest.mark.fault("9", "leader killed after its mark")),
    ],
)
async def test_5_to_9_leader_killed_between_two_steps(
    any_server: RedisServer, rabbit: RabbitServer, rabbit_queue: str, tmp_path: Path, place: str, row: Row
) -> None:
    """The successor delivers the window; what comes twice has the same id and the same count."""
    armed = tmp_path / "armed"
    flags = ("--redis-url", any_server.url, "--amqp-url", rabbit.url, "--amqp-queue", rabbit_queue)
    environment = {failpoints.VARIABLE: f"{place}=kill@{armed}"}
    consumer = Consumer(rabbit, rabbit_queue)
    with Serving(*flags, window=1, environment=environment) as serving:
        async with Load(serving, callers=8) as load:
            await eventually(consumer.take, bool)
            since = await next_window(1)
            async for deaths in row.inject(1):
                await tells(serving, f"leading: epoch {deaths + 1}\n")
                armed.touch()
                await tells(serving, "died (SIGKILL)", times=deaths + 1)
                await lease_runs_out(any_server.url)
                await load.goes_on()
                await serving.ready()
        deliveries = await arrived(serving, consumer)
        last = int(epoch_s(max(delivery.window for delivery in deliveries)))
        assert row.verdict(load, deliveries, expected=held(load, since, last), answer_s=SUCCESSOR_S) == []
        repeats = len(deliveries) - len({delivery.message_id for delivery in deliveries})
        # Others may come again, too, where RabbitMQ is too slow with a confirm.
        assert repeats >= row.injections or place not in ("after-confirm", "before-mark")
        serving.stop()


@pytest.mark.fault("7", "leader killed before the confirm")
async def test_7_leader_killed_before_the_confirm(
    any_server: RedisServer, rabbit: RabbitServer, rabbit_queue: str, row: Row
) -> None:
    """RabbitMQ has the message, and the leader dies before it hears of that: it comes again, the same."""
    consumer = Consumer(rabbit, rabbit_queue)
    async with Proxy(rabbit.port) as proxy:
        flags = ("--redis-url", any_server.url, "--amqp-url", proxy.amqp_url, "--amqp-queue", rabbit_queue)
        async with beside(Serving(*flags, window=1)) as serving:
            repeated = []
            async with Load(serving, callers=8) as load:
                await eventually(consumer.take, bool)
                since = await next_window(1)
                async for deaths in row.inject(1):
                    await tells(serving, f"leading: epoch {deaths + 1}\n")
                    repeated.append(await unconfirmed(serving, consumer, proxy))
                    os.kill(worker(serving, serving.leader()), signal.SIGKILL)
                    await tells(serving, "died (SIGKILL)", times=deaths + 1)
                    proxy.stall_replies = False
                    await lease_runs_out(any_server.url)
                    await load.goes_on()
            deliveries = await arrived(serving, consumer)
            last = int(epoch_s(max(delivery.window for delivery in deliveries)))
            expected = held(load, since, last)
            assert row.verdict(load, deliveries, expected=expected, answer_s=SUCCESSOR_S) == []
            assert min(deliveries.count(delivery) for delivery in repeated) >= 2
            await asyncio.to_thread(serving.stop)


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("before-seal", marks=pytest.mark.fault("10", "zombie leader wakes and would seal")),
        pytest.param("before-mark", marks=pytest.mark.fault("10", "zombie leader wakes and would mark")),
    ],
)
async def test_10_zombie_leader(any_server: RedisServer, tmp_path: Path, place: str, row: Row) -> None:
    """A leader that was stopped between two steps, and wakes when another leads, is refused the next one."""
    armed = tmp_path / "armed"
    environment = {failpoints.VARIABLE: f"{place}=stall@{armed}"}
    serving = Serving(
        *("--redis-url", any_server.url),
        window=1,
        environment=environment,
        workers_have=STEADY,
        tuned={"idagg.run.child.HUNG_S": 60.0},  # longer than the zombie is left alone
    )
    with serving:
        async with Load(serving, callers=8) as load:
            since = await next_window(1)
            async for changes in row.inject(1):
                await tells(serving, f"leading: epoch {changes + 1}\n")
                zombie = worker(serving, serving.leader())
                armed.touch()
                await until(lambda: state_of(zombie) == "T")
                await lease_runs_out(any_server.url)
                await tells(serving, f"leading: epoch {changes + 2}\n")
                known = len(lines(serving))
                await until(lambda: len(lines(serving)) > known)
                os.kill(zombie, signal.SIGCONT)
                await tells(serving, f"not leading any more: epoch {changes + 1} has ended\n")
                await load.goes_on()
        last = int(epoch_s(max(await serving.delivered())))
        found = lines(serving)
        # Whom a stopped process holds up cannot be answered in time.
        assert row.verdict(load, found, expected=held(load, since, last), answer_s=SUCCESSOR_S) == []
        # What is pending when it is stopped, or when it wakes, the zombie may write again; it cannot mark it.
        repeats = {delivery for delivery in found if found.count(delivery) > 1}
        assert len(found) == len(set(found)) + len(repeats)
        assert repeats or place == "before-seal"
        async with store_client(any_server.url) as client:
            assert b"errorstat_FENCED" in await client.command("INFO", "errorstats")
        serving.stop()


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
