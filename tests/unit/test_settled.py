"""Up to which second windows are merged."""

from __future__ import annotations

from idagg.store.parts import Course, Part, Plan, Progress, settled_through
from idagg.store.shards import Regime

COURSE = Course(60, 1000, 2, Regime(1, 2), 60, span=2)
PART = Part(60, 60, 1, 1, 1, exact=True, suspect=False, dropped=0)


def test_settled_through() -> None:
    """As far as all shards have sealed, and have no part left but of quarantined windows."""
    whole = Progress(240)
    assert settled_through({0: whole}, COURSE) == 0
    assert settled_through({0: whole, 1: Progress(180)}, COURSE) == 180
    assert settled_through({0: whole, 1: Progress(180, parts=(PART,))}, COURSE) == 60
    held = Progress(240, quarantined=frozenset({60}))
    assert settled_through({0: held, 1: Progress(180, parts=(PART,))}, COURSE) == 180
    planned = COURSE._replace(plan=Plan(120, 2, 3, 60))
    assert settled_through({0: whole, 1: whole}, planned) == 120
    assert settled_through({0: whole, 1: whole, 2: Progress(180)}, planned) == 180
