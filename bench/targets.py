"""What idagg must reach, and what shows whether it does."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from bench.cost import Cost
from bench.findings import Findings
from bench.flushing.results import Flush
from bench.open_loop.histogram import Summary
from bench.traffic import IDLE

# A server, and the kind of traffic that it meets.
Cell = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Target:
    """``cells`` is what has to be measured for it under closed-loop load."""

    figure: str
    must: float
    stretch: float
    measured: Callable[[Findings], float | None]
    cells: frozenset[Cell] = frozenset()

    def verdict(self, value: float) -> str:
        sign = 1 if self.stretch <= self.must else -1  # the smaller, or the larger, the better
        if sign * value <= sign * self.stretch:
            return "stretch"
        return "must" if sign * value <= sign * self.must else "missed"

    def limit(self, value: float) -> str:
        return f"{'≤' if self.stretch <= self.must else '≥'} {value:g}"


def _ratio(
    figure: str, must: float, stretch: float, value: Callable[[Cost], float], above: Cell, below: Cell
) -> Target:
    def measured(found: Findings) -> float | None:
        return found.closed.ratio(value, above, below) if found.closed else None

    return Target(figure, must, stretch, measured, frozenset({above, below}))


def _best_peer(figure: str, must: float, stretch: float, traffic: str) -> Target:
    peers = [(peer, traffic) for peer in ("go-group", "go-sadd", "nginx-lua")]
    ours = ("idagg", traffic)

    def measured(found: Findings) -> float | None:
        ratios = [found.closed.ratio(_total_us, peer, ours) for peer in peers] if found.closed else []
        return min((ratio for ratio in ratios if ratio is not None), default=None)

    return Target(figure, must, stretch, measured, frozenset({*peers, ours}))


def _open_loop(figure: str, must: float, stretch: float, value: Callable[[Summary], float]) -> Target:
    def measured(found: Findings) -> float | None:
        latencies = found.open.latencies if found.open else None
        return value(latencies) if latencies else None

    return Target(figure, must, stretch, measured)


def _flush(figure: str, must: float, stretch: float, value: Callable[[Flush], float]) -> Target:
    def measured(found: Findings) -> float | None:
        largest = found.flushing.largest if found.flushing else None
        return value(largest) if largest else None

    return Target(figure, must, stretch, measured)


def _total_us_by_ids(found: Findings) -> float | None:
    return found.growth.growth(_total_us, "ids") if found.growth else None


def _called_s(found: Findings, *, tarpits: bool) -> float | None:
    calls = found.flushing.called_beside(tarpits=tarpits) if found.flushing else None
    if calls is None:
        return None
    return math.inf if calls.missing else calls.all_s


def _delayed_s(found: Findings) -> float | None:
    with_them, without = _called_s(found, tarpits=True), _called_s(found, tarpits=False)
    return None if with_them is None or without is None else with_them - without


def _server_us(cost: Cost) -> float:
    return cost.server_us


def _total_us(cost: Cost) -> float:
    return cost.total_us


def _rate(cost: Cost) -> float:
    return cost.rate


TARGETS = (
    _ratio("server CPU ÷ nginx's, 64 connections", 1.40, 1.20, _server_us, ("idagg", "64"), ("nginx", "64")),
    _ratio(
        "server CPU ÷ nginx's, 512 connections", 1.20, 1.00, _server_us, ("idagg", "512"), ("nginx", "512")
    ),
    _ratio("CPU with Redis, FastAPI's ÷ ours", 33, 45, _total_us, ("fastapi", "64"), ("idagg", "64")),
    _best_peer("CPU with Redis, best of Go's and nginx + Lua's ÷ ours, 64 connections", 1.8, 2.2, "64"),
    _best_peer("CPU with Redis, best of Go's and nginx + Lua's ÷ ours, 512 connections", 2.0, 2.5, "512"),
    _ratio("throughput ÷ nginx's, 512 connections", 0.70, 0.80, _rate, ("idagg", "512"), ("nginx", "512")),
    _ratio(
        "server CPU ÷ nginx's, Zipf repeats", 1.25, 1.10, _server_us, ("idagg", "zipf"), ("nginx", "zipf")
    ),
    _ratio(
        "throughput ÷ nginx's, a new connection for each request",
        *(0.90, 1.00, _rate, ("idagg", "close"), ("nginx", "close")),
    ),
    _ratio(
        "CPU with Redis, the same endpoint on all requests ÷ none",
        *(1.25, 1.10, _total_us, ("idagg", "same-endpoint"), ("idagg", "64")),
    ),
    Target(
        "KiB per idle connection",
        must=3,
        stretch=2.2,
        measured=lambda found: found.closed.idle_kib("idagg") if found.closed else None,
        cells=frozenset({("idagg", IDLE)}),
    ),
    _open_loop("open loop, 10,000/s over three seals: p99 ms", 5, 3, lambda latencies: latencies.p99_ms),
    _open_loop("open loop, 10,000/s over three seals: p99.9 ms", 10, 5, lambda latencies: latencies.p99_9_ms),
    Target(
        "open loop, 10,000/s over three seals: failed",
        must=0,
        stretch=0,
        measured=lambda found: found.open.failed if found.open else None,
    ),
    _flush(
        "window's end → confirm by RabbitMQ, 6 million ids, ms", 250, 50, lambda flush: flush.delivered_ms
    ),
    _flush("Redis bytes per id of 9 digits, in the exact set", 60, 56, lambda flush: flush.set_bytes_per_id),
    Target(
        "10,000 callbacks, 1% of them tarpits: all the others called, s",
        must=15,
        stretch=8,
        measured=lambda found: _called_s(found, tarpits=True),
    ),
    Target("the same, s later than without tarpits", must=1, stretch=0.5, measured=_delayed_s),
    Target(
        "CPU with Redis, 6 million ids in the window ÷ 0.1 million",
        must=1.10,
        stretch=1.05,
        measured=_total_us_by_ids,
    ),
)
# All that the targets need.
CELLS = frozenset[Cell]().union(*(target.cells for target in TARGETS))
