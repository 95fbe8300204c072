"""Ids that repeat: a worker answers them from memory, and what that says has to be true whatever breaks."""

from __future__ import annotations

import asyncio
import os
import signal

import oracle
from faults import SOON, SUCCESSOR_S, nobody_seals
from oracle import Repeats, open_windows
from servers import RedisServer
from serving import Serving, next_window


async def test_every_ok_is_in_a_window_of_its_time(durable_server: RedisServer) -> None:
    """Over boundaries, and while workers and Redis die and Redis stands still."""
    flags = ("--redis-url", durable_server.url, *SOON)
    async with nobody_seals(durable_server.url, 1):
        with Serving(*flags, window=1) as serving:
            async with Repeats(serving) as load:
                for number in range(4):
                    await next_window(1)
                    await load.goes_on(1000)
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
    assert oracle.late(load, SUCCESSOR_S) == []
    assert repeats > 0
    assert len(windows) >= 8
