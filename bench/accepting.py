"""What the calls of strangers' endpoints cost those who send hits: one load, with calls and without."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import re
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.samples import Findings
from bench.service import Idagg, idagg
from bench.strangers import HTTPS, Strangers, strangers
from bench.tools import say
from idagg.window import iso
from kit.generator import Result, drive
from kit.histogram import Histogram
from kit.processes import cpu_seconds
from kit.waiting import first_window

_RATE, _CONNECTIONS, _FIRST_ID = 2000, 64, 100_000_000
_WINDOW_S = 5
_OPENING_S = 3
# Seconds of the run. Endpoints are put into the windows that begin then, and called at those windows' ends;
# hostile ones into two windows, and called again later, ever more seldom.
_HTTPS_S, _HOSTILE_S, _SECONDS = 10, 45, 80
_QUIET = (range(_HTTPS_S), range(35, _HOSTILE_S), range(75, _SECONDS))
_HOSTILE = range(_HOSTILE_S + _WINDOW_S, 72)


async def accepting(found: Findings, folder: Path, endpoints: int) -> None:
    """``endpoints`` is how many https endpoints a window has."""
    with strangers(folder) as others:
        flags = (f"--callback-ca={others.ca}", "--callback-allow=127.0.0.0/8")
        with idagg(folder, *flags, window_s=_WINDOW_S, workers=2) as service:
            start_s = first_window(_WINDOW_S, after_s=_OPENING_S)
            say(f"{_RATE:,} requests/s for {_SECONDS} s beside callbacks, from {iso(start_s)[11:19]}")
            load = partial(drive, service.port, rate=_RATE, seconds=_SECONDS, start_s=start_s)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                busy = pool.apply_async(partial(load, connections=_CONNECTIONS, first_id=_FIRST_ID))
                run = _Run(service, others, start_s)
                quiet_cpu = await run.cpu_s(range(_HTTPS_S))
                await service.put(others.https(endpoints), at_a_time=100, pause_s=0.02)
                https, https_cpu = await run.until_called(_HTTPS_S + _WINDOW_S, endpoints)
                await run.reaches(_HOSTILE_S + 0.1)
                await service.put(others.hostile())
                await run.reaches(_HOSTILE_S + _WINDOW_S + 0.1)
                await service.put(others.hostile())
                hostile_cpu = await run.cpu_s(_HOSTILE)
                result = await asyncio.to_thread(busy.get, _SECONDS)
            phases = {
                "quiet": ([*itertools.chain(*_QUIET)], quiet_cpu),
                "hostile": (_HOSTILE, hostile_cpu),
                "https": (https, https_cpu),
            }
            for phase, (seconds, cpu_s) in phases.items():
                say(str(found.add("beside callbacks", phase, _phase(result, seconds, cpu_s))))
            for kind, (callbacks, most) in others.calls().items():
                found.add("strangers", kind, {"callbacks": callbacks, "most calls of one": most})
            found.add("beside callbacks", "all", {"callback process, MiB": run.peak_mib()})


class _Run:
    def __init__(self, service: Idagg, others: Strangers, start_s: float) -> None:
        self._service = service
        self._others = others
        self._start_s = start_s
        self._caller = next(
            pid
            for pid in cpu_seconds(service.pid)
            if b"callback_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )

    async def reaches(self, second: float) -> None:
        await asyncio.sleep(self._start_s + second - time.time())

    async def cpu_s(self, seconds: range) -> dict[str, float]:
        """What each part takes of the processors in these seconds, once they are over."""
        await self.reaches(seconds.start)
        before = self._cpu_s()
        await self.reaches(seconds.stop)
        return {part: after - before[part] for part, after in self._cpu_s().items()}

    async def until_called(self, second: int, endpoints: int) -> tuple[range, dict[str, float]]:
        """The seconds, as far as whole, in which the https endpoints are called, and what that takes."""
        await self.reaches(second)
        before = self._cpu_s()
        while self._others.calls()[HTTPS][0] < endpoints and self._passed_s() < _QUIET[1].start:  # noqa: ASYNC110  another process has to be asked
            await asyncio.sleep(0.5)  # to ask more often costs them more
        took = {part: after - before[part] for part, after in self._cpu_s().items()}
        return range(second, int(self._passed_s())), took

    def peak_mib(self) -> float:
        """Of the callback process' memory."""
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self._caller}/status").read_text())
        assert found
        return int(found[1]) / 1024

    def _passed_s(self) -> float:
        return time.time() - self._start_s

    def _cpu_s(self) -> dict[str, float]:
        ours = cpu_seconds(self._service.pid)
        caller = ours.pop(self._caller)
        return {
            "workers": sum(ours.values()),
            "callback process": caller,
            "Redis": sum(cpu_seconds(self._service.redis.pid).values()),
            "endpoints": sum(cpu_seconds(self._others.pid).values()),
        }


def _phase(result: Result, seconds: Sequence[int], cpu_s: dict[str, float]) -> dict[str, float]:
    latencies = Histogram.sum(result.seconds[second] for second in seconds).summary()
    return {
        "s": len(seconds),
        "p50 ms": latencies.p50_ms,
        "p99 ms": latencies.p99_ms,
        "p99.9 ms": latencies.p99_9_ms,
        **{f"{part}, CPU s": took_s for part, took_s in cpu_s.items()},
        "failed": sum(result.failed[second] for second in seconds),
    }
