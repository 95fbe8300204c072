"""idagg under requests at a constant rate, across the ends of windows; and whether each was counted."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from bench import open_loop_report
from bench.open_loop import drive
from bench.open_loop_report import Run
from bench.open_loop_service import Service, idagg, next_window
from bench.open_loop_usage import Usage
from bench.tools import machine, say
from bench.traffic import HEADERS

from idagg.window import iso

# First ids: all have 9 digits, and no request has that of another.
_LOAD_IDS, _IDLE_IDS = 100_000_000, 900_000_000
# An idle connection asks this often, since idagg drops one that is silent for 75 s.
_IDLE_EVERY_S = 50
# What opening the connections may take, and how many are opened in a second, at the least.
_OPENING_S, _OPENED_A_SECOND = 1.5, 1000
_SETTLED_WITHIN_S = 20


def main() -> int:
    options = _options()
    # A plain kill, too, must unwind the blocks that end the processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options.cache.mkdir(parents=True, exist_ok=True)
    runs: list[Run] = []
    with contextlib.ExitStack() as stack:
        # Not in /tmp, which may be memory, where an fsync costs nothing.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.cache, prefix="run-")))
        say("starting")
        service = stack.enter_context(
            idagg(folder / "idagg", window_s=options.window, workers=options.workers)
        )
        for rate in options.rates:
            used_ids = sum(run.ok + run.failed for run in runs)
            runs.append(_run(service, rate, used_ids, options))
            print(open_loop_report.table(runs[-1]), end="\n\n")
        delivered = _delivered(service)
        rewrites, slow_redis = service.rewrites(), service.slow_redis()

    began = [iso(int(when))[11:19] for when, what in rewrites if what == "started"]
    print(f"Redis began to rewrite its log at: {', '.join(began) or 'no time'}")
    for name, times in slow_redis.items():
        worst = max(ms for _, ms in times)
        print(f"Redis was held up for 2 ms and more by {name}: in {len(times)} seconds, at most {worst} ms")
    if options.json:
        result = {
            "machine": machine(options.cache),
            "options": vars(options),
            "runs": [run.as_json() for run in runs],
            "delivered": delivered,
            "rewrites": rewrites,
            "slow_redis": slow_redis,
        }
        options.json.write_text(json.dumps(result, default=str, indent=1))
    if options.plots:
        from bench import open_loop_plots  # matplotlib is needed for nothing else

        options.plots.mkdir(parents=True, exist_ok=True)
        for run in runs:
            file = options.plots / f"latency-{run.load.rate:.0f}.svg"
            open_loop_plots.over_time(run, rewrites, file)
        if len(runs) > 1:
            open_loop_plots.over_rate(runs, options.plots / "latency-by-rate.svg")
    return _account(runs, sum(delivered.values()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/openloop", description="Latency of idagg at a constant rate, across the ends of windows."
    )
    add = parser.add_argument
    add("--rates", type=_rates, default=[10_000], help="requests per second, a run for each, default: 10000")
    add("--seconds", type=int, default=185, help="of each run, default: %(default)s, three windows and a bit")
    add("--connections", type=int, default=64, help="default: %(default)s")
    add("--idle", type=int, default=0, help="idle connections beside them, default: %(default)s")
    add("--window", type=int, default=60, help="seconds, default: %(default)s")
    add("--workers", type=int, default=1, help="default: %(default)s")
    add("--headers", choices=HEADERS, default="browser", help="default: %(default)s, about 400 bytes")
    add("--json", type=Path, help="write figures for each second, and the machine, to this file")
    add("--plots", type=Path, help="draw pictures into this folder; needs matplotlib")
    add("--cache", type=Path, default=Path.home() / ".cache/idagg-bench", help="default: %(default)s")
    return parser.parse_args()


def _rates(text: str) -> list[int]:
    return [int(rate) for rate in text.split(",")]


def _run(service: Service, rate: int, used_ids: int, options: argparse.Namespace) -> Run:
    opening_s = _OPENING_S + (options.connections + options.idle) / _OPENED_A_SECOND
    # A run that sees windows end begins with a window, so that those are full.
    start_s = next_window(options.window if options.seconds > options.window else 1, after_s=opening_s)
    say(f"{rate:,} requests/s for {options.seconds} s, from {iso(start_s)[11:19]}")
    load = partial(
        drive, service.port, seconds=options.seconds, start_s=start_s, headers=HEADERS[options.headers]
    )
    # Processes of their own, which end with this one.
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        busy = pool.apply_async(
            partial(load, rate=rate, connections=options.connections, first_id=_LOAD_IDS + used_ids)
        )
        idle = partial(
            load, rate=options.idle / _IDLE_EVERY_S, connections=options.idle, first_id=_IDLE_IDS + used_ids
        )
        idling = pool.apply_async(idle) if options.idle else None
        time.sleep(max(0, start_s - time.time()))
        before = _usage(service)
        limit_s = (
            options.seconds + _SETTLED_WITHIN_S
        )  # a process that was killed would be waited for for ever
        result = busy.get(limit_s)
        after = _usage(service)
        usage = {part: after[part] - before[part] for part in before} | {"generator": result.usage}
        return Run(result, idling.get(limit_s) if idling else None, options.window, usage)


def _usage(service: Service) -> dict[str, Usage]:
    return {"server": Usage.of(service.process.pid), "Redis": Usage.of(service.redis.pid)}


def _delivered(service: Service) -> dict[str, int]:
    """All windows, once the one that is open now has been delivered."""
    length_s = service.window_s
    ends_s = next_window(length_s)
    say(f"waiting for the window that ends at {iso(ends_s)[11:19]}")
    while iso(ends_s - length_s) not in (delivered := service.delivered()):
        if time.time() > ends_s + _SETTLED_WITHIN_S:
            raise RuntimeError(f"the window that ended at {iso(ends_s)} is not in the log file")
        time.sleep(0.1)
    return delivered


def _account(runs: list[Run], delivered: int) -> int:
    """Whether every request answered ok, and none that did not come, was counted; the exit code."""
    ok, failed = sum(run.ok for run in runs), sum(run.failed for run in runs)
    print(f"answered ok {ok:,}, failed {failed:,}, delivered {delivered:,}")
    if delivered < ok:
        print(f"LOST {ok - delivered:,} ids that were answered ok")
    elif delivered > ok + failed:  # one that failed may have been counted
        print(f"COUNTED {delivered - ok - failed:,} ids that never were sent")
    else:
        return 0
    return 1
