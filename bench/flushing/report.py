"""Flushes, callbacks and starts as tables."""

from __future__ import annotations

from statistics import median

from bench.flushing.results import Flushing
from kit.tables import number, section, table


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
        section("From the start to the first ok", table(["store", "median s", "min", "max"], starts)),
    ]
