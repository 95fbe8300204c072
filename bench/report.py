"""What a run showed, and the table of all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from statistics import median

from bench.wrk import Load


@dataclasses.dataclass(frozen=True)
class Run:
    """One load on one server. CPU is that of the load alone, without the warm-up, by process id."""

    round: int
    server: str
    warm_up: Load
    load: Load
    server_cpu_s: dict[int, float]
    store_cpu_s: dict[int, float]

    @property
    def server_us(self) -> float:
        """CPU µs of the server's processes per accepted request."""
        return sum(self.server_cpu_s.values()) * 1e6 / self.load.accepted

    @property
    def store_us(self) -> float:
        return sum(self.store_cpu_s.values()) * 1e6 / self.load.accepted

    @property
    def total_us(self) -> float:
        return self.server_us + self.store_us

    def __str__(self) -> str:
        return (
            f"round {self.round}: {self.server} {self.load.accepted / self.load.seconds:,.0f} requests/s, "
            f"{self.server_us:.2f} + {self.store_us:.2f} µs"
        )


def accepted(runs: Sequence[Run], server: str) -> int:
    return sum(run.warm_up.accepted + run.load.accepted for run in runs if run.server == server)


def ratio(runs: Sequence[Run], figure: Callable[[Run], float], above: str, below: str) -> float | None:
    """Median over the rounds: the machine's mood changes less within a round than between rounds."""
    base = {run.round: figure(run) for run in runs if run.server == below}
    ratios = [figure(run) / base[run.round] for run in runs if run.server == above and run.round in base]
    return median(ratios) if ratios else None


def table(runs: Sequence[Run], idle_kib: dict[str, float]) -> str:
    columns: dict[str, Callable[[Run], float]] = {
        "requests/s": lambda run: run.load.accepted / run.load.seconds,
        "p50 ms": lambda run: run.load.p50_ms,
        "p99 ms": lambda run: run.load.p99_ms,
        "server µs": lambda run: run.server_us,
        "Redis µs": lambda run: run.store_us,
    }
    rows = [["server", *columns, "÷ nginx", "KiB/idle", "failed"]]
    for server, kib in idle_kib.items():
        own = [run for run in runs if run.server == server]
        to_nginx = ratio(runs, lambda run: run.server_us, server, "nginx")
        rows.append(
            [
                server,
                *(_number(median(map(figure, own))) for figure in columns.values()),
                _number(to_nginx),
                _number(kib),
                f"{sum(run.load.failed for run in own):,}",
            ]
        )
    lines = ["  ".join(f"{cell:>10}" for cell in row) for row in rows]
    peer = ratio(runs, lambda run: run.total_us, "fastapi", "idagg")
    if peer:
        lines += ["", f"CPU of server and Redis per accepted request, fastapi ÷ idagg: {peer:.1f}"]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"
