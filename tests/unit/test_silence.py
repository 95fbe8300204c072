from __future__ import annotations

from idagg.deliver.silence import FAILING_S, FAILING_WINDOWS, GONE_S, Silence

URL = "http://a.example/"


def fail(silence: Silence, times: int, now: float = 0) -> list[int | None]:
    return [silence.failed(URL, now, is_gone=False) for _ in range(times)]


def test_gone() -> None:
    """410 silences an endpoint for a day, and no other."""
    silence = Silence()
    assert silence.failed(URL, 100, is_gone=True) == GONE_S
    assert silence.until(URL, 100) == 100 + GONE_S
    assert silence.until(URL, 100 + GONE_S) is None
    assert silence.until(URL + "b", 100) is None


def test_failing() -> None:
    """Windows that fail in a row silence it for an hour, and the first to fail behind that for another."""
    silence = Silence()
    assert fail(silence, FAILING_WINDOWS) == [None] * (FAILING_WINDOWS - 1) + [FAILING_S]
    assert silence.until(URL, FAILING_S - 1) == FAILING_S
    assert silence.until(URL, FAILING_S) is None
    assert fail(silence, 1, FAILING_S) == [FAILING_S]


def test_worked() -> None:
    """One window that works, and all is forgotten."""
    silence = Silence()
    fail(silence, FAILING_WINDOWS)
    silence.worked(URL)
    assert silence.until(URL, 0) is None
    assert fail(silence, FAILING_WINDOWS - 1) == [None] * (FAILING_WINDOWS - 1)


def test_a_late_failure_does_not_shorten_it() -> None:
    """Windows before that fail for another reason leave a day's silence as it is."""
    silence = Silence()
    silence.failed(URL, 0, is_gone=True)
    fail(silence, FAILING_WINDOWS, 10)
    assert silence.until(URL, GONE_S - 1) == GONE_S


def test_memory_is_bounded() -> None:
    """The one that was not heard of for the longest time is forgotten first."""
    silence = Silence(max_remembered=2)
    for name in ("a", "b", "a", "c"):
        silence.failed(name, 0, is_gone=True)
    assert [silence.until(name, 1) is not None for name in "abc"] == [True, False, True]
