from __future__ import annotations

import collections
import dataclasses
import itertools

from hypothesis import given
from hypothesis import strategies as st

from idagg.deliver.schedule import Schedule


@dataclasses.dataclass(eq=False)
class Job:
    host: str
    ready_at: float
    runs_s: list[float]  # of the runs to come; it sleeps for a second between two
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


@given(drawn_jobs, st.integers(1, 6), st.integers(1, 3))
def test_schedule(jobs: list[Job], concurrency: int, per_host: int) -> None:
    """Each item runs as often as it asks to, never too many run, and no slot is idle that could be used."""
    schedule = Schedule[Job](concurrency=concurrency, per_host=per_host)
    for job in jobs:
        schedule.sleep(job.host, job, job.ready_at)
    running: list[Job] = []
    now = 0.0
    while True:
        while (taken := schedule.take(now)) is not None:
            assert taken not in running
            assert taken.ready_at <= now
            taken.ends_at = now + taken.runs_s.pop()
            running.append(taken)
        by_host = collections.Counter(job.host for job in running)
        assert len(running) <= concurrency
        assert all(count <= per_host for count in by_host.values())
        waiting = [job for job in jobs if job.runs_s and job.ready_at <= now and job not in running]
        assert len(running) == concurrency or all(by_host[job.host] == per_host for job in waiting)
        wakes_at = schedule.wakes_at()
        moments = [job.ends_at for job in running] + ([] if wakes_at is None else [wakes_at])
        if not moments:
            break
        now = min(moments)
        for job in [job for job in running if job.ends_at <= now]:
            running.remove(job)
            schedule.release(job.host)
            if job.runs_s:
                job.ready_at = now + 1
                schedule.sleep(job.host, job, job.ready_at)
    assert [job for job in jobs if job.runs_s] == []


@given(st.lists(st.sampled_from("aaaabc")), st.integers(1, 3))
def test_turns(hosts: list[str], per_host: int) -> None:
    """Hosts take turns, whatever they have waiting, and a host's items keep their order."""
    schedule = Schedule[tuple[str, int]](concurrency=1, per_host=per_host)
    items = list(zip(hosts, itertools.count()))
    for item in items:
        schedule.add(item[0], item)
    taken = []
    while (turn := schedule.take(0)) is not None:
        taken.append(turn)
        schedule.release(turn[0])
    rounds = itertools.zip_longest(
        *([item for item in items if item[0] == host] for host in dict.fromkeys(hosts))
    )
    assert taken == [item for items in rounds for item in items if item is not None]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans())), st.integers(0, 5))
def test_withdraw(drawn: list[tuple[str, bool, bool]], running: int) -> None:
    """What is withdrawn, waiting or asleep, is handed back and never runs; the rest does."""
    schedule = Schedule[tuple[int, str, bool]](concurrency=100, per_host=2)
    items = [(n, host, withdrawn) for n, (host, withdrawn, _) in enumerate(drawn)]
    for item, (host, _, asleep) in zip(items, drawn, strict=True):
        if asleep:
            schedule.sleep(host, item, 1)
        else:
            schedule.add(host, item)
    begun = [taken for _ in range(running) if (taken := schedule.take(0)) is not None]
    gone = schedule.withdraw(lambda item: item[2])
    assert sorted(gone) == [item for item in items if item[2] and item not in begun]
    for _, host, _ in begun:
        schedule.release(host)
    rest = []
    while (taken := schedule.take(1)) is not None:
        rest.append(taken)
        schedule.release(taken[1])
    assert sorted(rest) == [item for item in items if not item[2] and item not in begun]
