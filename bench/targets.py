"""What idagg must reach, and what shows whether it does."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from statistics import median

from bench.cost import Cost
from bench.findings import Findings
from bench.flushing.results import Flush
from bench.traffic import IDLE
from kit.histogram import Summary

# A server, and the kind of traffic that it meets.
Cell = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Target:
    """``measured`` gives a figure for each round, of which the median is judged, or none; ``cells`` is what
    has to be measured for it under closed-loop load."""

    figure: str
    must: float
    stretch: float
    measured: Callable[[Findings], Sequence[float]]
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
    def measured(found: Findings) -> Sequence[float]:
        return found.closed.ratios(value, above, below) if found.closed else ()

    return Target(figure, must, stretch, measured, frozenset({above, below}))


def _cost(figure: str, must: float, stretch: float, value: Callable[[Cost], float], cell: Cell) -> Target:
    def measured(found: Findings) -> Sequence[float]:
        return found.closed.figures(value, *cell) if found.closed else ()

    return Target(figure, must, stretch, measured, frozenset({cell}))


def _best_peer(figure: str, must: float, stretch: float, traffic: str) -> Target:
    peers = [(peer, traffic) for peer in ("go-group", "go-sadd", "nginx-lua")]
    ours = ("idagg", traffic)

    def measured(found: Findings) -> Sequence[float]:
        ratios = [found.closed.ratios(_total_us, peer, ours) for peer in peers] if found.closed else []
        return min(filter(None, ratios), key=median, default=())

    return Target(figure, must, stretch, measured, frozenset({*peers, ours}))


def _open_loop(figure: str, must: float, stretch: float, value: Callable[[Summary], float]) -> Target:
    def measured(found: Findings) -> Sequence[float]:
        ours = found.open.seals.latencies if found.open else None
        return (value(ours),) if ours else ()

    return Target(f"open loop, 10,000/s over three seals: {figure}", must, stretch, measured)


def _open_loop_to_rust(figure: str, must: float, stretch: float, value: Callable[[Summary], float]) -> Target:
    def measured(found: Findings) -> Sequence[float]:
        ours = found.open.seals.latencies if found.open else None
        rust = found.open.rust.latencies if found.open else None
        return (value(ours) / value(rust),) if ours and rust else ()

    return Target(f"open loop, the same: {figure} ÷ Rust's", must, stretch, measured)


def _flush(figure: str, must: float, stretch: float, value: Callable[[Flush], float]) -> Target:
    def measured(found: Findings) -> Sequence[float]:
        largest = found.flushing.largest if found.flushing else None
        return (value(largest),) if largest else ()

    return Target(figure, must, stretch, measured)


def _failed(found: Findings) -> Sequence[float]:
    return [sum(run.failed for run in found.open.seals.runs)] if found.open and found.open.seals.runs else ()


def _idle_kib(found: Findings) -> Sequence[float]:
    return found.closed.idle_kib("idagg") if found.closed else ()


def _total_us_by_ids(found: Findings) -> Sequence[float]:
    return found.growth.growth(_total_us, "ids") if found.growth else ()


def _called_s(found: Findings, *, tarpits: bool) -> Sequence[float]:
    calls = found.flushing.called_beside(tarpits=tarpits) if found.flushing else None
    if calls is None:
        return ()
    return (math.inf if calls.missing else calls.all_s,)


def _delayed_s(found: Findings) -> Sequence[float]:
    both = zip(_called_s(found, tarpits=True), _called_s(found, tarpits=False), strict=False)
    return [with_them - without for with_them, without in both]


def _server_us(cost: Cost) -> float:
    return cost.server_us


def _total_us(cost: Cost) -> float:
    return cost.total_us


def _store_us(cost: Cost) -> float:
    return cost.store_us


def _rate(cost: Cost) -> float:
    return cost.rate


def _p99(latencies: Summary) -> float:
    return latencies.p99_ms


def _p99_9(latencies: Summary) -> float:
    return latencies.p99_9_ms


_IDAGG_64, _IDAGG_512, _ZIPF = ("idagg", "64"), ("idagg", "512"), ("idagg", "zipf")
TARGETS = (
    _ratio("server CPU ÷ nginx's, 64 connections", 1.40, 1.25, _server_us, _IDAGG_64, ("nginx", "64")),
    _ratio("server CPU ÷ nginx's, 512 connections", 1.20, 1.10, _server_us, _IDAGG_512, ("nginx", "512")),
    _ratio("CPU with Redis ÷ Rust's, 64 connections", 1.15, 1.00, _total_us, _IDAGG_64, ("rust-sadd", "64")),
    _ratio(
        "CPU with Redis ÷ Rust's, 512 connections",
        *(1.10, 1.00, _total_us, _IDAGG_512, ("rust-sadd", "512")),
    ),
    _ratio(
        "CPU with Redis ÷ Rust's with our script, 64 connections",
        *(1.10, 0.95, _total_us, _IDAGG_64, ("rust-script", "64")),
    ),
    _ratio(
        "CPU with Redis ÷ Rust's with our script, 512 connections",
        *(1.05, 0.95, _total_us, _IDAGG_512, ("rust-script", "512")),
    ),
    _ratio(
        "server CPU, headers that differ ÷ the same headers on all requests",
        *(1.20, 1.10, _server_us, _IDAGG_64, ("idagg", "64-same-headers")),
    ),
    _ratio("CPU with Redis, FastAPI's ÷ ours", 33, 45, _total_us, ("fastapi", "64"), _IDAGG_64),
    _best_peer("CPU with Redis, best of Go's and nginx + Lua's ÷ ours, 64 connections", 1.8, 2.2, "64"),
    _best_peer("CPU with Redis, best of Go's and nginx + Lua's ÷ ours, 512 connections", 2.0, 2.5, "512"),
    _ratio("throughput ÷ nginx's, 512 connections", 0.70, 0.80, _rate, _IDAGG_512, ("nginx", "512")),
    _ratio("server CPU ÷ nginx's, Zipf repeats", 1.40, 1.10, _server_us, _ZIPF, ("nginx", "zipf")),
    _ratio("Redis' CPU, Zipf repeats ÷ all ids new", 0.5, 0.4, _store_us, _ZIPF, _IDAGG_64),
    _ratio(
        "throughput ÷ nginx's, a new connection for each request",
        *(0.90, 1.00, _rate, ("idagg", "close"), ("nginx", "close")),
    ),
    _ratio(
        "CPU with Redis, the same endpoint on all requests ÷ none",
        *(1.25, 1.10, _total_us, ("idagg", "same-endpoint"), _IDAGG_64),
    ),
    _ratio(
        "server CPU, Java's client ÷ the same without its offer of h2c",
        *(1.05, 1.05, _server_us, ("idagg", "java"), ("idagg", "java-http1")),
    ),
    _cost("bulk of 1,000 ids, server CPU µs per id", 0.4, 0.2, _server_us, ("idagg", "bulk")),
    _cost("bulk of 1,000 ids, CPU with Redis µs per id", 2.0, 1.4, _total_us, ("idagg", "bulk")),
    Target("KiB per idle connection", 3, 2.2, _idle_kib, frozenset({("idagg", IDLE)})),
    _open_loop("p99 ms", 5, 3, _p99),
    _open_loop("p99.9 ms", 10, 5, _p99_9),
    Target("open loop, the same: failed", 0, 0, _failed),
    _open_loop_to_rust("p99", 1.3, 1.0, _p99),
    _open_loop_to_rust("p99.9", 1.3, 1.0, _p99_9),
    _flush(
        "window's end → confirm by RabbitMQ, 6 million ids, ms", 250, 50, lambda flush: flush.delivered_ms
    ),
    _flush("Redis bytes per id of 9 digits, in the exact set", 60, 56, lambda flush: flush.set_bytes_per_id),
    Target(
        "10,000 callbacks, 1% of them tarpits: all the others called, s",
        *(15, 8, lambda found: _called_s(found, tarpits=True)),
    ),
    Target("the same, s later than without tarpits", 1, 0.5, _delayed_s),
    Target("CPU with Redis, 6 million ids in the window ÷ 0.1 million", 1.10, 1.05, _total_us_by_ids),
)
# All that the targets need.
CELLS = frozenset[Cell]().union(*(target.cells for target in TARGETS))
