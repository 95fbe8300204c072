"""The oracle itself: it is silent where promises are kept, and complains of each that is broken."""

from __future__ import annotations

import dataclasses
import math
import os

import pytest

from kit import oracle
from kit.oracle import Delivery, Journal, Size

A, B, C = (
    Delivery("idagg:60", "1970-01-01T00:01:00Z", 3),
    Delivery("idagg:120", "1970-01-01T00:02:00Z", 0),
    Delivery("idagg:180", "1970-01-01T00:03:00Z", 2),
)
WINDOWS = [delivery.window for delivery in (A, B, C)]


def journal(*, ok: int = 5, failed: int = 0, unknown: int = 0, slowest_s: float = 0.5) -> Journal:
    numbers = iter(range(100))
    told = ({next(numbers) for _ in range(count)} for count in (ok, failed, unknown))
    return Journal(next(told), next(told), next(told), slowest_s=slowest_s)


def verdict(told: Journal, *deliveries: Delivery) -> list[str]:
    return oracle.verdict(told, deliveries, expected=WINDOWS, answer_s=1)


@pytest.mark.parametrize(
    "told", [journal(), journal(ok=3, failed=2), journal(ok=3, unknown=2), journal(ok=4, failed=4, unknown=4)]
)
def test_silent_where_all_is_well(told: Journal) -> None:
    """Ids that were answered failed, or not at all, count or not; a window may come twice."""
    assert verdict(told, A, B, C) == verdict(told, A, A, C, B, A) == []


def test_a_lost_id() -> None:
    """One id that got its ok is in no count."""
    (complaint,) = verdict(journal(ok=6, failed=3), A, B, C)
    assert complaint == "A: 1 ids that got their ok are lost"
    windows = {"60": {0, 1, 2}, "180": {4}}
    (complaint,) = oracle.wrong_ids(journal(), windows)
    assert complaint == "A: 1 ids that got their ok are lost, such as 3"
    assert oracle.wrong_ids(journal(), windows, may_lose={3}) == []
    assert oracle.wrong_ids(journal(), windows, may_lose={4}) == [complaint]


def test_a_double_count() -> None:
    """More was counted than was sent; or, while windows are open, one id is in two of them."""
    (complaint,) = verdict(journal(ok=2, failed=1, unknown=1), A, B, C)
    assert complaint == "A: 1 ids were counted twice"
    (complaint,) = oracle.wrong_ids(journal(ok=3, unknown=2), {"60": {0, 1, 2, 4}, "180": {4}})
    assert complaint == "A: 1 ids were counted twice, such as 4"


def test_a_foreign_id() -> None:
    """What nobody sent was counted."""
    assert oracle.wrong_ids(journal(), {"60": set(range(5))}) == []
    (complaint,) = oracle.wrong_ids(journal(), {"60": set(range(6))})
    assert complaint == "A: 1 ids were counted and never sent, such as 5"


@pytest.mark.parametrize(("lost", "ids"), [(A, 2), (B, 5), (C, 3)])
def test_a_lost_window(lost: Delivery, ids: int) -> None:
    """A window in no sink is missed, an empty one too."""
    (complaint,) = verdict(journal(ok=ids), *({A, B, C} - {lost}))
    assert complaint == f"B: window {lost.window} is lost"


@pytest.mark.parametrize(
    "repeat",
    [
        dataclasses.replace(C, count=3),  # the same message of another count
        dataclasses.replace(C, message_id="idagg:181"),  # the same window as another message
        dataclasses.replace(C, message_id="idagg:181", count=4),
    ],
)
def test_a_changed_count(repeat: Delivery) -> None:
    """A repeat that a consumer could not drop."""
    complaints = verdict(journal(unknown=9), A, B, C, repeat)
    assert complaints
    assert all(complaint.startswith("C: ") for complaint in complaints)


def test_a_late_answer() -> None:
    """One answer came after its time."""
    (complaint,) = verdict(journal(slowest_s=1.25), A, B, C)
    assert complaint == "D: an answer took 1.25 s, its time was 1 s"


def test_growth() -> None:
    """More of anything than there is room for is told of."""
    before = Size.of(os.getpid())
    assert min(dataclasses.astuple(before)) > 0
    assert oracle.grown(before, before, memory_kib=0, threads=0) == []
    for name in ("memory_kib", "descriptors", "threads"):
        after = dataclasses.replace(before, **{name: getattr(before, name) + 3})
        rooms = {"memory_kib": 3, "descriptors": 3, "threads": 3}
        assert oracle.grown(before, after, **rooms) == []
        (complaint,) = oracle.grown(before, after, **{**rooms, name: 2})
        assert complaint.startswith(f"E: {name} went from ")


def test_more_tasks() -> None:
    """More tasks than there is room for are told of."""
    assert oracle.crowded(20, 23, tasks=3) == []
    assert oracle.crowded(20, 23, tasks=2) == ["E: tasks went from 20 to 23"]


@pytest.mark.parametrize(
    ("ok_at", "trouble_at", "took_s"),
    [
        ([1, 12.5], [], 2.5),
        ([1, 12.5], [2], 2.5),
        ([1, 11.5, 12.5], [2, 12], 2.5),
        ([1, 13.5], [11], 3.5),
        ([1], [], math.inf),
        ([1, 12.5], [11, 14], math.inf),
    ],
)
def test_recovery(ok_at: list[float], trouble_at: list[float], took_s: float) -> None:
    """From a moment on, an ok without later trouble has to come in time."""
    told = Journal(ok_at=ok_at, trouble_at=trouble_at)
    assert oracle.recovery_s(told, 10) == took_s
    complaint = f"F: there was no end of trouble within 3 s, but {took_s:.2f} s"
    assert oracle.not_recovered(told, 10, within_s=3) == ([] if took_s < 3 else [complaint])


@pytest.mark.parametrize(
    ("asked_s", "given_s", "right"),
    [(10.0, 10.5, False), (10.5, 11.5, False), (12.5, 13.5, True), (11.9, 12.0, True), (14.0, 14.1, False)],
)
def test_an_ok_is_for_a_window_of_its_time(asked_s: float, given_s: float, right: bool) -> None:
    """Of windows of 2 s, only the one from 12 on has the id."""
    windows = {"10": {8}, "12": {7}, "14": {8}}
    assert (oracle.elsewhere([(7, asked_s, given_s)], windows, 2) == []) == right


def test_several_journals() -> None:
    """The callers of all instances together: an id that two of them sent would count once."""
    first = Journal({1, 2}, {3}, set(), 0.5, ok_at=[1.0, 3.0], trouble_at=[4.0])
    second = Journal({5}, set(), {6}, 0.7, ok_at=[2.0], trouble_at=[0.5])
    told = oracle.together(first, second)
    assert told == Journal({1, 2, 5}, {3}, {6}, 0.7, ok_at=[1.0, 2.0, 3.0], trouble_at=[0.5, 4.0])
