"""All findings as one text, in reStructuredText."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median, quantiles

import bench.closed_loop.report
import bench.flushing.report
import bench.growth.report
import bench.open_loop.report
from bench.closed_loop.results import Results, middle
from bench.findings import Findings
from bench.targets import TARGETS
from kit.tables import number, section, table

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


def headline(machine: Mapping[str, str], closed: Results) -> str:
    """The one figure of the README."""
    ratios = closed.ratios(lambda cost: cost.server_us, ("idagg", "64"), ("nginx", "64"))
    return _HEADLINE.format(
        cores=machine["cores"],
        rate=number(closed.median(lambda cost: cost.rate, "idagg", "64")),
        p99=number(closed.median(lambda cost: cost.load.p99_ms, "idagg", "64")),
        ratio=number(middle(ratios)),
        fastapi=number(closed.median(lambda cost: cost.rate, "fastapi", "64")),
    )


def summary(found: Findings) -> str:
    """What docs/benchmark.rst shows, whose links begin at its folder."""
    assert found.closed
    tables = [_targets(found), bench.closed_loop.report.costs(found.closed, "64")]
    shown = [f".. rst-class:: figures\n\n{one}" for one in tables]
    plot = ".. image:: ../bench/results/throughput.svg\n   :alt: requests a second of each server"
    return "\n\n".join([*_circumstances(found), *shown, plot])


def report(found: Findings) -> str:
    parts = _circumstances(found)
    if found.options["quick"]:
        parts.append(_QUICK.format(**found.options | {"ids": max(found.options["ids"])}))
    parts.append(section("What idagg must reach", _targets(found)))
    if found.closed:
        parts += bench.closed_loop.report.sections(found.closed)
    if found.open:
        parts += bench.open_loop.report.sections(found.open)
    if found.flushing:
        parts += bench.flushing.report.sections(found.flushing)
    if found.growth:
        parts += bench.growth.report.sections(found.growth)
    return "\n\n".join(parts) + "\n"


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
