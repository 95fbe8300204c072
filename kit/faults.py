"""What the tests of the fault matrix share: bounds, stores, waits and verdicts.

Each test injects the fault of a row into real processes, ``row.inject`` times, and lets the oracle judge what
came of it. Those that take long are marked ``slow``: ``tox run -e faults`` runs them, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Self

from idagg.errors import StoreError
from idagg.store.client import Client
from idagg.store.windows import WindowStore
from idagg.tasks import end
from idagg.window import iso
from kit.figures import Row
from kit.oracle import Consumer, Delivery, Load, Size, crowded, epoch_s, grown, held, lines
from kit.proxy import Proxy
from kit.serving import Serving
from kit.waiting import LIMIT_S, eventually, next_window, until

# What an answer may take: at the default deadline, and at a shorter one. Rows that keep no figures give more.
ANSWER_S = 2.5
SOON = ("--deadline", "1")
SOON_S = 1.5
# What it may take whom a dead worker leaves in its backlog: until the next one listens.
SUCCESSOR_S = 4.0
# Until trouble has ended; what is promised on a machine of one's own is with each row.
RECOVERS_S = 3.0
RABBITMQ_BACK_S = 45.0
# The leader's, in the namespace of all tests here.
LOCK = "{idagg:0}:lock"
# Constants of workers, where a leader that lives is to go on leading though the machine may stand still for
# longer than a lease of 5 s.
STEADY = {"idagg.flush.leader.LEASE_MS": 600_000}
# Of such a lease, which is renewed with two thirds of it in hand.
GIVEN_AWAY_MS = 300_000


@contextlib.asynccontextmanager
async def beside(serving: Serving) -> AsyncIterator[Serving]:
    """Started and ended while our loop goes on, for the proxies in it."""
    try:
        await asyncio.to_thread(serving.start)
        yield serving
    finally:
        await asyncio.to_thread(serving.close)


@contextlib.asynccontextmanager
async def store_client(url: str) -> AsyncIterator[Client]:
    client = Client(url, timeout_s=LIMIT_S)
    try:
        yield client
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def nobody_seals(url: str, window: int) -> AsyncIterator[None]:
    """We hold the leader's lock, so that windows stay open and can be compared id by id. Workers have to be
    STEADY: a bid cuts the lease down to the bidder's."""
    async with store_client(url) as client:
        windows = WindowStore(client, namespace="idagg", window_s=window, exact_limit=10**7)

        async def hold() -> None:
            while True:
                with contextlib.suppress(StoreError):  # as the test has it
                    await windows.election.lead("test", lease_ms=600_000)
                await asyncio.sleep(0.2)

        assert (await windows.election.lead("test", lease_ms=600_000)).epoch == 1
        holding = asyncio.create_task(hold())
        try:
            yield
        finally:
            await end(holding)
        await windows.election.resign("test")


async def tells(serving: Serving, text: str, *, times: int = 1) -> None:
    """Wait until it has said so."""
    await until(lambda: serving.said.count(text) >= times)


async def is_not_crowded(serving: Serving, tasks: int) -> None:
    """Wait until its event loops have about as many tasks as before: a connection that has just ended is
    still one for a moment."""
    await eventually(serving.tasks, lambda now: crowded(tasks, now) == [])


async def is_not_grown(
    pids: Iterable[int], before: Sequence[Size], *, memory_kib: int, descriptors: int, threads: int = 16
) -> None:
    """Wait until the processes hold no more than before, but for so much: a connection that has just ended is
    a descriptor for a moment."""
    pids = list(pids)

    def complaints() -> list[str]:
        return [
            complaint
            for pid, size in zip(pids, before, strict=True)
            for complaint in grown(
                size, Size.of(pid), memory_kib=memory_kib, descriptors=descriptors, threads=threads
            )
        ]

    with contextlib.suppress(AssertionError):
        await until(lambda: not complaints())
    assert complaints() == []


async def recovers(row: Row, load: Load) -> None:
    """The fault has just ended: before long callers get their ok again, and no more trouble."""
    since_s = time.monotonic()
    await load.goes_on()
    assert row.not_recovered(load, since_s, within_s=RECOVERS_S) == []


class Handovers:
    """Each time that the leader's lock was somebody's no more, how much of its lease was left, as it was last
    seen: of one that is given away most, and of one that runs out next to nothing. No clock says as much on a
    machine that stands still at times. Workers have to be STEADY.
    """

    def __init__(self, url: str) -> None:
        self.left_ms: list[int] = []
        self._url = url

    async def __aenter__(self) -> Self:
        self._looking = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._looking)

    async def _look(self) -> None:
        async with store_client(self._url) as client:
            holder, left_ms = None, 0
            while True:
                now_ms = await client.command("PTTL", LOCK)
                now = await client.command("GET", LOCK)
                if holder not in (None, now):
                    self.left_ms.append(left_ms)
                holder, left_ms = now, now_ms
                await asyncio.sleep(0.01)


async def lease_runs_out(url: str) -> None:
    """At once; that a successor waits for it is another test's."""
    async with store_client(url) as client:
        await client.command("PEXPIRE", LOCK, 1)


async def sealed(
    row: Row, serving: Serving, load: Load, *, since: int | None = None, answer_s: float = ANSWER_S
) -> list[str]:
    """The verdict where windows go to the log file, all complete from the one that began at ``since``."""
    last = max(await serving.delivered())
    expected = [] if since is None else held(load, since, int(epoch_s(last)))
    return row.verdict(load, lines(serving), expected=expected, answer_s=answer_s)


async def arrived(serving: Serving, consumer: Consumer) -> list[Delivery]:
    """All deliveries, once the queue has every window as far as the one that is open now."""
    now_s = int(time.time())
    present = iso(now_s - now_s % serving.window)
    await eventually(
        consumer.counts, lambda counts: max(counts, default="") >= present, within_s=RABBITMQ_BACK_S
    )
    queued = await eventually(
        consumer.deliveries,
        lambda found: {line.window for line in lines(serving)} <= {delivery.window for delivery in found},
        within_s=RABBITMQ_BACK_S,
    )
    return [*queued, *lines(serving)]


async def confirmed(serving: Serving, consumer: Consumer) -> int:
    """Wait until a window has come by RabbitMQ and nothing is owed: the next one is most of a second away.
    Returns the start of that next one."""
    await next_window(serving.window)
    last = await consumer.one_more()
    await eventually(
        serving.figures,
        lambda figures: figures["idagg_pending{deliveries}"] == figures["idagg_pending{messages}"] == 0,
    )
    return int(epoch_s(last.window)) + serving.window


async def unconfirmed(serving: Serving, consumer: Consumer, *proxies: Proxy) -> Delivery:
    """Stall RabbitMQ's replies, and wait for a message that its publisher does not hear of. It is the last:
    until its confirm comes, none follows."""
    while True:
        start = await confirmed(serving, consumer)
        known, told = len(await consumer.take()), serving.counts()
        for proxy in proxies:
            proxy.stall_replies = True
        if time.time() < start + serving.window:
            break  # else it has ended meanwhile: its confirm may have come, or not
        for proxy in proxies:
            proxy.stall_replies = False

    def enough(found: list[Delivery]) -> bool:
        # What was owed is known with some delay: the last may be that itself, which gets a line.
        return len(found) > known or found[-1].window in serving.counts().keys() - told.keys()

    return (await eventually(consumer.deliveries, enough))[-1]


def worker(serving: Serving, slot: int) -> int:
    """The pid of the worker in this slot: who has the slot's metrics open. It is the last that was started,
    where the one before it is on its way out."""
    for pid in reversed(serving.workers()):
        with contextlib.suppress(OSError):  # it has ended
            if f"_{slot}.db" in Path(f"/proc/{pid}/maps").read_text():
                return pid
    raise AssertionError(f"no worker in slot {slot}")


def in_time(serving: Serving, starts: list[int], *, within_s: float) -> list[dict[str, str]]:
    """The lines of these windows; each was written soon after its window's end."""
    found = [line for line in serving.records("window") if line["window"] in map(iso, starts)]
    assert {line["window"] for line in found} == set(map(iso, starts))
    for line in found:
        assert 0 <= epoch_s(line["time"]) - epoch_s(line["window"]) - serving.window < within_s
    return found


def fill(disk: Path, *, room: int = 0) -> Path:
    """But for some room; returns the file to remove."""
    with contextlib.suppress(OSError), (disk / "full").open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    os.truncate(disk / "full", (disk / "full").stat().st_size - room)
    return disk / "full"
