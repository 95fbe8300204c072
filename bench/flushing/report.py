"""Flushes, callbacks and starts as tables."""

from __future__ import annotations

from statistics import median

from bench.flushing.results import Accepting, Flushing
from bench.tables import number, section, table


def sections(found: Flushing) -> list[str]:
    flushes = [
        [
            f"{flush.ids:,}",
            *map(number, (flush.arrived_ms, flush.delivered_ms, flush.bytes_per_id, flush.set_bytes_per_id)),
        ]
        for flush in found.flushes
    ]
    calls = [
        [
            *(f"{calls.endpoints:,}", f"{calls.tarpits}"),
            *map(number, (calls.half_s, calls.all_s)),
            *(f"{calls.missing}", f"{calls.repeated}"),
        ]
        for calls in found.calls
    ]
    starts = [[where, *map(number, (median(s), min(s), max(s)))] for where, s in found.starts.items()]
    return [
        section(
            "The end of a window",
            table(["ids", "at the consumer ms", "confirmed ms", "bytes/id", "of them in the set"], flushes),
        ),
        section(
            "Callbacks",
            table(["endpoints", "tarpits", "half s", "all s", "missing", "repeated"], calls),
        ),
        *([_beside(found.accepting)] if found.accepting else []),
        section("From the start to the first ok", table(["store", "median s", "min", "max"], starts)),
    ]


def _beside(found: Accepting) -> str:
    phases = (found.quiet, found.hostile, found.https)
    rows = [
        [
            f"{phase.what}, {phase.seconds} s",
            *map(number, (phase.latencies.p50_ms, phase.latencies.p99_ms, phase.latencies.p99_9_ms)),
            f"{phase.failed}",
            *map(number, phase.cpu_s.values()),
        ]
        for phase in phases
    ]
    head = ["hits", "p50 ms", "p99", "p99.9", "failed", *(f"{part}, CPU s" for part in found.quiet.cpu_s)]
    calls = [[kind, f"{of:,}", f"{most}"] for kind, (of, most) in found.calls.items()]
    memory = f"The callback process took {number(found.peak_mib)} MiB at most."
    return section(
        "Hits beside callbacks",
        "\n\n".join(
            [table(head, rows), table(["endpoints", "callbacks", "most calls of one"], calls), memory]
        ),
    )
