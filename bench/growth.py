"""Where the cost grows: idagg with more and more ids in the window, workers, connections and endpoints."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bench import load
from bench.samples import Findings
from bench.service import ALWAYS, Idagg, idagg
from bench.tools import names, numbers, say
from bench.traffic import Traffic
from idagg.window import iso
from kit.waiting import first_window

# What grows, and what the tables say.
SWEEPS = {
    "ids": "ids already in the window",
    "workers": "workers",
    "connections": "connections",
    "endpoints": "distinct endpoints in the window",
}
# First ids: all have 9 digits, and a load meets neither those of its warm-up nor those that were filled in.
_FILLED_IDS, _WARM_UP_IDS, _LOAD_IDS = 100_000_000, 300_000_000, 500_000_000
_WORKERS_CONNECTIONS = 256
# Windows without an end that would come in between; and those whose end is what matters.
_LONG_S, _QUIET_S, _SHORT_S = (3600, 3000, 2700), 300, 6
# A short window that is no older is as good as the next one.
_LATE_S = 1.5
_SETTLED_WITHIN_S = 20
# Redis rewrites its log when that has doubled: filling the window sets it off, and it outlasts a load.
_NO_REWRITE = {"auto-aof-rewrite-percentage": "0"}


def add_options(group: argparse._ArgumentGroup, *, quick: bool) -> None:
    add = group.add_argument
    add("--sweeps", type=names(SWEEPS), default=list(SWEEPS), help="default: all, " + ",".join(SWEEPS))
    places = {
        "ids": [100_000, 500_000]
        if quick
        else [100_000, 500_000, 1_000_000, 2_000_000, 4_000_000, 6_000_000],
        "workers": [1, 2] if quick else [1, 2, 3, 4],
        "connections": [16, 512] if quick else [16, 64, 256, 512, 1000, 2000, 4000, 8000],
        "endpoints": [0, 1000] if quick else [0, 10, 100, 1000, 10_000],
    }
    for sweep, default in places.items():
        add(f"--by-{sweep}", type=numbers, default=default, help=f"{SWEEPS[sweep]}, default: %(default)s")
    add("--growth-rounds", type=int, default=1 if quick else 2, help="default: %(default)s")
    add("--growth-seconds", type=int, default=1 if quick else 3, help="of each load, default: %(default)s")


def measure(found: Findings, options: argparse.Namespace) -> None:
    sweeps: dict[str, Callable[[argparse.Namespace], Iterator[tuple[int, dict[str, float]]]]] = {
        "ids": _by_ids,
        "workers": _by_workers,
        "connections": _by_connections,
        "endpoints": _by_endpoints,
    }
    for number in range(1, options.growth_rounds + 1):
        for sweep in options.sweeps:
            for at, figures in sweeps[sweep](options):
                sample = found.add(f"by {sweep}", at, figures, number)
                say(f"round {number} of {options.growth_rounds}: {sample}")


def _by_ids(options: argparse.Namespace) -> Iterator[tuple[int, dict[str, float]]]:
    with _started(options, redis_options=ALWAYS | _NO_REWRITE) as service:
        _warm_up(service, Traffic("warm-up"))
        filled = 0
        for number, at in enumerate(options.by_ids):
            starts = asyncio.run(service.fill(_FILLED_IDS + filled, at - filled))
            filled = at
            first_id = _LOAD_IDS + number * load.ids(options.growth_seconds)
            yield at, _cost(service, Traffic("ids"), options, first_id)
            if starts != {first_window(service.window) - service.window}:
                raise RuntimeError("the window ended while it was filled")


def _by_workers(options: argparse.Namespace) -> Iterator[tuple[int, dict[str, float]]]:
    traffic = Traffic("workers", connections=_WORKERS_CONNECTIONS)
    for at in options.by_workers:
        with _started(options, workers=at) as service:
            _warm_up(service, traffic)
            yield at, _cost(service, traffic, options)


def _by_connections(options: argparse.Namespace) -> Iterator[tuple[int, dict[str, float]]]:
    for at in options.by_connections:
        traffic = Traffic("connections", connections=at)
        with _started(options) as service:
            _warm_up(service, traffic)
            yield at, _cost(service, traffic, options)


def _by_endpoints(options: argparse.Namespace) -> Iterator[tuple[int, dict[str, float]]]:
    """The calls are not in it: they begin when the window has ended, and then idagg is stopped."""
    for at in options.by_endpoints:
        with _started(options, window_s=_SHORT_S) as service:
            _warm_up(service, Traffic("warm-up"))
            start_s = first_window(_SHORT_S, after_s=-_LATE_S)
            time.sleep(max(0, start_s + 0.1 - time.time()))
            lag_ms = service.lag_ms()
            figures = _cost(service, Traffic("endpoints", endpoints=at), options)
            ends_s = start_s + _SHORT_S
            time.sleep(max(0, ends_s - time.time()))
            while iso(start_s) not in service.counts() or service.lag_ms() == lag_ms:
                if time.time() > ends_s + _SETTLED_WITHIN_S:
                    raise RuntimeError(f"the window that ended at {iso(ends_s)} is not delivered")
                time.sleep(0.1)
            yield at, figures | {"flush ms": service.lag_ms() - lag_ms}


@contextlib.contextmanager
def _started(
    options: argparse.Namespace,
    *,
    workers: int = 1,
    window_s: int = 0,
    redis_options: Mapping[str, str] = ALWAYS,
) -> Iterator[Idagg]:
    """``window_s`` 0: one that does not end soon."""
    window_s = window_s or next(s for s in _LONG_S if first_window(s) - time.time() > _QUIET_S)
    # Not in /tmp, which may be memory, where an fsync costs nothing.
    with (
        tempfile.TemporaryDirectory(dir=options.cache, prefix="growth-") as folder,
        idagg(Path(folder), workers=workers, window_s=window_s, redis_options=redis_options) as service,
    ):
        yield service


def _warm_up(service: Idagg, traffic: Traffic) -> None:
    load.drive(service.port, traffic, first_id=_WARM_UP_IDS, seconds=1)


def _cost(
    service: Idagg, traffic: Traffic, options: argparse.Namespace, first_id: int = _LOAD_IDS
) -> dict[str, float]:
    seconds = options.growth_seconds
    _, figures = load.cost(
        service.running,
        lambda: load.drive(service.port, traffic, first_id=first_id, seconds=seconds),
    )
    return {name: value for name, value in figures.items() if name not in ("max ms", "load's cores")}
