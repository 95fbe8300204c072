"""Pictures of what grows."""
# matplotlib comes with the bench, not with the tools that check types.
# mypy: ignore-errors

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes

from bench.growth.results import SWEEPS, Growth
from kit.plots import LATENCIES, OTHERS, OURS, canvas, save


def draw(found: Growth, folder: Path) -> None:
    for sweep, what in SWEEPS.items():
        places = found.places(sweep)
        if not places:
            continue
        figure, (cost, latency) = canvas(2)
        _lines(cost, found, sweep, {"server": (_server_us, OURS), "Redis": (_store_us, OTHERS)})
        cost.set_ylabel("CPU µs per accepted request")
        cost.set_ylim(bottom=0)
        of_wrk = {
            "p99": (lambda cost: cost.load.p99_ms, LATENCIES["p99_ms"][1]),
            "p50": (lambda cost: cost.load.p50_ms, LATENCIES["p50_ms"][1]),
        }
        _lines(latency, found, sweep, of_wrk)
        flushes = [found.flush_ms(sweep, at) for at in places]
        if None not in flushes:
            latency.plot(places, flushes, "s--", color="black", label="flush")
        latency.set_ylabel("latency ms")
        latency.set_yscale("log")
        latency.yaxis.set_major_formatter("{x:g}")
        latency.yaxis.set_minor_formatter("{x:g}")
        for axes in (cost, latency):
            _label_places(axes, sweep, places)
            axes.set_xlabel(what)
            axes.legend(frameon=False, fontsize="small")
        save(figure, folder / f"growth-{sweep}.svg")


def _lines(axes: Axes, found: Growth, sweep: str, lines: dict) -> None:
    places = found.places(sweep)
    for label, (figure, colour) in lines.items():
        axes.plot(
            places,
            [found.median(figure, sweep, at) for at in places],
            "o-",
            color=colour,
            label=label,
        )


def _label_places(axes: Axes, sweep: str, places: list[int]) -> None:
    if sweep == "workers":
        axes.set_xticks(places)
        return
    axes.set_xscale("symlog" if places[0] == 0 else "log")
    axes.set_xlim(left=places[0] * 0.8 or -0.5)
    axes.set_xticks(places, [f"{at:,}" for at in places], rotation=30)
    axes.xaxis.minorticks_off()


def _server_us(cost) -> float:
    return cost.server_us


def _store_us(cost) -> float:
    return cost.store_us
