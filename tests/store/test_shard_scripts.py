"""The scripts that a leader runs on one of several shards, each by itself, on a real server."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import pytest

from idagg.errors import FencedError, OtherRegimeError, StoreAwayError
from idagg.store import sealing
from idagg.store.hits import HitStore
from idagg.store.parts import PLAN_MARGIN_S, Course, Part, Plan
from idagg.store.shards import Regime, shard_tag
from idagg.store.windows import WindowStore
from kit import servers
from kit.cranked import CrankedClient
from kit.waiting import NOON

TWO = Regime(1, 2)
OTHER = shard_tag("t", 1)


class Stage:
    """A store at noon with two shards, whose leader has epoch 1 and has told the other shard nothing."""

    def __init__(self, url: str) -> None:
        self.client = CrankedClient(url)
        self.windows = WindowStore(self.client, namespace="t", window_s=60, exact_limit=1000, shards=2)
        self.home, self.other = self.windows.shard(0), self.windows.shard(1)
        self.hits = [
            HitStore(self.client, namespace="t", shard=shard, regime=TWO, window_s=60, exact_limit=1000)
            for shard in range(2)
        ]
        self._seq = itertools.count(1)

    async def at(self, second: float) -> None:
        await self.client.at(NOON + second)

    async def lead(self, name: str = "leader", *, shards: int = 2) -> int:
        """Returns the epoch."""
        await self.client.command("DEL", "{t:0}:lock")
        windows = WindowStore(self.client, namespace="t", window_s=60, exact_limit=1000, shards=shards)
        return (await windows.election.lead(name, lease_ms=600_000, may_change_after="any")).epoch

    async def course(self, epoch: int = 1) -> Course:
        """What the home shard says."""
        course = (await self.home.look(epoch)).course
        assert course is not None
        return course

    async def add(self, shard: int, *ids: int, endpoints: tuple[bytes, ...] = ()) -> int:
        """Returns the start of the window that took the ids, after noon."""
        stored = await self.hits[shard].add(next(self._seq), [b"%d" % number for number in ids], endpoints)
        return stored.start_s - NOON

    async def names(self, pattern: str) -> set[str]:
        """Of the other shard's keys, without its tag."""
        found = await self.client.command("KEYS", f"{OTHER}:{pattern}")
        return {key.decode().removeprefix(f"{OTHER}:") for key in found}

    async def state(self, shard: int, field: str) -> str | None:
        value = await self.client.command("HGET", f"{shard_tag('t', shard)}:state", field)
        return None if value is None else value.decode()


@pytest.fixture
async def stage(any_server: servers.RedisServer) -> AsyncIterator[Stage]:
    stage = Stage(any_server.url)
    await stage.at(0)
    assert await stage.lead() == 1
    yield stage
    await stage.client.close()


SUM = Part(NOON, 60, 5, 5, 9, exact=True, suspect=False, dropped=0)


# What the other shard hears


@pytest.mark.parametrize(("begins_s", "merged_through_s"), [(NOON + 120, 0), (0, NOON + 120)])
async def test_no_window_before_the_floor_takes_ids(
    stage: Stage, begins_s: int, merged_through_s: int
) -> None:
    """The regime begins later, or the home shard has merged what came before. This clock is behind."""
    course = await stage.course()
    await stage.other.follow(1, 1, course)
    assert await stage.add(1, 1) == 0
    later = course._replace(begins_s=begins_s, merged_through_s=merged_through_s)
    await stage.other.follow(1, 2, later)
    assert await stage.add(1, 2) == 120
    await stage.other.follow(1, 3, course)  # what is over stays so
    assert await stage.add(1, 3) == 120


async def test_what_comes_late_is_not_heard(stage: Stage) -> None:
    """Neither of an earlier epoch nor of the same one, where a later word was heard."""
    course = await stage.course()
    later = course._replace(plan=Plan(NOON + 600, 2, 4, 60))
    await stage.other.follow(2, 5, later)
    for epoch, serial in ((1, 6), (2, 4), (2, 5)):
        with pytest.raises(FencedError) as caught:
            await stage.other.follow(epoch, serial, course)
        assert caught.value.epoch == 2
    assert (await stage.other.look(2)).heard == later.heard
    await stage.other.follow(2, 6, course)
    assert (await stage.other.look(2)).heard == course.heard  # without the plan


async def test_a_leader_that_was_told_of_a_later_epoch_outbids_it(stage: Stage) -> None:
    """Its next one is above both."""
    await stage.windows.merging.outbid(1, 41)
    assert await stage.state(0, "epoch") == "42"
    await stage.windows.merging.outbid(42, 7)
    assert await stage.state(0, "epoch") == "43"


# What a shard seals and shows


async def test_a_sealed_window_takes_no_ids(stage: Stage) -> None:
    """However the clock of the shard is stepped back; and nothing but the part and the sketch is left."""
    await stage.other.follow(1, 1, await stage.course())
    await stage.add(1, 1, 2, endpoints=(b"http://a/",))
    await stage.at(60)
    assert await stage.other.seal(1) == 0
    await stage.at(30)
    assert await stage.add(1, 1) == 60
    keys = {
        key.decode().removeprefix(OTHER) for key in await stage.client.command("KEYS", f"{OTHER}:*{NOON}*")
    }
    assert keys == {f":part:{NOON}", f":part:{NOON}:endpoints", f":w:{NOON}:hll"}


async def test_an_empty_window_that_others_have_sealed_takes_no_ids(stage: Stage) -> None:
    """Once it has ended here, too."""
    await stage.other.follow(1, 1, await stage.course())
    await stage.at(30)
    assert await stage.other.seal(1, NOON + 60) == 30_000
    assert await stage.add(1, 1) == 0
    await stage.at(150)
    assert await stage.other.seal(1, NOON + 60) == 0
    assert await stage.other.seal(1, NOON + 120) == 30_000
    await stage.at(70)
    assert await stage.add(1, 1) == 120


async def test_a_token_goes_once_there_are_many_of_later_windows(stage: Stage) -> None:
    """Those of later windows than the sealed one stay, however many there are."""
    await stage.other.follow(1, 1, await stage.course())
    await stage.add(1, 1)
    tokens = {f"w{number}": f"1 {NOON + 60 * number} 1 1" for number in range(-1025, 1025) if number}
    fields = itertools.chain.from_iterable(tokens.items())
    await stage.client.command("HSET", f"{OTHER}:workers", *fields)
    await stage.at(60)
    await stage.other.seal(1)
    left = {name.decode() for name in await stage.client.command("HKEYS", f"{OTHER}:workers")}
    assert tokens.keys() - left == {"w-1025"}


async def test_what_is_shown_goes_as_far_as_what_is_sealed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No further than the oldest window that is not, nor than the first part that there was no room for; and
    windows that are quarantined are named, whatever became of them."""
    monkeypatch.setattr(sealing, "PARTS_AT_ONCE", 2)
    await stage.other.follow(1, 1, await stage.course())
    for minute in range(4):
        await stage.at(60 * minute)
        await stage.add(1, minute)
    await stage.at(240)
    shown = []
    for _ in range(4):
        await stage.other.seal(1)
        progress = (await stage.other.look(1)).progress
        shown.append((progress.through_s - NOON, [part.start_s - NOON for part in progress.parts]))
    assert shown == [(60, [0]), (120, [0, 60]), (120, [0, 60]), (120, [0, 60])]
    await stage.client.command("ZADD", f"{OTHER}:open", NOON - 600, NOON - 600)
    assert (await stage.other.look(1)).progress.through_s == NOON - 600
    for index, minute in (("open", -10), ("parts", 1)):
        start = NOON + 60 * minute
        await stage.client.command("ZREM", f"{OTHER}:{index}", start)
        await stage.client.command("HSET", f"{OTHER}:quarantine", f"{index} {start}", "theirs")
    assert (await stage.other.look(1)).progress.quarantined == {NOON - 600, NOON + 60}


async def test_a_part_that_was_merged_is_dropped_whole(stage: Stage) -> None:
    """And no other."""
    await stage.other.follow(1, 1, await stage.course())
    for minute in range(2):
        await stage.at(60 * minute)
        await stage.add(1, minute, endpoints=(b"http://a/",))
    await stage.at(120)
    await stage.other.seal(1)
    await stage.other.seal(1)
    await stage.other.drop(1, NOON)
    later = f"part:{NOON + 60}"
    assert await stage.names("part*") == {"parts", later, f"{later}:endpoints"}
    assert await stage.client.command("ZRANGE", f"{OTHER}:parts", 0, -1) == [b"%d" % (NOON + 60)]


# What the home shard merges


async def test_a_window_is_merged_once(stage: Stage) -> None:
    """However often its sum comes, also when its record has long gone; no endpoint comes after it, either."""
    await stage.add(0, 1)
    await stage.at(60)
    await stage.home.seal(1)
    assert await stage.windows.merging.merge(1, SUM)
    assert await stage.client.command("EXISTS", f"{{t:0}}:part:{NOON}") == 0
    assert not await stage.windows.merging.merge(1, SUM._replace(unique_ids=7))
    (window,) = await stage.windows.pending.deliveries()
    assert window.record.unique_ids == 5
    await stage.windows.pending.mark_delivered(1, NOON)
    assert not await stage.windows.merging.merge(1, SUM)
    assert await stage.windows.merging.gather(1, NOON, [b"http://a/"], limit=0) == 0
    await stage.client.command("DEL", "{t:0}:merged")  # as after 1024 more windows
    assert not await stage.windows.merging.merge(1, SUM)
    assert await stage.windows.pending.deliveries() == []
    keys = {key.decode() for key in await stage.client.command("KEYS", f"{{t:0}}:*{NOON}*")}
    assert keys == {f"{{t:0}}:w:{NOON}:hll", f"{{t:0}}:kept:{NOON}"}


async def test_the_newest_merged_windows_are_remembered(stage: Stage) -> None:
    """By number, and how far they go."""
    old = itertools.chain.from_iterable((NOON + 60 * number,) * 2 for number in range(1024))
    await stage.client.command("ZADD", "{t:0}:merged", *old)
    for minute in (1030, 1029):
        assert await stage.windows.merging.merge(1, SUM._replace(start_s=NOON + 60 * minute))
    merged = await stage.client.command("ZRANGE", "{t:0}:merged", 0, -1)
    assert [int(start) - NOON for start in merged] == [
        60 * number for number in (*range(2, 1024), 1029, 1030)
    ]
    assert await stage.state(0, "merged_through") == str(NOON + 60 * 1031)


# Plans


async def test_only_the_last_proposal_is_confirmed(stage: Stage) -> None:
    """And nothing in its place: workers go by it from then on."""
    await stage.lead(shards=4)
    merging = stage.windows.merging
    former = await merging.propose(2, shards=3, window_s=60)
    first = await merging.propose(2, shards=4, window_s=60)
    assert (former, first) == (Plan(NOON + 60, 2, 3, 60), Plan(NOON + 60, 2, 4, 60))
    assert not await merging.confirm(2, former)
    await stage.at(60)
    second = await merging.propose(2, shards=4, window_s=60)
    assert second == Plan(NOON + 120, 2, 4, 60)
    assert not await merging.confirm(2, first)
    assert (await stage.state(0, "plan"), await stage.state(0, "span")) == (None, "2")
    assert await merging.confirm(2, second)
    assert (await stage.state(0, "plan"), await stage.state(0, "span")) == (str(second), "4")
    assert await merging.confirm(2, second)
    assert not await merging.confirm(2, first)
    assert await merging.propose(2, shards=1, window_s=60) == second
    for span, kept in ((6, "6"), (3, "4")):  # the latter was on its way when the plan was confirmed
        await merging.settle(2, span)
        assert await stage.state(0, "span") == kept


async def test_a_plan_that_is_heard_too_late(stage: Stage) -> None:
    """By the shard's own clock its first window may have ids already; however often it is told. What is only
    proposed then is not heard, and what is confirmed is, whenever that is."""
    course = (await stage.course())._replace(plan=Plan(NOON + 60, 2, 4, 60))
    serial = itertools.count(1)
    for second, in_time in ((59, True), (60, False), (60, False)):
        await stage.at(second)
        assert await stage.other.follow(1, next(serial), course, is_proposed=True) == in_time
        assert (await stage.state(1, "plan") is not None) == in_time
    assert await stage.add(1, 1) == 60
    assert await stage.other.follow(1, next(serial), course)
    assert await stage.state(1, "plan") == str(course.plan)
    assert await stage.other.follow(1, next(serial), await stage.course())
    assert await stage.state(1, "plan") is None


@pytest.mark.parametrize("shard", [0, 1])
async def test_a_plan_begins_after_all_windows_that_have_ids(stage: Stage, shard: int) -> None:
    """Whatever the clock of the shard says now: it was stepped back, or another server's was ahead."""
    await stage.other.follow(1, 1, await stage.course())
    await stage.at(60)
    assert await stage.add(shard, 1) == 60
    await stage.at(57)
    await stage.lead(shards=4)
    plan = await stage.windows.merging.propose(2, shards=4, window_s=60)
    assert plan.begins_s == NOON + (60 if shard else 120)
    course = (await stage.course(2))._replace(plan=plan)
    assert await stage.other.follow(2, 1, course, is_proposed=True) == (not shard)


async def test_ids_that_came_meanwhile_keep_a_plan_from_being_confirmed(stage: Stage) -> None:
    """They are in its first window, and spread as before."""
    await stage.lead(shards=4)
    plan = await stage.windows.merging.propose(2, shards=4, window_s=60)
    await stage.at(60)
    assert await stage.add(0, 1) == 60
    await stage.at(57)
    assert not await stage.windows.merging.confirm(2, plan)


async def test_a_proposal_whose_time_has_come_is_not_confirmed(stage: Stage) -> None:
    """Its first window may have ids already that are spread otherwise."""
    await stage.lead(shards=4)
    merging = stage.windows.merging
    await stage.at(60 - PLAN_MARGIN_S - 1)
    plan = await merging.propose(2, shards=4, window_s=60)
    assert plan.begins_s == NOON + 60
    await stage.at(60)
    assert not await merging.confirm(2, plan)
    await stage.at(59)
    assert await merging.confirm(2, plan)


async def test_workers_hear_of_a_plan_once_it_is_announced(stage: Stage) -> None:
    """Until then the home shard takes no ids in the plan's windows, whoever leads and whatever is sealed."""
    await stage.lead(shards=4)
    plan = await stage.windows.merging.propose(2, shards=4, window_s=60)
    assert await stage.windows.merging.confirm(2, plan)
    assert await stage.add(0, 1) == 0
    await stage.at(60)
    with pytest.raises(StoreAwayError, match="no leader has announced"):
        await stage.add(0, 2)
    await stage.at(121)
    for _ in range(2):
        assert await stage.home.seal(2, NOON + 120) == 0
    assert (await stage.course(2)).regime == TWO
    assert (await stage.windows.election.lead("another", lease_ms=1000)).regime == TWO
    assert not await stage.windows.merging.announce(2, plan._replace(number=3))
    assert await stage.windows.merging.announce(2, plan)
    assert not await stage.windows.merging.announce(2, plan)
    course = await stage.course(2)
    assert (course.regime, course.begins_s, course.plan) == (Regime(2, 4), plan.begins_s, None)
    assert (await stage.windows.election.lead("another", lease_ms=1000)).regime == Regime(2, 4)
    with pytest.raises(OtherRegimeError) as caught:
        await stage.add(0, 2)
    assert (caught.value.number, caught.value.shards) == (2, 4)


async def test_what_was_done_before_is_on_replicas_all_the_same(stage: Stage) -> None:
    """Something is written, or a client whose connection is new would wait for nothing."""
    await stage.lead(shards=4)
    merging = stage.windows.merging
    plan = await merging.propose(2, shards=4, window_s=60)

    async def written() -> bytes:
        info: bytes = await stage.client.command("INFO", "persistence")
        return info.partition(b"rdb_changes_since_last_save:")[2].split()[0]

    for _ in range(2):
        steps = (
            merging.confirm(2, plan),
            merging.propose(2, shards=4, window_s=60),
            merging.announce(2, plan),
            merging.gather(2, NOON + 60, [b"http://a/"], limit=10),
            merging.merge(2, SUM),
            merging.gather(2, NOON, [b"http://a/"], limit=10),
        )
        for step in steps:
            before = await written()
            await step
            assert await written() != before
