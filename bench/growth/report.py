"""What grows, as tables."""

from __future__ import annotations

from collections.abc import Callable

from bench.cost import Cost
from bench.growth.results import SWEEPS, Growth
from kit.tables import number, section, table

_COLUMNS: dict[str, Callable[[Cost], float]] = {
    "requests/s": lambda cost: cost.rate,
    "server µs": lambda cost: cost.server_us,
    "Redis µs": lambda cost: cost.store_us,
    "p50 ms": lambda cost: cost.load.p50_ms,
    "p99 ms": lambda cost: cost.load.p99_ms,
    "p99.9 ms": lambda cost: cost.load.p999_ms,
}


def sections(found: Growth) -> list[str]:
    return [
        section(f"By {what}", _sweep(found, sweep)) for sweep, what in SWEEPS.items() if found.places(sweep)
    ]


def _sweep(found: Growth, sweep: str) -> str:
    head, rows = [sweep, *_COLUMNS, "failed"], []
    for at in found.places(sweep):
        figures = [found.median(figure, sweep, at) for figure in _COLUMNS.values()]
        rows.append([f"{at:,}", *map(number, figures), f"{found.failed(sweep, at):,}"])
    if sweep == "endpoints":
        head.append("flush ms")
        for row, at in zip(rows, found.places(sweep), strict=True):
            row.append(number(found.flush_ms(sweep, at)))
    return table(head, rows)
