"""A private idagg with a private Redis, in windows of any length."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import http.client
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from bench.measure import free_port, running

_REDIS = ["--port", "0", "--unixsocket", "redis.sock", "--save", "", "--latency-monitor-threshold", "2"]
_DURABLE = ["--appendonly", "yes", "--appendfsync", "always"]
_REWRITE = re.compile(r"M (\d+ \w+ \d+ [\d:.]+) \* Background (?:append only file|AOF) rewrit\w+ (\w+)")


@dataclasses.dataclass(frozen=True)
class Service:
    folder: Path
    process: subprocess.Popen[bytes]
    redis: subprocess.Popen[bytes]
    port: int
    admin_port: int
    window_s: int

    @property
    def redis_url(self) -> str:
        return f"unix://{self.folder / 'redis.sock'}"

    def ask_redis(self, *command: str) -> Any:
        with redis.Redis.from_url(self.redis_url, decode_responses=True) as client:
            return client.execute_command(*command)

    def used_memory(self) -> int:
        return int(self.ask_redis("INFO", "memory")["used_memory"])

    def delivered(self) -> dict[str, int]:
        """Unique ids by window, as the log file has them."""
        log = self.folder / "counts.log"
        text = log.read_text() if log.exists() else ""
        found = re.findall(r"event=window window=(\S+) unique_ids=(\d+)", text)
        return {window: int(count) for window, count in found}

    def rewrites(self) -> list[tuple[float, str]]:
        """When Redis began to rewrite its log, and when it had finished: Unix time and that word."""
        found = _REWRITE.findall((self.folder / "redis.out").read_text())
        return [
            (datetime.datetime.strptime(when, "%d %b %Y %H:%M:%S.%f").timestamp(), what)
            for when, what in found
        ]

    def slow_redis(self) -> dict[str, list[tuple[float, int]]]:
        """What held Redis up for 2 ms and more, as it says: by event, the worst of each second, as Unix
        time and ms. It remembers 160 of each."""
        names = [event[0] for event in self.ask_redis("LATENCY", "LATEST")]
        return {name: self.ask_redis("LATENCY", "HISTORY", name) for name in names}

    def metric(self, name: str) -> float:
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        found = re.search(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0

    def wait(self) -> None:
        """Return when it can store. Counts no id, as a request for one would."""
        while self.process.poll() is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.05)
        raise RuntimeError(f"idagg does not start:\n{(self.folder / 'idagg.out').read_text()}")


@contextlib.contextmanager
def idagg(folder: Path, *flags: str, window_s: int, workers: int = 1) -> Iterator[Service]:
    folder.mkdir()
    port, admin_port = free_port(), free_port()
    settings = [
        f"--workers={workers}",
        f"--port={port}",
        f"--admin-port={admin_port}",
        f"--redis-url=unix://{folder / 'redis.sock'}",
        f"--log-file={folder / 'counts.log'}",
        f"--window={window_s}",
        *flags,
    ]
    with running("redis", ["redis-server", *_REDIS, *_DURABLE], folder) as store:
        while not (folder / "redis.sock").exists() and store.poll() is None:
            time.sleep(0.01)
        with running("idagg", [sys.executable, "-m", "idagg", "serve", *settings], folder) as process:
            service = Service(folder, process, store, port, admin_port, window_s)
            service.wait()
            yield service


def next_window(length_s: int, *, after_s: float = 0) -> int:
    """When the first window begins that does so no sooner than ``after_s`` from now, Unix time."""
    soonest = int(time.time() + after_s) + 1
    return soonest + -soonest % length_s
