"""What was measured at the ends of windows and at starts."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Flush:
    """Of a window with so many ``ids``: how long after its end its message was at a consumer, and was known
    to be delivered, with the confirm and the mark in the store; what the ids took of Redis' memory, and what
    of that Redis ascribes to the set."""

    ids: int
    filled_s: float
    arrived_ms: float
    delivered_ms: float
    bytes_per_id: float
    set_bytes_per_id: float

    def __str__(self) -> str:
        return (
            f"{self.ids:,} ids: at the consumer {self.arrived_ms:.1f} ms after the window's end, "
            f"delivered after {self.delivered_ms:.1f} ms; {self.bytes_per_id:.1f} bytes an id in Redis, "
            f"{self.set_bytes_per_id:.1f} of them in the set"
        )


@dataclasses.dataclass(frozen=True)
class Calls:
    """Of ``endpoints`` that answer, beside ``tarpits`` that do not: how long after the window's end half of
    them and all of them were called. ``missing`` were not within a minute; ``repeated`` calls came again."""

    endpoints: int
    tarpits: int
    half_s: float
    all_s: float
    missing: int
    repeated: int

    def __str__(self) -> str:
        return (
            f"{self.endpoints:,} callbacks beside {self.tarpits} tarpits: half after {self.half_s:.2f} s, "
            f"all after {self.all_s:.2f} s, {self.missing} missing, {self.repeated} repeated"
        )


@dataclasses.dataclass
class Flushing:
    """``starts`` has seconds to the first ok, by where the store is."""

    flushes: list[Flush] = dataclasses.field(default_factory=list)
    calls: list[Calls] = dataclasses.field(default_factory=list)
    starts: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    @property
    def largest(self) -> Flush | None:
        return max(self.flushes, key=lambda flush: flush.ids, default=None)

    def called_beside(self, *, tarpits: bool) -> Calls | None:
        return next((calls for calls in self.calls if bool(calls.tarpits) == tarpits), None)
