"""Which sketches say how many unique ids there were from one second to another. Pure.

Days are made of whole hours, and hours of whole windows: a window belongs to the hour and the day (UTC) in
which it begins. So the coarsest sketches that lie in the range are the fewest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal, NamedTuple

from idagg.window import PERIOD_S, Period

HOUR_S, DAY_S = PERIOD_S["hour"], PERIOD_S["day"]


class Stretch(NamedTuple):
    """Seconds [from_s, to_s) that sketches of this kind say the ids of."""

    from_s: int
    to_s: int
    kind: Literal["window", "hour", "day"]


class Gap(NamedTuple):
    """Seconds [from_s, to_s)."""

    from_s: int
    to_s: int


def coarse(from_s: int, to_s: int, *, hours: Collection[int], days: Collection[int]) -> list[Stretch]:
    """The days and hours to use, in order; ``hours`` and ``days`` are the starts of those that can be."""
    whole = {start_s for start_s in days if from_s <= start_s and start_s + DAY_S <= to_s}
    inside = {start_s for start_s in hours if from_s <= start_s and start_s + HOUR_S <= to_s}
    found = [Stretch(start_s, start_s + DAY_S, "day") for start_s in whole]
    found += (
        Stretch(start_s, start_s + HOUR_S, "hour")
        for start_s in inside
        if start_s // DAY_S * DAY_S not in whole
    )
    return sorted(found)


def gaps(from_s: int, to_s: int, stretches: Iterable[Stretch]) -> list[Gap]:
    """What of the range the stretches, which are in order, leave out."""
    found: list[Gap] = []
    for stretch in stretches:
        if from_s < (end_s := min(stretch.from_s, to_s)):
            found.append(Gap(from_s, end_s))
        from_s = max(from_s, stretch.to_s)
    if from_s < to_s:
        found.append(Gap(from_s, to_s))
    return found


def in_gap(start_s: int, end_s: int, gap: Gap, from_s: int, to_s: int) -> Stretch | None:
    """What a window that reaches into a gap of the range covers of it; None: it belongs to what is before the
    range.

    A window that began in the hour before the gap is in that hour's sketch. One that reaches into the hour
    after it leaves that time to the hour.
    """
    if start_s < gap.from_s == from_s:
        return None
    return Stretch(max(start_s, gap.from_s), end_s if gap.to_s == to_s else min(end_s, gap.to_s), "window")


def joined(stretches: Iterable[Stretch]) -> list[Stretch]:
    """The same, in order; where one of a kind begins as another ends, they are one."""
    found: list[Stretch] = []
    for stretch in sorted(stretches):
        if found and found[-1].kind == stretch.kind and found[-1].to_s == stretch.from_s:
            found[-1] = found[-1]._replace(to_s=stretch.to_s)
        else:
            found.append(stretch)
    return found


def name(stretch: Stretch) -> str:
    """What the store calls the sketch of an hour or a day."""
    period: Period = "day" if stretch.kind == "day" else "hour"
    return f"{period}:{stretch.from_s}"
