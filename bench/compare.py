"""The comparison: every server under every kind of traffic in turn, round after round."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from bench import wrk
from bench.measure import cpu_seconds, memory
from bench.report import report
from bench.results import Results, Run, Upkeep
from bench.servers import START, Server
from bench.targets import CELLS, Cell
from bench.tools import machine, need, say
from bench.traffic import HEADERS, IDLE, TRAFFIC

_RESULTS = Path(__file__).parent / "results"
_RECORDED = ("quick", "rounds", "seconds", "warm_up", "threads", "idle")
# First ids, so that all have 9 digits and no load meets those of its warm-up.
_WARM_UP_IDS, _LOAD_IDS = 100_000_000, 500_000_000


def main() -> int:
    options = _options()
    need()
    # A plain kill, too, must unwind the blocks that end the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Both ends of the idle connections count against this limit, which the servers inherit.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    options.cache.mkdir(parents=True, exist_ok=True)
    options.results.mkdir(parents=True, exist_ok=True)

    results = Results(machine(options.cache), {name: vars(options)[name] for name in _RECORDED})
    steps = _plan(options)
    total, done, began = len(steps) * options.rounds, 0, time.monotonic()
    for number in range(1, options.rounds + 1):
        for server, traffic in steps:
            found = _measure(results, number, server, traffic, options)
            done += 1
            left_s = (time.monotonic() - began) / done * (total - done)
            say(f"{done}/{total}, {left_s:.0f} s left: {server} {traffic}: {found}")
        _write(results, options.results)  # whole rounds, in case that a later one is interrupted
    print((options.results / "report.rst").read_text())
    return _losses(results.runs)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/throughput", description="What an accepted request costs, server by server."
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="in two minutes: what the targets need, once and roughly")
    add("--servers", type=_names(START), default=list(START), help="default: all, " + ",".join(START))
    add("--traffic", type=_names(TRAFFIC), default=list(TRAFFIC), help="default: all, " + ",".join(TRAFFIC))
    add("--rounds", type=int, help="default: 3, quick: 1")
    add("--seconds", type=int, help="of each load, default: 5, quick: 1")
    add("--warm-up", type=int, help="seconds before it that do not count, default: 2, quick: 1")
    add("--threads", type=int, default=1, help="of wrk, default: %(default)s")
    add("--idle", type=int, default=5000, help="idle connections, default: %(default)s")
    add("--results", type=Path, help="folder for them, default: bench/results, quick: quick in it")
    # Not in /tmp, which may be memory, where an fsync costs nothing.
    add(
        "--cache", type=Path, default=Path.home() / ".cache/idagg-bench", help="default: ~/.cache/idagg-bench"
    )
    options = parser.parse_args()
    quick = options.quick
    options.rounds = options.rounds or (1 if quick else 3)
    options.seconds = options.seconds or (1 if quick else 5)
    options.warm_up = options.warm_up or (1 if quick else 2)
    options.results = options.results or (_RESULTS / "quick" if quick else _RESULTS)
    return options


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}")
        return names

    return parse


def _plan(options: argparse.Namespace) -> list[Cell]:
    """The steps of a round. Servers take turns under the same traffic; what is compared is close together."""
    first = options.traffic[0]
    return [
        (server, traffic)
        for traffic in [IDLE, *options.traffic]
        for server in options.servers
        if not options.quick or traffic == first or (server, traffic) in CELLS
    ]


def _measure(
    results: Results, number: int, server: str, traffic: str, options: argparse.Namespace
) -> Run | Upkeep:
    with _started(server, options.cache) as (running, start_s):
        if traffic == IDLE:
            upkeep = Upkeep(number, server, start_s, _idle_kib(running, options.idle))
            results.upkeep.append(upkeep)
            return upkeep
        run = _run(running, number, server, traffic, options)
        results.runs.append(run)
        return run


@contextlib.contextmanager
def _started(name: str, cache: Path) -> Iterator[tuple[Server, float]]:
    """A server that answers, with an empty store, and how long it took to."""
    with (
        tempfile.TemporaryDirectory(dir=cache, prefix=f"{name}-") as folder,
        START[name](Path(folder), cache) as server,
    ):
        yield server, server.wait()


def _run(server: Server, number: int, name: str, traffic: str, options: argparse.Namespace) -> Run:
    def drive(first_id: int, seconds: int) -> wrk.Load:
        return wrk.drive(
            server.port, TRAFFIC[traffic], first_id=first_id, seconds=seconds, threads=options.threads
        )

    def cpu() -> tuple[dict[int, float], dict[int, float]]:
        return cpu_seconds(server.process.pid), cpu_seconds(server.store.process.pid) if server.store else {}

    warm_up = drive(_WARM_UP_IDS, options.warm_up)
    server_before, store_before = cpu()
    load = drive(_LOAD_IDS, options.seconds)
    server_after, store_after = cpu()
    if not load.accepted:
        sys.exit(f"{name} accepted nothing: {load}")
    return Run(
        number,
        name,
        traffic,
        warm_up,
        load,
        {pid: spent - server_before.get(pid, 0) for pid, spent in server_after.items()},
        {pid: spent - store_before.get(pid, 0) for pid, spent in store_after.items()},
        server.stored(),
    )


def _idle_kib(server: Server, count: int) -> float:
    """KiB of the server's memory for each keep-alive connection that has had an answer and now is idle."""
    request = f"GET /api/verve/accept?id=1 HTTP/1.1\r\n{HEADERS['browser']}\r\n".encode()
    with contextlib.ExitStack() as stack:

        def connect(times: int) -> None:
            for _ in range(times):
                connection = stack.enter_context(
                    socket.create_connection(("127.0.0.1", server.port), timeout=5)
                )
                connection.sendall(request)
                if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
                    sys.exit(f"port {server.port} refused a connection's first request")

        connect(count // 5)  # into memory that was free since the start
        before = memory(server.process.pid)
        connect(count)
        return (memory(server.process.pid) - before) / count / 1024


def _write(results: Results, folder: Path) -> None:
    from bench import plots  # not above: where matplotlib is missing, need() says so better

    (folder / "raw.json").write_text(json.dumps(dataclasses.asdict(results), indent=1) + "\n")
    (folder / "report.rst").write_text(report(results))
    plots.draw(results, folder)


def _losses(runs: Sequence[Run]) -> int:
    """Exit code: whether a server lost ids that it had accepted."""
    lossy = [run for run in runs if run.lost and TRAFFIC[run.traffic].ids == "new"]
    for run in lossy:
        say(f"{run.server} LOST {run.lost:,} ids that it had accepted (round {run.round}, {run.traffic})")
    return int(bool(lossy))
