"""The picture of README and docs; it is in SVG."""
# matplotlib comes with the bench, not with the tools that check types.
# mypy: ignore-errors

from __future__ import annotations

from pathlib import Path

from bench.samples import Findings
from bench.traffic import TRAFFIC
from kit.plots import OTHERS, OURS, canvas, save


def draw(found: Findings, folder: Path) -> None:
    shown = [traffic for traffic in ("64", "512") if found.rows(traffic)]
    if not shown:
        return
    figure, plots = canvas(len(shown), width=5.5 * len(shown), height=4.2)
    for axes, traffic in zip(plots, shown, strict=True):
        servers = found.rows(traffic)[::-1]  # the first on top
        rates = [found.median("requests/s", (server, traffic)) for server in servers]
        colours = [OURS if server.startswith("idagg") else OTHERS for server in servers]
        bars = axes.barh(servers, rates, color=colours)
        axes.bar_label(bars, [f"{rate:,.0f}" for rate in rates], padding=3, fontsize="small")
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("accepted requests per second")
        axes.set_title(TRAFFIC[traffic].what, fontsize="medium")
        axes.margins(x=0.15)
    save(figure, folder / "throughput.svg")
