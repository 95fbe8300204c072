"""The soak's judge is content with a service that counts right, and sees one id that is lost or doubled."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from kit.histogram import Histogram
from kit.processes import Usage
from kit.soak.judge import Bounds, bounds, calls_owed, complaints, windows_with_hits
from kit.soak.load import Answers, Plan, Told
from kit.soak.results import Event, Results

PLAN = Plan(
    port=0,
    rate=100,
    seconds=60,
    start_s=1_000_000,
    window_s=5,
    cycle_s=20,
    first_id=1000,
    endpoints=("http://a/", "http://b/"),
)
CYCLES = range(3)
COMPLAINTS = ["1 requests of second 22 failed", "an answer of second 22 took 3.00 s"]


def sent(number: int) -> int | None:
    """The id, as a server would read it."""
    value = PLAN.request(number).split(b"id=")[1].split(b" ")[0].split(b"&")[0]
    return None if value == b"none" else int(value)


def soaked(random: Random, *, failing: range = range(0)) -> tuple[Answers, Counter[int]]:
    """A run in which all went well, but for requests that fail, half of which are counted all the same; and
    the counts, by window."""
    answers = Answers(PLAN)
    stored: set[tuple[int, int]] = set()
    for number in range(PLAN.requests):
        due_s, took_s = PLAN.due_s(number), random.choice((0.001, 0.01, 0.1))
        identity = sent(number)
        fails = number in failing
        answers.settle(number, due_s, None if fails else took_s, ok=identity is not None)
        if identity is not None and not (fails and random.random() < 0.5):
            at_s = due_s + random.uniform(0, 8 if fails else took_s)
            stored.add((int(at_s // PLAN.window_s), identity))
    return answers, Counter(window for window, _ in stored)


def judged(answers: Answers, counts: Counter[int]) -> list[str]:
    return complaints(PLAN, *bounds(PLAN, answers), counts)


def test_some_ids_are_sent_twice() -> None:
    """In the same window and in another, never more than twice."""
    times = Counter(map(sent, range(PLAN.requests)))
    del times[None]
    assert set(times.values()) == {1, 2}
    where = {
        PLAN.window_of(PLAN.due_s(first)) == PLAN.window_of(PLAN.due_s(number))
        for number in range(PLAN.requests)
        if (first := PLAN.repeated(number)) is not None and sent(number) == sent(first)
    }
    assert where == {True, False}


@pytest.mark.parametrize("seed", range(5))
def test_one_id_more_or_less_is_seen(seed: int) -> None:
    """Where nothing failed only one sum is right, in each cycle."""
    answers, counts = soaked(Random(seed))
    whole, cycles = bounds(PLAN, answers)
    assert [found.lower for found in (whole, *cycles.values())] == [
        found.upper for found in (whole, *cycles.values())
    ]
    assert whole.lower == sum(counts.values())
    assert judged(answers, counts) == []
    for window in counts:
        where = f"in the cycle that began after {window // 4 * 20} s"
        assert any(where in complaint for complaint in judged(answers, counts + Counter({window: 1})))
        assert any(where in complaint for complaint in judged(answers, counts - Counter({window: 1})))


@pytest.mark.parametrize("seed", range(5))
def test_what_failed_may_count_and_may_not(seed: int) -> None:
    """In the cycle in which it was sent; the others are as strict as ever."""
    answers, counts = soaked(Random(seed), failing=range(2150, 2600))
    assert judged(answers, counts) == []
    _, cycles = bounds(PLAN, answers)
    assert [found.lower < found.upper for found in map(cycles.__getitem__, CYCLES)] == [False, True, False]
    for window in (0, 11):
        assert judged(answers, counts - Counter({window: 1})) != []
        assert judged(answers, counts + Counter({window: 1})) != []


@pytest.mark.parametrize(
    ("noticed", "deadly", "complaints"),
    [
        (False, False, COMPLAINTS),
        (True, False, COMPLAINTS[1:]),
        (True, True, []),
    ],
)
def test_what_a_fault_excuses(noticed: bool, deadly: bool, complaints: list[str]) -> None:
    """A fault that callers may notice excuses that a request fails, only one that kills that it is late."""
    answers, _ = soaked(Random(0), failing=range(2201, 2202))
    answers.settle(2202, PLAN.due_s(2202), 3.0, ok=True)
    told = Told(answers, lag=Histogram(), usage=Usage(0, 0), took_s=60)
    for at_s, expected in ((20, complaints), (40, COMPLAINTS)):
        events = [Event("a fault", at_s, at_s + 1, noticed=noticed, deadly=deadly)]
        found = [what for what in Results(PLAN, events, told=told).complaints if what.startswith("D:")]
        assert [what[3:].partition(", and no fault")[0] for what in found] == expected


def test_bounds_are_those_of_the_oracle() -> None:
    """A count on a bound is right, one beyond is not."""
    found = Bounds(lower=5, upper=7)
    assert [bool(found.complaint(count, "")) for count in range(4, 9)] == [True, False, False, False, True]


def test_what_is_owed() -> None:
    """Each window with an id is to be delivered, and each endpoint to be called."""
    answers, _ = soaked(Random(0), failing=range(500))
    assert windows_with_hits(PLAN, answers) == set(range(1, 12))
    assert calls_owed(PLAN, answers) == {
        (window, endpoint) for window in range(1, 12) for endpoint in PLAN.endpoints
    }
