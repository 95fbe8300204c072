"""The comparison: every server under every kind of traffic in turn, round after round."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import wrk
from bench.closed_loop.results import Results, Run, Upkeep
from bench.cost import Cost
from bench.servers import START
from bench.service import Server
from bench.targets import CELLS, Cell
from bench.tools import names, say
from bench.traffic import IDLE, TRAFFIC
from kit.processes import memory
from kit.traffic import get

# First ids, so that all have 9 digits and no load meets those of its warm-up.
_WARM_UP_IDS, _LOAD_IDS = 100_000_000, 500_000_000
_IDLE_CONNECTIONS = 5000
# Where every server is measured; elsewhere only those of which no other is a variant.
_FOR_ALL = ("64", "512", IDLE)
_VARIANTS = ("idagg-2", "idagg-everysec", "idagg-nolog", "aiohttp-sadd", "fastapi-2")
# Which other traffic is for whom, apart from what targets need.
_FOR_FEW = ("nginx", "idagg", "go-group", "rust-sadd")
_BALANCED = ("haproxy-nginx", "haproxy-idagg", "nginx-nginx", "nginx-idagg")
_FOR_IDAGG = ("bulk", "java", "java-http1")
# In how many rounds what no target needs is measured.
_ROUNDS = 3


def add_options(group: argparse._ArgumentGroup, *, quick: bool) -> None:
    add = group.add_argument
    add("--servers", type=names(START), default=list(START), help="default: all, " + ",".join(START))
    add("--traffic", type=names(TRAFFIC), default=list(TRAFFIC), help="default: all, " + ",".join(TRAFFIC))
    add(
        "--rounds",
        type=int,
        default=1 if quick else 7,
        help=f"of what the targets need, the rest in no more than {_ROUNDS}; default: %(default)s",
    )
    add("--seconds", type=int, default=1 if quick else 2, help="of each load, default: %(default)s")
    add("--warm-up", type=int, default=1, help="seconds before it that do not count, default: %(default)s")


def measure(results: Results, options: argparse.Namespace) -> list[str]:
    """What could not be measured, and the servers that lost ids which they had accepted."""
    steps = [(number, *cell) for number in range(1, options.rounds + 1) for cell in _plan(number, options)]
    began, troubles = time.monotonic(), []
    for done, (number, server, traffic) in enumerate(steps, 1):
        try:
            found = str(_measure(results, number, server, traffic, options))
        except (RuntimeError, subprocess.SubprocessError) as error:  # the others can do without this one
            found = f"was not measured: {error}"
            say(f"{server} {traffic} {found}")
            found = found.splitlines()[0]
            troubles.append(f"{server} {traffic} (round {number}) {found}")
        left_s = (time.monotonic() - began) / done * (len(steps) - done)
        say(f"{done}/{len(steps)}, {left_s:.0f} s left: {server} {traffic}: {found}")
    return troubles + [
        f"{run.server} LOST {run.lost:,} ids that it had accepted (round {run.round}, {run.traffic})"
        for run in results.runs
        if run.lost and TRAFFIC[run.traffic].ids == "new"
    ]


def _plan(number: int, options: argparse.Namespace) -> list[Cell]:
    """The steps of a round. Servers take turns under the same traffic; what is compared is close together."""
    others = number <= _ROUNDS and not options.quick
    return [
        (server, traffic)
        for traffic in [IDLE, *options.traffic]
        for server in options.servers
        if (server, traffic) in CELLS or (others and _meets(server, traffic))
    ]


def _meets(server: str, traffic: str) -> bool:
    if server in _BALANCED:
        return traffic == "balanced"
    if server == "nginx-deferred":  # another only as far as connections are new
        return traffic == "close"
    if server in _VARIANTS:
        return traffic == "64"
    return traffic in _FOR_ALL or (server in _FOR_FEW and traffic not in ("balanced", *_FOR_IDAGG))


def _measure(
    results: Results, number: int, server: str, traffic: str, options: argparse.Namespace
) -> Run | Upkeep:
    with _started(server, options.cache) as (running, start_s):
        if traffic == IDLE:
            upkeep = Upkeep(number, server, start_s, _idle_kib(running))
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
        return wrk.drive(server.port, TRAFFIC[traffic], first_id=first_id, seconds=seconds)

    warm_up = drive(_WARM_UP_IDS, options.warm_up)
    cost = Cost.of(server, lambda: drive(_LOAD_IDS, options.seconds))
    return Run(number, name, traffic, warm_up, cost, server.stored())


def _idle_kib(server: Server, count: int = _IDLE_CONNECTIONS) -> float:
    """KiB of the server's memory for each keep-alive connection that has had an answer and now is idle."""
    numbers = itertools.count()
    with contextlib.ExitStack() as stack:

        def connect(times: int) -> None:
            for _ in range(times):
                connection = stack.enter_context(
                    socket.create_connection(("127.0.0.1", server.port), timeout=5)
                )
                connection.sendall(get(b"id=1", next(numbers)))
                if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
                    raise RuntimeError(f"port {server.port} refused a connection's first request")

        connect(count // 5)  # into memory that was free since the start
        before = memory(server.process.pid)
        connect(count)
        return (memory(server.process.pid) - before) / count / 1024
