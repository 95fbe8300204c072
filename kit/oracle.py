"""The oracle: what callers were told, what was delivered, and whether the one can be true of the other.

The journals are kept by those who talk to the service; the comparisons, A to F, know only the journals.
Each returns its complaints, in words; none: the promise was kept.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import dataclasses
import datetime
import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Self

import aiormq
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelNotFoundEntity, ConnectionInternalError

from idagg.store.client import Client
from idagg.window import iso
from kit.groups import Node
from kit.servers import RabbitServer
from kit.serving import Serving, agreed
from kit.waiting import LIMIT_S, eventually, until
from kit.wire import Wire, connect, ids, request


@dataclasses.dataclass
class Journal:
    """What callers were told. Each id was sent once, and is in one of ``ok``, ``failed`` and ``unknown``:
    those that nobody answered. Times are ``time.monotonic``'s. ``windows`` are the starts of those in which
    an id was asked for and got its ok: none of them is empty."""

    ok: set[int] = dataclasses.field(default_factory=set)
    failed: set[int] = dataclasses.field(default_factory=set)
    unknown: set[int] = dataclasses.field(default_factory=set)
    slowest_s: float = 0.0  # until a caller had its answer, or knew that there would be none
    ok_at: list[float] = dataclasses.field(default_factory=list)
    trouble_at: list[float] = dataclasses.field(default_factory=list)  # a failed, or a lost connection
    windows: set[int] = dataclasses.field(default_factory=set)

    @property
    def sent(self) -> set[int]:
        return self.ok | self.failed | self.unknown


@dataclasses.dataclass(frozen=True)
class Delivery:
    """One delivery of a window, by message or by line."""

    message_id: str
    window: str
    count: int


@dataclasses.dataclass(frozen=True)
class Size:
    """What a process holds."""

    memory_kib: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Self:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208  that would make a path of each
        return cls(int(status["VmRSS"].split()[0]), descriptors, int(status["Threads"]))


def unequal_sums(journal: Journal, deliveries: Iterable[Delivery]) -> tuple[int, int]:
    """How many ids are lost, and how many double, at least: counts of sealed windows add up to no less than
    what was acknowledged, and to no more than what was sent."""
    total = sum({delivery.window: delivery.count for delivery in deliveries}.values())
    return max(0, len(journal.ok) - total), max(0, total - len(journal.sent))


def wrong_sum(journal: Journal, deliveries: Iterable[Delivery]) -> list[str]:
    """A, once windows are sealed."""
    lost, double = unequal_sums(journal, deliveries)
    return [
        f"A: {count} ids {what}"
        for count, what in ((lost, "that got their ok are lost"), (double, "were counted twice"))
        if count
    ]


def unequal_ids(journal: Journal, windows: Mapping[str, set[int]]) -> tuple[set[int], set[int]]:
    """Which ids are lost, and which are double: each that was acknowledged is in one window."""
    times = Counter(number for found in windows.values() for number in found)
    return journal.ok - times.keys(), {number for number, count in times.items() if count > 1}


def wrong_ids(
    journal: Journal, windows: Mapping[str, set[int]], *, may_lose: Set[int] = frozenset()
) -> list[str]:
    """A, while windows are open, id by id."""
    lost, double = unequal_ids(journal, windows)
    foreign = set().union(*windows.values()) - journal.sent
    return [
        f"A: {len(bad)} ids {what}, such as {min(bad)}"
        for bad, what in (
            (lost - may_lose, "that got their ok are lost"),
            (double, "were counted twice"),
            (foreign, "were counted and never sent"),
        )
        if bad
    ]


def elsewhere(
    told: Iterable[tuple[int, float, float]], windows: Mapping[str, set[int]], length_s: int
) -> list[str]:
    """A, where ids repeat: each ok, asked for and given at these Unix times, is for an id that is in a window
    of that time."""
    return [
        f"A: {number} got its ok between {asked_s:.3f} and {given_s:.3f}, and is in no window of that time"
        for number, asked_s, given_s in told
        if not any(
            number in windows.get(str(start), ())
            for start in range(int(asked_s) // length_s * length_s, int(given_s) + 1, length_s)
        )
    ]


def missing(deliveries: Iterable[Delivery], expected: Iterable[str]) -> list[str]:
    """B: every window that there was arrived."""
    return [f"B: window {window} is lost" for window in sorted({*expected} - {d.window for d in deliveries})]


def changed(deliveries: Iterable[Delivery]) -> list[str]:
    """C: the same message id always says the same, and a window has one message id."""
    by_id: dict[str, Delivery] = {}
    by_window: dict[str, Delivery] = {}
    found = []
    for delivery in deliveries:
        for known, name in ((by_id, delivery.message_id), (by_window, delivery.window)):
            first = known.setdefault(name, delivery)
            if first != delivery:
                found.append(f"C: {name} was {first}, and then {delivery}")
    return found


def late(journal: Journal, limit_s: float) -> list[str]:
    """D: every request was answered within its time."""
    if journal.slowest_s > limit_s:
        return [f"D: an answer took {journal.slowest_s:.2f} s, its time was {limit_s:g} s"]
    return []


def grown(
    before: Size, after: Size, *, memory_kib: int, descriptors: int = 0, threads: int = 16
) -> list[str]:
    """E: a process holds no more than it did, but for so much."""
    return [
        f"E: {name} went from {getattr(before, name)} to {getattr(after, name)}"
        for name, room in (("memory_kib", memory_kib), ("descriptors", descriptors), ("threads", threads))
        if getattr(after, name) > getattr(before, name) + room
    ]


def crowded(before: int, after: int, *, tasks: int = 32) -> list[str]:
    """E: event loops have no more tasks than they had, but for so many."""
    return [f"E: tasks went from {before} to {after}"] * (after > before + tasks)


def recovery_s(journal: Journal, since_s: float) -> float:
    """How long it took to the first ok without later trouble."""
    last_trouble_s = max(since_s, journal.trouble_at[-1]) if journal.trouble_at else since_s
    first = bisect.bisect(journal.ok_at, last_trouble_s)
    return journal.ok_at[first] - since_s if first < len(journal.ok_at) else math.inf


def not_recovered(journal: Journal, since_s: float, *, within_s: float) -> list[str]:
    """F: within this time there was an ok, and no more trouble after it."""
    took_s = recovery_s(journal, since_s)
    return [f"F: there was no end of trouble within {within_s:g} s, but {took_s:.2f} s"] * (took_s > within_s)


def verdict(
    journal: Journal, deliveries: Iterable[Delivery], *, expected: Iterable[str] = (), answer_s: float
) -> list[str]:
    """A to D, of windows that are sealed."""
    deliveries = list(deliveries)
    return [
        *wrong_sum(journal, deliveries),
        *missing(deliveries, expected),
        *changed(deliveries),
        *late(journal, answer_s),
    ]


class Load(Journal):
    """Callers, each with a connection that it renews where it is lost or ends, who send one new id after
    another.

    ``query`` is added to each request, its ``{}`` made the id; so are the header ``fields``. ``fresh``: a new
    connection for each request, as callers without keep-alive have. ``per_s``: no more requests a second than
    so many, of all callers. ``port``: of a load balancer.
    """

    def __init__(
        self,
        serving: Serving,
        *,
        callers: int = 16,
        query: str = "",
        fields: str = "",
        fresh: bool = False,
        per_s: float = math.inf,
        port: int | None = None,
    ) -> None:
        super().__init__()
        self._serving = serving
        self._port = port
        self._callers = callers
        self._every_s = callers / per_s  # of each caller
        self._query = query
        self._fields = fields
        self._fresh = fresh
        self._over = False
        self._tasks: list[asyncio.Task[None]] = []
        # Of Unix time; whoever stands still between the two makes it too small.
        self._unix_s = max(time.time() - time.monotonic() for _ in range(5))

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._call()) for _ in range(self._callers)]
        await self.goes_on()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let each caller have its last answer."""
        self._over = True
        if kind is not None:
            for task in self._tasks:
                task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        if kind is None:
            assert [result for result in results if result is not None] == []

    async def goes_on(self, requests: int = 2000, *, within_s: float = 60) -> None:
        """Wait until so many more got their ok."""
        wanted = len(self.ok) + requests
        broken = await until(
            lambda: [task for task in self._tasks if task.done()] or len(self.ok) >= wanted, within_s=within_s
        )
        if isinstance(broken, list):
            broken[0].result()

    async def fails(self, requests: int = 1) -> None:
        """Wait until so many more failed."""
        wanted = len(self.failed) + requests
        await until(lambda: len(self.failed) >= wanted)

    async def _call(self) -> None:
        wire: Wire | None = None
        next_s = time.monotonic()
        try:
            while not self._over:
                # A caller that was held up does not send faster then.
                next_s = max(next_s + self._every_s, now_s := time.monotonic())
                if next_s > now_s:
                    await asyncio.sleep(next_s - now_s)
                if wire is None:
                    try:
                        wire = await connect(self._port or self._serving.port, self._serving.host)
                    except OSError:
                        self.trouble_at.append(time.monotonic())
                        await asyncio.sleep(0.02)
                        continue
                if not await self._send(wire, next(ids)) or self._fresh:
                    wire.close()
                    wire = None
        finally:
            if wire is not None:
                wire.close()

    def _request(self, number: int) -> bytes:
        return request(number, self._query.format(number), self._fields)

    def _note(self, number: int, began_s: float, ended_s: float) -> None:
        """Hear of an ok."""

    async def _send(self, wire: Wire, number: int) -> bool:
        """False where the connection is lost, or ends with this answer."""
        self.unknown.add(number)
        began_s = time.monotonic()
        await wire.send(self._request(number))
        answer = await wire.answer()
        ended_s = time.monotonic()
        self.slowest_s = max(self.slowest_s, ended_s - began_s)
        if answer is None:
            self.trouble_at.append(ended_s)
            return False
        self.unknown.remove(number)
        if answer.status == 200:
            assert answer.body == b"ok"
            self.ok.add(number)
            self.ok_at.append(ended_s)
            length_s = self._serving.window
            start = int(began_s + self._unix_s) // length_s * length_s
            if ended_s + self._unix_s < start + length_s:
                self.windows.add(start)
            self._note(number, began_s, ended_s)
        else:
            assert (answer.status, answer.body) == (503, b"failed")
            assert answer.headers["Retry-After"] == "1"
            self.failed.add(number)
            self.trouble_at.append(ended_s)
        return answer.headers["Connection"] != "close"


class Repeats(Load):
    """Callers who send each id TIMES times, and never after. ``told`` has each ok: the id, when it was asked
    for and when it was given, Unix time."""

    TIMES = 64

    def __init__(self, serving: Serving, *, callers: int = 16) -> None:
        super().__init__(serving, callers=callers)
        self.told: list[tuple[int, float, float]] = []

    def _request(self, number: int) -> bytes:
        return request(number // self.TIMES)

    def _note(self, number: int, began_s: float, ended_s: float) -> None:
        self.told.append((number // self.TIMES, began_s + self._unix_s, ended_s + self._unix_s))


class Consumer:
    """Who takes the messages from a queue."""

    def __init__(self, rabbit: RabbitServer, queue: str) -> None:
        self._rabbit = rabbit
        self._queue = queue
        self._taken: list[DeliveredMessage] = []

    async def take(self) -> list[DeliveredMessage]:
        """All messages until now."""
        async with aiormq.connect(self._rabbit.url) as connection:
            channel = await connection.channel()
            # The queue is yet to be declared, or is just being deleted.
            with contextlib.suppress(ChannelNotFoundEntity, ConnectionInternalError):
                while (message := await channel.basic_get(self._queue, no_ack=True)).body:
                    self._taken.append(message)
        return self._taken

    async def one_more(self) -> Delivery:
        """The next message; so that, with windows of a second, there is time until the one after it."""
        known = len(await self.take())
        return (await eventually(self.deliveries, lambda found: len(found) > known))[-1]

    async def deliveries(self) -> list[Delivery]:
        """All messages until now, repeats included, oldest first."""
        found = []
        for message in await self.take():
            body = json.loads(message.body)
            message_id = message.header.properties.message_id or ""
            found.append(Delivery(message_id, body["window_start"], body["unique_ids"]))
        return found

    async def epochs(self) -> dict[str, list[int]]:
        """The epochs of all deliveries until now, oldest first, by message id."""
        found: dict[str, list[int]] = {}
        for message in await self.take():
            properties = message.header.properties
            found.setdefault(properties.message_id or "", []).append(
                int(str((properties.headers or {})["epoch"]))
            )
        return found

    async def counts(self) -> dict[str, int]:
        """Unique ids by window, until now."""
        return agreed((delivery.window, delivery.count) for delivery in await self.deliveries())


def lines(serving: Serving, *, namespace: str = "idagg") -> list[Delivery]:
    """The log file's windows, repeats included, oldest first; each under its message's id."""
    return [
        Delivery(f"{namespace}:{epoch_s(line['window']):.0f}", line["window"], int(line["unique_ids"]))
        for line in serving.records("window")
    ]


def epoch_s(moment: str) -> float:
    """The Unix time of a window's start, or of a line's writing."""
    return datetime.datetime.fromisoformat(moment).timestamp()


def grid(first_s: int, last_s: int, length_s: int) -> list[str]:
    """The windows from the one that begins at ``first_s`` to the one that begins at ``last_s``."""
    return [iso(start) for start in range(first_s, last_s + 1, length_s)]


def held(journal: Journal, first_s: int, last_s: int) -> list[str]:
    """The windows from the one that begins at ``first_s`` to the one that begins at ``last_s`` of which it is
    certain that they have ids. One that has none is no window where nobody leads, as when the leader, or the
    machine, stands still for longer than a lease."""
    return [iso(start) for start in sorted(journal.windows) if first_s <= start <= last_s]


def together(*journals: Journal) -> Journal:
    """What the callers of several instances were told."""
    return Journal(
        set().union(*(journal.ok for journal in journals)),
        set().union(*(journal.failed for journal in journals)),
        set().union(*(journal.unknown for journal in journals)),
        max(journal.slowest_s for journal in journals),
        sorted(at for journal in journals for at in journal.ok_at),
        sorted(at for journal in journals for at in journal.trouble_at),
        set().union(*(journal.windows for journal in journals)),
    )


def open_parts(nodes: Iterable[Node], *, namespace: str = "idagg") -> dict[str, set[int]]:
    """The ids of each part of a window that is not sealed, by its key, of a group's primaries.

    Each id is in one part of one window: in another shard, too, it would count twice.
    """
    return {
        key: set(map(int, node.ask("SMEMBERS", key, within_s=30).split()))
        for node in nodes
        for key in node.ask("KEYS", f"{{{namespace}:*}}:w:*:ids").split()
    }


async def open_windows(url: str) -> dict[str, set[int]]:
    """The ids of each window that is not sealed, by its start; of a window's other shards, by their keys."""
    found: dict[str, set[int]] = {}
    client = Client(url, timeout_s=LIMIT_S)
    try:
        for key in sorted(await client.command("KEYS", "*:w:*:ids")):
            start = key.decode().split(":")[-2]
            name = key.decode() if start in found else start
            found[name] = set(map(int, await client.command("SMEMBERS", key)))
    finally:
        await client.close()
    return found


async def open_hits(client: Client, *tags: str) -> int:
    """The hits of all windows of these shards that are not sealed: those that their hashes have, and those in
    tokens."""
    found = 0
    for tag in tags:
        hashes = [key for key in await client.command("KEYS", f"{tag}:w:*") if key.count(b":") == 3]
        found += sum([int(await client.command("HGET", key, "hits") or 0) for key in hashes])
        for token in await client.command("HVALS", f"{tag}:workers"):
            _, start, _, hits = map(int, token.split())
            if f"{tag}:w:{start}".encode() in hashes:
                found += hits
    return found
