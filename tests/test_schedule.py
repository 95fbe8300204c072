from __future__ import annotations

import collections
import dataclasses
import itertools

from hypothesis import given
from hypothesis import strategies as st

from idagg.deliver.schedule import Schedule

FOR_EVER = 1e9


@dataclasses.dataclass(eq=False)
class Job:
    host: str
    ready_at: float
    runs_s: list[float]  # of the runs to come; it sleeps for a second between two
    began_at: float = 0
    ends_at: float = 0


drawn_jobs = st.lists(
    st.builds(
        Job,
        host=st.sampled_from("aaabcde"),
        ready_at=st.sampled_from([0.0, 1.0, 5.5]),
        runs_s=st.lists(st.sampled_from([0.0, 0.5, 1.0, 7.0]), min_size=1, max_size=3),
    ),
    max_size=50,
)


@given(
    drawn_jobs,
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(1, 6),
    st.sampled_from([0.25, 1.0, 3.0, FOR_EVER]),
)
def test_schedule(jobs: list[Job], concurrency: int, per_host: int, fresh: int, fresh_s: float) -> None:
    """Each item runs as often as it asks to, never too many run, and no slot is idle that could be used."""
    schedule = Schedule[Job](concurrency=concurrency, per_host=per_host, fresh=fresh, fresh_s=fresh_s)
    for job in jobs:
        schedule.sleep(job.host, job, job.ready_at)
    running: list[Job] = []
    now = 0.0
    while True:
        while (taken := schedule.take(now)) is not None:
            assert taken not in running
            assert taken.ready_at <= now
            taken.began_at = now
            taken.ends_at = now + taken.runs_s.pop()
            running.append(taken)
        by_host = collections.Counter(job.host for job in running)
        turns_old_at = [job.began_at + fresh_s for job in running if now < job.began_at + fresh_s]
        assert len(running) <= concurrency
        assert all(count <= per_host for count in by_host.values())
        assert len(turns_old_at) <= fresh

        idle = [job for job in jobs if job.runs_s and job not in running]
        may_wake_at = [job.ready_at for job in idle if job.ready_at > now]
        if len(running) < concurrency and any(
            job.ready_at <= now and by_host[job.host] < per_host for job in idle
        ):
            assert len(turns_old_at) == fresh
            may_wake_at += turns_old_at
        wakes_at = schedule.wakes_at()
        assert wakes_at == min(may_wake_at, default=None)

        moments = [job.ends_at for job in running] + ([] if wakes_at is None else [wakes_at])
        if not moments:
            break
        now = min(moments)
        for job in [job for job in running if job.ends_at <= now]:
            running.remove(job)
            schedule.release(job.host, job)
            if job.runs_s:
                job.ready_at = now + 1
                schedule.sleep(job.host, job, job.ready_at)
    assert [job for job in jobs if job.runs_s] == []


def test_those_that_take_long_hold_up_nobody_for_long() -> None:
    """What never ends gives way once it is not fresh any more, until there are too many in all."""
    schedule = Schedule[int](concurrency=5, per_host=1, fresh=2, fresh_s=0.25)
    for n in range(6):
        schedule.add(f"{n}", n)
    assert [schedule.take(10.0) for _ in range(3)] == [0, 1, None]
    assert schedule.wakes_at() == 10.25
    assert schedule.take(10.2) is None
    assert [schedule.take(10.25) for _ in range(3)] == [2, 3, None]
    assert [schedule.take(20.0) for _ in range(2)] == [4, None]
    assert schedule.wakes_at() is None
    schedule.release("0", 0)
    assert schedule.take(20.0) == 5


@given(st.lists(st.sampled_from("aaaabc")), st.integers(1, 3))
def test_turns(hosts: list[str], per_host: int) -> None:
    """Hosts take turns, whatever they have waiting, and a host's items keep their order."""
    schedule = Schedule[tuple[str, int]](concurrency=1, per_host=per_host, fresh=1, fresh_s=1)
    items = list(zip(hosts, itertools.count()))
    for item in items:
        schedule.add(item[0], item)
    taken = []
    while (turn := schedule.take(0)) is not None:
        taken.append(turn)
        schedule.release(turn[0], turn)
    rounds = itertools.zip_longest(
        *([item for item in items if item[0] == host] for host in dict.fromkeys(hosts))
    )
    assert taken == [item for items in rounds for item in items if item is not None]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans())), st.integers(0, 5))
def test_withdraw(drawn: list[tuple[str, bool, bool]], running: int) -> None:
    """What is withdrawn, waiting or asleep, is handed back and never runs; the rest does."""
    schedule = Schedule[tuple[int, str, bool]](concurrency=100, per_host=2, fresh=100, fresh_s=1)
    items = [(n, host, withdrawn) for n, (host, withdrawn, _) in enumerate(drawn)]
    for item, (host, _, asleep) in zip(items, drawn, strict=True):
        if asleep:
            schedule.sleep(host, item, 1)
        else:
            schedule.add(host, item)
    begun = [taken for _ in range(running) if (taken := schedule.take(0)) is not None]
    gone = schedule.withdraw(lambda item: item[2])
    assert sorted(gone) == [item for item in items if item[2] and item not in begun]
    for item in begun:
        schedule.release(item[1], item)
    rest = []
    while (taken := schedule.take(1)) is not None:
        rest.append(taken)
        schedule.release(taken[1], taken)
    assert sorted(rest) == [item for item in items if not item[2] and item not in begun]
