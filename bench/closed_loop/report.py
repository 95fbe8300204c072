"""The closed loop's results as tables."""

from __future__ import annotations

from collections.abc import Callable

from bench.closed_loop.results import Results, middle
from bench.cost import Cost
from bench.traffic import TRAFFIC
from kit.tables import number, section, table


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
        "load's cores": lambda cost: cost.load.cores,
    }
    servers = results.servers(traffic)
    if any(run.cost.balancer_cpu_s for server in servers for run in results.of(server, traffic)):
        columns["balancer µs"] = lambda cost: cost.balancer_us
    rows = []
    for server in servers:
        # Behind the same balancer, where there is one.
        base = next((name for name in (f"{server.partition('-')[0]}-nginx", "nginx") if name in servers), "")
        to_nginx = middle(results.ratios(lambda cost: cost.server_us, (server, traffic), (base, traffic)))
        failed = sum(run.cost.load.failed for run in results.of(server, traffic))
        figures = [results.median(figure, server, traffic) for figure in columns.values()]
        rows.append([server, *map(number, figures), number(to_nginx), f"{failed:,}"])
    return table(["server", *columns, "÷ nginx", "failed"], rows)


def _upkeep(results: Results) -> str:
    servers = dict.fromkeys(upkeep.server for upkeep in results.upkeep)
    return table(
        ["server", "start s", "KiB/idle"],
        [
            [server, number(middle(results.start_s(server))), number(middle(results.idle_kib(server)))]
            for server in servers
        ],
    )
