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

from bench.open_loop.check import checks
from bench.open_loop.report import over_seals
from bench.open_loop.results import OpenLoop, Run, Session
from bench.servers import rust
from bench.service import ALWAYS, WATCHED, Server, Service, idagg
from bench.tools import numbers, say
from idagg.window import iso
from kit.generator import drive
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
_REDIS = (*ALWAYS, *WATCHED)


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
        help="4 s each, by themselves, default: %(default)s",
    )


def measure(found: OpenLoop, options: argparse.Namespace) -> list[str]:
    """Whether requests were answered ok and not counted, or counted and not sent."""
    if not options.quick:
        found.checks = checks(options.cache, seconds=4)
        say("\n".join(map(str, found.checks)))
    _session(
        found.seals, options, [options.rate], options.rate_seconds, window_s=options.window, idle=options.idle
    )
    _rust(found.rust, options)
    if options.rates:
        _session(found.rates, options, options.rates, 4, window_s=10, idle=0)
    sessions = (found.seals, found.rust, found.rates)
    return [trouble for session in sessions if (trouble := session.trouble())]


def _session(
    session: Session, options: argparse.Namespace, rates: list[int], seconds: int, *, window_s: int, idle: int
) -> None:
    with (
        _folder(options) as folder,
        idagg(folder, window_s=window_s, workers=options.workers, redis_options=_REDIS) as service,
    ):
        service.ready()
        for rate in rates:
            used_ids = sum(run.ok + run.failed for run in session.runs)
            session.runs.append(_run(service, rate, seconds, used_ids, window_s=window_s, idle=idle))
            say(over_seals(session.runs[-1]))
        session.delivered = _delivered(service)
        session.rewrites, session.slow_redis = service.store.rewrites(), service.store.slow()


def _rust(session: Session, options: argparse.Namespace) -> None:
    """The load that idagg has over the ends of its windows, for a service that has none."""
    with _folder(options) as folder, rust("sadd", folder, options.cache, redis_options=_REDIS) as server:
        server.wait()
        before = server.stored() or 0
        run = _run(server, options.rate, options.rate_seconds, 0, window_s=options.window, idle=options.idle)
        session.runs.append(run)
        say(over_seals(run))
        session.delivered = {"all": (server.stored() or 0) - before}


@contextlib.contextmanager
def _folder(options: argparse.Namespace) -> Iterator[Path]:
    # Not in /tmp, which may be memory, where an fsync costs nothing.
    with tempfile.TemporaryDirectory(dir=options.cache, prefix="run-") as folder:
        yield Path(folder)


def _run(server: Server, rate: int, seconds: int, used_ids: int, *, window_s: int, idle: int) -> Run:
    opening_s = _OPENING_S + (_CONNECTIONS + idle) / _OPENED_A_SECOND
    # A run that sees windows end begins with a window, so that those are full.
    start_s = first_window(window_s if seconds > window_s else 1, after_s=opening_s)
    say(f"{rate:,} requests/s for {seconds} s, from {iso(start_s)[11:19]}")
    # Those opened long before it would have been silent for too long when their turn comes.
    time.sleep(max(0, start_s - opening_s - time.time()))
    load = partial(drive, server.port, seconds=seconds, start_s=start_s)
    # Processes of their own, which end with this one.
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        busy = pool.apply_async(
            partial(load, rate=rate, connections=_CONNECTIONS, first_id=_LOAD_IDS + used_ids)
        )
        waiting = partial(load, rate=idle / _IDLE_EVERY_S, connections=idle, first_id=_IDLE_IDS + used_ids)
        idling = pool.apply_async(waiting) if idle else None
        time.sleep(max(0, start_s - time.time()))
        before = _usage(server)
        limit_s = seconds + _SETTLED_WITHIN_S  # a process that was killed would be waited for for ever
        result = busy.get(limit_s)
        after = _usage(server)
        usage = {part: after[part] - before[part] for part in before} | {"generator": result.usage}
        idled = idling.get(limit_s) if idling else None
        if idled:
            usage["idle connections' generator"] = idled.usage
        return Run(result, idled, window_s, usage)


def _usage(server: Server) -> dict[str, Usage]:
    assert server.store
    return {"server": Usage.of(server.process.pid), "Redis": Usage.of(server.store.process.pid)}


def _delivered(service: Service) -> dict[str, int]:
    """All windows, once the one that is open now has been delivered."""
    length_s = service.window_s
    ends_s = first_window(length_s)
    say(f"waiting for the window that ends at {iso(ends_s)[11:19]}")
    while iso(ends_s - length_s) not in (delivered := service.delivered()):
        if time.time() > ends_s + _SETTLED_WITHIN_S:
            raise RuntimeError(f"the window that ended at {iso(ends_s)} is not in the log file")
        time.sleep(0.1)
    return delivered
