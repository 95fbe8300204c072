"""Hours and days beside the leader's other work: whatever step fails, whatever shard is away, and whatever
the windows' length is."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Iterable, Sequence

import pytest

from idagg.flush import leader, turns
from idagg.read.cover import Stretch, joined
from idagg.read.estimate import STANDARD_ERROR, Estimate, Estimates
from idagg.store.shards import Regime, shard_tag
from idagg.store.sketches import Rolled, RollUps
from idagg.window import Record, Rollup
from kit import servers
from kit.groups import RedisCluster
from kit.sharded import IDS, Fate, Process, ShardClient, Stage
from kit.waiting import NOON, eventually, until

HOUR_S = 3600
FOUR = Regime(1, 4)
MORE = range(20, 60)  # some of them are in IDS
# Scripts that end or fail a roll-up by themselves: a look that fails is tried again.
STEPS = ("union", "roll", "finish", "mark_rollup")
WITHIN_S = 30.0


@pytest.fixture
async def stage(any_server: servers.RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    hurry(monkeypatch)
    stage = Stage(any_server.url)
    await stage.at(0)
    yield stage
    await stage.close()


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((turns, "LOOK_S"), (turns, "RETRY_S"), (leader, "LOOK_S")):
        monkeypatch.setattr(module, name, 0.01)
    monkeypatch.setattr(leader, "LEASE_MS", 600_000)  # it goes on by the server's clock while we stand still


async def rolled(stage: Stage) -> Rolled:
    """By the starts of hours after noon."""
    found = await RollUps(stage.client, shard_tag("t")).rolled()
    hours = {start_s - NOON: sums for start_s, sums in found.hours.items()}
    return found._replace(through_s=found.through_s - NOON, hours=hours)


async def is_over(
    stage: Stage, through_s: int = HOUR_S, *, unless: asyncio.Future[None] | None = None
) -> Rolled:
    """Wait until all hours before this are rolled up, and delivered where that was asked for; or until a task
    has ended."""

    async def state() -> tuple[Rolled, int]:
        found = await rolled(stage)  # first: with it they are there
        return found, await stage.client.command("ZCARD", "{t:0}:rollups")

    def enough(state: tuple[Rolled, int]) -> bool:
        found, left = state
        return (found.through_s >= through_s and not left) or (unless is not None and unless.done())

    return (await eventually(state, enough, within_s=WITHIN_S))[0]


async def about(stage: Stage, from_s: int, to_s: int) -> Estimate:
    """From noon on, as the answer is."""
    estimates = Estimates(stage.client, namespace="t", client_of=stage.client_of)
    found = await estimates.estimate(NOON + from_s, NOON + to_s)
    return found._replace(covered=[Stretch(a - NOON, b - NOON, kind) for a, b, kind in found.covered])


def near(count: int) -> object:
    return pytest.approx(count, rel=3 * STANDARD_ERROR)


async def an_hour(stage: Stage) -> Process:
    """Of two windows, at its end, the second one not sealed yet."""
    await stage.at(HOUR_S - 120)
    process = await stage.start(4, deliver=["hour"])
    await stage.counted(FOUR)
    await stage.at(HOUR_S - 60)
    await stage.counted(FOUR, MORE)
    await until(lambda: stage.told == [(HOUR_S - 120, 40, 40)], within_s=WITHIN_S)
    await is_over(stage, 0)  # all that there was before
    return process


@pytest.mark.parametrize("fatal", [True, False])
async def test_any_step_may_fail_or_be_the_last(stage: Stage, fatal: bool) -> None:
    """Whatever step of rolling up an hour of four shards, and of delivering it, goes wrong or is a leader's
    last: the hour is the same, and so is each delivery of it."""
    undisturbed = None
    for survives in itertools.count():
        await stage.begin_anew()
        await an_hour(stage)
        await stage.kill()
        await stage.at(HOUR_S)
        fate = Fate(survives, fatal=fatal, steps=STEPS)
        doomed = await stage.start(4, deliver=["hour"], fate=fate)
        if fatal:
            await is_over(stage, unless=doomed.flush)
            await stage.start(4, deliver=["hour"])
        sums = (await is_over(stage)).hours[0]
        assert sums == (120, 0, 80, 80, 0)
        estimate = await about(stage, 0, HOUR_S)
        assert estimate.covered == [Stretch(0, HOUR_S, "hour")]
        assert estimate.unique_ids == near(60)
        assert {rollup.message_id("t") for rollup in stage.rollups} == {f"t:hour:{NOON}"}
        assert len(set(stage.rollups)) == 1
        (found,) = {rollup._replace(epoch=0) for rollup in stage.rollups}
        undisturbed = undisturbed or found
        assert found == undisturbed == Rollup("hour", NOON, estimate.unique_ids, 80, False, 0)
        if fate.left >= 0:
            break
    assert survives == len(STEPS) + 2  # each of the other shards gives a union


@pytest.mark.parametrize("step", ["union", "roll", "finish"])
async def test_sealing_does_not_wait(stage: Stage, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """While a step of a roll-up has no answer, windows end, are sealed and delivered one after the other; and
    then it is rolled up."""
    await an_hour(stage)
    held = asyncio.Event()
    monkeypatch.setattr(ShardClient, "held", {step: held})
    for minute in range(3):
        await stage.at(HOUR_S + 60 * minute)
        await until(lambda minute=minute: len(stage.told) == 2 + minute, within_s=WITHIN_S)  # type: ignore[misc]  # mypy does not infer it
        await stage.counted(FOUR, IDS[: minute + 1])
    assert stage.told[1:] == [(HOUR_S - 60, 40, 40), (HOUR_S, 1, 1), (HOUR_S + 60, 2, 2)]
    before = await eventually(
        lambda: rolled(stage), lambda found: bool(found.hours) == (step == "finish"), within_s=WITHIN_S
    )
    assert before.through_s == 0
    assert stage.rollups == []
    held.set()
    assert (await is_over(stage)).hours == {0: (120, 0, 80, 80, 0)}
    assert (await about(stage, 0, HOUR_S)).unique_ids == near(60)
    whole = await about(stage, 0, 2 * HOUR_S)
    assert whole.covered == [Stretch(0, HOUR_S, "hour"), Stretch(HOUR_S, HOUR_S + 120, "window")]
    assert whole.unique_ids == near(60)


async def test_a_shard_that_is_away(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The hour is late, and not wrong; windows that do not need the shard any more are not called late."""
    held = asyncio.Event()
    monkeypatch.setattr(ShardClient, "held", {"union": held})
    await an_hour(stage)
    process = await stage.start(2, deliver=["hour"])
    await eventually(lambda: stage.client.command("HGET", "{t:0}:state", "plan"), bool, within_s=WITHIN_S)
    await stage.at(HOUR_S)
    await stage.counted(Regime(2, 2), IDS[:3])
    settled = [b"2 2 60", b"2"]
    fields = "HMGET", "{t:0}:state", "regime", "span"
    await eventually(lambda: stage.client.command(*fields), lambda found: found == settled, within_s=WITHIN_S)
    monkeypatch.setattr(ShardClient, "away", frozenset({shard_tag("t", 3)}))
    with caplog.at_level(logging.INFO):
        held.set()
        await until(lambda: "hours and days are not rolled up" in caplog.text, within_s=WITHIN_S)
        for minute in (1, 2):
            await stage.at(HOUR_S + 60 * minute)
            await until(lambda minute=minute: len(stage.told) == 2 + minute, within_s=WITHIN_S)  # type: ignore[misc]  # mypy does not infer it
        assert (await rolled(stage)).hours == {}
        # At first sealing may not have noticed yet that it does not need the shard any more.
        await until(lambda: process.flusher.trouble is None, within_s=WITHIN_S)
        monkeypatch.setattr(ShardClient, "away", frozenset())
        assert (await is_over(stage)).hours == {0: (120, 0, 80, 80, 0)}
        await until(lambda: "rolled up again" in caplog.text, within_s=WITHIN_S)
    assert [rollup.unique_ids for rollup in stage.rollups] == [near(60)]
    assert (await about(stage, 0, HOUR_S)).unique_ids == near(60)


@pytest.mark.parametrize("lengths", [(60, 30, 120), (60, 90, 7), (7, 90, 13)])
async def test_windows_of_other_lengths(stage: Stage, lengths: Sequence[int]) -> None:
    """Also of those that do not divide an hour, and those cut short by a change: each id is in one window,
    each window in one hour, and an estimate says what it covers, without holes and overlaps."""
    sent = 0
    looks = set[tuple[int, int]]()
    begin_s, step_s = HOUR_S - 350, 10  # the last length is that at the end of the hour
    await stage.at(begin_s)
    process = await stage.start(1, window_s=lengths[0])
    window_s = lengths[0]
    for second in range(begin_s, HOUR_S + 300, step_s):
        await stage.at(second)
        if (second - begin_s) % 200 == 100 and (second - begin_s) // 200 + 1 < len(lengths):
            window_s = lengths[(second - begin_s) // 200 + 1]
            process = await stage.start(1, window_s=window_s)
        await counted(stage, process, [sent, sent + 1], window_s)
        sent += 2
        look = await process.windows.now()
        assert look.start_s <= look.now_s < look.end_s
        looks.add((look.start_s, look.end_s))
    end_s = HOUR_S + 300 + 2 * max(lengths)
    await stage.at(end_s)
    # A leader that is killed may have delivered one that the next one delivers again.
    await until(lambda: sum(record.unique_ids for record in set(stage.records)) >= sent, within_s=WITHIN_S)
    await is_over(stage)
    records = sorted(set(stage.records))
    assert sum(record.unique_ids for record in records) == sum(record.hits for record in records) == sent
    assert {(record.start_s, record.end_s) for record in records if record.hits} == looks
    assert all(one.end_s <= other.start_s for one, other in itertools.pairwise(records))
    assert {record.length_s for record in records} >= set(lengths)
    its = [record for record in records if record.start_s - NOON < HOUR_S]
    assert (await rolled(stage)).hours[0] == (
        sum(record.length_s for record in its),
        0,
        sum(record.hits for record in its),
        sum(record.unique_ids for record in its),
        0,
    )
    first_s, last_s = records[0].start_s - NOON, records[-1].end_s - NOON
    for from_s, to_s in ((0, HOUR_S), (0, last_s), (first_s, last_s), (HOUR_S - 95, HOUR_S + 95)):
        found = await about(stage, from_s, to_s)
        its = [record for record in records if from_s <= record.start_s - NOON < to_s]
        assert found.unique_ids == near(sum(record.unique_ids for record in its))
        assert found.covered == told_of(records, from_s, to_s)


def told_of(records: Iterable[Record], from_s: int, to_s: int) -> list[Stretch]:
    """What an estimate covers while the first hour is whole, and nothing else is. Where nobody led there is
    no window."""
    hours = [Stretch(0, HOUR_S, "hour")] if from_s <= 0 and to_s >= HOUR_S else []
    from_s = HOUR_S if hours else from_s
    windows = [(record.start_s - NOON, record.end_s - NOON) for record in records]
    return joined(
        [
            *hours,
            *(
                Stretch(max(start_s, from_s), end_s, "window")
                for start_s, end_s in windows
                if from_s < (end_s if hours else start_s + 1) and start_s < to_s
            ),
        ]
    )


async def counted(stage: Stage, process: Process, ids: Iterable[int], window_s: int) -> None:
    """By the regime that the leader knows at the time."""
    await eventually(
        lambda: stage.add(process.leadership.regime, ids, window_s=window_s),
        lambda failed: not failed,
        within_s=WITHIN_S,
    )


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [0, 1])
async def test_over_a_cluster(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, replicas: int
) -> None:
    """Another master is frozen while an hour is rolled up: the hour is late, until the master is back or its
    replica stands in, and not wrong."""
    hurry(monkeypatch)
    with RedisCluster(3, replicas, node_timeout_ms=1000 if replicas else 20_000) as cluster:
        stage = Stage(cluster.url)
        tags = [shard_tag("t", shard) for shard in range(4)]
        for tag in tags:
            stage.client_of(tag)
        held = asyncio.Event()
        monkeypatch.setattr(ShardClient, "held", {"union": held})
        try:
            await an_hour(stage)
            await stage.at(HOUR_S)
            await until(lambda: len(stage.told) == 2, within_s=WITHIN_S)
            masters = await asyncio.to_thread(lambda: [cluster.master_of(tag) for tag in tags])
            frozen = next(master for master in masters if master is not masters[0])
            frozen.freeze()
            try:
                held.set()
                if replicas:
                    await is_over(stage)
                await until(lambda: "hours and days are not rolled up" in caplog.text, within_s=WITHIN_S)
                assert bool((await rolled(stage)).hours) == bool(replicas)
            finally:
                frozen.thaw()
            assert (await is_over(stage)).hours == {0: (120, 0, 80, 80, 0)}
            assert [rollup.unique_ids for rollup in stage.rollups] == [near(60)]
            assert (await about(stage, 0, HOUR_S)).unique_ids == near(60)
        finally:
            await stage.close()
