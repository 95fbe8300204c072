"""Closed-loop load from wrk: as many requests as the server answers."""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
from pathlib import Path

from bench.traffic import Traffic


@dataclasses.dataclass(frozen=True)
class Load:
    """What wrk saw: ``requests`` were answered, ``refused`` of them with an error status; ``broken`` were
    not answered: no connection, a reset, or no answer within 2 s. ``cpu_s`` is wrk's own."""

    requests: int
    refused: int
    broken: int
    seconds: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    cpu_s: float

    @property
    def cores(self) -> float:
        """It has one thread: near 1, wrk is what limits the rate."""
        return self.cpu_s / self.seconds

    @property
    def accepted(self) -> int:
        return self.requests - self.refused

    @property
    def failed(self) -> int:
        return self.refused + self.broken


def ids(seconds: int) -> int:
    """How many a load may take: more than a thread of wrk can send."""
    return seconds * 500_000


def drive(port: int, traffic: Traffic, *, first_id: int, seconds: int) -> Load:
    options = {
        "-t": 1,
        "-c": traffic.connections,
        "-d": seconds,
        "-s": Path(__file__).with_suffix(".lua"),
    }
    command = [
        "wrk",
        *(str(word) for option in options.items() for word in option),
        f"http://127.0.0.1:{port}",
        "--",
        str(first_id),
        str(ids(seconds)),
        traffic.header_lines,
        traffic.ids,
        str(traffic.endpoints),
        str(traffic.pause_ms),
    ]
    before_s = _cpu_s()
    finished = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=True)
    return Load(**json.loads(finished.stdout.splitlines()[-1]), cpu_s=_cpu_s() - before_s)


def _cpu_s() -> float:
    """Of children that have ended. The servers have not; nothing else ends while a load runs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
