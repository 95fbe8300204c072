"""The scripts, on a real server with a cranked clock, against a plain Python model of what they promise."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Coroutine, Iterator
from typing import Any, Literal, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from idagg.errors import FencedError, StoreAwayError, StoreRefusedError
from idagg.store.election import Agreed, Lease
from idagg.store.hits import HitStore, Stored
from idagg.store.shards import Regime
from idagg.store.windows import WindowStore
from idagg.window import PendingCallback
from kit import engines, servers
from kit.cranked import CrankedClient
from kit.staging import seal
from kit.waiting import NOON

T = TypeVar("T")
_ENDPOINTS = 3


@dataclasses.dataclass
class Window:
    """What the replies said went into a window."""

    length: int
    ids: set[bytes] = dataclasses.field(default_factory=set)
    hits: int = 0
    endpoints: set[bytes] = dataclasses.field(default_factory=set)
    dropped: int = 0
    capped: bool = False


@dataclasses.dataclass
class Worker:
    """``seq`` is that of the last batch applied; its answer came, or it did not."""

    store: HitStore
    agreed: Agreed
    seq: int = 0
    ids: list[bytes] = dataclasses.field(default_factory=list)
    repeats: int = 0
    went_to: int = 0
    continued: bool = False
    acknowledged: int = 0
    holds: set[int] = dataclasses.field(default_factory=set)  # windows with ids of acknowledged batches

    def hear(self) -> None:
        self.acknowledged = self.seq
        if self.ids:
            self.holds.add(self.went_to)


class LossyClient(CrankedClient):
    """Its next answer can be lost."""

    loses = False

    async def script(self, name: str, tag: str, *args: bytes | str | int) -> Any:
        answer = await super().script(name, tag, *args)
        if self.loses:
            raise StoreAwayError("lost")
        return answer


class StoreMachine(RuleBasedStateMachine):
    """Workers add, repeat and come late; leaders come, go and seal; the clock runs, jumps and steps back."""

    server: servers.RedisServer

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.client = LossyClient(self.server.url)
        self.now = float(NOON)
        self.length = 10  # --window and --exact-limit of whoever starts now
        self.exact_limit = 6
        self.store: Agreed | None = None
        self.open: dict[int, Window] = {}
        self.sealed: dict[int, Window] = {}
        self.sealed_through = 0
        self.bridge = (0, 0)  # the window in which the length was changed last
        self.epoch = 0
        self.leader: str | None = None
        self.since = 0
        self.workers: list[Worker] = []

    def window_at(self, second: int) -> tuple[int, int]:
        """Start and end of the first window that ends after the second and is not sealed."""
        assert self.store is not None
        length = self.store.window_s
        second = max(second, self.sealed_through)
        start, end = self.bridge
        if second >= end:
            start = max(second // length * length, end)
            end = (second // length + 1) * length
        return max(start, self.sealed_through), end

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(call)

    def windows(self) -> WindowStore:
        return WindowStore(self.client, namespace="t", window_s=self.length, exact_limit=self.exact_limit)

    @initialize(start=st.integers(0, 30))
    def begin(self, start: int) -> None:
        self.run(self.client.command("FLUSHALL"))
        self.now += start
        self.run(self.client.at(self.now))
        self.workers = [self.worker(), self.worker()]
        self.lead("a")

    def worker(self) -> Worker:
        store = HitStore(
            self.client,
            namespace="t",
            window_s=self.length,
            exact_limit=self.exact_limit,
            endpoint_limit=_ENDPOINTS,
        )
        return Worker(store, Agreed(self.length, self.exact_limit))

    def teardown(self) -> None:
        self.run(self.client.close())
        self.loop.close()

    @rule(
        seconds=st.sampled_from([0.25, 3.0, 9.75, 25.0, 95.0, 90_000.0, -3.0, -12.0, -95.0]),
        seals=st.integers(0, 4),
    )
    def crank(self, seconds: float, seals: int) -> None:
        self.now += seconds
        self.run(self.client.at(self.now))
        if seconds > 60:  # the lease, whose end is by the same clock
            self.run(self.client.command("DEL", "{t:0}:lock"))
            self.leader = None
        for _ in range(seals):
            self.seal()

    @rule(
        which=st.integers(0, 1),
        ids=st.lists(st.integers(-3, 20).map(lambda number: b"%d" % number), max_size=8),
        repeats=st.integers(0, 3),
        endpoints=st.sampled_from(["", "", "a", "ab", "abc", "cde"]).map(
            lambda hosts: {b"http://%c" % host for host in hosts.encode()}
        ),
        is_lost=st.sampled_from([False, False, False, True]),
    )
    def add(self, which: int, ids: list[bytes], repeats: int, endpoints: set[bytes], is_lost: bool) -> None:
        """A new batch goes to the first window that is not sealed and ends after now; the answer says how
        many of its ids were not there. Its repeats are hits if the window still is the one of the last batch
        whose answer came, and no answer was lost since."""
        worker = self.workers[which]
        worker.seq += 1
        endpoints = endpoints if ids else set()
        repeats = repeats if worker.went_to in worker.holds else 0
        if self.store is None:
            self.store = worker.agreed
        if self.store != worker.agreed:
            with pytest.raises(StoreRefusedError, match="for another instance"):
                self.run(worker.store.add(worker.seq, ids, sorted(endpoints)))
            worker.seq -= 1
            return
        start, end = self.window_at(int(self.now))
        assert start <= self.now < end or self.now < max(self.sealed_through, self.bridge[0])
        worker.continued = worker.acknowledged == worker.seq - 1 and start == worker.went_to
        worker.ids, worker.repeats, worker.went_to = ids, repeats, start
        exactly = start not in self.open or len(self.open[start].ids) <= worker.agreed.exact_limit
        held = self.open[start].ids if start in self.open else set()
        new_ids = len(set(ids) - held) if exactly else len(ids)
        self.client.loses = is_lost
        sending = worker.store.add(worker.seq, ids, sorted(endpoints), repeats)
        if is_lost:
            with pytest.raises(StoreAwayError):
                self.run(sending)
            self.client.loses = False
        else:
            assert self.run(sending) == Stored(start, new_ids, worker.continued)
            worker.hear()
        if not ids and start not in self.open:
            return
        window = self.open.setdefault(start, Window(end - start))
        window.hits += len(ids) + (repeats if worker.continued else 0)
        if exactly:
            window.ids |= set(ids)
        elif ids:
            window.capped = True
        for endpoint in sorted(endpoints):
            if len(window.endpoints) < _ENDPOINTS:
                window.endpoints.add(endpoint)
            elif endpoint not in window.endpoints:
                window.dropped += 1

    @rule(which=st.integers(0, 1))
    def repeat(self, which: int) -> None:
        """A batch whose answer was lost comes again. It changes nothing, and its answer is that of the first
        time."""
        worker = self.workers[which]
        if worker.acknowledged < worker.seq and worker.agreed == self.store:
            answer = self.run(worker.store.add(worker.seq, worker.ids, repeats=worker.repeats))
            assert answer == Stored(worker.went_to, len(worker.ids), worker.continued)
            worker.hear()

    @rule(which=st.integers(0, 1))
    def come_late(self, which: int) -> None:
        """A batch that comes after its successor is refused."""
        worker = self.workers[which]
        if worker.seq > 1 and worker.agreed == self.store:
            with pytest.raises(StoreRefusedError, match="STALE"):
                self.run(worker.store.add(worker.seq - 1, [b"98"]))

    @rule(name=st.sampled_from(["a", "b"]), seen=st.sampled_from(["none", "any", 0, -1]))
    def lead(self, name: str, seen: Literal["none", "any"] | int = "any") -> None:
        """The lock is had by one; a new holder begins a new epoch, and brings its own settings only if it
        may, or nobody has led since the epoch that it has seen."""
        after = self.epoch + seen if isinstance(seen, int) else seen
        term = self.run(self.windows().election.lead(name, lease_ms=60_000, may_change_after=after))
        if self.leader is None:
            ours = Agreed(self.length, self.exact_limit)
            if seen in ("none", -1) and self.store and self.store != ours:
                assert term == Lease(0, 0, self.epoch, self.store, Regime(1, 1))
                return
            if self.store and self.store.window_s != self.length:
                start, end = self.window_at(int(self.now))
                if start in self.open:
                    self.bridge = (start, end)
                else:
                    self.sealed_through = max(self.sealed_through, int(self.now))
            self.leader, self.epoch = name, self.epoch + 1
            self.since = int(self.now)
            self.store = ours
        assert term.epoch == (self.epoch if self.leader == name else 0)
        assert (term.store, term.last_epoch) == (self.store, self.epoch)
        assert 0 < term.lasts_ms <= 60_000

    @rule(name=st.sampled_from(["a", "b"]), successor=st.sampled_from(["a", "b"]))
    def resign(self, name: str, successor: str) -> None:
        """Only the holder can give the lock back; an epoch that has passed seals nothing."""
        self.run(self.windows().election.resign(name))
        if self.leader == name:
            self.leader = None
        self.lead(successor)
        with pytest.raises(FencedError):
            self.run(seal(self.windows(), self.epoch - 1))

    @rule(length=st.sampled_from([10, 7]), exact_limit=st.sampled_from([6, 9]), led=st.booleans())
    def restart(self, length: int, exact_limit: int, led: bool) -> None:
        """All processes come back, perhaps with other settings; some before there is a leader."""
        if self.leader is not None:
            self.run(self.windows().election.resign(self.leader))
            self.leader = None
        self.length, self.exact_limit = length, exact_limit
        self.workers = [self.worker(), self.worker()]
        if led:
            self.lead("a")

    @rule()
    def seal(self) -> None:
        """The oldest window that has ended is sealed, with what the replies said went into it."""
        if self.store is None:
            return
        expected, end = self.window_at(self.since if self.leader else int(self.now))
        if self.open and min(self.open) <= expected:
            expected = min(self.open)
        window = self.open.get(expected, Window(end - expected))
        wait_ms = self.run(seal(self.windows(), self.epoch))
        left = expected + window.length - self.now
        if left > 0:
            assert wait_ms == round(left * 1000)
            return
        assert wait_ms == 0
        self.open.pop(expected, None)
        assert expected not in self.sealed, "a sealed window was sealed again"
        self.sealed_through = max(self.sealed_through, expected + window.length)
        self.sealed[expected] = window
        owed = {
            entry.record.start_s: entry for entry in self.run(self.windows().pending.deliveries(limit=10_000))
        }
        record = owed[expected].record
        exact = len(window.ids) <= self.store.exact_limit and not window.capped
        assert record.exact == exact
        assert record.hits == window.hits
        assert record.length_s == window.length
        assert record.epoch == self.epoch
        assert owed[expected].dropped == window.dropped
        if exact:
            # A sketch of so few is exact, too.
            assert record.unique_ids == record.estimate == len(window.ids)
        else:
            assert record.unique_ids == record.estimate >= len(window.ids) - 1
        pending = self.run(self.windows().pending.callbacks(expected))
        assert {callback.endpoint.encode() for callback in pending} == window.endpoints
        assert {callback.attempts for callback in pending} <= {0}

    @precondition(lambda self: self.sealed)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """An entry goes when its message, its line and its calls are done, in whatever order."""
        start = data.draw(st.sampled_from(sorted(self.sealed)[-4:]))
        windows = self.windows()
        step = data.draw(st.sampled_from(["logged", "delivered", "attempted", "called", "given up"]))
        if step == "logged":
            self.run(windows.pending.mark_logged(self.epoch, start))
        elif step == "delivered":
            self.run(windows.pending.mark_delivered(self.epoch, start))
        elif step == "called":
            for callback in self.run(windows.pending.callbacks(start))[:1]:
                self.run(windows.pending.mark_called(self.epoch, start, [callback.endpoint]))
        elif step == "attempted":
            for url, attempts, _ in self.run(windows.pending.callbacks(start))[:1]:
                attempt = PendingCallback(url, attempts + 1, 30)
                assert self.run(windows.pending.count_attempts(self.epoch, start, [attempt])) == [True]
                found = {one.endpoint: one for one in self.run(windows.pending.callbacks(start))}[url]
                assert (found.attempts, 29 < found.due_in_s <= 30) == (attempts + 1, True)
            gone = PendingCallback("http://nobody/", 1, 0)
            assert self.run(windows.pending.count_attempts(self.epoch, start, [gone])) == [False]
        else:
            self.run(windows.pending.give_up_callbacks(self.epoch, start))
        assert not {entry.record.start_s for entry in self.run(windows.pending.deliveries(limit=10_000))} & {
            entry.record.start_s for entry in self.run(windows.pending.messages(limit=10_000))
        }

    @invariant()
    def nothing_is_left_behind(self) -> None:
        """Records exist for what is owed, sets for what is open: the store does not fill up."""
        if not self.workers:
            return
        keys = {key.decode() for key in self.run(self.client.command("KEYS", "{t:0}:*"))}
        owed: set[int] = set()
        for index in ("deliveries", "messages", "callbacks"):
            owed |= {
                int(start) for start in self.run(self.client.command("ZRANGE", f"{{t:0}}:{index}", 0, -1))
            }
        records = {int(key.split(":")[3]) for key in keys if key.startswith("{t:0}:record:")}
        assert records == owed
        assert {int(key.split(":")[3]) for key in keys if key.endswith(":ids")} <= set(self.open)


@pytest.fixture(scope="module")
def machine_server(store_kind: str) -> Iterator[servers.RedisServer]:
    with servers.RedisServer(store_kind) as server:
        yield server


def test_scripts_keep_to_the_model(machine_server: servers.RedisServer, store_kind: str) -> None:
    """Whatever the order of events, every reply and every record is what the model says.

    The scripts are the same everywhere: the other servers are asked for what differs between them.
    """

    class Machine(StoreMachine):
        server = machine_server

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=150 if store_kind == engines.kinds()[0] else 50,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
