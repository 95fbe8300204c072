"""Pictures of open-loop runs."""
# matplotlib comes with the bench, not with the tools that check types.
# mypy: ignore-errors

from __future__ import annotations

import dataclasses
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.open_loop.results import OpenLoop, Run, Session
from kit.plots import LATENCIES, canvas, latencies, logarithmic, save


def draw(found: OpenLoop, folder: Path) -> None:
    for run in found.seals.runs:
        _over_time(run, found.seals, folder / "latency-over-time.svg")
    if found.rates.runs:
        _by_rate(found.rates.runs, folder / "latency-by-rate.svg")


def _over_time(run: Run, session: Session, file: Path) -> None:
    figure, (axes,) = canvas()
    latencies(axes, [second.summary() for second in run.load.seconds])
    for boundary in run.boundaries():
        label = "a window ends" if boundary == run.boundaries()[0] else None
        axes.axvline(boundary, color="black", linewidth=0.8, linestyle=":", label=label)
    began = [when - run.load.start_s for when in session.began_rewrites()]
    axes.plot(
        began,
        [0.03] * len(began),
        "^",
        color="black",
        label="Redis rewrites its log",
        transform=axes.get_xaxis_transform(),
    )
    axes.set_xlabel(f"seconds, at {run.load.rate:,.0f} requests a second")
    axes.set_xlim(0, len(run.load.seconds))
    _save(figure, axes, file)


def _by_rate(runs: list[Run], file: Path) -> None:
    figure, (axes,) = canvas()
    rates = [run.load.rate for run in runs]
    whole = [dataclasses.asdict(run.latencies) for run in runs]
    for line, (label, colour) in LATENCIES.items():
        axes.plot(rates, [row[line] for row in whole], "o-", color=colour, label=label)
    lag = [run.load.lag.percentile_ms(99) for run in runs]
    axes.plot(rates, lag, ":", color="black", label="the generator's own lag, p99")
    axes.set_xlabel("offered requests a second")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _save(figure, axes, file)


def _save(figure: Figure, axes: Axes, file: Path) -> None:
    logarithmic(axes)
    axes.set_ylabel("latency from the intended send time, ms")
    axes.legend(frameon=False, fontsize="small", loc="upper left", ncols=3)
    save(figure, file)
