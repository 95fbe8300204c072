"""What idagg must reach, and what shows whether it does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from statistics import median

from bench.samples import Cell, Figure, Findings
from bench.traffic import IDLE


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


def _ratio(figure: str, must: float, stretch: float, value: Figure, above: Cell, below: Cell) -> Target:
    return Target(
        figure, must, stretch, lambda found: found.ratios(value, above, below), frozenset({above, below})
    )


def _value(figure: str, must: float, stretch: float, value: Figure, cell: Cell) -> Target:
    return Target(figure, must, stretch, lambda found: found.values(value, cell), frozenset({cell}))


def _best_peer(figure: str, must: float, stretch: float, traffic: str) -> Target:
    peers: list[Cell] = [(peer, traffic) for peer in ("go-group", "go-sadd", "nginx-lua")]
    ours = ("idagg", traffic)

    def measured(found: Findings) -> Sequence[float]:
        ratios = [found.ratios(_TOTAL, peer, ours) for peer in peers]
        return min(filter(None, ratios), key=median, default=())

    return Target(figure, must, stretch, measured, frozenset({*peers, ours}))


def _largest(figure: str, must: float, stretch: float, value: Figure, part: str = "flush") -> Target:
    """Of the window with the most ids."""

    def measured(found: Findings) -> Sequence[float]:
        largest = max(map(int, found.rows(part)), default=0)
        return found.values(value, (largest, part))

    return Target(figure, must, stretch, measured)


def _failed(found: Findings) -> Sequence[float]:
    """On busy and on idle connections; the seconds around windows' ends are in the whole run."""
    rows = [row for row in found.rows("seals") if not str(row).startswith("around")]
    return [sum(sum(found.values("failed", (row, "seals"))) for row in rows)] if rows else ()


def _grown(found: Findings) -> Sequence[float]:
    """From the fewest ids in the window to the most."""
    places = found.rows("by ids")
    return found.ratios(_TOTAL, (places[-1], "by ids"), (places[0], "by ids")) if len(places) > 1 else ()


def _plan(shards: int, replicas: int, connections: int) -> Cell:
    """Of the part sizing, with one worker."""
    return f"1 workers, {shards} shards, {replicas} replicas, {connections}", _MODELS[0]


def _astray(found: Findings) -> Sequence[float]:
    """How many simulated throughputs and p99s are not within 20% of the measured ones."""
    astray = [
        not 0.8 <= ratio <= 1.2
        for model in _MODELS
        for row in found.rows(model)
        for figure in ("÷ requests/s", "÷ p99 ms")
        for ratio in found.values(figure, (row, model))
    ]
    return [sum(astray)] if astray else ()


_MODELS = ("model, closed loop", "model, open loop")
_SERVER, _STORE, _RATE = "server µs", "Redis µs", "requests/s"
_TOTAL = (_SERVER, _STORE)
_SEALS, _RUST, _TARPITS = ("whole run", "seals"), ("whole run", "seals, Rust"), ("beside tarpits", "calls")
_QUIET = ("quiet", "beside callbacks")
_IDAGG_64, _IDAGG_512, _ZIPF = ("idagg", "64"), ("idagg", "512"), ("idagg", "zipf")
TARGETS = (
    _ratio("server CPU ÷ nginx's, 64 connections", 1.40, 1.25, _SERVER, _IDAGG_64, ("nginx", "64")),
    _ratio("server CPU ÷ nginx's, 512 connections", 1.20, 1.10, _SERVER, _IDAGG_512, ("nginx", "512")),
    _ratio("CPU with Redis ÷ Rust's, 64 connections", 1.15, 1.00, _TOTAL, _IDAGG_64, ("rust-sadd", "64")),
    _ratio(
        "CPU with Redis ÷ Rust's, 512 connections",
        *(1.10, 1.00, _TOTAL, _IDAGG_512, ("rust-sadd", "512")),
    ),
    _ratio(
        "CPU with Redis ÷ Rust's with our script, 64 connections",
        *(1.10, 0.95, _TOTAL, _IDAGG_64, ("rust-script", "64")),
    ),
    _ratio(
        "CPU with Redis ÷ Rust's with our script, 512 connections",
        *(1.05, 0.95, _TOTAL, _IDAGG_512, ("rust-script", "512")),
    ),
    _ratio(
        "server CPU, headers that differ ÷ the same headers on all requests",
        *(1.20, 1.10, _SERVER, _IDAGG_64, ("idagg", "64-same-headers")),
    ),
    _ratio("CPU with Redis, FastAPI's ÷ ours", 33, 45, _TOTAL, ("fastapi", "64"), _IDAGG_64),
    _best_peer("CPU with Redis, best of Go's and nginx + Lua's ÷ ours, 64 connections", 1.8, 2.2, "64"),
    _best_peer("CPU with Redis, best of Go's and nginx + Lua's ÷ ours, 512 connections", 2.0, 2.5, "512"),
    _ratio("throughput ÷ nginx's, 512 connections", 0.70, 0.80, _RATE, _IDAGG_512, ("nginx", "512")),
    _ratio("server CPU ÷ nginx's, Zipf repeats", 1.40, 1.10, _SERVER, _ZIPF, ("nginx", "zipf")),
    _ratio("Redis' CPU, Zipf repeats ÷ all ids new", 0.5, 0.4, _STORE, _ZIPF, _IDAGG_64),
    _ratio(
        "throughput ÷ nginx's, a new connection for each request",
        *(0.90, 1.00, _RATE, ("idagg", "close"), ("nginx", "close")),
    ),
    _ratio(
        "CPU with Redis, the same endpoint on all requests ÷ none",
        *(1.25, 1.10, _TOTAL, ("idagg", "same-endpoint"), _IDAGG_64),
    ),
    _ratio(
        "server CPU, Java's client ÷ the same without its offer of h2c",
        *(1.05, 1.05, _SERVER, ("idagg", "java"), ("idagg", "java-http1")),
    ),
    _value("bulk of 1,000 ids, server CPU µs per id", 0.4, 0.2, _SERVER, ("idagg", "bulk")),
    _value("bulk of 1,000 ids, CPU with Redis µs per id", 2.0, 1.4, _TOTAL, ("idagg", "bulk")),
    _value("KiB per idle connection", 3, 2.2, "KiB/idle", ("idagg", IDLE)),
    _value("open loop, 10,000/s over three seals: p99 ms", 5, 3, "p99 ms", _SEALS),
    _value("open loop, 10,000/s over three seals: p99.9 ms", 10, 5, "p99.9 ms", _SEALS),
    Target("open loop, the same: failed", 0, 0, _failed),
    _ratio("open loop, the same: p99 ÷ Rust's", 1.3, 1.0, "p99 ms", _SEALS, _RUST),
    _ratio("open loop, the same: p99.9 ÷ Rust's", 1.3, 1.0, "p99.9 ms", _SEALS, _RUST),
    _largest("window's end → confirm by RabbitMQ, 6 million ids, ms", 250, 50, "confirmed ms"),
    _largest("the same with 16 shards on one Redis, ms", 100, 50, "confirmed ms", "flush, shards"),
    _largest("Redis bytes per id of 9 digits, in the exact set", 60, 56, "of them in the set"),
    _value("10,000 callbacks, 1% of them tarpits: all the others called, s", 15, 8, "all s", _TARPITS),
    Target(
        "the same, s later than without tarpits",
        *(1, 0.5, lambda found: found.differences("all s", _TARPITS, ("without tarpits", "calls"))),
    ),
    _ratio(
        "hits' p99 while 153 hostile endpoints are called ÷ in quiet",
        *(1.5, 1.2, "p99 ms", ("hostile", "beside callbacks"), _QUIET),
    ),
    _ratio(
        "hits' p99 while 10,000 https endpoints are called ÷ in quiet",
        *(1.5, 1.2, "p99 ms", ("https", "beside callbacks"), _QUIET),
    ),
    _value("records of 35 days read, ms", 100, 50, "ms", ("records of 35 days", "reading")),
    _value("estimate of 30 days, ms", 50, 10, "ms", ("estimate of 30 days, odd ends", "reading")),
    _value("a step of a roll-up, ms", 20, 10, "ms", ("a step of a roll-up, 64 windows", "reading")),
    _value(
        "heartbeats of 20 machines, % of a core of Redis",
        0.1,
        0.05,
        "% of a core",
        ("20 machines", "heartbeats"),
    ),
    Target("CPU with Redis, 6 million ids in the window ÷ 0.1 million", 1.10, 1.05, _grown),
    _ratio(
        "server CPU, one replica ÷ none, 64 connections",
        *(1.10, 1.05, _SERVER, _plan(1, 1, 64), _plan(1, 0, 64)),
    ),
    _ratio(
        "throughput, one replica on the same core ÷ none, 512 connections",
        *(0.60, 0.75, _RATE, _plan(1, 1, 512), _plan(1, 0, 512)),
    ),
    _ratio(
        "server CPU, 4 shards ÷ 1, 512 connections",
        *(1.25, 1.10, _SERVER, _plan(4, 0, 512), _plan(1, 0, 512)),
    ),
    Target("simulated throughputs and p99s more than 20% off", 0, 0, _astray),
)
# All that the targets need; those under closed-loop load are in its plan.
CELLS = frozenset[Cell]().union(*(target.cells for target in TARGETS))
