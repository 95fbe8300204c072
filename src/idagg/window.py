"""Windows of time and the record of one, as pure values.

A window is ``[k*L, (k+1)*L)`` in whole seconds of Unix time and is named by its start. Which window an id
falls into is decided inside the store, by the store's clock (``store/lua/accept.lua``); nothing here reads
a clock.
"""

from __future__ import annotations

import dataclasses
import datetime
from typing import NamedTuple

import orjson


def iso(epoch_s: int) -> str:
    """``1763808780`` → ``2025-11-22T10:53:00Z``."""
    return datetime.datetime.fromtimestamp(epoch_s, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """What is known of a sealed window; the same at each of its deliveries.

    ``unique_ids`` is exact where ``exact`` is true, else it is ``estimate``, the HyperLogLog's count, which
    is taken for no more than ``hits``. ``suspect``: the store had lost writes, and ``unique_ids`` is the
    larger of ids and estimate. ``hits`` are accepted requests, repeats included. ``epoch`` is the fencing
    number of the leader that sealed it.
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

    def message_id(self, namespace: str) -> str:
        """The name under which every delivery of this window goes, so that a consumer can drop repeats."""
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


class PendingCallback(NamedTuple):
    """An endpoint that is still to be called for a window: how many attempts have begun, and when the next
    may."""

    endpoint: str
    attempts: int
    due_in_s: float


class Counts(NamedTuple):
    """Numbers of windows: with a pending delivery, message, or callbacks; and quarantined."""

    deliveries: int
    messages: int
    callbacks: int
    quarantined: int
