"""Sketches rolled up into hours and days, and estimates of any stretch, on a real store whose clock is
cranked by hand."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping

import pytest

from idagg.errors import FencedError, StoreAwayError
from idagg.flush.leader import Leadership
from idagg.flush.roller import Roller
from idagg.flush.turns import Turns
from idagg.read.cover import Gap, Stretch
from idagg.read.estimate import STANDARD_ERROR, Estimate, Estimates
from idagg.store.parts import Part
from idagg.store.shards import shard_tag
from idagg.store.sketches import AT_ONCE, SKETCH_KEPT_S, Sketches
from idagg.window import DAY_S, Period, Rollup
from kit import servers
from kit.cranked import CrankedClient
from kit.staging import window_store
from kit.waiting import LIMIT_S

HOUR_S = 3600
# Of a day and an hour, UTC.
BEGIN = 1_800_057_600
assert BEGIN % DAY_S == 0


class Stage:
    """A store, its leader's roller, and windows that are sealed and merged by hand."""

    def __init__(self, client: CrankedClient) -> None:
        self.client = client
        self.windows = window_store(client)
        self.epoch = 0
        self.settled_s = 0
        self.looks: list[tuple[float, int]] = []
        self.roller = self.another()
        self.estimates = Estimates(client, namespace="t", client_of=lambda _: client)

    def another(self, *deliver: Period) -> Roller:
        turns = Turns(Leadership(self.windows.election, self.windows.election.agreed))
        return Roller(self.windows, turns, lambda: self.settled_s, deliver=deliver, on_look=self.on_look)

    def on_look(self, *, lag_s: float, gone: int) -> None:
        self.looks.append((lag_s, gone))

    async def lead(self, name: str = "a") -> None:
        self.epoch = (await self.windows.election.lead(name, lease_ms=10**9)).epoch

    async def window(
        self, start_s: int, ids: Mapping[int, range] = {}, *, length_s: int = 60, hits: int = 0
    ) -> None:
        """Merge a window with these ids, by shard."""
        for shard, its in ids.items():
            key = f"{shard_tag('t', shard)}:w:{start_s}:hll"
            for at in range(0, len(its), 1000):
                await self.client.command("PFADD", key, *its[at : at + 1000])
        unique_ids = sum(map(len, ids.values()))
        part = Part(start_s, length_s, unique_ids, unique_ids, hits or unique_ids, True, False, 0)
        assert await self.windows.merging.merge(
            self.epoch, part, sketched=[shard for shard, its in ids.items() if its]
        )

    async def lose(self, start_s: int, shard: int = 0) -> None:
        await self.client.command("DEL", f"{shard_tag('t', shard)}:w:{start_s}:hll")

    async def roll(self, roller: Roller | None = None) -> int:
        """Until there is nothing to do; returns the number of steps."""
        steps = 1
        while await (roller or self.roller).step(self.epoch):
            steps += 1
        return steps

    async def about(self, from_s: int, to_s: int) -> Estimate:
        """Relative to the begin, as the answer is."""
        found = await self.estimates.estimate(BEGIN + from_s, BEGIN + to_s)
        return found._replace(
            covered=[one._replace(from_s=one.from_s - BEGIN, to_s=one.to_s - BEGIN) for one in found.covered],
            missing=[Gap(one.from_s - BEGIN, one.to_s - BEGIN) for one in found.missing],
        )


@pytest.fixture
async def stage(store_server: servers.RedisServer) -> AsyncIterator[Stage]:
    client = CrankedClient(store_server.url)
    await client.at(BEGIN)
    stage = Stage(client)
    await stage.lead()
    yield stage
    await client.close()


def near(count: int) -> object:
    return pytest.approx(count, rel=3 * STANDARD_ERROR)


async def test_hours_and_days(stage: Stage) -> None:
    """They hold what their windows do, each id once; what is asked for is told from the fewest sketches, and
    what is not covered is said."""
    for minute in range(25 * 60):
        await stage.window(BEGIN + 60 * minute, {0: range(10 * minute, 10 * minute + 40)})
    stage.settled_s = BEGIN + 24 * HOUR_S + 1800  # of the last hour one half is still to come, it seems
    await stage.client.at(BEGIN + 25 * HOUR_S)
    await stage.roll()
    day = await stage.about(0, DAY_S)
    assert day.covered == [Stretch(0, DAY_S, "day")]
    assert (day.missing, day.standard_error) == ([], STANDARD_ERROR)
    assert day.unique_ids == near(24 * 600 + 30)
    hours = await stage.about(HOUR_S, 3 * HOUR_S)
    assert (hours.covered, hours.unique_ids) == ([Stretch(HOUR_S, 3 * HOUR_S, "hour")], near(1230))
    mixed = await stage.about(HOUR_S - 90, 2 * HOUR_S + 30)
    assert mixed.covered == [
        Stretch(HOUR_S - 60, HOUR_S, "window"),
        Stretch(HOUR_S, 2 * HOUR_S, "hour"),
        Stretch(2 * HOUR_S, 2 * HOUR_S + 60, "window"),
    ]
    assert mixed.missing == [Gap(HOUR_S - 90, HOUR_S - 60)]
    assert mixed.unique_ids == near(620 + 30)
    unfinished = await stage.about(24 * HOUR_S, 26 * HOUR_S)
    assert unfinished.covered == [Stretch(24 * HOUR_S, 25 * HOUR_S, "window")]
    assert unfinished.missing == [Gap(25 * HOUR_S, 26 * HOUR_S)]
    assert unfinished.unique_ids == near(630)
    assert await stage.about(-DAY_S, 0) == Estimate(0, STANDARD_ERROR, [], [Gap(-DAY_S, 0)])
    assert await stage.about(5, 5) == Estimate(0, STANDARD_ERROR, [], [])


async def test_after_48_hours(stage: Stage) -> None:
    """Hours and days outlive windows, and hours what they are kept for in days."""
    for minute in range(61):
        await stage.window(BEGIN + 60 * minute, {0: range(100)})
    stage.settled_s = BEGIN + DAY_S
    await stage.client.at(BEGIN + DAY_S)
    await stage.roll()
    for key, kept_s in ((f"hour:{BEGIN}", 90 * DAY_S), (f"day:{BEGIN}", 400 * DAY_S)):
        assert kept_s - LIMIT_S < await stage.client.command("TTL", f"{{t:0}}:{key}") <= kept_s
    for minute in range(61):
        await stage.lose(BEGIN + 60 * minute)
    hour = await stage.about(60, 2 * HOUR_S)
    assert hour.covered == [Stretch(HOUR_S, 2 * HOUR_S, "hour")]
    await stage.client.command("DEL", f"{{t:0}}:hour:{BEGIN}", f"{{t:0}}:hour:{BEGIN + HOUR_S}")
    assert (await stage.about(0, 2 * HOUR_S)).covered == []
    assert (await stage.about(0, DAY_S)).unique_ids == near(100)
    # Much later, none of it is left, and neither is what named it.
    stage.settled_s = BEGIN + 500 * DAY_S
    await stage.client.at(stage.settled_s)
    await stage.window(stage.settled_s - 60)
    await stage.window(stage.settled_s)
    await stage.roll()
    names = await stage.client.command("HKEYS", "{t:0}:hours") + await stage.client.command(
        "HKEYS", "{t:0}:days"
    )
    assert b"%d" % BEGIN not in names
    # Each window that is merged takes two of the old ones away.
    assert await stage.client.command("ZCARD", "{t:0}:sketches") == 61 + 2 - 2 * 2


async def test_many_short_windows(stage: Stage) -> None:
    """They are rolled up in steps of a bounded number, and before their hour is over; so are they counted."""
    for second in range(3 * AT_ONCE):
        await stage.window(BEGIN + second, {0: range(second, second + 10)}, length_s=1)
    assert await stage.roll() == 4
    found = await stage.about(0, HOUR_S)
    assert found.covered == [Stretch(0, 3 * AT_ONCE, "window")]
    assert found.unique_ids == near(3 * AT_ONCE + 9)
    stage.settled_s = BEGIN + HOUR_S
    await stage.roll()
    assert await stage.about(0, HOUR_S) == Estimate(
        found.unique_ids, STANDARD_ERROR, [Stretch(0, HOUR_S, "hour")], []
    )
    assert await stage.client.command("KEYS", "{t:0}:scratch*") == []


async def test_windows_that_reach_into_the_next_hour(stage: Stage) -> None:
    """They are in the hour in which they begin; what is covered has neither a hole nor an overlap."""
    for start_s in range(-5, 2 * HOUR_S, 89):
        await stage.window(BEGIN + start_s, {0: range(start_s, start_s + 89)}, length_s=89)
    stage.settled_s = BEGIN + HOUR_S
    await stage.roll()
    both = await stage.about(0, 2 * HOUR_S)
    last_s = both.covered[-1].to_s
    assert both.covered == [Stretch(0, HOUR_S, "hour"), Stretch(HOUR_S, last_s, "window")]
    assert (last_s >= 2 * HOUR_S, both.missing) == (True, [])
    assert both.unique_ids == near(last_s - 84)
    second = await stage.about(HOUR_S, 2 * HOUR_S)
    assert second.covered == [Stretch(41 * 89 - 5, last_s, "window")]
    assert second.missing == [Gap(HOUR_S, 41 * 89 - 5)]
    stage.settled_s = BEGIN + 2 * HOUR_S
    await stage.roll()
    await stage.client.command("DEL", f"{{t:0}}:hour:{BEGIN}")
    both = await stage.about(0, 2 * HOUR_S)
    assert both.covered == [Stretch(84, HOUR_S, "window"), Stretch(HOUR_S, 2 * HOUR_S, "hour")]
    assert both.missing == [Gap(0, 84)]
    assert both.unique_ids == near(last_s - 84)


async def test_a_leader_that_dies(stage: Stage) -> None:
    """The next one goes on where it was; what the first one still sends is refused, and what comes again
    counts once."""
    for second in range(2 * AT_ONCE):
        await stage.window(BEGIN + second, {0: range(second, second + 10)}, length_s=1, hits=20)
    queue = await stage.windows.rollups.queue()
    assert await stage.roller.step(stage.epoch)
    await stage.windows.rollups.roll(stage.epoch, BEGIN, queue.windows, [], 7)
    old = stage.epoch
    await stage.client.command("DEL", "{t:0}:lock")
    await stage.lead("b")
    with pytest.raises(FencedError):
        await stage.roller.step(old)
    stage.settled_s = BEGIN + HOUR_S
    await stage.roll(stage.another())
    sums = (await stage.windows.rollups.rolled()).hours[BEGIN]
    assert sums == (2 * AT_ONCE, 0, 40 * AT_ONCE, 20 * AT_ONCE, 0)
    assert (await stage.about(0, HOUR_S)).unique_ids == near(2 * AT_ONCE + 9)


async def test_shards(stage: Stage) -> None:
    """An hour is the union over all shards, also where their number changed within it."""
    for minute in range(60):
        shards = 2 if minute < 30 else 3
        ids = {shard: range(1000 * shard, 1000 * shard + 10 * minute + 10) for shard in range(shards)}
        await stage.window(BEGIN + 60 * minute, ids)
    windows = await stage.about(0, HOUR_S)
    assert windows.covered == [Stretch(0, HOUR_S, "window")]
    assert windows.unique_ids == near(1800)
    stage.settled_s = BEGIN + HOUR_S
    await stage.roll()
    hour = await stage.about(0, HOUR_S)
    assert hour == Estimate(windows.unique_ids, STANDARD_ERROR, [Stretch(0, HOUR_S, "hour")], [])
    assert await stage.client.command("KEYS", "*scratch*") == []


async def test_a_shard_that_is_away(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The hour waits for it, and is given up once its sketches have expired."""
    await stage.window(BEGIN, {0: range(100), 1: range(100, 200)})
    stage.settled_s = BEGIN + HOUR_S

    async def away(*_: object) -> None:
        raise StoreAwayError("it is away")

    with monkeypatch.context() as patch:
        patch.setattr(Sketches, "union", away)
        await stage.client.at(BEGIN + SKETCH_KEPT_S)
        with pytest.raises(StoreAwayError):
            await stage.roller.step(stage.epoch)
        assert (await stage.windows.rollups.rolled()).hours == {}
        await stage.client.at(BEGIN + SKETCH_KEPT_S + 61)
        with caplog.at_level(logging.WARNING):
            assert await stage.roller.step(stage.epoch)
    assert "is left out of estimates: 1 sketches" in caplog.text
    assert stage.looks[-1] == (SKETCH_KEPT_S + 61 - HOUR_S, 1)
    await stage.roll()
    assert stage.looks[-1] == (0, 0)
    found = await stage.about(0, HOUR_S)
    assert found.covered == [Stretch(0, 60, "window")]  # its own sketches happen to be there


@pytest.mark.parametrize("shard", [0, 1])
async def test_a_sketch_that_is_gone(stage: Stage, shard: int) -> None:
    """Its hour and day say less than they should, and are not used; the other hours of the day are."""
    await stage.window(BEGIN, {0: range(100), 1: range(100, 200)})
    await stage.window(BEGIN + HOUR_S, {0: range(100)})
    await stage.lose(BEGIN, shard)
    stage.settled_s = BEGIN + DAY_S
    await stage.roll()
    found = await stage.about(0, DAY_S)
    assert found.covered == [Stretch(HOUR_S, 2 * HOUR_S, "hour")]
    assert found.unique_ids == near(100)


async def test_a_window_that_was_mended(stage: Stage) -> None:
    """It goes into its hour and day, though they were whole."""
    await stage.window(BEGIN, {0: range(100)})
    stage.settled_s = BEGIN + DAY_S
    await stage.roll()
    await stage.window(BEGIN + 60, {0: range(100, 200)})
    await stage.roll()
    for to_s in (HOUR_S, DAY_S):
        assert (await stage.about(0, to_s)).unique_ids == near(200)


async def test_a_store_of_the_version_before(stage: Stage) -> None:
    """It has sketches of windows, and names none: they are not covered, and hours begin with this version's
    windows."""
    for minute in range(3):
        await stage.window(BEGIN + 60 * minute, {0: range(100)})
    for name in ("sketches", "rolling", "hours", "days"):
        await stage.client.command("DEL", f"{{t:0}}:{name}")
    roller = stage.another("hour")
    stage.settled_s = BEGIN
    await stage.roll(roller)
    assert await stage.about(0, HOUR_S) == Estimate(0, STANDARD_ERROR, [], [Gap(0, HOUR_S)])
    assert await stage.windows.rollups.pending(late=False, limit=9) == []
    await stage.window(BEGIN + 180, {0: range(50)})
    stage.settled_s = BEGIN + HOUR_S
    await stage.roll(roller)
    found = await stage.about(0, HOUR_S)
    assert (found.unique_ids, found.covered) == (near(50), [Stretch(0, HOUR_S, "hour")])
    assert len(await stage.windows.rollups.pending(late=False, limit=9)) == 1


async def test_hours_without_ids(stage: Stage) -> None:
    """They are covered, and have none."""
    await stage.window(BEGIN)
    stage.settled_s = BEGIN + HOUR_S
    await stage.roll()
    assert await stage.about(0, HOUR_S) == Estimate(0, STANDARD_ERROR, [Stretch(0, HOUR_S, "hour")], [])


async def test_what_another_program_wrote(stage: Stage) -> None:
    """It is no sketch: the hour is left out, and nothing else suffers."""
    await stage.window(BEGIN, {0: range(10)})
    await stage.client.command("SET", f"{{t:0}}:hour:{BEGIN}", "theirs")
    await stage.window(BEGIN + HOUR_S, {0: range(10)})
    stage.settled_s = BEGIN + 2 * HOUR_S
    await stage.roll()
    found = await stage.about(0, 2 * HOUR_S)
    assert found.covered == [Stretch(0, 60, "window"), Stretch(HOUR_S, 2 * HOUR_S, "hour")]


async def test_what_is_to_be_delivered(stage: Stage) -> None:
    """Each hour and day that became whole, once, with a count that stays."""
    roller = stage.another("hour", "day")
    await stage.window(BEGIN + 60, {0: range(10)}, hits=30)
    await stage.window(BEGIN + 120, {0: range(10)}, hits=30)
    stage.settled_s = BEGIN + HOUR_S
    await stage.roll(roller)
    rollups = stage.windows.rollups
    hour = Rollup("hour", BEGIN, 10, 60, False, stage.epoch)
    assert await rollups.pending(late=False, limit=9) == [hour]
    await stage.window(BEGIN + 180, {0: range(20)})  # mended
    await stage.window(BEGIN + HOUR_S, {0: range(10)})
    await stage.lose(BEGIN + HOUR_S)
    stage.settled_s = BEGIN + DAY_S
    await stage.roll(roller)
    second = Rollup("hour", BEGIN + HOUR_S, 0, 10, True, stage.epoch)
    day = Rollup("day", BEGIN, 20, 90, True, stage.epoch)
    assert await rollups.pending(late=False, limit=9) == [hour, second, day]
    await rollups.mark(stage.epoch, hour, delivered=False)
    await rollups.mark(stage.epoch, day, delivered=True)
    assert await rollups.pending(late=False, limit=9) == [second]
    assert await rollups.pending(late=True, limit=9) == [hour]
    await rollups.mark(stage.epoch, hour, delivered=True)
    assert await rollups.pending(late=True, limit=9) == []
