"""Pictures of open-loop runs, in SVG."""
# matplotlib comes with the bench, not with the tools that check types.
# mypy: ignore-errors

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from bench.open_loop_report import Run
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Text stays text, and the same results make the same file.
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "idagg", "axes.spines.top": False})
matplotlib.rcParams.update({"axes.spines.right": False, "font.family": "sans-serif"})
_LINES = {"max_ms": "#fdba74", "p99_9_ms": "#f97316", "p99_ms": "#c2410c", "p50_ms": "#64748b"}
_NAMES = {"max_ms": "max", "p99_9_ms": "p99.9", "p99_ms": "p99", "p50_ms": "p50"}


def over_time(run: Run, rewrites: Sequence[tuple[float, str]], file: Path) -> None:
    figure, axes = _figure()
    seconds = [latencies.summary() for latencies in run.load.seconds]
    for line, colour in _LINES.items():
        axes.plot([second[line] for second in seconds], color=colour, label=_NAMES[line], linewidth=1.2)
    for boundary in run.boundaries():
        label = "a window ends" if boundary == run.boundaries()[0] else None
        axes.axvline(boundary, color="black", linewidth=0.8, linestyle=":", label=label)
    began = [when - run.load.start_s for when, what in rewrites if what == "started"]
    axes.plot(
        began,
        [0.03] * len(began),
        "^",
        color="black",
        label="Redis rewrites its log",
        transform=axes.get_xaxis_transform(),
    )
    axes.set_xlabel(f"seconds, at {run.load.rate:,.0f} requests a second")
    axes.set_xlim(0, len(seconds))
    _save(figure, axes, file)


def over_rate(runs: Sequence[Run], file: Path) -> None:
    figure, axes = _figure()
    rates = [run.load.rate for run in runs]
    whole = [run.rows()["whole run"][0].summary() for run in runs]
    for line, colour in _LINES.items():
        axes.plot(rates, [row[line] for row in whole], "o-", color=colour, label=_NAMES[line])
    axes.set_xlabel("offered requests a second")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _save(figure, axes, file)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 4), layout="constrained")
    return figure, figure.subplots()


def _save(figure: Figure, axes: Axes, file: Path) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("latency from the intended send time, ms")
    axes.legend(frameon=False, fontsize="small", loc="upper left", ncols=3)
    figure.savefig(file, metadata={"Date": None})
