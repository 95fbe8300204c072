"""The plot of the last windows, as paths of an SVG. Pure.

Each window has a place by its start, so a window without a record is a gap. The place after the last is the
open window's. Coordinates: 10 units for a place, 100 for the height.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

PLACES = 60
_WIDTH, _BAR, _HEIGHT = 10, 8, 100


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """The time that the plot shows: PLACES windows that have ended, up to the newest of these."""

    end_s: int
    length_s: int

    @property
    def start_s(self) -> int:
        return self.end_s - PLACES * self.length_s

    def place(self, start_s: int) -> int | None:
        place = (start_s - self.start_s) // self.length_s
        return place if 0 <= place <= PLACES else None


def span(now_s: float, length_s: int) -> Span:
    return Span(int(now_s // length_s) * length_s, length_s)


def ceiling(values: Iterable[int]) -> float:
    """The top of a scale: a round number whose half is one, too."""
    highest = max(values, default=0)
    if highest <= 10:
        return 10.0
    power = 10.0 ** math.floor(math.log10(highest))
    return next(step * power for step in (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10) if step * power >= highest)


def bars(heights: Iterable[tuple[int, int]], top: float) -> str:
    """Bars of these values, by place."""
    return "".join(
        f"M{place * _WIDTH + 1} {_HEIGHT}V{_y(value, top)}h{_BAR}V{_HEIGHT}z"
        for place, value in heights
        if value
    )


def ticks(heights: Iterable[tuple[int, int]], top: float) -> str:
    """Short level lines at these values."""
    return "".join(f"M{place * _WIDTH + 1} {_y(value, top)}h{_BAR}" for place, value in heights)


def blocks(places: Sequence[int]) -> str:
    """Marks of the full height of a lane of their own, which is 10 high."""
    return "".join(f"M{place * _WIDTH + 1} 10V0h{_BAR}V10z" for place in places)


def _y(value: int, top: float) -> str:
    # A window with ids is never without a bar.
    return f"{_HEIGHT - max(_HEIGHT * value / top, 0.6 if value else 0):.4g}"
