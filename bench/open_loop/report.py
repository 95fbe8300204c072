"""Open-loop runs as tables."""

from __future__ import annotations

from bench.open_loop.results import Check, OpenLoop, Run, Session
from idagg.window import iso
from kit.histogram import Summary
from kit.tables import number, section, table

_LATENCIES = ("p50 ms", "p99 ms", "p99.9 ms", "max ms")


def sections(found: OpenLoop) -> list[str]:
    parts = [section("The generator beside wrk, p50", _checks(found.checks))] if found.checks else []
    for run in found.seals.runs:
        title = f"{run.load.rate:,.0f} requests a second for {len(run.load.seconds)} s"
        parts.append(section(title, f"{over_seals(run)}\n\n{_usage(run)}\n\n{_redis(found.seals)}"))
    parts += [
        section("The same for the service in Rust", f"{over_seals(run)}\n\n{_usage(run)}")
        for run in found.rust.runs
    ]
    if found.rates.runs:
        parts.append(section("By the rate offered", _by_rate(found.rates.runs)))
    return parts


def _checks(checks: list[Check]) -> str:
    rows = [
        [check.server, f"{check.rate:,.0f}"]
        + [f"{ms:.3f}" for ms in (check.wrk.p50_ms, check.generator.p50_ms, check.lag.p50_ms)]
        for check in checks
    ]
    return table(["server", "requests/s", "wrk ms", "generator ms", "of them lag"], rows)


def over_seals(run: Run) -> str:
    rows = [[what, *_figures(latencies), f"{failed:,}"] for what, (latencies, failed) in run.rows().items()]
    return table(["latency of", *_LATENCIES, "failed"], rows)


def _usage(run: Run) -> str:
    seconds, requests = len(run.load.seconds), max(run.ok, 1)
    rows = [
        [
            part,
            *map(number, (usage.cpu_s / seconds, usage.cpu_s / requests * 1e6)),
            f"{usage.waited_s / seconds:.1%}",
        ]
        for part, usage in run.usage.items()
    ]
    return table(["CPU of", "cores", "µs/request", "without a core"], rows)


def _redis(session: Session) -> str:
    began = [iso(int(when))[11:19] for when in session.began_rewrites()]
    lines = [f"Redis began to rewrite its log at: {', '.join(began) or 'no time'}."]
    for name, times in session.slow_redis.items():
        worst = max(ms for _, ms in times)
        lines.append(f"{name} held Redis up for 2 ms and more in {len(times)} seconds, at most {worst} ms.")
    return "\n".join(lines)


def _by_rate(runs: list[Run]) -> str:
    rows = []
    for run in runs:
        cores = run.usage["generator"].cpu_s / len(run.load.seconds)
        generator = map(number, (run.load.lag.percentile_ms(99), cores))
        rows.append([f"{run.load.rate:,.0f}", *_figures(run.latencies), f"{run.failed:,}", *generator])
    head = ["requests/s", *_LATENCIES, "failed", "generator's p99 lag ms", "its cores"]
    return table(head, rows)


def _figures(latencies: Summary) -> list[str]:
    return [number(ms) for ms in (latencies.p50_ms, latencies.p99_ms, latencies.p99_9_ms, latencies.max_ms)]
