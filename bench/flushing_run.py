"""What happens at a window's end and at the start: flush, callbacks, first ok; and Redis bytes per id."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import signal
import sys
import tempfile
from pathlib import Path
from statistics import median

from bench import flushing_start
from bench.flushing_broker import Flush, flushes
from bench.flushing_callbacks import Calls, calls
from bench.tools import machine, say

_PARTS = ("broker", "callbacks", "start")


def main() -> int:
    options = _options()
    # A plain kill, too, must unwind the blocks that end the processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options.cache.mkdir(parents=True, exist_ok=True)
    result: dict[str, object] = {"machine": machine(options.cache), "options": vars(options)}
    called: list[Calls] = []
    with contextlib.ExitStack() as stack:
        # Not in /tmp, which may be memory, where an fsync costs nothing.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.cache, prefix="run-")))
        if "broker" in options.parts:
            found = asyncio.run(_flushes(folder / "broker", options))
            result["flushes"] = [dataclasses.asdict(flush) for flush in found]
        if "callbacks" in options.parts:
            for tarpits in (0, options.endpoints // 100):
                called.append(asyncio.run(calls(folder / f"{tarpits}", options.endpoints - tarpits, tarpits)))
                print(called[-1])
            result["calls"] = [dataclasses.asdict(one) for one in called]
        if "start" in options.parts:
            result["start_s"] = _starts(folder, options)
    if options.json:
        options.json.write_text(json.dumps(result, default=str, indent=1))
    return int(any(one.missing for one in called))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/flushing", description="Flush, callbacks and start of idagg, and Redis bytes for each id."
    )
    add = parser.add_argument
    add("--parts", type=_list, default=_PARTS, help=f"default: {','.join(_PARTS)}")
    add(
        "--ids",
        type=lambda text: [int(count) for count in _list(text)],
        default=[1000, 100_000, 1_000_000, 6_000_000],
        help="ids in the window, one window for each count, default: 1000,100000,1000000,6000000",
    )
    add("--window", type=int, default=60, help="seconds; the ids must fit in, default: %(default)s")
    add("--endpoints", type=int, default=10_000, help="to call, 1%% of them tarpits, default: %(default)s")
    add("--starts", type=int, default=5, help="default: %(default)s")
    add("--json", type=Path, help="write all figures and the machine to this file")
    add("--cache", type=Path, default=Path.home() / ".cache/idagg-bench", help="default: %(default)s")
    return parser.parse_args()


def _list(text: str) -> list[str]:
    return text.split(",")


async def _flushes(folder: Path, options: argparse.Namespace) -> list[Flush]:
    found = []
    async for flush in flushes(folder, options.ids, window_s=options.window):
        print(flush, flush=True)
        found.append(flush)
    return found


def _starts(folder: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    say("starting and stopping")
    took = {
        "beside Redis": [
            flushing_start.beside_redis(folder / f"start-{number}", options.cache)
            for number in range(options.starts)
        ],
        "with its own store": [
            flushing_start.embedded(folder / f"start-embedded-{number}") for number in range(options.starts)
        ],
    }
    for how, times in took.items():
        print(f"first ok {how}: {median(times):.2f} s after the start ({min(times):.2f} to {max(times):.2f})")
    return took
