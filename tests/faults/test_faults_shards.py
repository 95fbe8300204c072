"""Faults on the way from several shards to one record, and another number of shards."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from idagg import failpoints
from idagg.store.shards import shard_tag
from kit.faults import SOON_S, SUCCESSOR_S, lease_runs_out, sealed, store_client, tells
from kit.figures import Row
from kit.oracle import Load, epoch_s, held, lines, together
from kit.servers import RedisServer
from kit.serving import Serving
from kit.waiting import eventually, next_window, until

SHARDS = 4
# Until a leader takes its own number of shards for the store's: the others are gone for so long, and more.
CHANGES_S = 60.0


@pytest.mark.parametrize(
    ("place", "passes"),
    [
        pytest.param(
            *("after-part", SHARDS),
            marks=pytest.mark.fault("35", "leader killed when it has sealed k of 4 shards, each k"),
        ),
        pytest.param(
            *("after-merge", 1),
            marks=[
                pytest.mark.slow,
                pytest.mark.fault("35", "leader killed when it has the sum of 4 shards"),
            ],
        ),
        pytest.param(
            *("after-drop", SHARDS - 1),
            marks=[
                pytest.mark.slow,
                pytest.mark.fault("35", "leader killed when it has dropped k of 3 parts, each k"),
            ],
        ),
    ],
)
async def test_35_leader_killed_between_shards(
    any_server: RedisServer, row: Row, tmp_path: Path, place: str, passes: int
) -> None:
    """There is one count of the window, the sum of all its shards."""
    armed = tmp_path / "armed"
    environment = {failpoints.VARIABLE: f"{place}=kill@{armed}"}
    flags = ("--redis-url", any_server.url, "--shards", str(SHARDS))
    with Serving(*flags, window=1, environment=environment) as serving:
        async with Load(serving, callers=8) as load:
            since = await next_window(1)
            async for deaths in row.inject(passes):
                await tells(serving, f"leading: epoch {deaths + 1}\n")
                start = await next_window(1)
                # All shards of the one before are sealed by then, and those of this one are not.
                await until(lambda: time.time() > start + 0.5)
                armed.write_text(str(deaths % passes + 1))
                await tells(serving, "died (SIGKILL)", times=deaths + 1)
                await lease_runs_out(any_server.url)
                await load.goes_on()
                await serving.ready()
        assert await sealed(row, serving, load, since=since, answer_s=SUCCESSOR_S) == []
        serving.stop()


async def spread(server: RedisServer, shards: int) -> None:
    """Wait until ids go to so many shards, and no more."""
    async with store_client(server.url) as client:

        async def tags() -> set[str]:
            keys = await client.command("KEYS", "*:w:*:ids")
            return {key.decode().partition(":w:")[0] for key in keys}

        wanted = {shard_tag("idagg", index) for index in range(shards)}
        await eventually(tags, lambda found: found == wanted, within_s=CHANGES_S)


@pytest.mark.slow
@pytest.mark.fault("35", "shards changed from 1 to 4 to 2, rolling over two instances")
async def test_35_shards_changed(any_server: RedisServer, row: Row) -> None:
    """One instance after the other is started with the new number; no id is lost, and none counts twice."""
    flags = ("--redis-url", any_server.url, "--deadline", "1", "--shards")
    with Serving(*flags, "1", window=1) as first, Serving(*flags, "1", window=1) as second:
        async with Load(first, callers=8) as first_load, Load(second, callers=8) as second_load:
            since = await next_window(1)
            async for number in row.inject(2):
                shards = (4, 2)[number % 2]
                for serving, load in ((first, first_load), (second, second_load)):
                    await asyncio.to_thread(serving.stop)
                    serving.flags = (*flags, str(shards))
                    await asyncio.to_thread(serving.start)
                    await load.goes_on()
                await spread(any_server, shards)
                for load in (first_load, second_load):
                    await load.goes_on()
        await next_window(1)
        await next_window(1)
        found = [*lines(first), *lines(second)]
        last = int(epoch_s(max(line.window for line in found)))
        told = together(first_load, second_load)
        assert row.verdict(told, found, expected=held(told, since, last), answer_s=SOON_S) == []
        second.stop()
        first.stop()
