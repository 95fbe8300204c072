"""The results as tables, in reStructuredText."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.results import Results, Run
from bench.targets import TARGETS
from bench.traffic import TRAFFIC


def report(results: Results) -> str:
    where = "{processor}, {cores} cores, {memory}, {system}, Linux {kernel}, an fsync takes {fsync}"
    what = "idagg at {commit}, Python {python}, {packages}, Redis {redis}, nginx {nginx}, Go {go}, wrk {wrk}"
    parts = [
        f"{where}.\n{what}.".format(**results.machine),
        _section("What idagg must reach", _targets(results)),
    ]
    parts += [
        _section(traffic.what, _comparison(results, name))
        for name, traffic in TRAFFIC.items()
        if results.servers(name)
    ]
    parts.append(_section("Start and idle connections", _upkeep(results)))
    return "\n\n".join(parts) + "\n"


def _targets(results: Results) -> str:
    rows = []
    for target in TARGETS:
        value = target.measured(results)
        measured = ("-", "-") if value is None else (f"{value:.2f}", target.verdict(value))
        rows.append([target.figure, target.limit(target.must), target.limit(target.stretch), *measured])
    return table(["figure", "must", "stretch", "measured", "reached"], rows)


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
        rows.append([server, *map(_number, figures), _number(to_nginx), f"{failed:,}"])
    return table(["server", *columns, "÷ nginx", "failed"], rows)


def _upkeep(results: Results) -> str:
    servers = dict.fromkeys(upkeep.server for upkeep in results.upkeep)
    return table(
        ["server", "start s", "KiB/idle"],
        [[server, _number(results.start_s(server)), _number(results.idle_kib(server))] for server in servers],
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A simple table, names on the left and figures on the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    line = "  ".join("=" * width for width in widths)
    return "\n".join([line, _row(head, widths), line, *(_row(row, widths) for row in rows), line])


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])


def _section(title: str, body: str) -> str:
    return f"{title}\n{'-' * len(title)}\n\n{body}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"
