"""The comparison: every server under every kind of traffic in turn, round after round."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from bench import load
from bench.samples import Findings, Sample
from bench.servers import START
from bench.service import Running
from bench.targets import CELLS
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
_ONLY_IDLE = "idagg-embedded"
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


def measure(found: Findings, options: argparse.Namespace) -> None:
    steps = [(number, *cell) for number in range(1, options.rounds + 1) for cell in _plan(number, options)]
    began = time.monotonic()
    for done, (number, server, traffic) in enumerate(steps, 1):
        try:
            said = str(_measure(found, number, server, traffic, options))
        except (RuntimeError, subprocess.SubprocessError) as error:  # the others can do without this one
            said = f"{server} {traffic} (round {number}) was not measured: {error}"
            found.troubles.append(said.splitlines()[0])
        left_s = (time.monotonic() - began) / done * (len(steps) - done)
        say(f"{done}/{len(steps)}, {left_s:.0f} s left: {said}")


def _plan(number: int, options: argparse.Namespace) -> list[tuple[str, str]]:
    """The steps of a round. Servers take turns under the same traffic; what is compared is close together."""
    others = number <= _ROUNDS and not options.quick
    return [
        (server, traffic)
        for traffic in [IDLE, *options.traffic]
        for server in options.servers
        if (server, traffic) in CELLS or (others and _meets(server, traffic))
    ]


def _meets(server: str, traffic: str) -> bool:
    if server == _ONLY_IDLE:
        return traffic == IDLE
    if server in _BALANCED:
        return traffic == "balanced"
    if server == "nginx-deferred":  # another only as far as connections are new
        return traffic == "close"
    if server in _VARIANTS:
        return traffic == "64"
    return traffic in _FOR_ALL or (server in _FOR_FEW and traffic not in ("balanced", *_FOR_IDAGG))


def _measure(found: Findings, number: int, name: str, traffic: str, options: argparse.Namespace) -> Sample:
    """With a server that is started for it, with an empty store."""
    with (
        tempfile.TemporaryDirectory(dir=options.cache, prefix=f"{name}-") as folder,
        START[name](Path(folder), options.cache) as server,
    ):
        if traffic == IDLE:
            figures = {"start s": server.start_s, "KiB/idle": _idle_kib(server)}
            return found.add(traffic, name, figures, number)

        def drive(first_id: int, seconds: int) -> load.Load:
            return load.drive(server.port, TRAFFIC[traffic], first_id=first_id, seconds=seconds)

        warm_up = drive(_WARM_UP_IDS, options.warm_up)
        did, figures = load.cost(server, lambda: drive(_LOAD_IDS, options.seconds))
        stored = server.stored()
        if stored is not None and TRAFFIC[traffic].ids == "new":
            lost = warm_up.accepted + did.accepted - stored
            if lost > 0:
                found.troubles.append(
                    f"{name} LOST {lost:,} ids that it had accepted (round {number}, {traffic})"
                )
        return found.add(traffic, name, figures, number)


def _idle_kib(server: Running, count: int = _IDLE_CONNECTIONS) -> float:
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
        before = memory(server.pid)
        connect(count)
        return (memory(server.pid) - before) / count / 1024
