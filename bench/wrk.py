"""Closed-loop load from wrk: as many requests as the server answers, each with a new id."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
from pathlib import Path

HEADERS = {
    "bare": "Host: 127.0.0.1\r\n",
    "browser": (
        "Host: ids.example.com\r\n"
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n"
        "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n"
        "Accept-Language: en-GB,en;q=0.7,de;q=0.3\r\n"
        "Accept-Encoding: gzip, deflate, br, zstd\r\n"
        "Referer: https://www.example.com/campaigns/autumn\r\n"
        "Connection: keep-alive\r\n"
        "Cookie: session=3f7c1a9be2d04c55; consent=1\r\n"
    ),
}
# More than a thread of wrk can send.
_IDS_PER_SECOND = 500_000
_blocks = itertools.count(100_000_000, _IDS_PER_SECOND)


@dataclasses.dataclass(frozen=True)
class Load:
    """What wrk saw: ``requests`` were answered, ``refused`` of them with an error status; ``broken`` were
    not answered: no connection, a reset, or no answer within 2 s."""

    requests: int
    refused: int
    broken: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float

    @property
    def accepted(self) -> int:
        return self.requests - self.refused

    @property
    def failed(self) -> int:
        return self.refused + self.broken


def drive(port: int, *, seconds: int, connections: int, threads: int, headers: str) -> Load:
    first = next(_blocks)
    for _ in range(seconds * threads):
        next(_blocks)
    command = [
        "wrk",
        "-t",
        threads,
        "-c",
        connections,
        "-d",
        seconds,
        "-s",
        Path(__file__).with_suffix(".lua"),
    ]
    arguments = [f"http://127.0.0.1:{port}", "--", first, seconds * _IDS_PER_SECOND, HEADERS[headers]]
    finished = subprocess.run(
        [str(word) for word in command + arguments],
        capture_output=True,
        text=True,
        timeout=seconds + 30,
        check=True,
    )
    return Load(**json.loads(finished.stdout.splitlines()[-1]))
