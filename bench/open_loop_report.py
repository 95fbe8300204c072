"""What an open-loop run found out, as text and as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from bench.open_loop import Result
from bench.open_loop_histogram import Histogram
from bench.open_loop_usage import Usage

from idagg.window import iso

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

    def boundaries(self) -> list[int]:
        """Ends of windows that fall into the run, in seconds from its start."""
        first = -int(self.load.start_s) % self.window_s or self.window_s
        return list(range(first, len(self.load.seconds), self.window_s))

    def rows(self) -> dict[str, tuple[Histogram, int]]:
        """Latencies and failures by what they are of: the whole, the idle connections, and each boundary."""
        load, idle = self.load, self.idle
        rows = {"whole run": (Histogram.sum(load.seconds), sum(load.failed))}
        if idle:
            rows[f"{idle.connections:,} idle"] = Histogram.sum(idle.seconds), sum(idle.failed)
        for boundary in self.boundaries():
            around = slice(boundary - _BEFORE_S, boundary + _AFTER_S)
            name = iso(int(load.start_s) + boundary)[11:19]
            rows[f"around {name}"] = Histogram.sum(load.seconds[around]), sum(load.failed[around])
        rows["generator's lag"] = load.lag, 0
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
                name: latencies.summary() | {"failed": failed}
                for name, (latencies, failed) in self.rows().items()
            },
            "by_second": [
                latencies.summary() | {"failed": failed}
                for latencies, failed in zip(self.load.seconds, self.load.failed, strict=True)
            ],
        }


def table(run: Run) -> str:
    names = ["p50 ms", "p99 ms", "p99.9 ms", "max ms", "failed"]
    lines = [f"{f'{run.load.rate:,.0f} requests/s':22}" + "".join(f"{name:>10}" for name in names)]
    for row, (latencies, failed) in run.rows().items():
        figures = "".join(f"{figure:10.2f}" for figure in latencies.summary().values())
        lines.append(f"{row:22}{figures}{failed:10,}")
    seconds, requests = len(run.load.seconds), max(run.ok, 1)
    for part, usage in run.usage.items():
        lines.append(
            f"{part}: {usage.cpu_s / seconds:.2f} cores, {usage.cpu_s / requests * 1e6:.1f} µs a request; "
            f"no core to run on for {usage.waited_s / seconds:.1%} of the time"
        )
    return "\n".join(lines)
