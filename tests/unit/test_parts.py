from __future__ import annotations

import zlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from idagg.store.parts import (
    Course,
    Part,
    Plan,
    Progress,
    complete,
    exact_share,
    parts_of,
    sealed_through,
    total,
)
from idagg.store.shards import Regime, shard_of


def part(start_s: int = 0, **fields: Any) -> Part:
    return Part(start_s, 60, 0, 0, 0, True, False, 0)._replace(**fields)


def course(shards: int, *, begins_s: int = 0, plan: Plan | None = None, span: int = 1) -> Course:
    return Course(60, 1000, shards, Regime(1, shards), 60, begins_s, plan, max(span, shards))


@st.composite
def some_parts(draw: st.DrawFn) -> list[Part]:
    """As seal.lua makes them."""
    parts = []
    for _ in range(draw(st.integers(1, 5))):
        count, error = draw(st.integers(0, 1000)), draw(st.integers(-3, 3))
        hits = count + draw(st.integers(0, 50))
        estimate = max(0, min(count + error, hits))
        exact, suspect = draw(st.sampled_from([(True, False), (False, False), (False, True)]))
        unique_ids = count if exact else max(count, estimate) if suspect else estimate
        parts.append(
            part(unique_ids=unique_ids, estimate=estimate, hits=hits, exact=exact, suspect=suspect, dropped=1)
        )
    return parts


@given(parts=some_parts(), exact_limit=st.integers(0, 4000))
def test_a_record_is_the_sum_of_its_parts(parts: list[Part], exact_limit: int) -> None:
    """It is exact if all parts are, and no more than the limit; it is suspect if one is; and no estimate is
    above the hits."""
    record = total(parts, exact_limit)
    assert record.hits == sum(one.hits for one in parts)
    assert record.dropped == len(parts)
    assert record.suspect == any(one.suspect for one in parts)
    ids = sum(one.unique_ids for one in parts)
    assert record.exact == (all(one.exact for one in parts) and ids <= exact_limit)
    assert record.unique_ids == (ids if record.exact or record.suspect else record.estimate)
    assert record.unique_ids <= record.hits
    assert total(parts[::-1], exact_limit) == record


@given(one=some_parts(), exact_limit=st.integers(1000, 4000))
def test_one_part_is_the_record(one: list[Part], exact_limit: int) -> None:
    assert total(one[:1], exact_limit) == one[0]


progresses = st.dictionaries(
    st.integers(0, 3),
    st.builds(
        lambda through, held, starts: Progress(
            60 * through,
            frozenset(60 * start for start in held),
            tuple(part(60 * start) for start in sorted(starts)),
        ),
        st.integers(0, 6),
        st.sets(st.integers(0, 5), max_size=1),
        st.sets(st.integers(0, 5), max_size=4),
    ),
)


@given(shards=progresses, begins=st.integers(0, 6), plan=st.none() | st.integers(0, 6))
def test_what_is_complete_was_sealed_by_all_that_had_a_share(
    shards: dict[int, Progress], begins: int, plan: int | None
) -> None:
    """Two shards before the regime of three, one after the plan's begin."""
    at = course(3, begins_s=60 * begins, plan=None if plan is None else Plan(60 * plan, 2, 1, 60), span=4)
    ready = complete(shards, at)
    assert ready == sorted(set(ready))
    everything = {one.start_s for progress in shards.values() for one in progress.parts}
    for start_s in everything:
        had_a_share = 1 if plan is not None and start_s >= 60 * plan else 3 if start_s >= 60 * begins else 4
        assert (start_s in ready) == (
            all(shard in shards and shards[shard].through_s > start_s for shard in range(had_a_share))
            and not any(start_s in progress.quarantined for progress in shards.values())
        )
        assert parts_of(start_s, shards)
        assert sealed_through(shards) >= start_s + 60


def test_shards_of_an_earlier_regime_go_when_they_are_empty() -> None:
    """Not while they have a part, a quarantined window, or windows to seal; and not the regime's own."""
    at = course(2, begins_s=120, span=4)
    done = Progress(120)
    assert at.settled({0: done, 1: done, 2: done, 3: done}) == 2
    assert at.settled({2: done}) == 4
    for busy in (Progress(60), Progress(120, frozenset({60})), Progress(120, parts=(part(60),))):
        assert at.settled({2: done, 3: busy}) == 4
        assert at.settled({2: busy, 3: done}) == 3
    assert at._replace(plan=Plan(180, 2, 3, 60)).settled({2: done, 3: done}) == 3


@given(exact_limit=st.integers(0, 10**8), shards=st.integers(1, 64))
def test_a_shard_keeps_its_share_and_some(exact_limit: int, shards: int) -> None:
    """All shards together have room for the limit, and for little more."""
    share = exact_share(exact_limit, shards)
    assert share <= exact_limit <= share * shards
    assert share * shards <= exact_limit + 6 * (exact_limit * shards) ** 0.5 + 2 * shards


def test_ids_fit_their_shards_share() -> None:
    """As many ids as are kept exactly, in whatever way they are numbered."""
    for step in (1, 7, 1000):
        for shards in (2, 4, 16):
            counts = [0] * shards
            for number in range(20_000):
                counts[shard_of(b"%d" % (10**6 + step * number), shards)] += 1
            assert max(counts) <= exact_share(20_000, shards)
    assert zlib.crc32(b"1") % 4 == shard_of(b"1", 4)
