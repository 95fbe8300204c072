"""Closed-loop load, from wrk or Java's own client: as many requests as the server answers."""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

from bench.service import Running
from bench.traffic import Traffic
from kit.processes import cpu_seconds
from kit.traffic import MARK, blocks


@dataclasses.dataclass(frozen=True)
class Load:
    """What the client saw: ``requests`` were answered, ``refused`` of them with an error status; ``broken``
    were not answered: no connection, a reset, or no answer within 2 s. ``cpu_s`` is the client's own. Each
    request brought so many ``ids``."""

    requests: int
    refused: int
    broken: int
    seconds: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    cpu_s: float
    ids: int = 1

    @property
    def accepted(self) -> int:
        """Ids."""
        return (self.requests - self.refused) * self.ids


def cost(server: Running, drive: Callable[[], Load]) -> tuple[Load, dict[str, float]]:
    """What a load costs the server and its Redis: the figures of a sample, CPU from the kernel's accounts."""
    processes = {
        "server µs": server.pid,
        "Redis µs": server.store and server.store.pid,
        "balancer µs": server.balancer,
    }
    before = {part: cpu_seconds(pid) if pid else {} for part, pid in processes.items()}
    load = drive()
    after = {part: cpu_seconds(pid) if pid else {} for part, pid in processes.items()}
    if not load.accepted:
        raise RuntimeError(f"nothing was accepted: {load}")
    spent_us = {
        part: sum(now - before[part].get(pid, 0) for pid, now in each.items()) * 1e6 / load.accepted
        for part, each in after.items()
        if part != "balancer µs" or server.balancer
    }
    return load, {
        "requests/s": load.accepted / load.seconds,
        "p50 ms": load.p50_ms,
        "p99 ms": load.p99_ms,
        "p99.9 ms": load.p999_ms,
        "max ms": load.max_ms,
        **spent_us,
        "load's cores": load.cpu_s / load.seconds,  # it has one thread: near 1, wrk is what limits the rate
        "failed": load.refused + load.broken,
    }


def ids(seconds: int) -> int:
    """How many a load may take: more than a thread of wrk can send."""
    return seconds * 500_000


def drive(port: int, traffic: Traffic, *, first_id: int, seconds: int) -> Load:
    client = _java if traffic.java else _wrk
    headers = _typical().replace(MARK, "0" * 9) if traffic.same_headers else "".join(blocks())
    before_s = _cpu_s()
    finished = subprocess.run(
        client(port, traffic, first_id, seconds),
        input=headers,
        capture_output=True,
        text=True,
        timeout=seconds + 30,
        check=True,
    )
    saw = json.loads(finished.stdout.splitlines()[-1])
    return Load(**saw, cpu_s=_cpu_s() - before_s, ids=traffic.bulk or 1)


def _wrk(port: int, traffic: Traffic, first_id: int, seconds: int) -> list[str]:
    options = {
        "-t": 1,
        "-c": traffic.connections,
        "-d": seconds,
        "-s": Path(__file__).with_suffix(".lua"),
    }
    return [
        "wrk",
        *(str(word) for option in options.items() for word in option),
        f"http://127.0.0.1:{port}",
        "--",
        str(first_id),
        str(ids(seconds)),
        "Connection: close\r\n" if traffic.close else "",
        traffic.ids,
        str(traffic.endpoints),
        str(traffic.bulk),
        str(traffic.pause_ms),
    ]


# Half of what it can do here.
_JAVA_RATE = 6000


def _java(port: int, traffic: Traffic, first_id: int, seconds: int) -> list[str]:
    """It has its own few headers and reads no others."""
    program = Path(__file__).parent / "peers" / "java" / "Load.java"
    numbers = map(str, (port, traffic.connections, seconds, first_id, _JAVA_RATE))
    # Its compiler and its collector take less of the cores so.
    return ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", str(program), *numbers, traffic.java]


def _typical() -> str:
    """The block of headers that is nearest to the mean length."""
    mean = sum(map(len, blocks())) / len(blocks())
    return min(blocks(), key=lambda block: abs(len(block) - mean))


def _cpu_s() -> float:
    """Of children that have ended. The servers have not; nothing else ends while a load runs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
