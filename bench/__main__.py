"""Measures idagg, part by part; see README.rst beside this file."""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench.closed_loop.run
import bench.flushing.run
import bench.growth.run
import bench.open_loop.run
import bench.pages
from bench.closed_loop.results import Results
from bench.findings import Findings
from bench.flushing.results import Flushing
from bench.growth.results import Growth
from bench.open_loop.results import OpenLoop
from bench.report import disturbance, report
from bench.tools import Unrest, machine, names, need, say

_RESULTS = Path(__file__).parent / "results"
# The options that do not change what is measured.
_WHERE = ("results", "cache")

# By name, as in Findings: what a part finds out, and what finds it out and returns what must not be.
_PARTS: dict[str, tuple[Callable[[], Any], Callable[[Any, argparse.Namespace], list[str]]]] = {
    "closed": (Results, bench.closed_loop.run.measure),
    "open": (OpenLoop, bench.open_loop.run.measure),
    "flushing": (Flushing, bench.flushing.run.measure),
    "growth": (Growth, bench.growth.run.measure),
}


def main() -> int:
    options = _options()
    need()
    # A plain kill, too, must unwind the blocks that end the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Both ends of thousands of connections count against this limit, which servers and wrk inherit.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    options.cache.mkdir(parents=True, exist_ok=True)
    options.results.mkdir(parents=True, exist_ok=True)

    found = Findings(machine(options.cache), vars(options))
    for part in options.only:
        began = time.monotonic()
        found.unrest[part] = Unrest.now()
        say(f"{part}: {found.unrest[part]} before it. {disturbance(found)}")
        results, measure = _PARTS[part]
        setattr(found, part, results())
        try:
            found.troubles += measure(getattr(found, part), options)
        except Exception as error:  # the other parts can do without this one
            traceback.print_exc()
            found.troubles.append(f"{part} was not finished: {error!r}")
        finally:
            _write(found, options.results)  # although a later part, or the rest of this, may fail
        say(f"{part} took {time.monotonic() - began:.0f} s")
    if options.results == _RESULTS and not found.troubles:
        bench.pages.write(found)
    print((options.results / "report.rst").read_text())
    return int(bool(found.troubles))


def _options() -> argparse.Namespace:
    quick = "--quick" in sys.argv[1:]  # others' defaults depend on it
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures idagg.")
    add = parser.add_argument
    add("--quick", action="store_true", help="in 2 to 3 minutes: what the targets need, once and roughly")
    add(
        "--only",
        type=names(_PARTS),
        help=f"parts, of {','.join(_PARTS)}; default: all, quick: all but growth",
    )
    add(
        "--results",
        type=Path,
        help="folder; default: bench/results, in it quick or, with any other option, only",
    )
    # Not in /tmp, which may be memory, where an fsync costs nothing.
    add("--cache", type=Path, default=Path.home() / ".cache/idagg-bench", help="default: %(default)s")
    for name, module in {
        "closed loop": bench.closed_loop.run,
        "open loop": bench.open_loop.run,
        "flushing": bench.flushing.run,
        "growth": bench.growth.run,
    }.items():
        module.add_options(parser.add_argument_group(name), quick=quick)
    options = parser.parse_args()
    whole = vars(parser.parse_args([]))
    only = any(value != whole[name] for name, value in vars(options).items() if name not in _WHERE)
    options.results = options.results or _RESULTS / ("quick" if quick else "only" if only else "")
    options.only = options.only or [part for part in _PARTS if not (quick and part == "growth")]
    return options


def _write(found: Findings, folder: Path) -> None:
    # Not above: where matplotlib is missing, need() says so better.
    import bench.closed_loop.plots
    import bench.growth.plots
    import bench.open_loop.plots

    (folder / "raw.json").write_text(json.dumps(found.as_json(), default=str, indent=1) + "\n")
    (folder / "report.rst").write_text(report(found))
    if found.closed:
        bench.closed_loop.plots.draw(found.closed, folder)
    if found.open:
        bench.open_loop.plots.draw(found.open, folder)
    if found.growth:
        bench.growth.plots.draw(found.growth, folder)


# The open loop's load comes from processes that import this file, too.
if __name__ == "__main__":
    sys.exit(main())
