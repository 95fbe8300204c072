"""The closed loop's results as tables."""

from __future__ import annotations

from collections.abc import Callable

from bench.closed_loop.results import Results, Run
from bench.tables import number, section, table
from bench.traffic import TRAFFIC


def sections(results: Results) -> list[str]:
    parts = [
        section(traffic.what, _comparison(results, name))
        for name, traffic in TRAFFIC.items()
        if results.servers(name)
    ]
    return [*parts, section("Start and idle connections", _upkeep(results))]


def _comparison(results: Results, traffic: str) -> str:
    columns: dict[str, Callable[[Run], float]] = {
        "requests/s": lambda run: run.rate,
        "p50 ms": lambda run: run.load.p50_ms,
        "p99 ms": lambda run: run.load.p99_ms,
        "p99.9 ms": lambda run: run.load.p999_ms,
        "max ms": lambda run: run.load.max_ms,
        "server µs": lambda run: run.server_us,
        "Redis µs": lambda run: run.store_us,
    }
    rows = []
    for server in results.servers(traffic):
        to_nginx = results.ratio(lambda run: run.server_us, (server, traffic), ("nginx", traffic))
        failed = sum(run.load.failed for run in results.of(server, traffic))
        figures = [results.median(figure, server, traffic) for figure in columns.values()]
        rows.append([server, *map(number, figures), number(to_nginx), f"{failed:,}"])
    return table(["server", *columns, "÷ nginx", "failed"], rows)


def _upkeep(results: Results) -> str:
    servers = dict.fromkeys(upkeep.server for upkeep in results.upkeep)
    return table(
        ["server", "start s", "KiB/idle"],
        [[server, number(results.start_s(server)), number(results.idle_kib(server))] for server in servers],
    )
