"""Whether the generator measures what wrk does: both drive servers that answer at once, at a low rate."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from pathlib import Path

from bench import wrk
from bench.open_loop.results import Check
from bench.servers import START
from bench.traffic import Traffic
from kit.generator import drive
from kit.histogram import Histogram

_SERVERS = ("nginx", "null")
# With more than one connection wrk's requests would leave in bursts. wrk waits between an answer and the next
# request: a little less than 1,000 requests a second.
_CONNECTIONS, _PAUSE_MS = 1, 1
_RATE = _CONNECTIONS * 1000 // _PAUSE_MS
_OPENING_S = 2


def check(server: str, cache: Path, *, seconds: int) -> Check:
    with (
        tempfile.TemporaryDirectory(dir=cache, prefix=f"{server}-") as folder,
        START[server](Path(folder), cache) as running,
    ):
        running.wait()
        traffic = Traffic("check", connections=_CONNECTIONS, pause_ms=_PAUSE_MS)
        by_wrk = wrk.drive(running.port, traffic, first_id=1, seconds=seconds)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            start_s = int(time.time()) + _OPENING_S
            own = pool.apply(
                drive,
                (running.port,),
                {
                    "rate": _RATE,
                    "seconds": seconds,
                    "connections": _CONNECTIONS,
                    "first_id": 1,
                    "start_s": start_s,
                },
            )
    return Check(server, by_wrk, _RATE, Histogram.sum(own.seconds).summary(), own.lag.summary(), own.usage)


def checks(cache: Path, *, seconds: int) -> list[Check]:
    return [check(server, cache, seconds=seconds) for server in _SERVERS]
