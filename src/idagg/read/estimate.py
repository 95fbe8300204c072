"""How many unique ids there were in any stretch of time, from sketches of windows, hours and days."""

from __future__ import annotations

import asyncio
import collections
import math
from collections.abc import Callable
from typing import NamedTuple

from idagg.read.cover import DAY_S, HOUR_S, Gap, Stretch, coarse, gaps, in_gap, joined, name
from idagg.store.client import Client
from idagg.store.shards import shard_tag
from idagg.store.sketches import AT_ONCE, Rolled, RollUps, Sketches, Sums, of_window

# Of a HyperLogLog of 2^14 registers, relative.
STANDARD_ERROR = 1.04 / math.sqrt(2**14)
# Sketches may expire between two looks; more than a few times, it is no accident.
_LOOKS = 5


class Estimate(NamedTuple):
    """``unique_ids`` is off by no more than ``standard_error``, relative, in two cases of three, and no more
    than twice that in 95 of 100. It is of the windows that begin in the ``covered`` stretches. ``missing``
    is the rest of the range: there is no window, or it is not sealed yet, or its sketch is not kept any
    more."""

    unique_ids: int
    standard_error: float
    covered: list[Stretch]
    missing: list[Gap]


class Estimates:
    """``home`` is a client of the home shard, ``client_of`` gives one of another shard, by its tag. Both stay
    the caller's. Raises StoreError."""

    def __init__(self, home: Client, *, namespace: str, client_of: Callable[[str], Client]) -> None:
        self._home = home
        self._namespace = namespace
        self._client_of = client_of
        self._rollups = RollUps(home, shard_tag(namespace))

    async def estimate(self, from_s: int, to_s: int) -> Estimate:
        """Of the windows that begin in [from_s, to_s)."""
        without = set[tuple[int, str]]()
        for _ in range(_LOOKS):
            covered, names = await self._choose(from_s, to_s, without)
            count, missing = await self._count(names)
            if not missing:
                break
            without |= missing
        return Estimate(count, STANDARD_ERROR, joined(covered), gaps(from_s, to_s, joined(covered)))

    async def _choose(
        self, from_s: int, to_s: int, without: set[tuple[int, str]]
    ) -> tuple[list[Stretch], dict[int, list[str]]]:
        """The stretches that can be told of, and the names of the sketches for it, by shard."""
        rolled = await self._rollups.rolled()
        names = collections.defaultdict[int, list[str]](list)
        covered = []
        for stretch in coarse(from_s, to_s, **_usable(rolled, without)):
            covered.append(stretch)
            sums = (rolled.days if stretch.kind == "day" else rolled.hours)[stretch.from_s]
            if sums.unique_ids:
                names[0].append(name(stretch))
        for gap in gaps(from_s, to_s, covered[:]):
            for window in await self._rollups.windows(gap.from_s, gap.to_s):
                its_stretch = in_gap(window.start_s, window.end_s, gap, from_s, to_s)
                begins = window.start_s >= gap.from_s
                its = [(shard, of_window(window.start_s)) for shard in window.shards if begins]
                if its_stretch and without.isdisjoint(its):
                    covered.append(its_stretch)
                    for shard, sketch in its:
                        names[shard].append(sketch)
        return covered, names

    async def _count(self, names: dict[int, list[str]]) -> tuple[int, set[tuple[int, str]]]:
        """How many ids these sketches have together, and those that are missing."""
        at_home = names.get(0, [])
        others = [shard for shard in names if shard]
        found = await asyncio.gather(*(self._of(shard).union(names[shard]) for shard in others))
        missing = {
            (shard, sketch)
            for shard, (_, _, lacking) in zip(others, found, strict=True)
            for sketch in lacking
        }
        if not others and len(at_home) <= AT_ONCE:
            count, lacking = await self._of(0).count(at_home)
        else:
            count, _, lacking = await self._of(0).union(at_home, [union for _, union, _ in found])
        return count, missing | {(0, sketch) for sketch in lacking}

    def _of(self, shard: int) -> Sketches:
        tag = shard_tag(self._namespace, shard)
        return Sketches(self._client_of(tag) if shard else self._home, tag)


def _usable(rolled: Rolled, without: set[tuple[int, str]]) -> dict[str, set[int]]:
    """Hours and days that are whole, and all of whose windows are in them."""

    def of(sums: dict[int, Sums], kind: str, length_s: int) -> set[int]:
        return {
            start_s
            for start_s, one in sums.items()
            if start_s + length_s <= rolled.through_s
            and not one.gone
            and (0, f"{kind}:{start_s}") not in without
        }

    return {
        "hours": of(dict(rolled.hours), "hour", HOUR_S),
        "days": of(dict(rolled.days), "day", DAY_S),
    }
