"""What a worker tells of windows and of the store's clock."""

from __future__ import annotations

import asyncio
import time

import pytest

from idagg.errors import StoreAwayError
from idagg.metrics import Metrics
from idagg.run import observation
from idagg.run.observation import Observation
from idagg.store.current import Look
from idagg.tasks import end
from idagg.window import Counts, Record
from kit.waiting import until

RECORD = Record(start_s=60, length_s=60, unique_ids=5, estimate=5, hits=9, exact=True, epoch=7)


async def test_the_skew_and_what_the_leader_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is the store's; what only a leader knows is forgotten when another leads."""
    monkeypatch.setattr(observation, "LOOK_S", 600)
    looks = 0

    async def ask() -> Look:
        nonlocal looks
        looks += 1
        return Look(time.time() - 30, 120, 42, 1.5)

    seen = Observation(Metrics(), ask)
    looking = asyncio.create_task(seen.run())
    await until(lambda: looks == 1 and seen.skew_s is not None)
    assert abs((seen.skew_s or 0) - 30) < 1
    before_s, now_s, after_s = time.time(), seen.now_s(), time.time()
    assert before_s - 1 < now_s + 30 < after_s + 1
    assert (seen.late_s, seen.lead) == (1.5, None)
    seen.leads(7)
    await until(lambda: looks >= 2)  # at once, not after the pause of those that do not lead
    lead = seen.lead
    assert lead
    assert (lead.start_s, lead.so_far, lead.deliveries) == (None, 42, None)
    seen.sealed(RECORD, dropped_endpoints=0)
    seen.pending(Counts(1, 2, 3, 4))
    lead = seen.lead
    assert lead
    assert (lead.start_s, lead.unique_ids, lead.hits, lead.exact) == (60, 5, 9, True)
    assert (lead.deliveries, lead.messages, lead.callbacks, lead.quarantined) == (1, 2, 3, 4)
    seen.leads(0)
    assert seen.lead is None
    seen.leads(8)
    assert seen.lead
    assert (seen.lead.start_s, seen.lead.deliveries) == (None, None)
    await end(looking)


async def test_a_store_that_is_away() -> None:
    """What is not seen is not told as a number; the skew that was seen is still the best that is known."""
    is_away = False

    async def ask() -> Look:
        if is_away:
            raise StoreAwayError("gone")
        return Look(time.time(), 120, 42, 1.5)

    seen = Observation(Metrics(), ask)
    seen.leads(7)
    looking = asyncio.create_task(seen.run())
    await until(lambda: seen.late_s == 1.5)
    is_away = True
    await until(lambda: seen.late_s is None)
    assert seen.lead
    assert seen.lead.so_far is None
    assert seen.skew_s is not None
    await end(looking)


async def test_a_slow_answer_says_nothing_of_the_clock() -> None:
    async def ask() -> Look:
        await asyncio.sleep(0.6)
        return Look(0, 120, 42, 1.5)

    seen = Observation(Metrics(), ask)
    looking = asyncio.create_task(seen.run())
    await until(lambda: seen.late_s == 1.5)
    assert seen.skew_s is None
    await end(looking)
