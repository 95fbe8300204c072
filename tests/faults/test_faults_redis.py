"""Faults of Redis, and of the store that idagg embeds."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from idagg.window import iso
from kit.faults import (
    ANSWER_S,
    RECOVERS_S,
    SOON,
    SOON_S,
    STEADY,
    beside,
    fill,
    nobody_seals,
    recovers,
    sealed,
    store_client,
    tells,
)
from kit.figures import Row
from kit.oracle import Load, lines, open_hits, open_windows
from kit.proxy import Proxy
from kit.servers import RedisServer
from kit.serving import PATIENT, Serving
from kit.stepped import SteppedServer
from kit.waiting import LIMIT_S, eventually, long_window, next_window, until


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """Debian's Redis, empty."""
    with RedisServer("redis") as server:
        yield server


@pytest.mark.slow
@pytest.mark.fault("11", "Redis killed, appendfsync everysec", recovery_must_s=1.0)
async def test_11_redis_killed_everysec(row: Row) -> None:
    """Redis with `appendfsync everysec` loses no more than what got its ok in the last 2 s."""
    with (
        RedisServer("redis", appendonly="yes", appendfsync="everysec") as server,
        Serving("--redis-url", server.url, *SOON, window=long_window()) as serving,
    ):
        async with Load(serving, callers=32) as load:
            lately: set[int] = set()
            async for _ in row.inject(5):
                settled, noted_s = load.ok.copy(), time.monotonic()
                await until(lambda: load.ok_at[-1] > noted_s + 2)
                server.kill()
                await load.fails()
                lately |= load.ok - settled
                await asyncio.to_thread(server.start)
                await recovers(row, load)
        assert row.wrong_ids(load, await open_windows(server.url), may_lose=lately) == []
        assert row.late(load, SOON_S) == []
        serving.stop()


@pytest.mark.fault("12", "embedded store killed")
async def test_12_embedded_store_killed(row: Row) -> None:
    """The embedded store dies: it is started again, and has every id that got its ok."""
    with Serving(window=1) as serving:
        async with Load(serving) as load:
            since = await next_window(1)
            async for number in row.inject(2):
                since_s = time.monotonic()
                os.kill(serving.store(), signal.SIGKILL)
                await tells(serving, "the embedded store died (SIGKILL)", times=number + 1)
                await load.goes_on()
                assert row.not_recovered(load, since_s, within_s=RECOVERS_S) == []
        assert await sealed(row, serving, load, since=since) == []
        serving.stop()


@pytest.mark.fault("12", "Redis killed, appendfsync always", recovery_must_s=1.0)
async def test_12_redis_killed(durable_server: RedisServer, row: Row) -> None:
    """Redis with `appendfsync always` dies and comes back: every id that got its ok is there, and once."""
    flags = ("--redis-url", durable_server.url, *SOON)
    with Serving(*flags, window=long_window()) as serving:
        async with Load(serving, callers=32) as load:
            async for _ in row.inject(3):
                durable_server.kill()
                await load.fails()
                await asyncio.to_thread(durable_server.start)
                await recovers(row, load)
        assert row.wrong_ids(load, await open_windows(durable_server.url)) == []
        assert row.late(load, SOON_S) == []
        assert load.unknown == set()
        serving.stop()


@pytest.mark.fault("13", "Redis frozen over a boundary", recovery_must_s=1.0)
async def test_13_redis_frozen_over_boundaries(redis_server: RedisServer, row: Row) -> None:
    """Every request is answered within its deadline, 503; no id is in two windows; it recovers by itself."""
    async with nobody_seals(redis_server.url, 1):
        flags = ("--redis-url", redis_server.url, *SOON)
        with Serving(*flags, window=1, workers_have=STEADY) as serving:
            async with Load(serving, callers=32) as load:
                async for _ in row.inject(1):
                    redis_server.freeze()
                    try:
                        await load.fails(64)
                        answer = await eventually(serving.health, lambda answer: answer.status == 503)
                        assert b"\nstore: " in answer.body
                        await eventually(serving.readiness, lambda said: said == {503})
                    finally:
                        redis_server.thaw()
                    await recovers(row, load)
                    await serving.ready()
            assert load.unknown == set()
            assert row.late(load, SOON_S) == []
            assert row.wrong_ids(load, await open_windows(redis_server.url)) == []
            serving.stop()


@pytest.mark.slow
@pytest.mark.fault("13", "Redis frozen for 8 s, longer than a lease", recovery_must_s=1.0)
async def test_13_redis_frozen_for_longer_than_a_lease(redis_server: RedisServer, row: Row) -> None:
    """The same where a leader is at work, whose lease runs out: no id counts twice."""
    with Serving("--redis-url", redis_server.url, *SOON) as serving:
        async with Load(serving, callers=32) as load:
            async for _ in row.inject(2):
                redis_server.freeze()
                frozen_s = time.monotonic()
                try:
                    await until(lambda: time.monotonic() > frozen_s + 8, within_s=9)
                finally:
                    redis_server.thaw()
                await recovers(row, load)
                await serving.ready()
        assert load.unknown == set()
        assert await sealed(row, serving, load, answer_s=SOON_S) == []
        serving.stop()


@pytest.mark.fault("14", "reply of Redis lost")
async def test_14_replies_lost(any_server: RedisServer, row: Row) -> None:
    """The script ran and its reply was lost, at times until another window has begun: it is not run again."""
    async with (
        Proxy(str(any_server.socket)) as proxy,
        nobody_seals(any_server.url, 1),
        beside(Serving("--redis-url", proxy.url, *row.patient, window=1, workers_have=STEADY)) as serving,
    ):
        async with Load(serving) as load:
            async for number in row.inject(8):
                if number % 5:
                    proxy.swallowed.clear()
                    proxy.drop_replies = 1
                    await asyncio.wait_for(proxy.swallowed.wait(), LIMIT_S)
                else:
                    proxy.stall_replies = True
                    await next_window(1)
                    proxy.refuse = True
                    proxy.stall_replies = proxy.refuse = False
                await load.goes_on()
        assert (load.failed, load.unknown) == (set(), set())
        assert row.late(load, ANSWER_S) == []
        windows = await open_windows(any_server.url)
        assert row.wrong_ids(load, windows) == []
        async with store_client(any_server.url) as client:
            assert await open_hits(client, "{idagg:0}") == len(load.ok)
        await asyncio.to_thread(serving.stop)


@pytest.mark.fault("15", "scripts forgotten")
async def test_15_scripts_forgotten(any_server: RedisServer, row: Row) -> None:
    """`SCRIPT FLUSH` under load: nobody notices."""
    with Serving("--redis-url", any_server.url, *row.patient, window=1) as serving:
        async with Load(serving) as load, store_client(any_server.url) as client:
            since = await next_window(1)
            async for _ in row.inject(10):
                await client.command("SCRIPT", "FLUSH")
                await load.goes_on()
        assert (load.failed, load.unknown) == (set(), set())
        assert await sealed(row, serving, load, since=since) == []
        serving.stop()


@pytest.mark.fault("16", "Redis out of memory", recovery_must_s=1.0)
async def test_16_redis_out_of_memory(redis_server: RedisServer, row: Row) -> None:
    """Full, it answers `failed` and never a false ok; it counts again once there is room."""
    flags = ("--redis-url", redis_server.url, *PATIENT)  # an id whose time is over may be counted
    with Serving(*flags, window=long_window()) as serving:
        async with Load(serving) as load, store_client(redis_server.url) as client:
            async for _ in row.inject(3):
                used = re.findall(rb"used_memory:(\d+)", await client.command("INFO", "memory"))
                await client.command("CONFIG", "SET", "maxmemory", int(used[0]) + 50_000)
                await load.fails(100)
                await client.command("CONFIG", "SET", "maxmemory", 0)
                await recovers(row, load)
        windows = await open_windows(redis_server.url)
        assert row.wrong_ids(load, windows) == []
        (found,) = windows.values()
        assert found == load.ok
        assert row.late(load, ANSWER_S) == []
        serving.stop()


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", ["8m"], indirect=True)
@pytest.mark.fault("17", "disk of Redis full", recovery_must_s=1.0)
async def test_17_redis_disk_full(small_disk: Path, row: Row) -> None:
    """Redis cannot write its log: no false ok, and all is there once there is room and Redis is back."""
    with (
        RedisServer("redis", appendonly="yes", appendfsync="always", dir=str(small_disk)) as server,
        Serving("--redis-url", server.url, *SOON, window=long_window()) as serving,
    ):
        async with Load(serving) as load:
            async for _ in row.inject(3):
                full = fill(small_disk, room=65_536)
                await load.fails(32)
                full.unlink()
                await asyncio.to_thread(server.kill)  # as a rule it has ended itself
                await asyncio.to_thread(server.start)
                await recovers(row, load)
        assert row.wrong_ids(load, await open_windows(server.url)) == []
        assert row.late(load, SOON_S) == []
        serving.stop()


@pytest.mark.slow
@pytest.mark.fault("18", "clock of Redis steps by 90 s")
async def test_18_clock_of_redis_stepped(row: Row) -> None:
    """The store's clock steps by 90 s, both ways: sealed windows stay sealed, and nothing is lost."""
    with SteppedServer() as server, Serving("--redis-url", server.url, *row.patient, window=1) as serving:
        async with Load(serving) as load:
            async for number in row.inject(5):
                off_s = (-90, 90, 0)[number % 3]
                await next_window(1)
                known = lines(serving)
                server.step(off_s)
                await load.goes_on()
                assert lines(serving)[: len(known)] == known
        assert (load.failed, load.unknown) == (set(), set())
        server.step(200)
        await until(lambda: max(serving.counts()) > iso(int(time.time()) + 195))
        assert row.verdict(load, lines(serving), answer_s=ANSWER_S) == []
        serving.stop()
