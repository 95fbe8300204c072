"""What a request costs as something grows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from statistics import median

from bench.cost import Cost

# What grows, and what the axis says.
SWEEPS = {
    "ids": "ids already in the window",
    "workers": "workers",
    "connections": "connections",
    "endpoints": "distinct endpoints in the window",
}


@dataclasses.dataclass(frozen=True)
class Point:
    """``at`` so many of what grows in this sweep; ``flush_ms`` from the window's end until its record was
    delivered, where that was looked at."""

    sweep: str
    round: int
    at: int
    cost: Cost
    flush_ms: float | None = None


@dataclasses.dataclass
class Growth:
    points: list[Point] = dataclasses.field(default_factory=list)

    def places(self, sweep: str) -> list[int]:
        return sorted({point.at for point in self.points if point.sweep == sweep})

    def median(self, figure: Callable[[Cost], float], sweep: str, at: int) -> float:
        return median(figure(point.cost) for point in self._of(sweep, at))

    def failed(self, sweep: str, at: int) -> int:
        """In all rounds together."""
        return sum(point.cost.load.failed for point in self._of(sweep, at))

    def flush_ms(self, sweep: str, at: int) -> float | None:
        found = [point.flush_ms for point in self._of(sweep, at) if point.flush_ms is not None]
        return median(found) if found else None

    def growth(self, figure: Callable[[Cost], float], sweep: str) -> list[float]:
        """From the first place to the last: each round's own ratio."""
        places = self.places(sweep)
        if len(places) < 2:
            return []
        first = {point.round: figure(point.cost) for point in self._of(sweep, places[0])}
        last = {point.round: figure(point.cost) for point in self._of(sweep, places[-1])}
        return [last[number] / first[number] for number in first if number in last]

    def _of(self, sweep: str, at: int) -> list[Point]:
        return [point for point in self.points if (point.sweep, point.at) == (sweep, at)]
