"""Which sketches cover a range: properties."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from idagg.read.cover import DAY_S, HOUR_S, Gap, Stretch, coarse, gaps, in_gap, joined

NOON_DAY = 20_000 * DAY_S
SECONDS = st.integers(NOON_DAY, NOON_DAY + 4 * DAY_S)
HOURS = st.sets(st.integers(0, 4 * 24 - 1).map(lambda n: NOON_DAY + n * HOUR_S))
DAYS = st.sets(st.integers(0, 3).map(lambda n: NOON_DAY + n * DAY_S))


@given(SECONDS, SECONDS, HOURS, DAYS)
def test_days_and_hours(from_s: int, to_s: int, hours: set[int], days: set[int]) -> None:
    """They lie in the range, overlap nowhere, leave out no hour that could be used, and are the fewest."""
    found = coarse(from_s, to_s, hours=hours, days=days)
    assert all(from_s <= one.from_s < one.to_s <= to_s for one in found)
    assert all(one.to_s <= other.from_s for one, other in itertools.pairwise(found))
    inside = {h for h in hours if from_s <= h and h + HOUR_S <= to_s}
    whole = {d for d in days if from_s <= d and d + DAY_S <= to_s}
    covered = {h for one in found for h in range(one.from_s, one.to_s, HOUR_S)}
    assert covered == inside | {h for d in whole for h in range(d, d + DAY_S, HOUR_S)}
    # Each hour that no whole day has needs a sketch of its own, and each whole day one.
    needed = {h for h in inside if h // DAY_S * DAY_S not in whole}
    assert len(found) == len(needed) + len(whole)


@given(SECONDS, SECONDS, HOURS, DAYS)
def test_what_is_left(from_s: int, to_s: int, hours: set[int], days: set[int]) -> None:
    """Stretches and gaps are the range, each second once."""
    found = coarse(from_s, to_s, hours=hours, days=days)
    left = gaps(from_s, to_s, found)
    at = from_s
    for start_s, end_s in sorted([*(one[:2] for one in joined(found)), *left]):
        assert start_s == at
        assert start_s < end_s
        at = end_s
    assert at == max(from_s, to_s)
    if from_s >= to_s:
        assert (found, left) == ([], [])


def test_joined() -> None:
    """Of one kind only."""
    two = [Stretch(60, 120, "window"), Stretch(0, 60, "window")]
    assert joined(two) == [Stretch(0, 120, "window")]
    assert joined([Stretch(0, 3600, "hour"), Stretch(3600, 3660, "window")]) == [
        Stretch(0, 3600, "hour"),
        Stretch(3600, 3660, "window"),
    ]


@given(SECONDS, SECONDS, HOURS, DAYS, st.sets(SECONDS))
def test_windows_in_gaps(from_s: int, to_s: int, hours: set[int], days: set[int], starts: set[int]) -> None:
    """Windows that lie end to end leave no hole behind an hour and do not overlap the next one; what begins
    before the range is not in it."""
    found = coarse(from_s, to_s, hours=hours, days=days)
    windows = list(itertools.pairwise(sorted(starts)))
    for gap in gaps(from_s, to_s, found[:]):
        for window in windows:
            if window[1] > gap.from_s and window[0] < gap.to_s:
                found += filter(None, [in_gap(*window, gap, from_s, to_s)])
    found = sorted(found)
    assert all(one.to_s <= other.from_s for one, other in itertools.pairwise(found))
    for start_s, end_s in windows:
        if from_s <= start_s < to_s:
            end_s = min(end_s, to_s)
            its = [one for one in found if one.to_s > start_s and one.from_s < end_s]
            assert gaps(start_s, end_s, its) == []
        elif start_s < from_s and not any(one.kind != "window" for one in found):
            assert not any(one.from_s < end_s for one in found)


def test_windows_at_the_edges() -> None:
    """A window that begins in the range and ends after it covers what it covers."""
    assert gaps(30, 100, [Stretch(60, 120, "window")]) == [Gap(30, 60)]
