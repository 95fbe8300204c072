"""What must have been counted, by what callers were told, and whether what was delivered agrees.

An id counts once in each window in which it is stored. Only the store knows which window that was; but it was
no sooner than when the request was due, and no later than when its answer came, by the clock of the one
machine that all of this runs on. So each request has a range of windows in which it may count:

- answered ``ok``: from the one in which it was due to the one in which it was answered, mostly the same. It
  counts in one of them;
- else: the windows of STRAY_S from then on, and it counts in one of them or in none. A batch outlives the
  deadline of its requests only in the buffers of a store or a proxy that stands still, and none does so long.

Of an id that was sent once that says how often it counts: 1, or 0 to 1. Of one that was sent twice it says,
both times ``ok``: 1 where the ranges are the same window, 2 where they have none in common, 1 to 2 else. Ids
add up to two bounds, which hold for the whole and for each cycle: its few windows, with one fault in them.

In a cycle without failed requests the two bounds are the same number, so that a single id that was lost or
counted twice shows: at a cycle's end there is a moment without ids, and none is repeated near the end of a
window. In a cycle with failed ones, such as while Redis was away, as many lost ids can hide as failed ones
were counted.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping

from kit.soak.load import BLOCK, NOT_OK, PAUSE, REPEAT, REPEATED, WITH_ENDPOINT, Answers, Plan

STRAY_S = 10

# What is known of one id: of each of its requests the first window and the span.
_Kind = tuple[tuple[int, int], ...]


@dataclasses.dataclass
class Bounds:
    lower: int = 0
    upper: int = 0

    def complaint(self, counted: int, where: str) -> list[str]:
        if counted < self.lower:
            return [f"A: {self.lower - counted:,} ids that got their ok are lost {where}"]
        if counted > self.upper:
            return [f"A: {counted - self.upper:,} ids were counted twice, or never sent, {where}"]
        return []


def bounds(plan: Plan, answers: Answers) -> tuple[Bounds, dict[int, Bounds]]:
    """Of the whole, and by cycle."""
    per_cycle = plan.cycle_s // plan.window_s
    whole, cycles = Bounds(), dict[int, Bounds]()
    for kind, ids in _kinds(plan, answers).items():
        ranges = [_range(plan, *request) for request in kind]
        sure = [windows for windows, (_, span) in zip(ranges, kind, strict=True) if span != NOT_OK]
        _add(whole, ids, ranges, sure)
        for cycle in {window // per_cycle for windows in ranges for window in windows}:
            own = set(range(cycle * per_cycle, (cycle + 1) * per_cycle))
            _add(
                cycles.setdefault(cycle, Bounds()),
                ids,
                [windows & own for windows in ranges if windows & own],
                [windows for windows in sure if windows <= own],
            )
    return whole, cycles


def complaints(
    plan: Plan, whole: Bounds, cycles: Mapping[int, Bounds], counts: Mapping[int, int]
) -> list[str]:
    """A, of the counts that were delivered, by window."""
    per_cycle = plan.cycle_s // plan.window_s
    found = whole.complaint(sum(counts.values()), "in all")
    by_cycle = Counter[int]()
    for window, count in counts.items():
        by_cycle[window // per_cycle] += count
    for cycle in sorted({*cycles, *by_cycle}):
        where = f"in the cycle that began after {cycle * plan.cycle_s} s"
        found += cycles.get(cycle, Bounds()).complaint(by_cycle[cycle], where)
    return found


def windows_with_hits(plan: Plan, answers: Answers) -> set[int]:
    """Those that an id was stored in for certain."""
    return {window for window, span in Counter(zip(answers.windows, answers.spans, strict=True)) if span == 0}


def calls_owed(plan: Plan, answers: Answers) -> set[tuple[int, str]]:
    """The endpoints that were named in a window for certain."""
    owed = set()
    for number in range(0, plan.requests, WITH_ENDPOINT):
        endpoint = plan.endpoint(number)
        if answers.spans[number] == 0 and endpoint:
            owed.add((answers.windows[number], endpoint))
    return owed


def _kinds(plan: Plan, answers: Answers) -> Counter[_Kind]:
    """How many ids there are of each."""
    windows, spans = answers.windows, answers.spans
    again = bytearray(plan.requests // BLOCK + 1)  # blocks whose sixth request is repeated
    found = Counter[_Kind]()
    for number in range(REPEAT, plan.requests, BLOCK):
        first = plan.repeated(number)
        own = windows[number], spans[number]
        if first is None:
            found[(own,)] += 1
        else:
            again[first // BLOCK] = True
            found[(windows[first], spans[first]), own] += 1
    for block, number in enumerate(range(REPEATED, plan.requests, BLOCK)):
        if not again[block]:
            found[((windows[number], spans[number]),)] += 1
    for place in set(range(BLOCK)) - {REPEATED, REPEAT}:
        column = Counter(zip(windows[place::BLOCK], spans[place::BLOCK], strict=True))
        for request, ids in column.items():
            found[(request,)] += ids
    # A request that was not to be counted has no id, and none repeats it.
    return Counter({kind: ids for kind, ids in found.items() if kind[0][1] != PAUSE})


def _range(plan: Plan, window: int, span: int) -> set[int]:
    if span == NOT_OK:
        span = math.ceil(STRAY_S / plan.window_s)
    return set(range(window, window + span + 1))


def _add(bounds: Bounds, ids: int, ranges: list[set[int]], sure: list[set[int]]) -> None:
    """``sure`` are the ranges in which an id counts for certain, of all those in which it may."""
    if len(sure) == 2 and sure[0] & sure[1]:
        sure = sure[:1]
    bounds.lower += ids * len(sure)
    bounds.upper += ids * min(len(ranges), len(set[int]().union(*ranges)))
