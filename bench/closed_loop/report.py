"""The closed loop's results as tables."""

from __future__ import annotations

from collections.abc import Callable

from bench.closed_loop.results import Results
from bench.cost import Cost
from bench.tables import number, section, table
from bench.traffic import TRAFFIC


def sections(results: Results) -> list[str]:
    parts = [
        section(traffic.what, costs(results, name))
        for name, traffic in TRAFFIC.items()
        if results.servers(name)
    ]
    return [*parts, section("Start and idle connections", _upkeep(results))]


def costs(results: Results, traffic: str) -> str:
    """The servers beside each other under one kind of traffic."""
    columns: dict[str, Callable[[Cost], float]] = {
        "requests/s": lambda cost: cost.rate,
        "p50 ms": lambda cost: cost.load.p50_ms,
        "p99 ms": lambda cost: cost.load.p99_ms,
        "p99.9 ms": lambda cost: cost.load.p999_ms,
        "max ms": lambda cost: cost.load.max_ms,
        "server µs": lambda cost: cost.server_us,
        "Redis µs": lambda cost: cost.store_us,
        "wrk's cores": lambda cost: cost.load.cores,
    }
    rows = []
    for server in results.servers(traffic):
        to_nginx = results.ratio(lambda cost: cost.server_us, (server, traffic), ("nginx", traffic))
        failed = sum(run.cost.load.failed for run in results.of(server, traffic))
        figures = [results.median(figure, server, traffic) for figure in columns.values()]
        rows.append([server, *map(number, figures), number(to_nginx), f"{failed:,}"])
    return table(["server", *columns, "÷ nginx", "failed"], rows)


def _upkeep(results: Results) -> str:
    servers = dict.fromkeys(upkeep.server for upkeep in results.upkeep)
    return table(
        ["server", "start s", "KiB/idle"],
        [[server, number(results.start_s(server)), number(results.idle_kib(server))] for server in servers],
    )
