"""The flush with a real store, whose clock is cranked by hand, and a real log file."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import aiormq
import pytest

from idagg.deliver.amqp_route import Route
from idagg.deliver.broker import Broker
from idagg.deliver.logfile import LogFile
from idagg.errors import BrokerAwayError, LogFileError, StoreAwayError
from idagg.flush import flusher, leader, turns
from idagg.flush.flusher import Flusher, Lines, Publisher
from idagg.flush.leader import Leadership
from idagg.store.client import Client
from idagg.store.election import Agreed, Lease, Successor
from idagg.store.windows import WindowStore
from idagg.window import Counts, Record, Rollup, iso
from kit import servers
from kit.cranked import CrankedClient
from kit.fakes import settle
from kit.staging import StoreStage, end, seal, window_store
from kit.waiting import LIMIT_S, NOON, eventually, until


class Queue:
    """A publisher that confirms, is away, refuses or keeps silent, as it is told."""

    def __init__(self, *, there: bool = True) -> None:
        self.ready = asyncio.Event()
        if there:
            self.ready.set()
        self.tried = 0
        self.got: list[Record] = []
        self.rollups: list[Rollup] = []
        self.refusal: str | None = None
        self.confirms = 10**9  # messages; then it is silent

    async def publish(self, record: Record | Rollup) -> None:
        self.tried += 1
        if not self.ready.is_set():
            raise BrokerAwayError("it is away")
        if self.refusal:
            raise BrokerAwayError(self.refusal)
        async with asyncio.timeout(LIMIT_S):
            while not self.confirms:  # noqa: ASYNC110  sooner than a leader, who looks every 10 ms, hears of another
                await asyncio.sleep(0.001)
        self.confirms -= 1
        if isinstance(record, Rollup):
            self.rollups.append(record)
        else:
            self.got.append(record)


class Figures:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.seals: list[tuple[Record, int]] = []
        self.deliveries: list[tuple[Record, str, float]] = []
        self.counts: list[tuple[int, int]] = []

    def sealed(self, record: Record, *, dropped_endpoints: int) -> None:
        self.seals.append((record, dropped_endpoints))

    def delivered(self, record: Record, *, sink: str, lag_s: float) -> None:
        self.deliveries.append((record, sink, lag_s))

    def rolled(self, *, lag_s: float, gone: int) -> None:
        pass

    def pending(self, counts: Counts) -> None:
        self.counts.append((counts.deliveries, counts.messages))

    @property
    def told(self) -> list[tuple[int, str]]:
        """Windows and sinks."""
        return [(record.start_s, sink) for record, sink, _ in self.deliveries]


class Process:
    """What a worker process has to lead and to flush."""

    def __init__(self, clients: tuple[Client, Client], broker: Publisher | None, lines: Lines) -> None:
        self.clients = clients
        bidding, flushing = map(window_store, clients)
        self.leadership = Leadership(bidding.election, bidding.election.agreed)
        self.figures = Figures()
        self.flusher = Flusher(
            flushing,
            self.leadership,
            broker=broker,
            lines=lines,
            observer=self.figures,
            rollups=["hour"],
        )
        self.bid = asyncio.create_task(self.leadership.run())
        self.flush = asyncio.create_task(self.flusher.run())

    async def answered(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            await self.leadership.answered.wait()

    async def freeze(self) -> None:
        """From now on it hears of no other leader."""
        await end(self.bid)

    async def kill(self) -> None:
        """End it without a word; what ended it before is for the test to look at."""
        await end(self.bid, self.flush)
        for client in self.clients:
            await client.close()

    async def stop(self) -> None:
        """End it as a worker is ended."""
        self.flusher.stop()
        async with asyncio.timeout(LIMIT_S):
            await self.flush
        await self.freeze()
        await self.leadership.resign()


class Bench(StoreStage[Process]):
    """A stage with a log file."""

    def __init__(self, url: str, path: Path) -> None:
        super().__init__(url, path)
        self.lines = LogFile(path, timeout_s=LIMIT_S)

    async def start(
        self, broker: Publisher | None = None, *, lines: Lines | None = None, flushing: Client | None = None
    ) -> Process:
        """Another process, which has bid once."""
        clients = (CrankedClient(self.url), flushing or CrankedClient(self.url))
        self.processes.append(Process(clients, broker, lines or self.lines))
        await self.processes[-1].answered()
        return self.processes[-1]

    def logged(self) -> list[tuple[str, int, str | None]]:
        """Windows, counts and reasons in the log file."""
        line = re.compile(r'.* event=window window=(\S+) unique_ids=(\d+) .* sink=log(?: reason="(.*)")?')
        found = [line.fullmatch(text) for text in self.text().splitlines()]
        return [(match[1], int(match[2]), match[3]) for match in found if match]

    def text(self) -> str:
        """Of the log file; each line is whole."""
        if not self.path.is_file():
            return ""
        with self.path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # a line under way can be seen in part
            return file.read()

    async def counts(self) -> tuple[int, int]:
        counts = await self.windows.pending.counts()
        return counts.deliveries, counts.messages

    async def records(self) -> list[Any]:
        """Outbox entries that the store still has."""
        return list(await self.client.command("KEYS", "{t:0}:record:*"))


@pytest.fixture
async def bench(
    any_server: servers.RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    # The clock is cranked while they sleep.
    monkeypatch.setattr(turns, "LOOK_S", 0.01)
    monkeypatch.setattr(turns, "RETRY_S", 0.01)
    monkeypatch.setattr(leader, "LOOK_S", 0.01)
    monkeypatch.setattr(leader, "LEASE_MS", 600_000)  # it goes on by the server's clock while we stand still
    bench = Bench(any_server.url, tmp_path / "log")
    await bench.at(0)
    yield bench
    await bench.close()


async def some_looks(process: Process) -> None:
    """Let it look for work several times."""
    seen = len(process.figures.counts)
    await until(lambda: len(process.figures.counts) > seen + 10)


# Where a window goes


async def test_without_a_broker_the_line_is_the_delivery(bench: Bench) -> None:
    """The log file has the window, once, and the store has nothing of it any more."""
    process = await bench.start()
    await bench.add(1, 2, 2)
    await bench.at(60)
    await until(lambda: process.figures.told)
    await some_looks(process)
    assert bench.logged() == [(iso(NOON), 2, None)]
    assert process.figures.told == [(NOON, "log")]
    assert await bench.records() == []


async def test_a_confirmed_message_is_the_delivery(bench: Bench) -> None:
    """Where the broker confirms, no line is written."""
    queue = Queue()
    process = await bench.start(queue)
    await bench.add(1, 2)
    await bench.at(60)
    await until(lambda: process.figures.told)
    await some_looks(process)
    assert [(record.message_id("t"), record.unique_ids) for record in queue.got] == [(f"t:{NOON}", 2)]
    assert process.figures.told == [(NOON, "broker")]
    assert bench.logged() == []
    assert await bench.records() == []


async def test_without_its_broker_the_line_comes_at_once_and_the_message_later(bench: Bench) -> None:
    """The line says why; the message follows when the broker is back, with the same count, each once."""
    queue = Queue(there=False)
    process = await bench.start(queue)
    await bench.add(1, 2)
    await bench.at(60)
    await until(bench.logged)
    await some_looks(process)
    assert bench.logged() == [(iso(NOON), 2, "it is away")]
    assert await bench.counts() == (0, 1)
    assert process.figures.told == []
    assert queue.tried == 1

    queue.ready.set()
    await until(lambda: process.figures.told)
    await some_looks(process)
    assert [(record.message_id("t"), record.unique_ids) for record in queue.got] == [(f"t:{NOON}", 2)]
    assert process.figures.told == [(NOON, "broker")]
    assert len(bench.logged()) == 1
    assert await bench.records() == []


async def test_the_brokers_return_is_heard_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages that wait for the broker, however many, do not wait for the next look at the clock as well."""
    monkeypatch.setattr(turns, "LOOK_S", 3600)
    monkeypatch.setattr(flusher, "LATE_AT_ONCE", 2)
    queue = Queue(there=False)
    for minute in range(5):
        await bench.at(60 * minute)
        await bench.add(1)
    await bench.at(300)
    process = await bench.start(queue)
    await until(lambda: process.figures.counts[-1:] == [(0, 5)])
    queue.ready.set()
    await until(lambda: len(queue.got) == 5)


async def test_a_broker_that_refuses_is_not_asked_without_a_pause(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue that is there and takes nothing gets one more try at each look, not as many as fit in."""
    monkeypatch.setattr(turns, "LOOK_S", 3600)
    queue = Queue()
    queue.refusal = "the queue is full"
    await bench.add(1)
    await bench.at(60)
    process = await bench.start(queue)
    await until(lambda: process.figures.counts[-1:] == [(0, 1)])
    for _ in range(50):  # time enough for many turns
        assert await bench.counts() == (0, 1)
    assert queue.tried <= 3  # the window may be seen before its sealing is told, which is one more look
    assert bench.logged() == [(iso(NOON), 1, "the queue is full")]


async def test_a_broker_that_takes_messages_again(bench: Bench) -> None:
    """What was refused for a while is sent when it is taken again."""
    queue = Queue()
    queue.refusal = "the queue is full"
    process = await bench.start(queue)
    await bench.add(1)
    await bench.at(60)
    await until(lambda: queue.tried > 3)
    queue.refusal = None
    await until(lambda: process.figures.told)
    assert [record.unique_ids for record in queue.got] == [1]
    assert len(bench.logged()) == 1


async def test_a_broker_that_is_configured_away(bench: Bench) -> None:
    """Windows that waited for a broker that is not to be are settled: their lines are written already."""
    before = await bench.start(Queue(there=False))
    await bench.add(1)
    await bench.at(60)
    await until(bench.logged)
    await before.stop()
    after = await bench.start(None)
    await until(lambda: after.figures.told)
    await some_looks(after)
    assert after.figures.told == [(NOON, "log")]
    assert len(bench.logged()) == 1
    assert await bench.records() == []


async def test_a_window_reaches_rabbitmq(
    bench: Bench, rabbit: servers.RabbitServer, rabbit_queue: str
) -> None:
    """With the real parts on both sides: a broker that is not there, then one that is."""

    def broker(url: str) -> Broker:
        return Broker(url, Route(rabbit_queue), body="json", namespace="t")

    nowhere, there = broker(f"amqp://127.0.0.1:{servers.free_port()}/"), broker(rabbit.url)
    nowhere.start()
    before = await bench.start(nowhere)
    await bench.add(1, 2)
    await bench.at(60)
    await until(bench.logged)
    await before.stop()
    await nowhere.close()
    there.start()
    after = await bench.start(there)
    await until(lambda: after.figures.told)
    async with aiormq.connect(rabbit.url) as connection:
        channel = await connection.channel()
        found = []
        while (message := await channel.basic_get(rabbit_queue, no_ack=True)).body:
            found.append(message)
    # Where RabbitMQ is slow with its confirm, the message comes again.
    assert {message.header.properties.message_id for message in found} == {f"t:{NOON}"}
    assert all(b'"unique_ids":2,' in message.body for message in found)
    await after.stop()
    await there.close()


async def test_endpoints_do_not_hold_up_a_window(bench: Bench) -> None:
    """A window is delivered while its endpoints wait; the record stays for their sake."""
    process = await bench.start()
    await bench.hits.add(1, [b"1"], [b"http://a/"])
    await bench.at(60)
    await until(lambda: process.figures.told)
    assert [owed.record.start_s for owed in await bench.windows.pending.with_callbacks()] == [NOON]
    assert [one.endpoint for one in await bench.windows.pending.callbacks(NOON)] == ["http://a/"]


# Which windows there are


async def test_empty_windows_count_zero_where_there_is_a_leader(bench: Bench) -> None:
    """Silence is told as 0, window by window, from that on which the leader began in."""
    await bench.at(30)
    process = await bench.start()
    for minute in (1, 2, 3):
        await bench.at(60 * minute)
        await until(lambda minute=minute: len(process.figures.told) == minute)  # type: ignore[misc]  # mypy does not infer it
    assert bench.logged() == [(iso(NOON + 60 * minute), 0, None) for minute in range(3)]


async def test_windows_that_nobody_attended(bench: Bench) -> None:
    """Without a leader, windows with ids are delivered late and empty ones not at all."""
    await bench.add(1)
    await bench.at(180)
    await bench.add(1, 2)
    await bench.at(600)
    process = await bench.start()
    await bench.at(660)
    await until(lambda: len(process.figures.told) == 3)
    await some_looks(process)
    assert bench.logged() == [
        (iso(NOON), 1, None),
        (iso(NOON + 180), 2, None),
        (iso(NOON + 600), 0, None),
    ]


@pytest.mark.parametrize("broker", [None, "there", "away"])
async def test_hours_without_a_leader(bench: Bench, broker: Literal["there", "away"] | None) -> None:
    """Every window with ids is delivered late, in order, however many there are."""
    for minute in range(130):
        await bench.at(60 * minute)
        await bench.add(*range(minute + 1))
    await bench.at(60 * 130)
    queue = Queue(there=broker == "there")
    process = await bench.start(queue if broker else None)
    if broker == "away":
        await until(lambda: len(bench.logged()) == 130)
        queue.ready.set()
    await until(lambda: len(process.figures.told) == 130)
    counts = [(iso(NOON + 60 * minute), minute + 1) for minute in range(130)]
    if broker:
        assert [(iso(record.start_s), record.unique_ids) for record in queue.got] == counts
    if broker != "there":
        assert [(window, count) for window, count, _ in bench.logged()] == counts
    assert await bench.records() == []


@pytest.mark.parametrize(
    ("bound", "order"),
    [({"LATE_AT_ONCE": 2, "LATE_FOR_S": 3600}, [0, 1, 6]), ({"LATE_FOR_S": 0}, [0, 6, 1])],
)
async def test_a_backlog_does_not_hold_up_the_next_window(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, bound: dict[str, int], order: list[int]
) -> None:
    """While late messages go out, so many or for so long at a time, a window that ends comes between them."""
    for name, value in bound.items():
        monkeypatch.setattr(flusher, name, value)
    for minute in range(6):
        await bench.at(60 * minute)
        await bench.add(minute)
    queue = Queue(there=False)
    await bench.start(queue)
    await bench.at(360)
    await until(lambda: len(bench.logged()) == 6)
    queue.confirms = 0
    queue.ready.set()
    await until(lambda: queue.tried == 7)
    await bench.at(420)
    await eventually(bench.windows.pending.deliveries, lambda windows: len(windows) == 1)  # it is merged
    queue.confirms = 3
    await until(lambda: len(queue.got) == 3)
    assert [(record.start_s - NOON) // 60 for record in queue.got] == order
    queue.confirms = 4
    await until(lambda: len(queue.got) == 7)


# Hours


async def test_an_hour_is_delivered_as_a_window_is(bench: Bench) -> None:
    """To the log file while the broker is away, and then to the queue, once each, with the same count."""
    queue = Queue(there=False)
    process = await bench.start(queue)
    await bench.add(1, 2, 2)
    await bench.at(3600)
    await until(lambda: "event=rollup" in bench.text())
    hour = Rollup("hour", NOON, 2, 3, False, process.leadership.epoch)
    (line,) = (line for line in bench.text().splitlines() if "event=rollup" in line)
    assert line.endswith(
        f"event=rollup period=hour start={iso(hour.start_s)} unique_ids=2 estimate=2 hits=3 exact=false "
        'sink=log reason="it is away"'
    )
    queue.ready.set()
    await until(lambda: queue.rollups)
    await some_looks(process)
    assert queue.rollups == [hour]
    assert bench.text().count("event=rollup") == 1


# Trouble


async def test_a_full_log_file_leaves_the_window_owed(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """While no line can be written the window stays, and is told as owed; it is delivered once after."""
    caplog.set_level("INFO")
    bench.path.symlink_to("/dev/full")
    process = await bench.start()
    await bench.add(1, 2)
    await bench.at(60)
    await until(lambda: "windows stay pending" in caplog.text)
    await some_looks(process)
    assert caplog.text.count("cannot be written") == 1, "told at every try"
    assert await bench.counts() == (1, 0)
    assert process.figures.counts[-1] == (1, 0)
    assert process.figures.told == []
    bench.path.unlink()
    await until(lambda: process.figures.told)
    await some_looks(process)
    assert bench.logged() == [(iso(NOON), 2, None)]
    assert process.figures.counts[-1] == (0, 0)
    assert "windows are delivered again" in caplog.text
    assert len(process.figures.seals) == 1


class Disk(LogFile):
    """A log file that takes no line while it is told to be full."""

    full = False

    async def window(self, record: Record, *, reason: str | None) -> None:
        if self.full:
            raise LogFileError("the disk hangs")
        await super().window(record, reason=reason)


async def test_windows_are_sealed_whatever_the_sinks_do(bench: Bench) -> None:
    """A window is sealed at its end while a line of the one before hangs."""
    queue = Queue()
    queue.confirms = 0
    process = await bench.start(queue)
    for minute in (1, 2, 3):
        await bench.add(minute)
        await bench.at(60 * minute)
        await until(lambda minute=minute: process.figures.counts[-1:] == [(minute, 0)])  # type: ignore[misc]  # mypy does not infer it
    await until(lambda: queue.tried == 1)
    queue.confirms = 3
    await until(lambda: len(process.figures.told) == 3)
    assert [record.start_s for record in queue.got] == [NOON, NOON + 60, NOON + 120]


async def test_a_leader_that_cannot_deliver_gives_the_lead_away(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another process, which can, has it soon, and keeps it; the window is delivered once."""
    monkeypatch.setattr(flusher, "CANNOT_DELIVER_S", 0.2)
    monkeypatch.setattr(leader, "BACK_LOOK_S", 60)  # whatever it takes the other one
    disk = Disk(bench.path)
    first = await bench.start(lines=disk)
    second = await bench.start()
    disk.full = True
    await bench.add(1)
    await bench.at(60)
    await until(lambda: second.figures.told)
    assert (first.leadership.epoch, second.leadership.epoch) == (0, 2)
    assert first.flusher.trouble == "the disk hangs"
    assert caplog.text.count("windows stay pending") == 1
    assert caplog.text.count("the lead is given away") == 1
    assert bench.logged() == [(iso(NOON), 1, None)]


async def test_a_leader_that_cannot_deliver_and_is_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody takes the lead that it gives away: it leads again, seals, and delivers when it can."""
    monkeypatch.setattr(flusher, "CANNOT_DELIVER_S", 0.1)
    monkeypatch.setattr(leader, "BACK_LOOK_S", 0.05)
    disk = Disk(bench.path)
    disk.full = True
    process = await bench.start(lines=disk)
    await bench.add(1)
    await bench.at(60)
    await until(lambda: process.leadership.epoch > 2)
    await bench.add(2, 3)
    await bench.at(120)
    await until(lambda: process.figures.counts[-1:] == [(2, 0)])
    assert process.flusher.trouble == "the disk hangs"
    disk.full = False
    await until(lambda: len(process.figures.told) == 2)
    assert bench.logged() == [(iso(NOON), 1, None), (iso(NOON + 60), 2, None)]
    await until(lambda: process.flusher.trouble is None)
    assert not process.leadership.stands_back


async def test_neither_broker_nor_log_file(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """What neither took is delivered by whichever is there first."""
    bench.path.symlink_to("/dev/full")
    queue = Queue(there=False)
    process = await bench.start(queue)
    await bench.add(1)
    await bench.at(60)
    await until(lambda: "windows stay pending" in caplog.text)
    queue.ready.set()
    await until(lambda: process.figures.told)
    assert process.figures.told == [(NOON, "broker")]
    assert await bench.records() == []


async def test_a_store_that_restarts(bench: Bench, any_server: servers.RedisServer) -> None:
    """Windows are delivered when the store is back, by the process that waited for it."""
    process = await bench.start()
    await bench.add(1)
    await bench.at(60 - 1)
    await bench.client.command("SAVE")
    any_server.kill()
    await until(lambda: process.flusher.trouble)
    any_server.start()
    await bench.at(60)
    await until(lambda: process.figures.told)
    assert bench.logged() == [(iso(NOON), 1, None)]


async def test_a_leader_that_wakes_late_is_fenced(bench: Bench) -> None:
    """Its message under way is the same as its successor's, and it does nothing after."""
    late, queue = Queue(), Queue()
    late.confirms = 0
    zombie = await bench.start(late)
    await bench.add(1, 2)
    await bench.at(60)
    await until(lambda: late.tried)
    await zombie.freeze()
    await bench.lease_runs_out()
    successor = await bench.start(queue)
    await until(lambda: successor.figures.told)

    late.confirms = 1
    await until(lambda: late.got and not zombie.leadership.epoch)
    assert late.got == queue.got
    assert zombie.figures.told == []

    await bench.at(120)
    await until(lambda: len(queue.got) == 2)
    assert queue.got[1].epoch == 2
    assert late.tried == 1


async def test_a_fenced_leader_seals_nothing(bench: Bench) -> None:
    """Who wakes late as another has been elected does not touch the windows, and says no word in the log."""
    queue = Queue()
    zombie = await bench.start(queue)
    await zombie.freeze()
    await bench.lease_runs_out()
    epoch = (await bench.windows.election.lead("another", lease_ms=60_000)).epoch
    await bench.add(1)
    await bench.at(60)
    await until(lambda: zombie.leadership.epoch == 0)
    assert await bench.counts() == (0, 0)
    assert await seal(bench.windows, epoch) == 0
    assert queue.tried == 0


# Its end


async def test_stop_finishes_the_step_under_way_and_no_other(bench: Bench) -> None:
    """A message under way is waited for and marked; what is owed besides is the next leader's."""
    for minute in range(3):
        await bench.at(60 * minute)
        await bench.add(minute)
    await bench.at(180)
    queue = Queue()
    queue.confirms = 0
    process = await bench.start(queue)
    await until(lambda: queue.tried)
    await eventually(bench.counts, lambda counts: counts == (3, 0))  # all are sealed
    process.flusher.stop()
    await settle()
    assert not process.flush.done()
    queue.confirms = 3
    await process.stop()
    assert [record.start_s for record in queue.got] == [NOON]
    assert await bench.counts() == (2, 0)


async def test_stop_among_late_messages(bench: Bench) -> None:
    """Late messages, too, are left to the next leader but for the one under way."""
    for minute in range(3):
        await bench.at(60 * minute)
        await bench.add(minute)
    await bench.at(180)
    queue = Queue(there=False)
    process = await bench.start(queue)
    await until(lambda: process.figures.counts[-1:] == [(0, 3)])
    queue.confirms = 0
    queue.ready.set()
    await until(lambda: queue.tried == 4)
    process.flusher.stop()
    queue.confirms = 3
    await process.stop()
    assert [record.start_s for record in queue.got] == [NOON]
    assert await bench.counts() == (0, 2)


async def test_stop_ends_every_wait(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends at once whether it waits for an election, for the clock, for the broker or after an error."""
    monkeypatch.setattr(turns, "LOOK_S", 3600)
    monkeypatch.setattr(turns, "RETRY_S", 3600)
    leads = await bench.start()
    follows = await bench.start()
    await until(lambda: leads.figures.counts)
    await follows.stop()
    await leads.stop()
    await bench.add(1)
    await bench.at(60)
    waits_for_broker = await bench.start(Queue(there=False))
    await until(lambda: waits_for_broker.figures.counts[-1:] == [(0, 1)])
    await waits_for_broker.stop()
    await bench.add(2)
    bench.path.unlink()
    bench.path.symlink_to("/dev/full")
    await bench.at(120)
    fails = await bench.start()
    await until(lambda: fails.flusher.trouble)
    await fails.stop()


class Ballot:
    """A lock that is given when it is told to."""

    def __init__(self) -> None:
        self.given = asyncio.Event()

    async def lead(self, name: str, *, lease_ms: int, may_change_after: Successor) -> Lease:
        await self.given.wait()
        return Lease(1, lease_ms, 1, Agreed(60, 1000))

    async def resign(self, name: str) -> None:
        raise AssertionError


class SilentClient(Client):
    """A store that never answers."""

    async def script(self, name: str, tag: str, *args: bytes | str | int) -> Any:
        await asyncio.Event().wait()


@pytest.mark.parametrize("steps", range(10))
async def test_a_cancellation_is_never_lost(tmp_path: Path, steps: int) -> None:
    """However close to another event it comes, a cancellation ends the run."""
    windows = WindowStore(
        SilentClient("unix:///nowhere", timeout_s=1), namespace="t", window_s=60, exact_limit=1
    )
    ballot = Ballot()
    leadership = Leadership(ballot, Agreed(60, 1000))
    bid = asyncio.create_task(leadership.run())
    flush = asyncio.create_task(
        Flusher(windows, leadership, broker=None, lines=LogFile(tmp_path / "log"), observer=Figures()).run()
    )
    await asyncio.sleep(0)
    ballot.given.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    flush.cancel()
    await asyncio.wait([flush], timeout=LIMIT_S)
    heeded = flush.done()
    await end(bid, flush)
    assert heeded


class ForgetfulClient(CrankedClient):
    """Its server is replaced by one with older data as soon as a window is merged."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.older: list[bytes] = []

    async def script(self, name: str, tag: str, *args: bytes | str | int) -> Any:
        answer = await super().script(name, tag, *args)
        if name == "merge" and self.older:
            older, self.older = self.older, []
            await restore(self, older)
        return answer


async def snapshot(client: Client) -> list[bytes]:
    """Keys and what they hold, in turn."""
    keys = await client.command("KEYS", "{t:*")
    return [part for key in keys for part in (key, await client.command("DUMP", key))]


async def restore(client: Client, older: list[bytes]) -> None:
    text = """
    for _, key in ipairs(redis.call('KEYS', '{t:*')) do
      redis.call('DEL', key)
    end
    for i = 1, #ARGV, 2 do
      redis.call('RESTORE', ARGV[i], 0, ARGV[i + 1])
    end
    """
    await client.command("EVAL", text, 0, *older)


@pytest.mark.parametrize(("when", "epochs"), [("at once", [2]), ("later", [1, 2])])
async def test_a_merge_that_the_store_forgets_is_done_again(
    bench: Bench,
    any_server: servers.RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
    epochs: list[int],
) -> None:
    """In another epoch, by the same leader: a failover lost the merge, and kept the lock."""
    monkeypatch.setattr(leader, "LEASE_MS", 3000)  # it is renewed, and the epoch heard of, every second
    forgetful, queue = ForgetfulClient(any_server.url), Queue()
    process = await bench.start(queue, flushing=forgetful)
    await bench.add(1, 2, 3)
    older = await snapshot(bench.client)
    if when == "at once":
        forgetful.older = older
    await bench.at(60)
    if when == "later":
        await until(lambda: process.figures.told)
        await some_looks(process)
        await restore(bench.client, older)
    await until(lambda: [record.epoch for record in queue.got] == epochs)
    assert {record.unique_ids for record in queue.got} == {3}
    await until(lambda: process.figures.counts[-1:] == [(0, 0)])


# Any step may fail, and be the last


class KilledError(Exception):
    pass


class Fate:
    """What becomes of the step after so many: ``fatal``, the process dies before it, else it goes wrong."""

    def __init__(self, survives: int, *, fatal: bool) -> None:
        self._left = survives
        self._fatal = fatal

    @property
    def fulfilled(self) -> bool:
        return self._left < 0

    def strikes(self) -> bool:
        """To be asked once a step."""
        self._left -= 1
        if self._left == -1 and self._fatal:
            raise KilledError
        return self._left == -1


class DoomedClient(CrankedClient):
    """Loses a reply."""

    def __init__(self, url: str, fate: Fate) -> None:
        super().__init__(url)
        self._fate = fate

    async def script(self, name: str, tag: str, *args: bytes | str | int) -> Any:
        lost = self._fate.strikes()
        reply = await super().script(name, tag, *args)
        if lost:
            raise StoreAwayError("the reply was lost")
        return reply

    async def command(self, *args: bytes | str | int) -> Any:
        if self._fate.strikes():
            raise StoreAwayError("the reply was lost")
        return await super().command(*args)


class DoomedLines:
    """Is full for a moment."""

    def __init__(self, lines: LogFile, fate: Fate) -> None:
        self._lines = lines
        self._fate = fate

    async def window(self, record: Record, *, reason: str | None) -> None:
        if self._fate.strikes():
            raise LogFileError("full")
        await self._lines.window(record, reason=reason)

    async def rollup(self, rollup: Rollup, *, reason: str | None) -> None:
        await self._lines.rollup(rollup, reason=reason)


class DoomedPublisher:
    """Loses a confirmation."""

    def __init__(self, queue: Queue, fate: Fate) -> None:
        self._queue = queue
        self._fate = fate
        self.ready = queue.ready

    async def publish(self, record: Record | Rollup) -> None:
        lost = self._fate.strikes()
        await self._queue.publish(record)
        if lost:
            raise BrokerAwayError("not confirmed")


# "log, then none": the broker is away, and the successor has none.
Way = Literal["log", "broker", "log, then broker", "log, then none"]


async def live_and_be_succeeded(bench: Bench, url: str, way: Way, fate: Fate) -> None:
    """A process delivers a window as far as ``fate`` lets it, another goes on."""
    queue = Queue(there=way == "broker")
    rest = (0, 1) if way == "log, then none" else (0, 0)
    doomed = await bench.start(
        DoomedPublisher(queue, fate) if way != "log" else None,
        lines=DoomedLines(bench.lines, fate),
        flushing=DoomedClient(url, fate),
    )
    if way == "log, then broker":
        await until(lambda: doomed.flush.done() or doomed.figures.counts[-1:] == [(0, 1)])
        queue.ready.set()
    await until(lambda: doomed.flush.done() or doomed.figures.counts[-1:] == [rest])
    await doomed.kill()
    await bench.lease_runs_out()

    successor = await bench.start(queue if way.endswith("broker") else None)
    await until(lambda: successor.figures.counts[-1:] == [(0, 0)])
    await successor.stop()
    await successor.kill()
    assert await bench.records() == []

    messages, lines = queue.got, bench.logged()
    assert {(iso(record.start_s), record.unique_ids) for record in messages} <= {(iso(NOON), 3)}
    assert {(window, count) for window, count, _ in lines} <= {(iso(NOON), 3)}
    assert messages if way.endswith("broker") else lines
    # One step was repeated at most; a message that was not confirmed is one, and makes a line due.
    assert len(lines) <= 2
    assert len(messages) <= 2
    assert len(messages) + len(lines) <= (3 if way.endswith("broker") else 2)


@pytest.mark.parametrize("fatal", [True, False])
@pytest.mark.parametrize("way", ["log", "broker", "log, then broker", "log, then none"])
async def test_any_step_may_fail_or_be_the_last(
    any_server: servers.RedisServer, bench: Bench, way: Way, fatal: bool
) -> None:
    """The window is delivered all the same; a repeat is of one step at most, of the same id and count."""
    for survives in itertools.count():
        await bench.client.command("FLUSHALL")
        bench.path.unlink(missing_ok=True)
        bench.hits = bench.worker()
        await bench.at(0)
        await bench.add(1, 2, 3)
        await bench.at(60)
        fate = Fate(survives, fatal=fatal)
        await live_and_be_succeeded(bench, any_server.url, way, fate)
        if not fate.fulfilled:
            break
    assert survives > 5  # so many steps are there at least


# What is told


async def test_lost_writes_are_told(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A window whose ids have gone from the store is delivered as what it is, with a warning."""
    queue = Queue()
    process = await bench.start(queue)
    await bench.add(*range(100))
    await bench.client.command("SPOP", f"{{t:0}}:w:{NOON}:ids", 90)
    await bench.at(60)
    await until(lambda: process.figures.told and queue.got)
    assert [sealed for sealed, _ in process.figures.seals] == queue.got
    assert queue.got[0].suspect
    assert f"window {iso(NOON)}: its ids and its sketch differ by more than chance" in caplog.text


async def test_an_estimate_is_told_as_one(bench: Bench) -> None:
    """A window with more ids than are kept exactly says so wherever its count goes."""
    queue = Queue()
    await bench.start(queue)
    await bench.add(*range(1001))
    await bench.at(60)
    await until(lambda: queue.got)
    assert not queue.got[0].exact
    assert queue.got[0].unique_ids == queue.got[0].estimate == pytest.approx(1001, rel=0.05)


async def test_dropped_endpoints_are_told(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Hits whose endpoint was over the limit are counted and warned of."""
    process = await bench.start()
    await bench.worker(endpoint_limit=1).add(1, [b"1"], [b"http://a/", b"http://b/", b"http://c/"])
    await bench.at(60)
    await until(lambda: process.figures.told)
    assert [dropped for _, dropped in process.figures.seals] == [2]
    assert f"window {iso(NOON)}: 2 hits named an endpoint over the limit" in caplog.text


async def test_figures(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Each window is told once as sealed and once as delivered, with its sink and its lag; counts follow."""
    queue = Queue(there=False)
    process = await bench.start(queue)
    await bench.add(1, 2)
    await bench.at(60)
    await until(lambda: process.figures.counts[-1:] == [(0, 1)])
    await bench.at(120)
    await until(lambda: process.figures.counts[-1:] == [(0, 2)])
    queue.ready.set()
    await until(lambda: process.figures.counts[-1:] == [(0, 0)])
    expected = [
        Record(start_s=NOON, length_s=60, unique_ids=2, estimate=2, hits=2, exact=True, epoch=1),
        Record(start_s=NOON + 60, length_s=60, unique_ids=0, estimate=0, hits=0, exact=True, epoch=1),
    ]
    assert process.figures.seals == [(sealed, 0) for sealed in expected]
    assert [(sealed, sink) for sealed, sink, _ in process.figures.deliveries] == [
        (sealed, "broker") for sealed in expected
    ]
    for sealed, _, lag_s in process.figures.deliveries:
        assert lag_s == pytest.approx(time.time() - sealed.end_s, abs=LIMIT_S)
    assert not [entry for entry in caplog.records if entry.levelname != "INFO"]
