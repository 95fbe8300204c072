"""Parts of windows, and how they become a record. Pure.

A shard seals a window by itself, and what it knows of it is a part. Once every shard that had a share in
the window has sealed it, the parts are merged. The shards' ids are disjoint, so what they count can be
added up.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

from idagg.store.shards import Regime

# Between the plan of another regime and its first window: time to tell all shards, and all workers.
PLAN_MARGIN_S = 2
# Of the number of ids that one of several shards has by chance, so many standard deviations above its even
# share are kept exactly: it happens to one window in some millions that a shard has more.
_DEVIATIONS = 5


class Part(NamedTuple):
    """What one shard knows of a sealed window, as a record does. ``exact``: it has all ids, however many;
    ``endpoints`` is how many it has, ``dropped`` the hits whose endpoint was over the limit."""

    start_s: int
    length_s: int
    unique_ids: int
    estimate: int
    hits: int
    exact: bool
    suspect: bool
    dropped: int
    endpoints: int = 0


class Plan(NamedTuple):
    """A regime to come: it begins with the window that starts at ``begins_s``, and its windows have this
    length."""

    begins_s: int
    number: int
    shards: int
    window_s: int

    @classmethod
    def parse(cls, text: bytes) -> Plan:
        return cls(*map(int, text.split()))

    def __str__(self) -> str:
        return " ".join(map(str, self))


class Course(NamedTuple):
    """What the home shard says of windows and shards.

    ``window_s``, ``exact_limit`` and ``shards`` are what all processes agree on. The present windows can
    still be of another ``grid_s`` and ``regime``, which began at ``begins_s``, until what is agreed on has
    been planned, and the plan has begun. ``span`` is how many shards may hold what is not merged. What
    begins before ``merged_through_s`` was merged, or is quarantined. ``is_announced``: workers may have heard
    of the plan, if there is one.
    """

    window_s: int
    exact_limit: int
    shards: int
    regime: Regime
    grid_s: int
    begins_s: int = 0
    plan: Plan | None = None
    span: int = 1
    merged_through_s: int = 0
    is_announced: bool = True

    @property
    def said(self) -> tuple[object, ...]:
        """All that other shards are told of it, but for what changes with each window."""
        return self[:2] + self[3:7]

    @property
    def heard(self) -> tuple[Regime, int, Plan | None]:
        """What other shards keep of it."""
        return self.regime, self.grid_s, self.plan

    @property
    def floor_s(self) -> int:
        """No shard takes ids for windows before this any more."""
        return max(self.begins_s, self.merged_through_s)

    @property
    def needs_plan(self) -> bool:
        is_agreed = (self.shards, self.window_s) == (self.regime.shards, self.grid_s)
        return self.plan is None and not is_agreed

    def shards_of(self, start_s: int) -> range:
        """The shards that may have a part of the window with this start."""
        if self.plan is not None and start_s >= self.plan.begins_s:
            return range(self.plan.shards)
        return range(self.regime.shards if start_s >= self.begins_s else self.span)

    def settled(self, shards: Mapping[int, Progress]) -> int:
        """How many shards may still hold what is not merged: those of the regime and the plan, and what
        earlier ones left."""
        span = self.span
        least = max(self.regime.shards, self.plan.shards if self.plan else 0)
        while span > least and (last := shards.get(span - 1)) and last.is_empty_before(self.begins_s):
            span -= 1
        return span


class Progress(NamedTuple):
    """How far a shard has sealed: no further part of a window that begins before ``through_s`` will come,
    but of the quarantined ones. ``parts`` has all that there are of those before."""

    through_s: int
    quarantined: frozenset[int] = frozenset()
    parts: tuple[Part, ...] = ()

    def is_empty_before(self, begins_s: int) -> bool:
        return self.through_s >= begins_s and not self.parts and not self.quarantined


def complete(shards: Mapping[int, Progress], course: Course) -> list[int]:
    """The starts of the windows whose parts can be merged, oldest first."""
    held = frozenset[int]().union(*(progress.quarantined for progress in shards.values()))
    starts = {part.start_s for progress in shards.values() for part in progress.parts} - held
    return sorted(
        start_s
        for start_s in starts
        if all(shard in shards and shards[shard].through_s > start_s for shard in course.shards_of(start_s))
    )


def sealed_through(shards: Mapping[int, Progress]) -> int:
    """The second up to which all shards have to seal, so that what there is can be merged."""
    return max((part.start_s + part.length_s for one in shards.values() for part in one.parts), default=0)


def settled_through(shards: Mapping[int, Progress], course: Course) -> int:
    """The second before which every window that will have a record has one, but for the quarantined ones."""
    held = frozenset[int]().union(*(progress.quarantined for progress in shards.values()))

    def through(needed: range) -> int:
        if any(shard not in shards for shard in needed):
            return 0
        return min(
            min(
                [
                    shards[shard].through_s,
                    *(part.start_s for part in shards[shard].parts if part.start_s not in held),
                ]
            )
            for shard in needed
        )

    settled_s = through(range(max(course.span, course.regime.shards)))
    if course.plan is not None and settled_s > course.plan.begins_s:
        settled_s = min(settled_s, max(course.plan.begins_s, through(range(course.plan.shards))))
    return settled_s


def total(parts: Collection[Part], exact_limit: int) -> Part:
    """The sum of a window's parts, as its record says it."""
    assert parts
    hits = sum(part.hits for part in parts)
    estimate = sum(part.estimate for part in parts)
    unique_ids = sum(part.unique_ids for part in parts)
    suspect = any(part.suspect for part in parts)
    exact = all(part.exact for part in parts) and unique_ids <= exact_limit
    if not exact and not suspect:
        unique_ids = estimate
    return Part(
        start_s=min(part.start_s for part in parts),
        length_s=max(part.length_s for part in parts),
        unique_ids=unique_ids,
        estimate=estimate,
        hits=hits,
        exact=exact,
        suspect=suspect,
        dropped=sum(part.dropped for part in parts),
        endpoints=sum(part.endpoints for part in parts),
    )


def parts_of(start_s: int, shards: Mapping[int, Progress]) -> dict[int, Part]:
    """The window's parts, by shard."""
    return {shard: part for shard, one in shards.items() for part in one.parts if part.start_s == start_s}


def exact_share(exact_limit: int, shards: int) -> int:
    """How many of a window's ids one shard keeps exactly, so that the window as a whole is exact up to the
    limit, and memory is bounded by about the limit, whatever the number of shards."""
    if shards == 1:
        return exact_limit
    even = exact_limit / shards
    return min(exact_limit, math.ceil(even + _DEVIATIONS * math.sqrt(even)))
