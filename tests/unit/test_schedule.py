from __future__ import annotations

import collections
import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idagg.deliver.schedule import Destination, Schedule, Sleepers, Spacing

PLACES = [Destination(address, is_paced) for address in "abc" for is_paced in (True, False)]


@dataclasses.dataclass(eq=False)
class Job:
    place: Destination
    ready_at: float
    runs_s: float
    began_at: float = -1
    ends_at: float = 0


drawn_jobs = st.lists(
    st.builds(
        Job,
        place=st.sampled_from([*PLACES, PLACES[0]]),
        ready_at=st.sampled_from([0.0, 1.0, 5.5]),
        runs_s=st.sampled_from([0.0, 0.5, 1.0, 7.0]),
    ),
    max_size=50,
)


@given(drawn_jobs, st.integers(1, 6), st.integers(1, 3), st.sampled_from([0.1, 0.5, 2.0]))
def test_schedule(jobs: list[Job], concurrency: int, per_destination: int, pace_s: float) -> None:
    """Each item runs once, never too many run, a paced destination's begin apart, and no slot is idle that
    could be used."""
    schedule = Schedule[Job](concurrency=concurrency, per_destination=per_destination, pace_s=pace_s)
    to_come = sorted(jobs, key=lambda job: job.ready_at)
    waiting: list[Job] = []
    running: list[Job] = []
    began: dict[Destination, list[float]] = collections.defaultdict(list)
    now = 0.0
    while True:
        while to_come and to_come[0].ready_at <= now:
            waiting.append(to_come.pop(0))
            schedule.add(waiting[-1].place, waiting[-1])
        while (taken := schedule.take(now)) is not None:
            assert taken is next(job for job in waiting if job.place == taken.place)  # the oldest of its own
            waiting.remove(taken)
            taken.ends_at = now + taken.runs_s
            running.append(taken)
            began[taken.place].append(now)
        by_place = collections.Counter(job.place for job in running)
        assert len(running) <= concurrency
        assert all(count <= per_destination for count in by_place.values())
        if len(running) < concurrency:
            for job in waiting:
                is_pausing = job.place.is_paced and began[job.place][-1:] > [now - pace_s]
                assert is_pausing or by_place[job.place] == per_destination
        moments = [job.ready_at for job in to_come[:1]] + [job.ends_at for job in running]
        if (wakes_at := schedule.wakes_at()) is not None:
            moments.append(wakes_at)
        if not moments:
            break
        now = max(now, min(moments))
        for job in [job for job in running if job.ends_at <= now]:
            running.remove(job)
            schedule.release(job.place)
    assert not waiting
    for place, moments in began.items():
        if place.is_paced:
            assert all(b - a >= pace_s - 1e-9 for a, b in itertools.pairwise(moments))


@given(st.lists(st.sampled_from("aaaab"), max_size=60), st.integers(1, 3))
def test_turns(places: list[str], per_destination: int) -> None:
    """However many items a destination has, another's next one waits for one turn of it at most."""
    schedule = Schedule[str](concurrency=1, per_destination=per_destination, pace_s=1)
    for place in places:
        schedule.add(Destination(place, False), place)
    order = []
    while (taken := schedule.take(0.0)) is not None:
        order.append(taken)
        schedule.release(Destination(taken, False))
    assert sorted(order) == sorted(places)
    alternating = 2 * min(places.count("a"), places.count("b"))
    assert all(first != second for first, second in itertools.pairwise(order[:alternating]))


@given(st.lists(st.tuples(st.sampled_from(PLACES), st.booleans()), max_size=30), st.integers(0, 10))
def test_withdraw(drawn: list[tuple[Destination, bool]], running: int) -> None:
    """What is withdrawn is given back at once, and never run; all else is run as if it had not been there."""
    schedule = Schedule[tuple[int, bool]](concurrency=10, per_destination=2, pace_s=0.5)
    for number, (place, leaves) in enumerate(drawn):
        schedule.add(place, (number, leaves))
    taken: list[tuple[int, bool]] = []
    while len(taken) < running and (item := schedule.take(0.0)) is not None:
        taken.append(item)
    gone = schedule.withdraw(lambda item: item[1])
    assert all(leaves for _, leaves in gone)
    for number, _ in taken:
        schedule.release(drawn[number][0])
    now = 0.0
    while True:
        while (item := schedule.take(now)) is not None:
            assert not item[1]
            taken.append(item)
            schedule.release(drawn[item[0]][0])
        if (wakes_at := schedule.wakes_at()) is None:
            break
        now = wakes_at
    assert sorted(taken + gone) == [(number, leaves) for number, (_, leaves) in enumerate(drawn)]


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30), st.integers(0, 5))
def test_sleepers(drawn: list[tuple[int, bool]], now: int) -> None:
    """They come when their time has come, in its order, and not at all once they are withdrawn."""
    sleepers = Sleepers[tuple[int, int, bool]]()
    items = [(until, number, leaves) for number, (until, leaves) in enumerate(drawn)]
    for item in items:
        sleepers.add(item[0], item)
    assert sorted(sleepers.withdraw(lambda item: item[2])) == sorted(item for item in items if item[2])
    stay = sorted(item for item in items if not item[2])
    assert sleepers.wakes_at() == (stay[0][0] if stay else None)
    assert sleepers.due(now) == [item for item in stay if item[0] <= now]
    assert sleepers.due(5) == [item for item in stay if item[0] > now]


def test_spacing() -> None:
    """What a piece costs is learnt, and pieces begin so far apart that it is the share; no time is saved
    up."""
    spacing = Spacing(0.5)
    now, used_s, begun = 100.0, 7.0, []
    for _ in range(2000):
        now = max(now, spacing.begun(now, used_s))
        used_s += 0.003
        begun.append(now)
    assert begun[0] - 100.0 == pytest.approx(0.002)  # by the first guess
    assert begun[-1] - begun[-101] == pytest.approx(100 * 0.006, rel=0.01)
    assert spacing.begun(200.0, used_s) == pytest.approx(200.006, abs=1e-4)
