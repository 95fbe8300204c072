"""Sealing over shards, on a real server, against a plain model: leaders die at any step and wake late,
replies are lost, the shards' clocks differ, the number of shards changes, and shards fail over to replicas
that have nothing of what was not acknowledged. Each id is in one window, once."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import math
from collections.abc import Awaitable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from idagg.errors import OtherRegimeError, StoreAwayError, StoreError
from idagg.flush import sealer
from idagg.flush.leader import Leadership
from idagg.flush.sealer import Sealer
from idagg.flush.turns import Turn, Turns
from idagg.store.client import Client, Script, source
from idagg.store.hits import HitStore
from idagg.store.scripts import UNWAITED
from idagg.store.sealing import Sealing
from idagg.store.shards import Regime, shard_of, shard_tag
from idagg.store.windows import WindowStore
from kit import servers
from kit.waiting import LIMIT_S, NOON

T = TypeVar("T")
_SHARDS = 4
_TURNS = ["home", 1, 2, 3, "merge", "plan"]


class KilledError(Exception):
    pass


class SkewedClient(Client):
    """Each shard has a clock of its own; ``fate`` says after how many scripts the process dies (``fatal``)
    or a reply is lost.

    The primary of the shard ``cut`` has lost its replicas: none acknowledges what a script writes, and one
    that writes nothing waits for nobody, as on a new connection. ``doomed`` says after how many scripts that
    befalls which shard.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url, timeout_s=LIMIT_S)
        self.fate: int | None = None
        self.fatal = False
        self.lost: Any = None  # the answer that was
        self.cut: str | None = None  # its tag
        self.doomed: tuple[int, str] | None = None
        self._saved: dict[bytes, tuple[int, bytes]] = {}  # by key its time to live, and itself: at the cut

    async def at(self, tag: str, second: float) -> None:
        await self.command("HSET", f"cranked{tag}", "s", int(second), "us", int(second % 1 * 1e6))

    async def script(self, name: str, tag: str, *args: bytes | str | int) -> Any:
        if self.fate is not None:
            self.fate -= 1
            if self.fate < 0 and self.fatal:
                raise KilledError
        if self.doomed is not None:
            left, doomed = self.doomed
            self.doomed = (left - 1, doomed) if left else None
            if not left:
                await self.cut_off(doomed)
        before = await self._written() if tag == self.cut else None
        answer = await super().script(name, tag, *args)
        if self.fate == -1:
            self.lost = answer
            raise StoreAwayError("the reply was lost")
        if tag == self.cut and name not in UNWAITED and await self._written() != before:
            self.lost = answer
            raise StoreAwayError("no replica has it")
        return answer

    async def cut_off(self, tag: str) -> None:
        if self.cut is None:
            self.cut = tag
            for key in await self.command("KEYS", f"{tag}:*"):
                lasts_ms = max(0, await self.command("PTTL", key))
                self._saved[key] = lasts_ms, await self.command("DUMP", key)

    async def join(self, *, is_promoted: bool) -> None:
        """The replicas are back, or one of them takes the primary's place."""
        if self.cut is not None and is_promoted:
            for key in await self.command("KEYS", f"{self.cut}:*"):
                await self.command("DEL", key)
            for key, (lasts_ms, value) in self._saved.items():
                await self.command("RESTORE", key, lasts_ms, value)
        self.cut = self.doomed = None
        self._saved = {}

    async def _written(self) -> bytes:
        """Something that each write changes."""
        info: bytes = await self.command("INFO", "persistence")
        return info.partition(b"rdb_changes_since_last_save:")[2].split()[0]

    def _script(self, name: str) -> Script:
        return Script.of(
            source(name).replace("redis.call('TIME')", "redis.call('HMGET', 'cranked' .. KEYS[1], 's', 'us')")
        )


class Eager(Turns):
    """A turn ends where it would wait."""

    def add(self, name: str, turn: Turn, sealing: Sealing) -> None: ...

    async def first(self, *events: Awaitable[object] | None, timeout_s: float | None) -> None:
        for event in events:
            if isinstance(event, Coroutine):
                event.close()


class Leader:
    """One that was elected, and works turn by turn."""

    def __init__(self, client: SkewedClient, shards: int, epoch: int) -> None:
        self.windows = windows(client, shards)
        self.epoch = epoch
        eager = Eager(Leadership(self.windows.election, self.windows.election.agreed))
        self.sealer = Sealer(self.windows, eager, on_look=_nothing, on_merged=lambda: None)

    async def turn(self, which: str | int) -> None:
        if isinstance(which, int):
            async with self.windows.shard(which).quarantining(self.epoch):
                await self.sealer._seal_other(which, self.epoch)
        else:
            turns = {"home": self.sealer._seal_home, "merge": self.sealer._merge, "plan": self.sealer._plan}
            await turns[which](self.epoch)

    async def withdraw(self) -> None:
        now = self.sealer._now
        if now.proposal is not None and not now.is_confirming:
            self.sealer._withdraw(now, "the test has it so")


async def _nothing(epoch: int) -> None: ...


def windows(client: Client, shards: int) -> WindowStore:
    return WindowStore(client, namespace="t", window_s=10, exact_limit=1000, shards=shards, proves=True)


class ShardsMachine(RuleBasedStateMachine):
    server: servers.RedisServer

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.client = SkewedClient(self.server.url)
        self.now = float(NOON)
        self.skews = [0.0] * _SHARDS
        self.regimes: list[Regime] = []  # of each worker
        self.stores: dict[tuple[int, Regime, int], HitStore] = {}
        self.seq = 0
        self.accepted: dict[int, dict[bytes, int]] = collections.defaultdict(dict)  # by window, id: its shard
        self.hits = collections.Counter[int]()
        # What was not acknowledged, and may be counted.
        self.doubtful: dict[int, dict[bytes, int]] = collections.defaultdict(dict)
        self.doubtful_hits = collections.Counter[int]()
        self.records: dict[int, tuple[int, int]] = {}
        self.delivered = set[int]()
        self.leader: Leader | None = None
        self.zombie: Leader | None = None

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(call)

    def teardown(self) -> None:
        self.run(self.client.close())
        self.loop.close()

    async def _clocks(self) -> None:
        for shard, skew in enumerate(self.skews):
            await self.client.at(shard_tag("t", shard), self.now + skew)

    @initialize(
        skews=st.lists(st.sampled_from([0.0, 0.0, -1.0, 1.0, 4.0]), min_size=_SHARDS, max_size=_SHARDS),
        shards=st.sampled_from([1, 2, 4]),
    )
    def begin(self, skews: list[float], shards: int) -> None:
        self.run(self.client.command("FLUSHALL"))
        self.skews = skews
        self.run(self._clocks())
        self.regimes = [Regime(0, shards), Regime(0, shards)]
        self.lead(shards)

    @rule(
        seconds=st.sampled_from([0.5, 3.0, 6.0, 10.0, 25.0, -2.0, -6.0]),
        ids=st.sets(st.integers(0, 15).map(lambda number: b"%d" % number), max_size=12),
    )
    def pass_time(self, seconds: float, ids: set[bytes]) -> None:
        self.crank(seconds)
        self.add(ids, lost=False)

    def crank(self, seconds: float) -> None:
        self.now += seconds
        self.run(self._clocks())

    @rule(shards=st.sampled_from([1, 2, 4]))
    def lead(self, shards: int) -> None:
        """Another process takes the lead, if the home shard has its replicas; the last one sleeps."""
        self.run(self.client.command("DEL", "{t:0}:lock"))
        election = windows(self.client, shards).election
        try:
            lease = self.run(election.lead("any", lease_ms=600_000, may_change_after="any"))
        except StoreAwayError:
            return
        if self.leader is not None:
            self.zombie = self.leader
        self.leader = Leader(self.client, shards, lease.epoch)

    @rule(which=st.integers(0, 1))
    def hear(self, which: int) -> None:
        """A worker that does not lead asks for the lock, and hears of the regime."""
        with contextlib.suppress(StoreAwayError):
            lease = self.run(windows(self.client, 1).election.lead("worker", lease_ms=600_000))
            if lease.regime.number:
                self.regimes[which] = lease.regime

    @rule(shard=st.integers(0, _SHARDS - 1))
    def cut_off(self, shard: int) -> None:
        self.run(self.client.cut_off(shard_tag("t", shard)))

    @rule(is_promoted=st.booleans())
    def join(self, is_promoted: bool) -> None:
        self.run(self.client.join(is_promoted=is_promoted))

    @rule(
        shards=st.sampled_from([1, 2, 4]),
        doomed=st.sampled_from([0, 0, 1, 3]),
        after=st.integers(0, 30),
        seconds=st.sampled_from([0.0, 5.0, 12.0, 20.0]),
    )
    def fail_over(self, shards: int, doomed: int, after: int, seconds: float) -> None:
        """A shard is cut off in the midst of a leader's work. Both it and the workers go on with what they
        have, and then a replica takes the primary's place."""
        everything = {b"%d" % number for number in range(16)}
        self.join(is_promoted=True)
        self.lead(shards)
        self.client.doomed = after, shard_tag("t", doomed)
        for pause_s in (0.0, 0.0, seconds):
            self.crank(pause_s)
            self.add(everything, lost=False)
            self.hear(0)
            for which in _TURNS:
                self.turn(which, None, False)
        self.add(everything, lost=False)
        self.join(is_promoted=True)

    @rule(
        ids=st.sets(st.integers(0, 15).map(lambda number: b"%d" % number), min_size=1, max_size=12),
        lost=st.sampled_from([False, False, True]),
    )
    def add(self, ids: set[bytes], lost: bool) -> None:
        """Both workers have requests for these ids."""
        for which in range(2):
            self._add(which, ids, lost)

    def _add(self, which: int, ids: set[bytes], lost: bool) -> None:
        """A request's ids go to their shards by the regime that the worker knows."""
        regime = self.regimes[which]
        for shard in range(regime.shards):
            batch = sorted(one for one in ids if shard_of(one, regime.shards) == shard)
            if not batch:
                continue
            known = which, regime, shard
            if known not in self.stores:
                self.stores[known] = HitStore(
                    self.client, namespace="t", shard=shard, regime=regime, window_s=10, exact_limit=1000
                )
            self.seq += 1
            self.client.fate, self.client.fatal, self.client.lost = (0 if lost else None), False, None
            try:
                start_s = self.run(self.stores[known].add(self.seq, batch)).start_s
            except OtherRegimeError as error:
                if shard == 0:
                    self.regimes[which] = Regime(error.number, error.shards)
                continue
            except StoreAwayError:
                if self.client.lost is None:
                    continue
                if self.client.cut == shard_tag("t", shard):
                    self._doubt(self.client.lost[0], batch, shard)
                    continue
                # It was counted, and comes again, which changes nothing.
                start_s = self.client.lost[0]
                self.client.fate = None
                assert self.run(self.stores[known].add(self.seq, batch)).start_s == start_s
            finally:
                self.client.fate = None
            assert start_s not in self.records, "a window that was merged took ids"
            self.hits[start_s] += len(batch)
            for one in batch:
                assert self.accepted[start_s].setdefault(one, shard) == shard, "an id is on two shards"

    def _doubt(self, start_s: int, batch: list[bytes], shard: int) -> None:
        self.doubtful_hits[start_s] += len(batch)
        for one in batch:
            self.doubtful[start_s].setdefault(one, shard)

    @rule(which=st.sampled_from(_TURNS), fate=st.none() | st.integers(0, 6), fatal=st.booleans())
    def turn(self, which: str | int, fate: int | None, fatal: bool) -> None:
        """The leader does some of its work, up to where it dies or a reply is lost."""
        if self.leader is None:
            return
        self.client.fate, self.client.fatal = fate, fatal
        try:
            self.run(self.leader.turn(which))
        except KilledError:
            self.leader = None
        except StoreError:
            pass
        finally:
            self.client.fate = None

    @rule()
    def withdraw(self) -> None:
        """Not all shards were told of the leader's proposal in time."""
        if self.leader is not None:
            self.run(self.leader.withdraw())

    @rule()
    def deliver(self) -> None:
        """The oldest record is delivered, and goes."""
        if self.leader is not None:
            pending = self.leader.windows.pending
            with contextlib.suppress(StoreError):
                for window in self.run(pending.deliveries(limit=1)):
                    self.run(pending.mark_delivered(self.leader.epoch, window.record.start_s))
                    self.delivered.add(window.record.start_s)

    @rule(which=st.sampled_from(_TURNS))
    def wake(self, which: str | int) -> None:
        """A leader that slept goes on, as if it were one still: it changes nothing."""
        if self.zombie is not None:
            with contextlib.suppress(StoreError):
                self.run(self.zombie.turn(which))

    @rule(shards=st.sampled_from([1, 2, 4]), seconds=st.sampled_from([25.0, 60.0]), is_promoted=st.booleans())
    def catch_up(self, shards: int, seconds: float, is_promoted: bool) -> None:
        """A leader that lives merges all that has ended, and brings the shards of its settings."""
        self.join(is_promoted)
        self.crank(seconds - self.now % 10)  # near a window's end, a shard may hear of each plan too late
        self.lead(shards)
        for pause_s in (0, 10, seconds):  # a plan is there, and begins; the next one is made, and begins
            self.crank(pause_s)
            for _ in range(8):
                for which in _TURNS:
                    self.turn(which, None, False)
        self.look()
        ended = self.now + min(self.skews) - 10
        assert {start for start in self.accepted if start <= ended} <= set(self.records)
        self.hear(0)
        assert self.regimes[0].shards == shards
        state = self.run(self.client.command("HMGET", "{t:0}:state", "span", "plan"))
        assert state == [b"%d" % shards, None]

    @invariant()
    def look(self) -> None:
        """Each window has one record, with what was counted in it."""
        if self.client.cut == "{t:0}":
            return
        for window in self.run(windows(self.client, 1).pending.deliveries(limit=10_000)):
            record = window.record
            assert record.start_s not in self.delivered
            start_s, told = record.start_s, (record.unique_ids, record.hits)
            assert self.records.setdefault(start_s, told) == told
            least, doubtful = self.accepted.get(start_s, {}), self.doubtful.get(start_s, {})
            assert len(least) <= record.unique_ids <= len(least | doubtful)
            assert self.hits[start_s] <= record.hits <= self.hits[start_s] + self.doubtful_hits[start_s]
            assert record.exact
            assert not record.suspect


@pytest.fixture(scope="module")
def machine_server() -> Iterator[servers.RedisServer]:
    with servers.RedisServer() as server:
        yield server


def test_shards_keep_to_the_model(
    machine_server: servers.RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the order of events, each id that was counted is in one record, once."""
    monkeypatch.setattr(sealer, "TELL_S", math.inf)  # the model says when it is over
    monkeypatch.setattr(sealer, "PROPOSE_AGAIN_S", 0.0)

    class Machine(ShardsMachine):
        server = machine_server

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
