"""Requests at a constant rate, across the ends of windows; and whether each was counted."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench import load
from bench.samples import Findings
from bench.servers import START, rust
from bench.service import Idagg, Running, idagg
from bench.tools import numbers, say
from bench.traffic import Traffic
from idagg.window import iso
from kit.generator import Result, drive
from kit.histogram import Histogram
from kit.processes import Usage
from kit.waiting import first_window

# First ids: all have 9 digits, and no request has that of another.
_LOAD_IDS, _IDLE_IDS = 100_000_000, 900_000_000
_CONNECTIONS = 64
# An idle connection asks this often, since idagg drops one that is silent for 75 s.
_IDLE_EVERY_S = 50
# What opening the connections may take, and how many are opened in a second, at the least.
_OPENING_S, _OPENED_A_SECOND = 1.5, 1000
_SETTLED_WITHIN_S = 20
_RATE_S = 4
# Which seconds count as those at the end of a window: one before it, and those of the seal and after it.
_BEFORE_S, _AFTER_S = 1, 2
# Beside wrk: with more than one connection wrk's requests would leave in bursts. wrk waits between an answer
# and the next request: a little less than 1,000 requests a second.
_CHECKED, _CHECK_S, _PAUSE_MS = ("nginx", "null"), 4, 1


def add_options(group: argparse._ArgumentGroup, *, quick: bool) -> None:
    add = group.add_argument
    add("--rate", type=int, default=10_000, help="requests per second over seals, default: %(default)s")
    add(
        "--rate-seconds",
        type=int,
        default=12 if quick else 185,
        help="of it, default: %(default)s, a bit more than whole windows",
    )
    add("--window", type=int, default=5 if quick else 60, help="seconds, default: %(default)s")
    add("--workers", type=int, default=1, help="default: %(default)s")
    add(
        "--idle",
        type=int,
        default=1000 if quick else 10_000,
        help="beside it, default: %(default)s",
    )
    add(
        "--rates",
        type=numbers,
        default=[] if quick else [2000, 5000, 10_000, 20_000, 30_000, 40_000],
        help=f"{_RATE_S} s each, by themselves, default: %(default)s",
    )


def measure(found: Findings, options: argparse.Namespace) -> None:
    if not options.quick:
        _beside_wrk(found, options)
    with (
        _folder(options) as folder,
        idagg(folder, window_s=options.window, workers=options.workers) as service,
    ):
        run = _over_seals(found, "seals", service.running, options)
        _judge(found, [run], sum(_delivered(service).values()))
    with _folder(options) as folder, rust("sadd", folder, options.cache) as server:
        before = server.stored() or 0
        run = _over_seals(found, "seals, Rust", server, options)
        _judge(found, [run], (server.stored() or 0) - before)
    if options.rates:
        with _folder(options) as folder, idagg(folder, window_s=10, workers=options.workers) as service:
            runs = list(_by_rate(found, service, options.rates))
            _judge(found, runs, sum(_delivered(service).values()))


class _Run:
    """The results of one rate, ``idle`` on the connections that are mostly idle; ``usage`` is by part."""

    def __init__(self, busy: Result, idle: Result | None, usage: dict[str, Usage]) -> None:
        self.busy = busy
        self.usage = usage | {"generator": busy.usage}
        self.idle = idle
        results = [busy, idle] if idle else [busy]
        self.ok = sum(result.ok for result in results)
        self.failed = sum(sum(result.failed) for result in results)


def _over_seals(found: Findings, what: str, server: Running, options: argparse.Namespace) -> _Run:
    window_s, idle = options.window, options.idle
    run = _run(server, options.rate, options.rate_seconds, 0, window_s=window_s, idle=idle)
    start_s = int(run.busy.start_s)
    say(str(found.add(what, "whole run", _latencies(run.busy))))
    if run.idle:
        found.add(what, f"{idle:,} idle connections", _latencies(run.idle))
    for ends_s in range(-start_s % window_s or window_s, options.rate_seconds, window_s):
        around = slice(ends_s - _BEFORE_S, ends_s + _AFTER_S)
        found.add(what, f"around {iso(start_s + ends_s)[11:19]}", _latencies(run.busy, around))
    found.add(what, "generator's lag", _summary(run.busy.lag) | {"failed": 0})
    for part, usage in run.usage.items():
        figures = {
            "cores": usage.cpu_s / options.rate_seconds,
            "µs/request": usage.cpu_s / max(run.ok, 1) * 1e6,
            "% without a core": usage.waited_s / options.rate_seconds * 100,
        }
        found.add(f"{what}: CPU", part, figures)
    return run


def _by_rate(found: Findings, service: Idagg, rates: list[int]) -> Iterator[_Run]:
    used_ids = 0
    for rate in rates:
        run = _run(service.running, rate, _RATE_S, used_ids, window_s=service.window, idle=0)
        used_ids += run.ok + run.failed
        figures = _latencies(run.busy) | {
            "generator's p99 lag ms": run.busy.lag.percentile_ms(99),
            "its cores": run.usage["generator"].cpu_s / _RATE_S,
        }
        say(str(found.add("rates", rate, figures)))
        yield run


def _beside_wrk(found: Findings, options: argparse.Namespace) -> None:
    """Whether the generator measures what wrk does: both drive servers that answer at once, at a low rate.
    wrk takes latencies from when it sent, the generator from when it should have: its lag is the rest."""
    traffic = Traffic("check", connections=1, pause_ms=_PAUSE_MS)
    for name in _CHECKED:
        with _folder(options) as folder, START[name](folder, options.cache) as server:
            by_wrk = load.drive(server.port, traffic, first_id=1, seconds=_CHECK_S)
            ours = {"rate": 1000 / _PAUSE_MS, "seconds": _CHECK_S, "connections": 1, "first_id": 1}
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                own = pool.apply(drive, (server.port,), ours | {"start_s": first_window(1, after_s=2)})
        p50_us = {
            "by wrk, µs": by_wrk.p50_ms,
            "by the generator, µs": Histogram.sum(own.seconds).percentile_ms(50),
            "of them lag": own.lag.percentile_ms(50),
        }
        say(str(found.add("check", name, {part: ms * 1000 for part, ms in p50_us.items()})))


def _judge(found: Findings, runs: list[_Run], counted: int) -> None:
    """Whether a request that was answered ok was not counted, or one that never came was."""
    ok, failed = sum(run.ok for run in runs), sum(run.failed for run in runs)
    if counted < ok:
        found.troubles.append(f"LOST {ok - counted:,} ids that were answered ok")
    if counted > ok + failed:  # one that failed may have been counted
        found.troubles.append(f"COUNTED {counted - ok - failed:,} ids that never were sent")


def _latencies(result: Result, seconds: slice = slice(None)) -> dict[str, float]:
    return _summary(Histogram.sum(result.seconds[seconds])) | {"failed": sum(result.failed[seconds])}


def _summary(latencies: Histogram) -> dict[str, float]:
    whole = latencies.summary()
    return {
        "p50 ms": whole.p50_ms,
        "p99 ms": whole.p99_ms,
        "p99.9 ms": whole.p99_9_ms,
        "max ms": whole.max_ms,
    }


@contextlib.contextmanager
def _folder(options: argparse.Namespace) -> Iterator[Path]:
    # Not in /tmp, which may be memory, where an fsync costs nothing.
    with tempfile.TemporaryDirectory(dir=options.cache, prefix="run-") as folder:
        yield Path(folder)


def _run(server: Running, rate: int, seconds: int, used_ids: int, *, window_s: int, idle: int) -> _Run:
    opening_s = _OPENING_S + (_CONNECTIONS + idle) / _OPENED_A_SECOND
    # A run that sees windows end begins with a window, so that those are full.
    start_s = first_window(window_s if seconds > window_s else 1, after_s=opening_s)
    say(f"{rate:,} requests/s for {seconds} s, from {iso(start_s)[11:19]}")
    # Those opened long before it would have been silent for too long when their turn comes.
    time.sleep(max(0, start_s - opening_s - time.time()))
    offer = partial(drive, server.port, seconds=seconds, start_s=start_s)
    # Processes of their own, which end with this one.
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        busy = pool.apply_async(
            partial(offer, rate=rate, connections=_CONNECTIONS, first_id=_LOAD_IDS + used_ids)
        )
        waiting = partial(offer, rate=idle / _IDLE_EVERY_S, connections=idle, first_id=_IDLE_IDS + used_ids)
        idling = pool.apply_async(waiting) if idle else None
        time.sleep(max(0, start_s - time.time()))
        before = _usage(server)
        limit_s = seconds + _SETTLED_WITHIN_S  # a process that was killed would be waited for for ever
        result = busy.get(limit_s)
        after = _usage(server)
        usage = {part: after[part] - before[part] for part in before}
        return _Run(result, idling.get(limit_s) if idling else None, usage)


def _usage(server: Running) -> dict[str, Usage]:
    assert server.store
    return {"server": Usage.of(server.pid), "Redis": Usage.of(server.store.pid)}


def _delivered(service: Idagg) -> dict[str, int]:
    """All windows, once the one that is open now has been delivered."""
    length_s = service.window
    ends_s = first_window(length_s)
    say(f"waiting for the window that ends at {iso(ends_s)[11:19]}")
    while iso(ends_s - length_s) not in (delivered := service.counts()):
        if time.time() > ends_s + _SETTLED_WITHIN_S:
            raise RuntimeError(f"the window that ended at {iso(ends_s)} is not in the log file")
        time.sleep(0.1)
    return delivered
