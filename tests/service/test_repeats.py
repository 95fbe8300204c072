"""Ids that repeat: a worker does not send them, and its ok has to be true whatever breaks."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from kit import oracle
from kit.faults import SOON, STEADY, SUCCESSOR_S, nobody_seals
from kit.figures import SHARED
from kit.oracle import Repeats, open_windows
from kit.servers import RedisServer
from kit.serving import PATIENT, WORKERS, Serving, send
from kit.waiting import next_window, until
from kit.wire import connect, request


async def test_every_ok_is_in_a_window_of_its_time(durable_server: RedisServer) -> None:
    """Over boundaries, and while workers and Redis die and Redis stands still."""
    flags = ("--redis-url", durable_server.url, *SOON)
    async with nobody_seals(durable_server.url, 1):
        with Serving(*flags, workers_have=STEADY, window=1) as serving:
            async with Repeats(serving) as load:
                for number in range(2):
                    await next_window(1)
                    await load.goes_on(1000)
                    await until(lambda: len(serving.workers()) == WORKERS)
                    os.kill(serving.workers()[number % 2], signal.SIGKILL)
                    await load.goes_on()
                    durable_server.kill()
                    await load.fails()
                    await asyncio.to_thread(durable_server.start)
                    await load.goes_on()
                    durable_server.freeze()
                    await next_window(1)
                    durable_server.thaw()
                    await load.goes_on()
            repeats = (await serving.figures())["idagg_repeats_total"]
            serving.stop()
        windows = await open_windows(durable_server.url)
    assert oracle.elsewhere(load.told, windows, 1) == []
    assert oracle.late(load, SHARED * SUCCESSOR_S) == []
    assert repeats > 0
    assert len(windows) >= 4


async def test_a_worker_that_stood_still_over_a_boundary(durable_server: RedisServer) -> None:
    """Repeats that waited for it meanwhile, and those that came after the boundary, are in the new window."""
    window = 2
    ids = range(500)
    tuned = {"idagg.run.child.HUNG_S": 60}
    flags = ("--redis-url", durable_server.url, "--workers", "1", *PATIENT)
    told: list[tuple[int, float, float]] = []
    async with nobody_seals(durable_server.url, window):
        with Serving(*flags, tuned=tuned, workers_have=STEADY, window=window) as serving:
            wires = [await connect(serving.port) for _ in ids]
            (worker,) = serving.workers()
            rounds = 0
            while rounds < 2:
                before = await next_window(window)
                for _ in range(3):
                    await send(serving, ids)
                os.kill(worker, signal.SIGSTOP)
                is_slow = time.time() >= before + window
                asked_s = []
                for number, wire in zip(ids, wires, strict=True):
                    if number == len(ids) // 2:
                        start = await next_window(window)
                    asked_s.append(time.time())
                    await wire.send(request(number))
                os.kill(worker, signal.SIGCONT)
                for number, wire in zip(ids, wires, strict=True):
                    answer = await wire.answer()
                    assert answer is not None
                    assert (answer.status, answer.body) == (200, b"ok")
                    told.append((number, asked_s[number], time.time()))
                if is_slow or time.time() >= start + window:
                    continue  # the machine was too slow for this round
                assert {*ids} <= (await open_windows(durable_server.url))[str(start)]
                rounds += 1
            repeats = (await serving.figures())["idagg_repeats_total"]
            for wire in wires:
                wire.close()
            serving.stop()
        assert oracle.elsewhere(told, await open_windows(durable_server.url), window) == []
    assert repeats >= len(ids)
