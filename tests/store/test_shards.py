"""Windows over several shards, with a real store: sealed shard by shard, merged, and spread anew."""

from __future__ import annotations

import asyncio
import collections
import itertools
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from idagg.errors import OtherRegimeError, StoreAwayError
from idagg.flush import leader, sealer, turns
from idagg.store.shards import Regime, shard_of, shard_tag
from kit import servers, sharded
from kit.sharded import IDS, Fate, ShardClient, Stage
from kit.waiting import LIMIT_S, NOON, eventually, until


@pytest.fixture
async def stage(any_server: servers.RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setattr(turns, "LOOK_S", 0.01)
    monkeypatch.setattr(turns, "RETRY_S", 0.01)
    monkeypatch.setattr(leader, "LOOK_S", 0.01)
    monkeypatch.setattr(leader, "LEASE_MS", 600_000)  # it goes on by the server's clock while we stand still
    stage = Stage(any_server.url)
    await stage.at(0)
    yield stage
    await stage.close()


FOUR = Regime(1, 4)


async def test_a_window_is_the_sum_of_its_shards(stage: Stage) -> None:
    """Each id counts once, and no shard keeps anything of a window that was delivered."""
    process = await stage.start(4)
    assert process.leadership.regime == FOUR
    await stage.counted(FOUR)
    await stage.counted(FOUR, IDS[:10])
    await stage.at(60)
    await stage.counted(FOUR, IDS[:1])  # the other shards are empty
    await stage.at(120)
    await until(lambda: len(stage.records) == 2)
    assert stage.told == [(0, 40, 50), (60, 1, 1)]
    assert all(record.exact and record.length_s == 60 for record in stage.records)
    await until_empty(stage)


async def until_empty(stage: Stage, *, but: str = "") -> None:
    async with asyncio.timeout(LIMIT_S):
        while await stage.left() - {but}:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.01)


async def test_a_shard_without_a_leader_takes_no_ids(stage: Stage) -> None:
    """Nobody has said yet which windows there are, nor would anybody seal them. It is so again once it is
    emptied, until the leader tells it anew."""
    failed = await stage.add(Regime(0, 4))
    assert {type(error) for error in failed.values()} == {StoreAwayError}
    assert "no leader has been" in str(failed[1])
    assert await stage.client.command("KEYS", "{t:*") == []
    await stage.start(4)
    await stage.counted(FOUR)
    await stage.at(60)
    await until(lambda: stage.told == [(0, 40, 40)])
    await stage.client.command("DEL", f"{shard_tag('t', 2)}:state")
    await stage.counted(FOUR)
    await stage.at(120)
    await until(lambda: stage.told[1:] == [(60, 40, 40)])


async def test_a_worker_that_does_not_know_the_regime_is_told(stage: Stage) -> None:
    """Nothing of its batch is counted, on whatever shard."""
    await stage.start(4)
    await stage.counted(FOUR)
    for unknown in (Regime(0, 1), Regime(0, 4), Regime(0, 16)):
        for error in (await stage.add(unknown, IDS)).values():
            if isinstance(error, OtherRegimeError):
                assert (error.number, error.shards) == FOUR
            else:
                assert "no leader" in str(error)
    await stage.at(60)
    await until(lambda: stage.told == [(0, 40, 40)])


async def test_a_shard_that_is_away_makes_windows_late(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are sealed, and the trouble is told; when it is back, the counts are right."""
    process = await stage.start(4)
    await stage.counted(FOUR)
    tag = shard_tag("t", 3)
    monkeypatch.setattr(ShardClient, "away", frozenset({tag}))
    for minute in (1, 2):
        await stage.at(60 * minute)
        await stage.counted(FOUR)
    await until(lambda: f"{tag} is away" in str(process.flusher.trouble))

    async def sealed(shard: int) -> int:
        count: int = await stage.client.command("ZCARD", f"{shard_tag('t', shard)}:parts")
        return count

    async with asyncio.timeout(LIMIT_S):
        while [await sealed(shard) for shard in range(4)] != [2, 2, 2, 0]:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.01)
    await until(lambda: process.figures.counts.deliveries == 2)
    assert stage.told == []
    monkeypatch.setattr(ShardClient, "away", frozenset())
    await until(lambda: stage.told == [(0, 40, 40), (60, 40, 40)])
    await until(lambda: process.flusher.trouble is None)


async def test_a_change_that_a_shard_cannot_hear_of(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is withdrawn before it begins, so that the other shards take ids all the time. Once the shard is
    back, the change is made."""
    caplog.set_level(logging.INFO, "idagg.flush")
    await stage.start(4)
    await stage.counted(FOUR)
    tag = shard_tag("t", 3)
    monkeypatch.setattr(ShardClient, "away", frozenset({tag}))
    monkeypatch.setattr(sealer, "PROPOSE_AGAIN_S", 600.0)
    process = await stage.start(2)
    await until(lambda: "shard 3 cannot be told of it" in caplog.text)

    async def planned() -> bool:
        state = [f"{shard_tag('t', shard)}:state" for shard in range(3)]
        return any([await stage.client.command("HEXISTS", key, "plan") for key in state])

    async with asyncio.timeout(LIMIT_S):
        while await planned():  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.01)
    await stage.at(90)
    assert await stage.add(FOUR, [number for number in IDS if shard_of(b"%d" % number, 4) != 3]) == {}
    monkeypatch.setattr(ShardClient, "away", frozenset())
    process.flusher._sealer._now.propose_at = 0
    await until(lambda: "ids are spread over 2 shards" in caplog.text)
    await stage.at(120)
    await stage.counted(Regime(2, 2))


async def test_endpoints_of_all_shards_are_called_up_to_the_limit(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those over the limit are counted."""
    process = await stage.start(4)
    monkeypatch.setattr(process.flusher._sealer, "_endpoint_limit", 6)
    for shard in range(4):
        ids = [number for number in IDS if shard_of(b"%d" % number, 4) == shard]
        endpoints = [b"http://all/", b"http://%d/a" % shard, b"http://%d/b" % shard]
        await stage.counted(FOUR, ids, endpoints=endpoints)
    await stage.at(60)
    await until(lambda: stage.told == [(0, 40, 40)])
    pending = await process.windows.pending.callbacks(NOON)
    assert len(pending) == 6
    assert "http://all/" in {callback.endpoint for callback in pending}
    assert process.figures.dropped == 3
    await until(lambda: process.figures.counts.deliveries == 0)


async def test_a_window_whose_parts_change_while_another_is_merged(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two windows can be merged, and then a shard cannot be read for the first: the second one is whole."""
    await stage.start(4)
    for minute in (0, 1):
        await stage.at(60 * minute)
        await stage.counted(FOUR, endpoints=[b"http://a/"])
        await stage.kill()  # what has ended is sealed later
    tag = shard_tag("t", 1)
    held = {"look": asyncio.Event(), "endpoints": asyncio.Event()}
    script = ShardClient.script

    async def held_up(client: ShardClient, name: str, of: str, *args: bytes | str | int) -> Any:
        if of == tag and name in held:
            await held[name].wait()
        return await script(client, name, of, *args)

    monkeypatch.setattr(ShardClient, "script", held_up)
    await stage.at(120)
    process = await stage.start(4)
    sealer = process.flusher._sealer
    await until(lambda: len(sealer._now.progress) == 3)
    held["look"].set()
    await until(lambda: len(sealer._now.progress) == 4)
    endpoints = f"{tag}:part:{NOON}:endpoints"
    await stage.client.command("DEL", endpoints)
    await stage.client.command("SET", endpoints, "theirs")
    held["endpoints"].set()
    await until(lambda: process.figures.counts.quarantined == 1)
    await until(lambda: stage.told == [(60, 40, 40)])


async def test_endpoints_of_which_some_are_not_read(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of a shard changed, and the new one goes on from another place: they are read again."""
    await stage.start(4)
    await stage.counted(FOUR, endpoints=[b"http://%d/" % number for number in range(4)])
    read = 0
    script = ShardClient.script

    async def elsewhere(client: ShardClient, name: str, of: str, *args: bytes | str | int) -> Any:
        nonlocal read
        answer = await script(client, name, of, *args)
        if name == "endpoints":
            read += 1
            if read == 1:
                return answer[:3]  # the cursor, and some
        return answer

    monkeypatch.setattr(ShardClient, "script", elsewhere)
    await stage.at(60)
    await until(lambda: stage.told == [(0, 40, 40)])
    assert read > 3
    assert len(await stage.processes[-1].windows.pending.callbacks(NOON)) == 4


async def test_a_clock_that_is_behind_is_waited_for(
    any_server: servers.RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shard seals by its own clock, and is not asked without a pause whether it has."""
    monkeypatch.setattr(sharded, "home_tag", lambda url: shard_tag("t"))  # each shard has a clock of its own
    asked = collections.Counter[str]()
    script = ShardClient.script

    async def counted(client: ShardClient, name: str, tag: str, *args: bytes | str | int) -> Any:
        asked[name] += 1
        return await script(client, name, tag, *args)

    monkeypatch.setattr(ShardClient, "script", counted)
    stage = Stage(any_server.url)
    others = [stage.client_of(shard_tag("t", shard)) for shard in range(1, 4)]
    try:
        await stage.at(0)
        await stage.start(4)
        await stage.counted(FOUR)
        for client in stage.client, *others[1:]:
            await client.at(NOON + 60)
        await until(lambda: asked["seal"] >= 8)
        asked.clear()
        await asyncio.sleep(3 * turns.LOOK_S)
        assert asked["seal"] <= 4 * 6
        assert stage.told == []
        await others[0].at(NOON + 60)
        await until(lambda: stage.told == [(0, 40, 40)])
    finally:
        await stage.close()


async def test_a_part_that_cannot_be_read_holds_back_its_window_alone(stage: Stage) -> None:
    """It is quarantined in its shard, and once it is mended the count is right."""
    process = await stage.start(4)
    tag = shard_tag("t", 1)
    await stage.counted(FOUR)
    await stage.client.command("RENAME", f"{tag}:w:{NOON}:ids", "ours")
    await stage.client.command("SET", f"{tag}:w:{NOON}:ids", "theirs")
    await stage.at(60)
    await stage.counted(FOUR, IDS[:20])
    await stage.at(120)
    await until(lambda: stage.told == [(60, 20, 20)])
    await until(lambda: process.figures.counts.quarantined == 1)
    assert await stage.client.command("HKEYS", f"{tag}:quarantine") == [b"open %d" % NOON]
    await stage.client.command("RENAME", "ours", f"{tag}:w:{NOON}:ids")
    await stage.client.command("ZADD", f"{tag}:open", NOON, NOON)
    await stage.client.command("HDEL", f"{tag}:quarantine", f"open {NOON}")
    await until(lambda: stage.told[1:] == [(0, 40, 40)])


async def test_an_emptied_home_shard_is_led_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has forgotten its epoch, which the other shards have heard of: the next one is above theirs."""
    monkeypatch.setattr(leader, "next_try_s", lambda lease, **_: 0.01)  # a leader hears of it at its next bid
    await stage.start(4)
    await stage.counted(FOUR)
    await stage.start(4)

    async def epochs() -> list[bytes]:
        states = [f"{shard_tag('t', shard)}:state" for shard in (1, 2, 3)]
        return [await stage.client.command("HGET", state, "epoch") for state in states]

    await eventually(epochs, lambda told: told == [b"2"] * 3)
    await stage.kill()  # or it leads the emptied shard itself
    for key in await stage.client.command("KEYS", "{t:0}:*"):
        await stage.client.command("DEL", key)
    process = await stage.start(4)
    await until(lambda: process.leadership.epoch > 2)
    await stage.at(60)
    await stage.counted(FOUR)
    await stage.at(120)
    await until(lambda: stage.told[-1:] == [(60, 40, 40)])


@pytest.mark.parametrize("window_s", [60, 20])
async def test_another_number_of_shards_begins_with_a_window(stage: Stage, window_s: int) -> None:
    """From one shard to four to two, perhaps with another length: all ids of a window are spread in one way,
    each counts once, and shards that are not used any more are left empty."""
    before = Regime(1, 1)
    process = await stage.start(1)
    await stage.counted(before)
    for number, shards in ((2, 4), (3, 2)):
        minute = 60 * (number - 1)
        process = await stage.start(shards, window_s=window_s)
        after = Regime(number, shards)
        async with asyncio.timeout(LIMIT_S):
            while await stage.client.command("HGET", "{t:0}:state", "plan") is None:  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.01)
        assert process.leadership.regime == before
        await stage.counted(before, IDS[:20], window_s=window_s)
        failed = await stage.add(after, window_s=window_s)
        assert {type(error) for error in failed.values()} == {StoreAwayError}
        await stage.at(minute)
        failed = await stage.add(before, window_s=window_s)
        assert {type(error) for error in failed.values()} == {OtherRegimeError}
        await stage.counted(after, IDS[:30], window_s=window_s)
        ended = minute - 60
        before = after
        await until(lambda ended=ended: ended in [start for start, _, _ in stage.told])  # type: ignore[misc]  # mypy does not infer it
    await stage.at(180)
    await until(lambda: stage.told[-1][0] == 180 - window_s)
    counts = {start: unique for start, unique, _ in stage.told if unique}
    assert counts == {0: 40, 60: 30, 120: 30}
    await until_empty(stage)
    async with asyncio.timeout(LIMIT_S):
        settled = [b"3 2 %d" % window_s, b"2"]
        fields = "HMGET", "{t:0}:state", "regime", "span"
        while await stage.client.command(*fields) != settled:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("fatal", [True, False])
async def test_any_step_may_fail_or_be_the_last(stage: Stage, fatal: bool) -> None:
    """Whatever step of sealing and merging four shards, and of changing to two, goes wrong or is a leader's
    last: each window becomes one record, with the right sum."""
    for survives in itertools.count():
        await stage.begin_anew()
        await stage.at(0)
        await stage.start(4)
        await stage.counted(FOUR, endpoints=[b"http://a/", b"http://b/"])
        await stage.at(60)
        fate = Fate(survives, fatal=fatal)
        doomed = await stage.start(2, fate=fate)
        await until(lambda doomed=doomed: doomed.flush.done() or stage.records)  # type: ignore[misc]  # mypy does not infer it
        await stage.start(2)
        await until(lambda: (0, 40, 40) in stage.told)
        await until_empty(stage, but="record")  # its callbacks are pending
        assert set(stage.told) == {(0, 40, 40)}
        assert len(await stage.processes[-1].windows.pending.callbacks(NOON)) == 2
        if fate.left >= 0:
            break
    assert survives > 12
