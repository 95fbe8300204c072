"""A constant rate of requests, whatever the answers do, with what came of each id."""

from __future__ import annotations

import time

from kit.generator import Outcomes, TooLateError, offer
from kit.oracle import Journal
from kit.wire import request

NOT_ANSWERED, OK, REFUSED = range(3)
# All ids have nine digits.
FIRST_ID = 100_000_000
# Until the generator has its connections.
STARTING_S = 3


class Told(Outcomes):
    """What came of each request, beside the figures."""

    def __init__(self, first_id: int, rate: int, seconds: int) -> None:
        super().__init__(seconds)
        self.first_id = first_id
        self.outcome = bytearray(rate * seconds)
        self.slowest_s = 0.0

    @property
    def journal(self) -> Journal:
        return Journal(self.told(OK), self.told(REFUSED), self.told(NOT_ANSWERED), self.slowest_s)

    def settle(self, number: int, due_s: float, took_s: float | None, *, ok: bool) -> None:
        super().settle(number, due_s, took_s, ok=ok)
        if took_s is not None:
            self.outcome[number] = OK if ok else REFUSED
            self.slowest_s = max(self.slowest_s, took_s)

    def request(self, number: int) -> bytes:
        return request(self.first_id + number)

    def told(self, outcome: int) -> set[int]:
        return {self.first_id + number for number, what in enumerate(self.outcome) if what == outcome}


def tell(port: int, first_id: int, rate: int, seconds: int, *, connections: int, start_s: float) -> Told:
    """Send new ids, of which the first is ``first_id``, from ``start_s`` on, Unix time; on a machine that
    stands still then, soon after. It takes a process of its own."""
    told = Told(first_id, rate, seconds)
    while True:
        try:
            offer(
                port,
                told.request,
                told,
                rate=rate,
                seconds=seconds,
                connections=connections,
                start_s=start_s,
            )
        except TooLateError:
            start_s = time.time() + STARTING_S
        else:
            return told
