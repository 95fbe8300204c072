"""What a worker may remember, and until when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idagg.accept.known import FRESH_S, HITS_TRAVEL_S, MAX_KNOWN, Known
from idagg.store.hits import Stored

IDS = [b"1", b"2", b"3", b"4"]


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def known(clock: Clock) -> Known:
    return Known(clock)


@pytest.mark.parametrize(("new_ids", "remembered"), [(0, True), (2, True), (3, False), (4, False)])
def test_a_batch_is_remembered_where_half_of_it_were_repeats(
    known: Known, new_ids: int, remembered: bool
) -> None:
    """What is asked for once costs no memory."""
    known.learn(IDS, Stored(60, new_ids, 30), 100)
    assert known.ids == (set(IDS) if remembered else set())


def test_it_ends_before_the_window_does(known: Known, clock: Clock) -> None:
    """The store's time to the window's end counts from when the batch was sent, less what hits need."""
    known.learn(IDS, Stored(60, 0, 0.8), 100)
    clock.now_s = 100.8 - HITS_TRAVEL_S - 0.001
    assert known.repeat(b"1", None)
    clock.now_s += 0.001
    assert not known.repeat(b"1", None)
    assert known.hits == 1


def test_it_ends_soon_where_nothing_is_heard(known: Known, clock: Clock) -> None:
    """Clocks differ more and more; each batch says anew what time it is."""
    for sent_at in (100.0, 100.5):
        known.learn(IDS, Stored(60, 0, 30), sent_at)
        clock.now_s = sent_at + FRESH_S - 0.001
        assert known.repeat(b"1", None)
    clock.now_s += 0.001
    assert not known.repeat(b"1", None)


def test_another_window_begins_with_nothing(known: Known) -> None:
    """Also where the store's clock was stepped, back or on."""
    for start in (60, 120, 60):
        known.learn([b"9"], Stored(start, 1, 30), 100)
        assert known.ids == set()
        known.learn(IDS, Stored(start, 0, 30), 100)
        assert known.ids == set(IDS)


def test_nothing_is_known_of_a_store_that_may_be_another(known: Known) -> None:
    """Until that has said what it has."""
    known.learn(IDS, Stored(60, 0, 30), 100)
    known.forget()
    assert known.ids == set()
    assert not known.repeat(b"1", None)
    known.learn([b"9"], Stored(60, 0, 30), 100)
    assert [known.repeat(an_id, None) for an_id in (b"1", b"9")] == [False, True]


def test_an_endpoint_may_be_new(known: Known) -> None:
    """Which have been named is not remembered."""
    known.learn(IDS, Stored(60, 0, 30), 100)
    assert not known.repeat(b"1", b"http://a/")
    assert known.hits == 0


def test_memory_is_bounded(known: Known) -> None:
    """What would be too much begins anew."""
    size = 0
    for number in range(0, 3 * MAX_KNOWN, 4096):
        ids = [b"%d" % (number + place) for place in range(4096)]
        known.learn(ids, Stored(60, 0, 30), 100)
        assert set(ids) <= known.ids
        size = max(size, len(known.ids))
    assert size == MAX_KNOWN


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["store"] * 4 + ["repeat"] * 4 + ["lose"]),
            st.integers(0, 1),  # the id
            st.integers(0, 8),  # quarters of a second until this step
            st.integers(0, 4),  # likewise, on the way to the store
            st.integers(0, 4),  # and back
        ),
        min_size=20,
        max_size=60,
    )
)
def test_who_is_answered_from_memory_is_in_the_window_of_that_moment(
    steps: list[tuple[str, int, int, int, int]],
) -> None:
    """Against a store of windows of 5 s that takes its time."""
    clock = Clock()
    known = Known(clock)
    windows: dict[int, set[bytes]] = {}
    for step, number, pause, there, back in steps:
        clock.now_s += pause / 4
        an_id = b"%d" % number
        start = int(clock.now_s) // 5 * 5
        if step == "repeat":
            if known.repeat(an_id, None):
                assert an_id in windows.get(start, set())
        elif step == "lose":
            windows.clear()
            known.forget()
        else:
            sent_at = clock.now_s
            clock.now_s += there / 4
            start = int(clock.now_s) // 5 * 5
            held = windows.setdefault(start, set())
            stored = Stored(start, int(an_id not in held), start + 5 - clock.now_s)
            held.add(an_id)
            clock.now_s += back / 4
            known.learn([an_id], stored, sent_at)
