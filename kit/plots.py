"""What all pictures have in common; they are in SVG."""
# matplotlib comes with the bench, not with the tools that check types.
# mypy: ignore-errors

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kit.histogram import Summary

# Text stays text, and the same results make the same file.
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "idagg", "axes.spines.top": False})
matplotlib.rcParams.update({"axes.spines.right": False, "font.family": "sans-serif"})
OURS, OTHERS = "#c2410c", "#64748b"
LATENCIES = {
    "max_ms": ("max", "#fdba74"),
    "p99_9_ms": ("p99.9", "#f97316"),
    "p99_ms": ("p99", "#c2410c"),
    "p50_ms": ("p50", "#64748b"),
}


def canvas(columns: int = 1, *, width: float = 9, height: float = 4) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def latencies(axes: Axes, seconds: list[Summary]) -> None:
    """By second, on a logarithmic scale; seconds without an answer are gaps."""
    for line, (label, colour) in LATENCIES.items():
        values = [getattr(second, line) or None for second in seconds]
        axes.plot(values, color=colour, label=label, linewidth=1.2)
    logarithmic(axes)


def logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")


def save(figure: Figure, file: Path) -> None:
    figure.savefig(file, metadata={"Date": None})
