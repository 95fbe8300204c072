"""Time windows and a window's record. Pure.

A window is ``[k*L, (k+1)*L)`` in whole seconds of Unix time. Its start is its name. The store decides by its
own clock which window an id falls into (``store/lua/accept.lua``). Nothing here reads a clock.
"""

from __future__ import annotations

import datetime
import functools
from typing import Literal, NamedTuple

import orjson

DAY_S = 86_400
_EPOCH = datetime.date(1970, 1, 1)


def iso(epoch_s: int) -> str:
    """``1763808780`` → ``2025-11-22T10:53:00Z``."""
    # strftime() takes five times as long, which was most of reading back the records of a month.
    day, second = divmod(epoch_s, DAY_S)
    minute, second = divmod(second, 60)
    return f"{_date(day)}T{minute // 60:02}:{minute % 60:02}:{second:02}Z"


@functools.lru_cache(maxsize=64)
def _date(day: int) -> str:
    return (_EPOCH + datetime.timedelta(days=day)).isoformat()


class Record(NamedTuple):
    """A sealed window's count, the same in each of its deliveries.

    If ``exact`` is true, ``unique_ids`` is exact; else it equals ``estimate``, the HyperLogLog's count, which
    is never above ``hits``. If ``suspect`` is true, the store had lost writes, and ``unique_ids`` is the
    larger of ids and estimate. ``hits`` are accepted requests, repeats included. ``epoch`` is the fencing
    token of the leader that sealed the window.
    """

    start_s: int
    length_s: int
    unique_ids: int
    estimate: int
    hits: int
    exact: bool
    epoch: int
    suspect: bool = False

    @property
    def end_s(self) -> int:
        return self.start_s + self.length_s

    @property
    def message_type(self) -> str:
        return "idagg.window"

    def message_id(self, namespace: str) -> str:
        """The message id, the same in every delivery of this window, so that a consumer can drop repeats."""
        return f"{namespace}:{self.start_s}"

    def as_json(self) -> bytes:
        """The body of messages and callbacks."""
        return orjson.dumps(
            {
                "window_start": iso(self.start_s),
                "window_end": iso(self.end_s),
                "unique_ids": self.unique_ids,
                "estimate": self.estimate,
                "hits": self.hits,
                "exact": self.exact,
            }
            | ({"suspect": True} if self.suspect else {})
        )


# Where a count is delivered: RabbitMQ, or the log file.
Sink = Literal["broker", "log"]


class PendingCallback(NamedTuple):
    """An endpoint still to be called for a window: attempts begun so far, and seconds until the next."""

    endpoint: str
    attempts: int
    due_in_s: float


class Counts(NamedTuple):
    """Numbers of windows with a pending delivery, a pending message, pending callbacks; and quarantined."""

    deliveries: int
    messages: int
    callbacks: int
    quarantined: int


# What windows are rolled up into, and their lengths.
Period = Literal["hour", "day"]
PERIOD_S: dict[Period, int] = {"hour": 3600, "day": DAY_S}


class Rollup(NamedTuple):
    """The estimate of an hour or a day (UTC), of the windows that begin in it; the same in each delivery.

    ``suspect``: a window in it is, or the store had lost sketches of windows in it.
    """

    period: Period
    start_s: int
    unique_ids: int
    hits: int
    suspect: bool
    epoch: int

    @property
    def end_s(self) -> int:
        return self.start_s + PERIOD_S[self.period]

    def message_id(self, namespace: str) -> str:
        return f"{namespace}:{self.period}:{self.start_s}"

    @property
    def message_type(self) -> str:
        return f"idagg.{self.period}"

    def as_json(self) -> bytes:
        """The body of the message, in the form of a window's."""
        return orjson.dumps(
            {
                "window_start": iso(self.start_s),
                "window_end": iso(self.end_s),
                "unique_ids": self.unique_ids,
                "estimate": self.unique_ids,
                "hits": self.hits,
                "exact": False,
            }
            | ({"suspect": True} if self.suspect else {})
        )

    def __str__(self) -> str:
        """As the store has it."""
        return " ".join(map(str, self._replace(suspect=int(self.suspect))))  # type: ignore[arg-type]  # a flag there

    @classmethod
    def parse(cls, text: str) -> Rollup:
        period, *numbers = text.split(" ")
        if period not in PERIOD_S:
            raise ValueError(f"no roll-up: {text}")
        start_s, unique_ids, hits, suspect, epoch = map(int, numbers)
        return cls(period, start_s, unique_ids, hits, suspect == 1, epoch)
