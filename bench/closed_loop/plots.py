"""The closed loop's results as pictures."""
# matplotlib comes with the bench, not with the tools that check types.
# mypy: ignore-errors

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes

from bench.closed_loop.results import Results
from bench.traffic import TRAFFIC
from kit.plots import OTHERS, OURS, STORE, canvas, save

_LABEL = {"va": "center", "fontsize": "small"}


def draw(results: Results, folder: Path) -> None:
    shown = [traffic for traffic in ("64", "512") if results.servers(traffic)]
    if not shown:
        return
    for name, bars in {"throughput": _throughput, "cpu": _cpu}.items():
        figure, plots = canvas(len(shown), width=5.5 * len(shown), height=4.2)
        for axes, traffic in zip(plots, shown, strict=True):
            servers = results.servers(traffic)[::-1]  # the first on top
            bars(axes, results, servers, traffic)
            axes.set_title(TRAFFIC[traffic].what, fontsize="medium")
            axes.margins(x=0.15)
        save(figure, folder / f"{name}.svg")


def _throughput(axes: Axes, results: Results, servers: list[str], traffic: str) -> None:
    rates = [results.median(lambda cost: cost.rate, server, traffic) for server in servers]
    bars = axes.barh(servers, rates, color=_colours(servers))
    axes.bar_label(bars, [f"{rate:,.0f}" for rate in rates], padding=3, fontsize="small")
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("accepted requests per second")


def _cpu(axes: Axes, results: Results, servers: list[str], traffic: str) -> None:
    own = [results.median(lambda cost: cost.server_us, server, traffic) for server in servers]
    store = [results.median(lambda cost: cost.store_us, server, traffic) for server in servers]
    with_store = [sum(pair) for pair in zip(own, store, strict=True)]
    # On a linear scale FastAPI would hide all others. On this one a bar's length says nothing, so: points.
    axes.hlines(servers, own, with_store, color=STORE, zorder=0)
    axes.scatter(own, servers, color=_colours(servers), label="server")
    axes.scatter(with_store, servers, facecolor="white", edgecolor=_colours(servers), label="with its Redis")
    for server, total in zip(servers, with_store, strict=True):
        axes.annotate(f"{total:.1f}", (total, server), (6, 0), textcoords="offset points", **_LABEL)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("CPU µs per accepted request")
    axes.legend(frameon=False, loc="upper right")


def _colours(servers: list[str]) -> list[str]:
    return [OURS if server.startswith("idagg") else OTHERS for server in servers]
