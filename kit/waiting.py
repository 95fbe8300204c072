"""Waiting for what comes of its own accord, and the times that tests run at."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Self, TypeVar

from idagg.tasks import end

T = TypeVar("T")

# A moment that is the start of a window of any usual length.
NOON = 1_800_000_000
# Nothing takes this long unless it fails, on a machine that is busy, or stands still for some seconds again
# and again.
LIMIT_S = 60.0


async def until(condition: Callable[[], T | None], *, within_s: float = LIMIT_S) -> T:
    """Wait until the condition is true; returns what it said."""
    give_up_at = time.monotonic() + within_s
    pause_s = 0.001
    while True:
        # Before the last look: this process may stand still after it.
        is_over = time.monotonic() >= give_up_at
        if said := condition():
            return said
        assert not is_over, f"not within {within_s:g} s"
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.01)


async def eventually(
    ask: Callable[[], Awaitable[T]], enough: Callable[[T], bool], *, within_s: float = LIMIT_S
) -> T:
    """Ask again and again; returns the first answer that is enough."""
    async with asyncio.timeout(within_s):
        while True:
            answer = await ask()
            if enough(answer):
                return answer
            await asyncio.sleep(0.02)


class StoodStill:
    """For how many seconds, in all and at a time, this process had no turn. A limit in seconds needs as much
    more: on a machine that is busy or stands still, others had none either."""

    _PAUSE_S, _LATE_S = 0.02, 0.01

    def __init__(self) -> None:
        self.s = self.longest_s = 0.0

    async def __aenter__(self) -> Self:
        self._measuring = asyncio.create_task(self._measure())
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._measuring)

    async def _measure(self) -> None:
        while True:
            due_s = time.monotonic() + self._PAUSE_S
            await asyncio.sleep(self._PAUSE_S)
            if (late_s := time.monotonic() - due_s) > self._LATE_S:
                self.s += late_s
                self.longest_s = max(self.longest_s, late_s)


def first_window(length_s: int, *, after_s: float = 0) -> int:
    """When the first window begins that does so no sooner than ``after_s`` from now, Unix time."""
    soonest = int(time.time() + after_s) + 1
    return soonest + -soonest % length_s


async def next_window(length_s: int) -> int:
    """Wait for a window to begin; returns its start. On a machine that stands still, it may be over."""
    start = first_window(length_s)
    await until(lambda: time.time() >= start, within_s=length_s + LIMIT_S)
    return start


def long_window() -> int:
    """A length such that the window open now stays open for longer than any test takes."""
    now_s = time.time()
    # Of so many lengths, a window has always begun just now; of a few, all can be about to end.
    return max(range(1800, 3601), key=lambda length_s: length_s - now_s % length_s)
