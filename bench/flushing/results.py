"""What was measured at the ends of windows and at starts."""

from __future__ import annotations

import dataclasses

from bench.open_loop.histogram import Summary


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


@dataclasses.dataclass(frozen=True)
class Phase:
    """Some ``seconds`` of a run: latencies of hits, and processor seconds by part."""

    what: str
    seconds: int
    latencies: Summary
    failed: int
    cpu_s: dict[str, float]

    def __str__(self) -> str:
        cpu_s = ", ".join(f"{part} {seconds:.2f}" for part, seconds in self.cpu_s.items())
        return (
            f"{self.what}, {self.seconds} s: p50 {self.latencies.p50_ms:.2f} ms, "
            f"p99 {self.latencies.p99_ms:.2f} ms, p99.9 {self.latencies.p99_9_ms:.2f} ms, "
            f"{self.failed} failed; CPU s: {cpu_s}"
        )


@dataclasses.dataclass(frozen=True)
class Accepting:
    """The same load in quiet, while hostile endpoints are called, and while thousands with TLS are. ``calls``
    has by kind how many callbacks arrived, and the most calls of one of them; ``peak_mib`` is the callback
    process'."""

    quiet: Phase
    hostile: Phase
    https: Phase
    calls: dict[str, tuple[int, int]]
    peak_mib: float

    def slower(self, phase: Phase) -> float:
        """Its p99 ÷ that in quiet."""
        return phase.latencies.p99_ms / self.quiet.latencies.p99_ms

    def __str__(self) -> str:
        calls = ", ".join(f"{kind} {of:,} (≤ {most} each)" for kind, (of, most) in self.calls.items())
        phases = map(str, (self.quiet, self.hostile, self.https))
        return "\n".join([*phases, f"calls: {calls}; the callback process took {self.peak_mib:.0f} MiB"])


@dataclasses.dataclass
class Flushing:
    """``starts`` has seconds to the first ok, by where the store is."""

    flushes: list[Flush] = dataclasses.field(default_factory=list)
    calls: list[Calls] = dataclasses.field(default_factory=list)
    accepting: Accepting | None = None
    starts: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    @property
    def largest(self) -> Flush | None:
        return max(self.flushes, key=lambda flush: flush.ids, default=None)

    def called_beside(self, *, tarpits: bool) -> Calls | None:
        return next((calls for calls in self.calls if bool(calls.tarpits) == tarpits), None)
