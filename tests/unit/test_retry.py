from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idagg.deliver import retry
from idagg.deliver.retry import ATTEMPTS, MAX_RETRY_AFTER_S, PAUSES_S, pause_s
from idagg.flush.caller import LIFE_S
from kit.waiting import NOON

CHANCE = st.floats(0, 1, exclude_max=True)


@given(st.integers(1, ATTEMPTS - 1), CHANCE)
def test_pauses(attempts: int, chance: float) -> None:
    """Pauses grow, and are spread by a fifth."""
    own = PAUSES_S[attempts - 1]
    assert 0.8 * own <= pause_s(attempts, chance=chance) <= 1.2 * own
    assert list(PAUSES_S) == sorted(PAUSES_S)


def test_all_attempts_lie_within_a_callbacks_life() -> None:
    """The last begins in time, though each of the others takes as long as it may, and the spread is against
    it."""
    latest = [pause_s(attempts, chance=1) + 10 for attempts in range(1, ATTEMPTS)]
    assert sum(latest) < LIFE_S
    assert sum(latest[:2]) > 50  # a receiver that restarts is away for seconds


@pytest.mark.parametrize(
    ("retry_after", "asked_s"),
    [
        ("100", 100),
        (" 100\t", 100),
        ("Fri, 15 Jan 2027 08:01:40 GMT", 100),
        ("99999", MAX_RETRY_AFTER_S),
        ("9" * 400, MAX_RETRY_AFTER_S),
        ("Fri, 15 Jan 2100 08:01:40 GMT", MAX_RETRY_AFTER_S),
        ("2", 0),
        ("-100", 0),
        ("1e3", 0),
        ("\u0661\u0660\u0660", 0),
        ("Fri, 15 Jan 1999 08:01:40 GMT", 0),
        ("Fri, 99 Jan 2027 08:01:40 GMT", 0),
        ("soon", 0),
        ("", 0),
    ],
)
def test_retry_after(retry_after: str, asked_s: float) -> None:
    """A receiver may ask for more time, in seconds or by a date, within bounds, and never for less."""
    own = pause_s(1, chance=0.5)
    asked = pause_s(1, chance=0.5, retry_after=retry_after, unix_s=NOON)
    assert asked == max(own, asked_s)


@given(st.text(max_size=40), CHANCE)
def test_any_retry_after(retry_after: str, chance: float) -> None:
    """Whatever a stranger writes, the pause lies within its bounds."""
    found = pause_s(1, chance=chance, retry_after=retry_after, unix_s=NOON)
    assert PAUSES_S[0] * (1 - retry.SPREAD) <= found <= MAX_RETRY_AFTER_S
