"""All findings as one text, in reStructuredText: a table for each kind of sample."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, quantiles

from bench.growth import SWEEPS
from bench.samples import Findings
from bench.targets import TARGETS
from bench.traffic import IDLE, TRAFFIC
from kit.tables import number, section, table

# Titles of tables, and heads of their first columns, in the order of the report.
_TABLES: dict[str, tuple[str, str]] = {
    **{name: (traffic.what, "server") for name, traffic in TRAFFIC.items()},
    IDLE: ("Start and idle connections", "server"),
    "check": ("The generator beside wrk, p50", "server"),
    "seals": ("At a constant rate over the ends of windows", "latency of"),
    "seals: CPU": ("CPU at this rate", "CPU of"),
    "seals, Rust": ("The same for the service in Rust", "latency of"),
    "seals, Rust: CPU": ("CPU of the service in Rust at this rate", "CPU of"),
    "rates": ("By the rate offered", "requests/s"),
    "flush": ("The end of a window", "ids"),
    "flush, shards": ("The end of a window of 16 shards, all on one Redis", "ids"),
    "calls": ("Callbacks", "callbacks"),
    "beside callbacks": ("Hits beside callbacks", "hits"),
    "strangers": ("Calls of strangers meanwhile", "endpoints"),
    "costs": ("What each step costs", "step"),
    "model, closed loop": ("The simulation beside real runs, on one core", "plan, connections"),
    "model, open loop": (
        "The simulation beside real runs, on one core, 10,000 requests/s",
        "plan, connections",
    ),
    "sizing": ("What a rate takes", "requests/s"),
    "reading": ("Reading back", "what"),
    "heartbeats": ("What machines publish for each other", "of"),
    **{f"by {sweep}": (f"By {what}", sweep) for sweep, what in SWEEPS.items()},
}
# Of all rounds together; of all else tables show the median.
_SUMMED = ("failed", "missing", "repeated")
# A machine that does more than this without us is not ours.
_CALM_LOAD_AVERAGE, _CALM_CORES = 0.5, 0.25
_WHERE = "{processor}, {cores} cores, {memory}, {system}, Linux {kernel}, an fsync takes {fsync}"
_WHAT = (
    "idagg at {commit}, Python {python}, {packages}, Redis {redis}, nginx {nginx}, Go {go}, "
    "Rust {rust}, HAProxy {haproxy}, Java {java}, wrk {wrk}"
)
_QUICK = """A quick run: what the targets need, once and roughly. The open loop has windows of {window} s and
{idle:,} idle connections beside it, the flush {ids:,} ids; {endpoints:,} endpoints are called. Left out are
servers and traffic that no target is about, the check of the open loop's generator, latency by rate,
callbacks without tarpits, and growth where it was not asked for."""


_HEADLINE = """One worker answers **{rate} requests a second**, p99 {p99} ms, at {ratio} times the CPU of
nginx's constant reply. FastAPI with one ``SADD`` for each request answers {fastapi}. Measured with 64
connections, new ids only, an fsync before each ``ok``, on {cores} cores that Redis and the load generator
share."""


def headline(found: Findings) -> str:
    """The one figure of the README."""
    ours = ("idagg", "64")
    return _HEADLINE.format(
        cores=found.machine["cores"],
        rate=number(found.median("requests/s", ours)),
        p99=number(found.median("p99 ms", ours)),
        ratio=number(median(found.ratios("server µs", ours, ("nginx", "64")))),
        fastapi=number(found.median("requests/s", ("fastapi", "64"))),
    )


def summary(found: Findings) -> str:
    """What docs/benchmark.rst shows, whose links begin at its folder."""
    shown = [f".. rst-class:: figures\n\n{one}" for one in (_targets(found), _table(found, "64"))]
    plot = ".. image:: ../bench/results/throughput.svg\n   :alt: requests a second of each server"
    return "\n\n".join([*_circumstances(found), *shown, plot])


def report(found: Findings) -> str:
    parts = _circumstances(found)
    if found.options["quick"]:
        parts.append(_QUICK.format(**found.options | {"ids": max(found.options["ids"])}))
    parts.append(section("What idagg must reach", _targets(found)))
    shown = ((what, title) for what, (title, _) in _TABLES.items() if found.rows(what))
    return "\n\n".join([*parts, *(section(title, _table(found, what)) for what, title in shown)]) + "\n"


def _table(found: Findings, what: str) -> str:
    """A row for each server or place, medians of all rounds."""
    names = dict.fromkeys(
        name for row in found.rows(what) for s in found.of((row, what)) for name in s.figures
    )
    to_nginx = ["÷ nginx"] if what in TRAFFIC else []
    measured, summed = ([name for name in names if (name in _SUMMED) == are] for are in (False, True))
    rows = []
    for row in found.rows(what):
        cells = [_median(found, name, row, what) for name in measured]
        cells += [_to_nginx(found, str(row), what) for _ in to_nginx]
        cells += [sum(sample.figures.get(name, 0) for sample in found.of((row, what))) for name in summed]
        rows.append([number(row) if isinstance(row, int) else row, *map(number, cells)])
    return table([_TABLES[what][1], *measured, *to_nginx, *summed], rows)


def _median(found: Findings, name: str, row: str | int, what: str) -> float | None:
    values = [sample.figures[name] for sample in found.of((row, what)) if name in sample.figures]
    return median(values) if values else None


def _to_nginx(found: Findings, server: str, traffic: str) -> float | None:
    """Behind the same balancer, where there is one."""
    balanced = f"{server.partition('-')[0]}-nginx"
    base = balanced if balanced in found.rows(traffic) else "nginx"
    ratios = found.ratios("server µs", (server, traffic), (base, traffic))
    return median(ratios) if ratios else None


def _circumstances(found: Findings) -> list[str]:
    parts = [f"{_WHERE}; {_before(found)}.\n{_WHAT}.".format(**found.machine)]
    if disturbed := disturbance(found):
        parts.append(f"**{disturbed}**")
    return parts + [f"**{trouble}.**" for trouble in found.troubles]


def disturbance(found: Findings) -> str:
    """A warning where others had the machine before us. The load average before a later part is our own."""
    disturbed = [
        f"{part} ({unrest})"
        for number, (part, unrest) in enumerate(found.unrest.items())
        if unrest.busy_cores > _CALM_CORES or (number == 0 and unrest.load_average > _CALM_LOAD_AVERAGE)
    ]
    if not disturbed:
        return ""
    return f"Others keep this machine busy, the figures are disturbed: {', '.join(disturbed)}."


def _before(found: Findings) -> str:
    before = [f"{unrest.load_average:.2f} ({part})" for part, unrest in found.unrest.items()]
    return f"load average before it {', '.join(before)}"


def _targets(found: Findings) -> str:
    rows = []
    for target in TARGETS:
        values = target.measured(found)
        rows.append([target.figure, target.limit(target.must), target.limit(target.stretch)])
        rows[-1] += [*_spread(values), target.verdict(median(values)) if values else "-"]
    return table(["figure", "must", "stretch", "min", "q1", "median", "q3", "reached"], rows)


def _spread(values: Sequence[float]) -> list[str]:
    """The least, the first quartile, the median, the third quartile; of a single figure only itself."""
    if len(values) < 2:
        return ["-", "-", f"{values[0]:.2f}" if values else "-", "-"]
    return [f"{value:.2f}" for value in (min(values), *quantiles(values, n=4, method="inclusive"))]
