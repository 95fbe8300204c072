"""Faults of what windows are delivered to: RabbitMQ, and the log file's disk."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

import aiormq
import pytest
from aiormq.exceptions import ChannelPreconditionFailed

from idagg.window import iso
from kit import oracle
from kit.faults import (
    ANSWER_S,
    RABBITMQ_BACK_S,
    STEADY,
    arrived,
    beside,
    fill,
    in_time,
    is_not_crowded,
    is_not_grown,
    sealed,
    tells,
    unconfirmed,
    worker,
)
from kit.figures import Row
from kit.oracle import Consumer, Delivery, Load, Size, epoch_s, held, lines
from kit.proxy import Proxy
from kit.servers import RabbitServer, RedisServer
from kit.serving import PATIENT, Serving, send
from kit.waiting import LIMIT_S, eventually, next_window, until
from kit.wire import ids


def with_reason(serving: Serving, reason: str, known: int) -> list[dict[str, str]]:
    """The lines of windows for this reason, but for so many that were there before."""
    return [line for line in serving.records("window")[known:] if reason in line["reason"]]


async def arrives(row: Row, consumer: Consumer, window: str) -> None:
    """RabbitMQ takes messages again, from now on: this window comes by it soon."""
    since_s = time.monotonic()
    await eventually(consumer.counts, lambda counts: window in counts, within_s=RABBITMQ_BACK_S)
    row.recovered(time.monotonic() - since_s)


async def all_came(
    row: Row, serving: Serving, load: Load, consumer: Consumer, *, since: int
) -> list[Delivery]:
    """Every window from this one on arrived, under one count; returns the deliveries."""
    deliveries = await arrived(serving, consumer)
    last = int(epoch_s(max(delivery.window for delivery in deliveries)))
    assert row.verdict(load, deliveries, expected=held(load, since, last), answer_s=ANSWER_S) == []
    return deliveries


@pytest.mark.parametrize(
    "windows",
    [
        pytest.param(3, marks=pytest.mark.fault("19", "RabbitMQ down for 3 windows", recovery_must_s=5.0)),
        pytest.param(
            60,
            marks=[
                pytest.mark.slow,
                pytest.mark.fault("19", "RabbitMQ down for 60 windows", recovery_must_s=5.0),
            ],
        ),
    ],
)
async def test_19_rabbitmq_stopped(rabbit: RabbitServer, rabbit_queue: str, windows: int, row: Row) -> None:
    """Each window has its line at once, with the reason, and its message, of the same count, later."""
    consumer = Consumer(rabbit, rabbit_queue)
    flags = ("--amqp-url", rabbit.url, "--amqp-queue", rabbit_queue)
    with Serving(*flags, window=1, workers_have=STEADY) as serving:
        away = []
        async with Load(serving, callers=4) as load:
            await eventually(consumer.take, bool)
            since = await next_window(1)
            leader = worker(serving, serving.leader())
            before, tasks = Size.of(leader), await serving.tasks()
            async for _ in row.inject(1, most=60 // windows):  # it takes as long as its windows
                await asyncio.to_thread(rabbit.ctl, "stop_app")  # its Erlang node, slow to start, stays
                try:
                    starts = [await next_window(1) for _ in range(windows)]
                    await until(lambda: iso(starts[-1]) in serving.counts())
                finally:
                    await asyncio.to_thread(rabbit.ctl, "start_app")
                await arrives(row, consumer, iso(starts[0]))
                assert all(
                    "RabbitMQ" in line["reason"]
                    for line in in_time(serving, starts, within_s=row.within_s(1))
                )
                await is_not_grown([leader], [before], memory_kib=16_384, descriptors=4, threads=8)
                await is_not_crowded(serving, tasks)
                away += starts
        await all_came(row, serving, load, consumer, since=since)
        assert {*held(load, since, away[-1])} <= (await consumer.counts()).keys()
        serving.stop()


@pytest.mark.fault("20", "RabbitMQ killed in mid-publish", recovery_must_s=5.0)
async def test_20_rabbitmq_killed_in_mid_publish(rabbit_queue: str, row: Row) -> None:
    """What was not confirmed is in the log at once, and comes again, the same, when RabbitMQ is back."""
    with RabbitServer() as rabbit:
        consumer = Consumer(rabbit, rabbit_queue)
        async with Proxy(rabbit.port) as proxy:
            flags = ("--amqp-url", proxy.amqp_url, "--amqp-queue", rabbit_queue)
            async with beside(Serving(*flags, window=1, workers_have=STEADY)) as serving:
                repeated = []
                async with Load(serving, callers=4) as load:
                    await eventually(consumer.take, bool)
                    since = await next_window(1)
                    async for _ in row.inject(1):
                        lost = await unconfirmed(serving, consumer, proxy)
                        rabbit.kill()
                        proxy.refuse = True  # with what it held back
                        proxy.stall_replies = proxy.refuse = False
                        await until(lambda: lost.window in serving.counts())
                        await asyncio.to_thread(rabbit.start)
                        since_s = time.monotonic()
                        await eventually(
                            consumer.deliveries,
                            lambda found: found.count(lost) >= 2,
                            within_s=RABBITMQ_BACK_S,
                        )
                        row.recovered(time.monotonic() - since_s)
                        repeated.append(lost)
                deliveries = await all_came(row, serving, load, consumer, since=since)
                # Two messages and a line, at least.
                assert min(deliveries.count(delivery) for delivery in repeated) >= 3
                await asyncio.to_thread(serving.stop)


def freeze(rabbit: RabbitServer) -> None:
    rabbit.freeze()


def thaw(rabbit: RabbitServer) -> None:
    rabbit.thaw()


def block(rabbit: RabbitServer) -> None:
    rabbit.ctl("set_vm_memory_high_watermark", "0")


def unblock(rabbit: RabbitServer) -> None:
    rabbit.ctl("set_vm_memory_high_watermark", "0.4")


@pytest.mark.parametrize(
    ("silence", "end"),
    [
        pytest.param(
            freeze, thaw, marks=pytest.mark.fault("21", "RabbitMQ silent for 3 windows", recovery_must_s=5.0)
        ),
        pytest.param(
            block,
            unblock,
            marks=pytest.mark.fault("22", "RabbitMQ blocks for 3 windows", recovery_must_s=5.0),
        ),
    ],
    ids=["21-silent", "22-blocked"],
)
async def test_21_22_rabbitmq_silent(
    rabbit: RabbitServer,
    rabbit_queue: str,
    silence: Callable[[RabbitServer], None],
    end: Callable[[RabbitServer], None],
    row: Row,
) -> None:
    """Each window has its line in time, while the broker says nothing; its message comes afterwards."""
    consumer = Consumer(rabbit, rabbit_queue)
    flags = ("--amqp-url", rabbit.url, "--amqp-queue", rabbit_queue)
    with Serving(*flags, window=1, workers_have=STEADY) as serving:
        away = []
        async with Load(serving, callers=4) as load:
            await eventually(consumer.take, bool)
            since = await next_window(1)
            async for _ in row.inject(1):
                await asyncio.to_thread(silence, rabbit)
                try:
                    starts = [await next_window(1) for _ in range(3)]
                    await until(lambda: iso(starts[-1]) in serving.counts())
                finally:
                    await asyncio.to_thread(end, rabbit)
                await arrives(row, consumer, iso(starts[-1]))
                assert all(
                    "RabbitMQ" in line["reason"]
                    for line in in_time(serving, starts, within_s=row.within_s(3))
                )
                away += starts
        await all_came(row, serving, load, consumer, since=since)
        assert {*held(load, since, away[-1])} <= (await consumer.counts()).keys()
        serving.stop()


async def delete_empty(rabbit: RabbitServer, queue: str, consumer: Consumer) -> int:
    """None that was not taken goes with it; returns how many were."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            taken = len(await consumer.take())
            with contextlib.suppress(ChannelPreconditionFailed):
                async with aiormq.connect(rabbit.url) as connection:
                    await (await connection.channel()).queue_delete(queue, if_empty=True)
                return taken


@pytest.mark.fault("23", "queue deleted")
async def test_23_queue_deleted(rabbit: RabbitServer, rabbit_queue: str, row: Row) -> None:
    """What found no queue is in the log, and goes to the queue once that is there again."""
    consumer = Consumer(rabbit, rabbit_queue)
    # Of this type, one can be deleted on condition that it is empty.
    flags = ("--amqp-url", rabbit.url, "--amqp-queue", rabbit_queue, "--amqp-queue-type", "classic")
    with Serving(*flags, window=1, workers_have=STEADY) as serving:
        async with Load(serving, callers=4) as load:
            await eventually(consumer.take, bool)
            since = await next_window(1)
            async for _ in row.inject(1):
                known = len(lines(serving))
                while not (found := with_reason(serving, "no such queue", known)):
                    taken = await delete_empty(rabbit, rabbit_queue, consumer)
                    # A publisher that had to connect anew just now has declared it again.
                    await eventually(
                        consumer.take,
                        lambda now, taken=taken: (  # type: ignore[misc]  # mypy does not infer it
                            len(now) > taken or bool(with_reason(serving, "no such queue", known))
                        ),
                    )
                await arrives(row, consumer, found[0]["window"])
        await all_came(row, serving, load, consumer, since=since)
        serving.stop()


@pytest.mark.fault("23", "queue full, refuses", recovery_must_s=5.0)
async def test_23_queue_full(rabbit: RabbitServer, rabbit_queue: str, row: Row) -> None:
    """What a queue refuses is in the log and never counts as delivered, until the queue has taken it."""
    consumer = Consumer(rabbit, rabbit_queue)
    async with aiormq.connect(rabbit.url) as connection:
        # A classic one: a quorum queue of RabbitMQ 3.10 goes on refusing when its limit has gone.
        # It refuses from its first limit on: one whose policy sets both drops what it holds beyond the limit.
        await (await connection.channel()).queue_declare(
            rabbit_queue, durable=True, arguments={"x-overflow": "reject-publish"}
        )
    flags = ("--amqp-url", rabbit.url, "--amqp-queue", rabbit_queue)
    with Serving(*flags, window=1, workers_have=STEADY) as serving:
        async with Load(serving, callers=4) as load:
            await eventually(consumer.take, bool)
            since = await next_window(1)
            async for _ in row.inject(1):
                known = len(lines(serving))
                await asyncio.to_thread(
                    rabbit.ctl, "set_policy", rabbit_queue, f"^{rabbit_queue}$", '{"max-length": 1}'
                )
                try:
                    await until(lambda: len(with_reason(serving, "refused", known)) >= 3)
                    sent, owed = "idagg_windows_delivered_total{broker}", "idagg_pending{messages}"
                    before = await eventually(serving.figures, lambda figures: figures[owed] > 0)
                    after = await eventually(serving.figures, lambda figures: figures[owed] > before[owed])
                    assert after[sent] == before[sent]
                finally:
                    await asyncio.to_thread(rabbit.ctl, "clear_policy", rabbit_queue)
                await arrives(row, consumer, lines(serving)[known].window)
        await all_came(row, serving, load, consumer, since=since)
        serving.stop()


def fill_page(log_file: Path) -> None:
    """A line that ends where the log file's last page does: the page has its room on a full disk, too."""
    with log_file.open("ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # nobody writes meanwhile
        filler, room = b"time=0 event=filler x=", -file.seek(0, os.SEEK_END) % 4096
        if room > len(filler):  # else there is none for any other line
            file.write(filler.ljust(room - 1, b"x") + b"\n")


@pytest.mark.fault("25", "disk of the log file full")
@pytest.mark.parametrize("small_disk", ["256k"], indirect=True)
async def test_25_log_disk_full(small_disk: Path, row: Row) -> None:
    """Windows stay owed while the log file's disk is full; no line is torn; all are there afterwards."""
    serving = Serving(window=1, workers_have=STEADY)
    serving.log_file = small_disk / "counts.log"
    with serving:
        async with Load(serving, callers=4) as load:
            since = await next_window(1)
            await until(lambda: iso(since) in serving.counts())
            async for number in row.inject(1):
                full = fill(small_disk)
                fill_page(serving.log_file)
                await tells(serving, "windows stay pending, trying again: ", times=number + 1)
                assert "No space left on device" in serving.said
                known = lines(serving)
                await eventually(serving.figures, lambda figures: figures["idagg_pending{deliveries}"] >= 3)
                assert lines(serving) == known
                full.unlink()
                await tells(serving, "windows are delivered again", times=number + 1)
        assert await sealed(row, serving, load, since=since) == []
        serving.stop()


# Workers start as they always do, with this in their path: a disk whose fsync never returns, at a word.
HANGING_DISK = """
import os, pathlib, sys, time
fsync, word = os.fsync, pathlib.Path(__file__).with_name("hang")

def hang(descriptor):
    while word.exists():
        time.sleep(0.01)
    fsync(descriptor)

os.fsync = hang
if "idagg.run.worker" in sys.orig_argv:
    from idagg.flush import flusher, leader
    flusher.CANNOT_DELIVER_S = 1.0
    leader.LEASE_MS = 600_000
"""


async def test_log_disk_hangs(any_server: RedisServer, tmp_path: Path) -> None:
    """The leader says so, once, goes on counting and sealing, and gives the lead to one that can deliver."""
    (tmp_path / "sitecustomize.py").write_text(HANGING_DISK)
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    flags = ("--redis-url", any_server.url, "--workers", "1", *PATIENT)
    with Serving(*flags, window=1, environment={"PYTHONPATH": path}) as hanging:
        await until(hanging.counts)
        async with beside(Serving(*flags, window=1, workers_have=STEADY)) as well:
            async with Load(well, callers=2) as load:
                first = await next_window(1)
                (tmp_path / "hang").touch()
                since = await next_window(1)
                number = next(ids)
                await send(hanging, [number])
                load.ok.add(number)
                health = await eventually(hanging.health, lambda answer: b"delivery: " in answer.body)
                assert health.status == 200
                assert b"did not take a line within 2 s" in health.body
                await until(lambda: max(well.counts(), default="") >= iso(since))
                assert hanging.said.count("windows stay pending, trying again: ") == 1
                assert hanging.said.count("the lead is given away") == 1
                await eventually(well.health, lambda answer: b"delivery: " not in answer.body)
                (tmp_path / "hang").unlink()
            last = int(epoch_s(max(await well.delivered())))
            # All windows came, in their order, each under one count.
            told = [line["window"] for line in well.records("window")]
            assert told == sorted(set(told))
            deliveries, expected = [*lines(hanging), *lines(well)], held(load, first, last)
            assert oracle.verdict(load, deliveries, expected=expected, answer_s=LIMIT_S) == []
            await asyncio.to_thread(well.stop)
        hanging.stop()


@pytest.mark.parametrize("name", ["-", "a link"])
async def test_records_on_standard_output(tmp_path: Path, name: str) -> None:
    """Also by a link to it, as images of containers have them; workers tell the supervisor of themselves all
    the same."""
    (tmp_path / "a link").symlink_to("/dev/stdout")
    serving = Serving(*PATIENT, window=1)
    serving.log_file = Path("-") if name == "-" else tmp_path / name
    with serving:
        await send(serving, [1], query="&endpoint=http://127.0.0.1:8/x")
        await until(lambda: " unique_ids=1 " in serving.said)
        await until(lambda: " event=callback window=" in serving.said)  # by another process
        assert 'url="http://127.0.0.1:8/x" error="blocked"' in serving.said
        assert b"delivery: " not in (await serving.health()).body
        serving.stop()
