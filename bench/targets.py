"""What idagg must reach under closed-loop load: ratios, which hold on other machines too, and a size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from bench.results import Results, Run
from bench.traffic import IDLE

# A server, and the kind of traffic that it meets.
Cell = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Target:
    """``cells`` is what has to be measured for it."""

    figure: str
    must: float
    stretch: float
    measured: Callable[[Results], float | None]
    cells: frozenset[Cell]

    def verdict(self, value: float) -> str:
        sign = 1 if self.stretch < self.must else -1  # the smaller, or the larger, the better
        if sign * value <= sign * self.stretch:
            return "stretch"
        return "must" if sign * value <= sign * self.must else "missed"

    def limit(self, value: float) -> str:
        return f"{'≤' if self.stretch < self.must else '≥'} {value:g}"


def _ratio(
    figure: str, must: float, stretch: float, value: Callable[[Run], float], above: Cell, below: Cell
) -> Target:
    def measured(results: Results) -> float | None:
        return results.ratio(value, above, below)

    return Target(figure, must, stretch, measured, frozenset({above, below}))


def _best_peer(figure: str, must: float, stretch: float, traffic: str) -> Target:
    peers = [(peer, traffic) for peer in ("go-group", "go-sadd", "nginx-lua")]
    ours = ("idagg", traffic)

    def measured(results: Results) -> float | None:
        ratios = [results.ratio(_total_us, peer, ours) for peer in peers]
        return min((ratio for ratio in ratios if ratio is not None), default=None)

    return Target(figure, must, stretch, measured, frozenset({*peers, ours}))


def _server_us(run: Run) -> float:
    return run.server_us


def _total_us(run: Run) -> float:
    return run.total_us


def _rate(run: Run) -> float:
    return run.rate


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
        measured=lambda results: results.idle_kib("idagg"),
        cells=frozenset({("idagg", IDLE)}),
    ),
)
# All that the targets need.
CELLS = frozenset[Cell]().union(*(target.cells for target in TARGETS))
