"""What open-loop runs found out."""

from __future__ import annotations

import dataclasses
from typing import Any

from bench.wrk import Load
from idagg.window import iso
from kit.generator import Result
from kit.histogram import Histogram, Summary
from kit.processes import Usage

# Which seconds count as those at a boundary: the one before it, and those of the seal and what it causes.
_BEFORE_S, _AFTER_S = 1, 2


@dataclasses.dataclass(frozen=True)
class Run:
    """One rate. ``idle`` is the load on the connections that are mostly idle, ``usage`` is by part: server,
    Redis, generator."""

    load: Result
    idle: Result | None
    window_s: int
    usage: dict[str, Usage]

    @property
    def ok(self) -> int:
        return self.load.ok + (self.idle.ok if self.idle else 0)

    @property
    def failed(self) -> int:
        return sum(self.load.failed) + (sum(self.idle.failed) if self.idle else 0)

    @property
    def latencies(self) -> Summary:
        return Histogram.sum(self.load.seconds).summary()

    def boundaries(self) -> list[int]:
        """Ends of windows that fall into the run, in seconds from its start."""
        first = -int(self.load.start_s) % self.window_s or self.window_s
        return list(range(first, len(self.load.seconds), self.window_s))

    def rows(self) -> dict[str, tuple[Summary, int]]:
        """Latencies and failures by what they are of: the whole, the idle connections, and each boundary."""
        load, idle = self.load, self.idle
        rows = {"whole run": (self.latencies, sum(load.failed))}
        if idle:
            name = f"{idle.connections:,} idle connections"
            rows[name] = Histogram.sum(idle.seconds).summary(), sum(idle.failed)
        for boundary in self.boundaries():
            around = slice(boundary - _BEFORE_S, boundary + _AFTER_S)
            name = iso(int(load.start_s) + boundary)[11:19]
            rows[f"around {name}"] = Histogram.sum(load.seconds[around]).summary(), sum(load.failed[around])
        rows["generator's lag"] = load.lag.summary(), 0
        return rows

    def as_json(self) -> dict[str, Any]:
        return {
            "rate": self.load.rate,
            "connections": self.load.connections,
            "start_s": self.load.start_s,
            "ok": self.ok,
            "failed": self.failed,
            "usage": {part: dataclasses.asdict(usage) for part, usage in self.usage.items()},
            "latency": {
                name: dataclasses.asdict(latencies) | {"failed": failed}
                for name, (latencies, failed) in self.rows().items()
            },
            "by_second": [
                dataclasses.asdict(latencies.summary()) | {"failed": failed}
                for latencies, failed in zip(self.load.seconds, self.load.failed, strict=True)
            ],
        }


@dataclasses.dataclass
class Session:
    """Runs against one server; what it had counted in the end, by window where it delivers them; when Redis
    rewrote its log, and what held Redis up."""

    runs: list[Run] = dataclasses.field(default_factory=list)
    delivered: dict[str, int] = dataclasses.field(default_factory=dict)
    rewrites: list[tuple[float, str]] = dataclasses.field(default_factory=list)
    slow_redis: dict[str, list[tuple[float, int]]] = dataclasses.field(default_factory=dict)

    @property
    def latencies(self) -> Summary | None:
        return self.runs[0].latencies if self.runs else None

    def began_rewrites(self) -> list[float]:
        return [when for when, what in self.rewrites if what == "started"]

    def trouble(self) -> str | None:
        """Whether a request that was answered ok was not counted, or one that never came was."""
        ok, failed = sum(run.ok for run in self.runs), sum(run.failed for run in self.runs)
        delivered = sum(self.delivered.values())
        if delivered < ok:
            return f"LOST {ok - delivered:,} ids that were answered ok"
        if delivered > ok + failed:  # one that failed may have been counted
            return f"COUNTED {delivered - ok - failed:,} ids that never were sent"
        return None

    def as_json(self) -> dict[str, Any]:
        return {
            "runs": [run.as_json() for run in self.runs],
            "delivered": self.delivered,
            "rewrites": self.rewrites,
            "slow_redis": self.slow_redis,
        }


@dataclasses.dataclass(frozen=True)
class Check:
    """A server that answers at once, driven by wrk and by the generator. wrk takes latencies from when it
    sent, the generator from when it should have sent: its ``lag`` is the difference."""

    server: str
    wrk: Load
    rate: float
    generator: Summary
    lag: Summary
    usage: Usage

    def __str__(self) -> str:
        return (
            f"{self.server} at {self.rate:,.0f} requests a second: p50 {self.wrk.p50_ms:.3f} ms by wrk, "
            f"{self.generator.p50_ms:.3f} ms by the generator, whose lag is {self.lag.p50_ms:.3f} ms"
        )


@dataclasses.dataclass
class OpenLoop:
    """``seals`` is one rate over the ends of windows, ``rust`` the same for the service in Rust, ``rates``
    several, briefly."""

    checks: list[Check] = dataclasses.field(default_factory=list)

    seals: Session = dataclasses.field(default_factory=Session)
    rust: Session = dataclasses.field(default_factory=Session)
    rates: Session = dataclasses.field(default_factory=Session)

    def as_json(self) -> dict[str, Any]:
        return {
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "seals": self.seals.as_json(),
            "rust": self.rust.as_json(),
            "rates": self.rates.as_json(),
        }
