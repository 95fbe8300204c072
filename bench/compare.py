"""The comparison: the servers in turn, round after round."""

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
from pathlib import Path

from bench import report, wrk
from bench.measure import cpu_seconds, memory
from bench.report import Run
from bench.servers import START, Server
from bench.tools import machine, need, say

_WARM_UP_S = 2


def main() -> int:
    options = _options()
    need("wrk", "nginx", "redis-server")
    # A plain kill, too, must unwind the blocks that end the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Both ends of the idle connections count against this limit, which the servers inherit.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    with contextlib.ExitStack() as stack:
        # Not in /tmp, which may be memory, where an fsync costs nothing.
        options.cache.mkdir(parents=True, exist_ok=True)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.cache, prefix="run-")))
        servers = []
        for name in options.servers:
            say(f"starting {name}")
            (folder / name).mkdir()
            server = stack.enter_context(START[name](folder / name, options.cache))
            server.wait()
            servers.append(server)
        # First, while no load has left them free memory to reuse.
        idle_kib = {server.name: _idle_kib(server, options.idle) for server in servers}
        runs = []
        for number in range(1, options.rounds + 1):
            for server in servers:
                runs.append(_run(server, number, options))
                say(str(runs[-1]))
        stored = {server.name: server.stored() for server in servers if server.store}

    print(report.table(runs, idle_kib))
    if options.json:
        result = {
            "machine": machine(),
            "options": vars(options),
            "runs": [dataclasses.asdict(run) for run in runs],
            "idle_kib": idle_kib,
            "stored": stored,
        }
        options.json.write_text(json.dumps(result, default=str, indent=1))
    lost = 0
    for name, count in stored.items():
        missing = report.accepted(runs, name) - count
        if missing > 0:
            say(f"{name} has LOST {missing:,} ids that it had accepted")
            lost += missing
    return int(lost > 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/throughput", description="What an accepted request costs, server by server."
    )
    add = parser.add_argument
    add("--servers", type=_servers, default=list(START), help=f"default: {','.join(START)}")
    add("--rounds", type=int, default=3, help="default: %(default)s")
    add("--seconds", type=int, default=8, help="of each load, default: %(default)s")
    add("--quick", dest="seconds", action="store_const", const=2, help="the same as --seconds 2")
    add("--connections", type=int, default=64, help="default: %(default)s")
    add("--threads", type=int, default=1, help="of wrk, default: %(default)s")
    add("--headers", choices=wrk.HEADERS, default="browser", help="default: %(default)s, about 400 bytes")
    add("--idle", type=int, default=2000, help="idle connections, default: %(default)s")
    add("--json", type=Path, help="write every run and the machine to this file")
    add("--cache", type=Path, default=Path.home() / ".cache/idagg-bench", help="default: %(default)s")
    return parser.parse_args()


def _servers(names: str) -> list[str]:
    servers = names.split(",")
    if unknown := set(servers) - set(START):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}")
    return servers


def _run(server: Server, number: int, options: argparse.Namespace) -> Run:
    def drive(seconds: int) -> wrk.Load:
        return wrk.drive(
            server.port,
            seconds=seconds,
            connections=options.connections,
            threads=options.threads,
            headers=options.headers,
        )

    def cpu() -> tuple[dict[int, float], dict[int, float]]:
        return cpu_seconds(server.process.pid), cpu_seconds(server.store.process.pid) if server.store else {}

    warm_up = drive(_WARM_UP_S)
    server_before, store_before = cpu()
    load = drive(options.seconds)
    server_after, store_after = cpu()
    if not load.accepted:
        sys.exit(f"{server.name} accepted nothing: {load}")
    return Run(
        number,
        server.name,
        warm_up,
        load,
        {pid: spent - server_before.get(pid, 0) for pid, spent in server_after.items()},
        {pid: spent - store_before.get(pid, 0) for pid, spent in store_after.items()},
    )


def _idle_kib(server: Server, count: int) -> float:
    """KiB of the server's memory for each keep-alive connection that has had an answer and now is idle."""
    request = f"GET /api/verve/accept?id=1 HTTP/1.1\r\n{wrk.HEADERS['browser']}\r\n".encode()
    with contextlib.ExitStack() as stack:

        def connect(times: int) -> None:
            for _ in range(times):
                connection = stack.enter_context(
                    socket.create_connection(("127.0.0.1", server.port), timeout=5)
                )
                connection.sendall(request)
                if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
                    sys.exit(f"{server.name} refused a connection's first request")

        connect(100)  # what the first few cost once is no connection's
        before = memory(server.process.pid)
        connect(count)
        return (memory(server.process.pid) - before) / count / 1024
