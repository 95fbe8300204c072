"""What the soak sends, and a compact journal of what came of it.

Requests come in blocks of ten. The last of a block repeats an id: in even blocks that of the sixth request of
the same block, which as a rule is still under way, in odd ones that of a block some seconds ago, for the most
part in another window. So an id is sent once or twice, and which is arithmetic. Every hundredth request
names an endpoint. For a moment at the end of each cycle, in which nothing is to be counted, requests have no
id and are answered 400; near the ends of windows none is a repeat. The judge says what for.
"""

from __future__ import annotations

import array
import dataclasses
import time

from kit.generator import Outcomes, offer
from kit.histogram import Histogram
from kit.processes import Usage
from kit.traffic import get

BLOCK, REPEATED, REPEAT = 10, 5, 9
WITH_ENDPOINT = 100
# Spans that are none: of a request that was not answered ok, and of one that is not to be counted.
NOT_OK, PAUSE = 255, 254
# How far back the repeats of odd blocks reach.
_REPEATED_AFTER_S = 4
# Around an end. Far above a latency, and above what the clocks of two processes can be apart.
_MOMENT_S = 0.25
_APART_S = 0.05
_CONNECTIONS = 64


@dataclasses.dataclass(frozen=True)
class Plan:
    """It starts with a window; windows and cycles, which are whole windows, are numbered from there. Times
    are from there, too. ``first_id`` is another in each run."""

    port: int
    rate: int
    seconds: int
    start_s: int
    window_s: int
    cycle_s: int
    first_id: int
    endpoints: tuple[str, ...]

    @property
    def requests(self) -> int:
        return self.rate * self.seconds

    def due_s(self, number: int) -> float:
        return number / self.rate

    def pauses(self, number: int) -> bool:
        """Whether the request is not to be counted."""
        return _near(self.due_s(number), self.cycle_s)

    def repeated(self, number: int) -> int | None:
        """The request whose id this one repeats."""
        block, place = divmod(number, BLOCK)
        if place != REPEAT:
            return None
        if block % 2:
            block -= self.rate * _REPEATED_AFTER_S // BLOCK // 2 * 2  # an odd one: no two repeat the same
        first = block * BLOCK + REPEATED
        if first < 0 or any(_near(self.due_s(each), self.window_s) for each in (first, number)):
            return None
        return first

    def endpoint(self, number: int) -> str | None:
        if number % WITH_ENDPOINT:
            return None
        return self.endpoints[number // WITH_ENDPOINT % len(self.endpoints)]

    def request(self, number: int) -> bytes:
        if self.pauses(number):
            return get(b"id=none", number)
        first = self.repeated(number)
        wanted = self.first_id + (number if first is None else first)
        endpoint = self.endpoint(number)
        query = f"&endpoint={endpoint}" if endpoint else ""
        return get(f"id={wanted}{query}".encode(), number)

    def window_of(self, at_s: float) -> int:
        return max(int(at_s), 0) // self.window_s

    def window_start_s(self, window: int) -> int:
        """Unix time."""
        return self.start_s + window * self.window_s


def _near(at_s: float, length_s: int) -> bool:
    """Whether it is near the end of one such length, and the start of the next."""
    return not _MOMENT_S < at_s % length_s < length_s - _MOMENT_S


class Answers(Outcomes):
    """Three bytes a request: the first window in which it may have been counted, and how many later the last
    one is, NOT_OK where it was not answered ok."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.seconds)
        self._plan = plan
        self.windows = array.array("H", bytes(2 * plan.requests))
        self.spans = bytearray([PAUSE]) * plan.requests
        self.slowest_s = [0.0] * plan.seconds  # of all answers

    def settle(self, number: int, due_s: float, took_s: float | None, *, ok: bool) -> None:
        plan = self._plan
        second = int(due_s)
        if took_s is not None and took_s > self.slowest_s[second]:
            self.slowest_s[second] = took_s
        if plan.pauses(number):
            return
        super().settle(number, due_s, took_s, ok=ok)
        self.windows[number] = window = plan.window_of(due_s - _APART_S)
        if ok and took_s is not None:
            self.spans[number] = plan.window_of(due_s + took_s + _APART_S) - window
        else:
            self.spans[number] = NOT_OK


@dataclasses.dataclass(frozen=True)
class Told:
    """``took_s`` is until the last answer: the plan's seconds, as long as the generator keeps up."""

    answers: Answers
    lag: Histogram
    usage: Usage
    took_s: float


def load(plan: Plan) -> Told:
    """To be run in a process of its own."""
    answers = Answers(plan)
    lag, usage = offer(
        plan.port,
        plan.request,
        answers,
        rate=plan.rate,
        seconds=plan.seconds,
        connections=_CONNECTIONS,
        start_s=plan.start_s,
    )
    return Told(answers, lag, usage, time.time() - plan.start_s)
