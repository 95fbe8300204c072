"""Measures idagg, part by part; see README.rst beside this file."""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType

from bench import closed_loop, flushing, growth, open_loop, pages, reading, sizing
from bench.report import disturbance, report
from bench.samples import Findings
from bench.tools import Unrest, machine, names, need, say

_RESULTS = Path(__file__).parent / "results"
# The options that do not change what is measured.
_WHERE = ("results", "cache")

# Each adds what it measures to the findings, and what must not be to their troubles.
_PARTS: dict[str, ModuleType] = {
    "closed": closed_loop,
    "open": open_loop,
    "flushing": flushing,
    "growth": growth,
    "sizing": sizing,
    "reading": reading,
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
        try:
            _PARTS[part].measure(found, options)
        except Exception as error:  # the other parts can do without this one
            traceback.print_exc()
            found.troubles.append(f"{part} was not finished: {error!r}")
        finally:
            _write(found, options.results)  # although a later part, or the rest of this, may fail
        say(f"{part} took {time.monotonic() - began:.0f} s")
    if options.results == _RESULTS and not found.troubles:
        pages.write(found)
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
        help=f"parts, of {','.join(_PARTS)}; default: all, quick: all but growth and sizing",
    )
    add(
        "--results",
        type=Path,
        help="folder; default: bench/results, in it quick or, with any other option, only",
    )
    # Not in /tmp, which may be memory, where an fsync costs nothing.
    add("--cache", type=Path, default=Path.home() / ".cache/idagg-bench", help="default: %(default)s")
    for part, module in _PARTS.items():
        module.add_options(parser.add_argument_group(part), quick=quick)
    options = parser.parse_args()
    whole = vars(parser.parse_args([]))
    only = any(value != whole[name] for name, value in vars(options).items() if name not in _WHERE)
    options.results = options.results or _RESULTS / ("quick" if quick else "only" if only else "")
    options.only = options.only or [part for part in _PARTS if not (quick and part in ("growth", "sizing"))]
    return options


def _write(found: Findings, folder: Path) -> None:
    from bench.plot import draw  # not above: where matplotlib is missing, need() says so better

    found.write(folder / "raw.jsonl")
    (folder / "report.rst").write_text(report(found), encoding="utf-8")
    draw(found, folder)


# The open loop's load comes from processes that import this file, too.
if __name__ == "__main__":
    sys.exit(main())
