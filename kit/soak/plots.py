"""Pictures of a soak: what processes held, what callers saw, and when what was done."""
# matplotlib comes with the bench, not with the tools that check types.
# mypy: ignore-errors

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes

from kit.plots import OTHERS, OURS, canvas, latencies, save
from kit.soak.results import Results

_COLOURS = {"supervisor": OTHERS, "workers": OURS, "Redis": "#0f766e"}


def draw(found: Results, folder: Path) -> None:
    for field, scale, label in ("memory_kib", 1024, "memory, MiB"), ("descriptors", 1, "open descriptors"):
        figure, (axes,) = canvas(width=12, height=5)
        for name, sizes in found.sizes.items():
            values = [getattr(size, field) / scale for _, size in sizes]
            axes.plot([at_s for at_s, _ in sizes], values, color=_COLOURS[name], label=name, linewidth=1)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(label)
        _finish(found, axes)
        save(figure, folder / f"{field.removesuffix('_kib')}.svg")
    figure, (axes,) = canvas(width=12, height=5)
    answers = found.told.answers
    latencies(axes, [second.summary() for second in answers.seconds])
    failed = [second for second, number in enumerate(answers.failed) if number]
    axes.plot(
        failed,
        [0.02] * len(failed),
        "|",
        color="black",
        label="some failed",
        transform=axes.get_xaxis_transform(),
    )
    axes.set_ylabel("latency of ok from the intended send time, ms")
    _finish(found, axes)
    save(figure, folder / "latency.svg")


def _finish(found: Results, axes: Axes) -> None:
    """Mark the faults above the curves, by kind."""
    kinds = sorted({event.fault for event in found.events})
    colours = matplotlib.colormaps["tab20"]
    for number, kind in enumerate(kinds):
        began = [event.began_s for event in found.events if event.fault == kind]
        for at_s in began:
            axes.axvline(at_s, color=colours(number), linewidth=0.8, linestyle=":", zorder=0)
        axes.plot(
            began,
            [1.01] * len(began),
            "v",
            color=colours(number),
            label=kind,
            clip_on=False,
            transform=axes.get_xaxis_transform(),
        )
    axes.set_xlim(0, found.plan.seconds)
    axes.set_xlabel(f"seconds, at {found.plan.rate:,} requests a second")
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
