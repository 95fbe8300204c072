"""What happens at a window's end and at the start: flush, callbacks, first ok; and Redis bytes per id."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

from bench.flushing import start
from bench.flushing.accepting import accepting
from bench.flushing.broker import flushes
from bench.flushing.callbacks import calls
from bench.flushing.results import Flushing
from bench.tools import numbers, say


def add_options(group: argparse._ArgumentGroup, *, quick: bool) -> None:
    add = group.add_argument
    add(
        "--ids",
        type=numbers,
        default=[200_000] if quick else [1000, 100_000, 1_000_000, 6_000_000],
        help="in the window, one window for each count, default: %(default)s",
    )
    add("--flush-window", type=int, default=5 if quick else 40, help="s, the ids must fit in: %(default)s")
    add(
        "--endpoints",
        type=int,
        default=2000 if quick else 10_000,
        help="to call, 1%% of them tarpits, default: %(default)s",
    )
    add("--starts", type=int, default=1 if quick else 5, help="default: %(default)s")


def measure(found: Flushing, options: argparse.Namespace) -> list[str]:
    """The callbacks that did not come."""
    # Not in /tmp, which may be memory, where an fsync costs nothing.
    with tempfile.TemporaryDirectory(dir=options.cache, prefix="run-") as name:
        folder = Path(name)
        asyncio.run(_flushes(found, folder / "broker", options))
        tarpits = options.endpoints // 100
        for some in [tarpits] if options.quick else sorted({0, tarpits}):
            found.calls.append(asyncio.run(calls(folder / f"{some}", options.endpoints - some, some)))
            say(f"{found.calls[-1]}")
        if not options.quick:
            found.accepting = asyncio.run(accepting(folder, options.endpoints))
            say(f"{found.accepting}")
        say("starting and stopping")
        numbers = range(options.starts)
        found.starts["beside Redis"] = [start.beside_redis(folder / f"start-{number}") for number in numbers]
        found.starts["with its own store"] = [start.embedded(folder / f"own-{number}") for number in numbers]
    return [f"{calls.missing:,} callbacks did not come" for calls in found.calls if calls.missing]


async def _flushes(found: Flushing, folder: Path, options: argparse.Namespace) -> None:
    async for flush in flushes(folder, options.ids, window_s=options.flush_window):
        say(f"{flush}")
        found.flushes.append(flush)
