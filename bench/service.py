"""Private servers, each with a port and a folder of its own; idagg as one of them, with a private Redis."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import http.client
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import redis

from kit.processes import running
from kit.servers import free_port

# How Redis keeps its log.
ALWAYS = ("--appendonly", "yes", "--appendfsync", "always")
EVERY_SECOND = ("--appendonly", "yes", "--appendfsync", "everysec")
NO_LOG = ("--appendonly", "no")
# Makes it remember what held it up, at a price.
WATCHED = ("--latency-monitor-threshold", "2")

_REWRITE = re.compile(r"M (\d+ \w+ \d+ [\d:.]+) \* Background (?:append only file|AOF) rewrit\w+ (\w+)")
_RECORDS = "counts.log"
# Every server here keeps its ids in sets.
_COUNT = """
local ids = 0
for _, key in ipairs(redis.call('KEYS', '*ids*')) do
  if redis.call('TYPE', key).ok == 'set' then
    ids = ids + redis.call('SCARD', key)
  end
end
return ids
"""


@dataclasses.dataclass(frozen=True)
class Store:
    process: subprocess.Popen[bytes]
    socket: Path

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def ask(self, *command: str | int) -> Any:
        with redis.Redis.from_url(self.url, decode_responses=True) as client:
            return client.execute_command(*command)

    def ids(self) -> int:
        return int(self.ask("EVAL", _COUNT, 0))

    def used_memory(self) -> int:
        return int(self.ask("INFO", "memory")["used_memory"])

    def rewrites(self) -> list[tuple[float, str]]:
        """When it began to rewrite its log, and when it had finished: Unix time and that word."""
        found = _REWRITE.findall((self.socket.parent / "redis.out").read_text())
        return [
            (datetime.datetime.strptime(when, "%d %b %Y %H:%M:%S.%f").timestamp(), what)
            for when, what in found
        ]

    def slow(self) -> dict[str, list[tuple[float, int]]]:
        """What held it up for 2 ms and more, where it is watched: by event, the worst of each second, as Unix
        time and ms. It remembers 160 of each."""
        names = [event[0] for event in self.ask("LATENCY", "LATEST")]
        return {name: self.ask("LATENCY", "HISTORY", name) for name in names}


@contextlib.contextmanager
def redis_server(folder: Path, options: Sequence[str] = ALWAYS) -> Iterator[Store]:
    private = ["--port", "0", "--unixsocket", "redis.sock", "--save", ""]
    with running("redis", ["redis-server", *private, *options], folder) as process:
        while not (folder / "redis.sock").exists() and process.poll() is None:
            time.sleep(0.01)
        yield Store(process, folder / "redis.sock")


@dataclasses.dataclass(frozen=True)
class Server:
    process: subprocess.Popen[bytes]
    port: int
    folder: Path
    store: Store | None = None
    balancer: subprocess.Popen[bytes] | None = None  # has the port, where there is one
    began: float = dataclasses.field(default_factory=time.monotonic)

    def stored(self) -> int | None:
        """Ids in the store, and those of windows that idagg has sealed meanwhile; None without a store."""
        return None if self.store is None else self.store.ids() + sum(self.delivered().values())

    def delivered(self) -> dict[str, int]:
        """Unique ids by window, as idagg's log file has them."""
        log = self.folder / _RECORDS
        text = log.read_text() if log.exists() else ""
        found = re.findall(r"event=window window=(\S+) unique_ids=(\d+)", text)
        return {window: int(count) for window, count in found}

    def wait(self, path: str = "/api/verve/accept?id=1") -> float:
        """How many seconds it took to answer a first request; raises with its output where it does not."""
        while time.monotonic() < self.began + 30 and self.process.poll() is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
                connection.request("GET", path)
                if connection.getresponse().status == 200:
                    return time.monotonic() - self.began
            time.sleep(0.01)
        output = "".join(path.read_text() for path in self.folder.rglob("*.out"))
        raise RuntimeError(f"the server in {self.folder.name} does not answer:\n{output}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Service(Server):
    store: Store
    admin_port: int
    window_s: int

    def metric(self, name: str) -> float:
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        found = re.search(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0

    def ready(self) -> None:
        """Return when it can store. Counts no id, as ``wait`` would."""
        self.wait("/readyz")


@contextlib.contextmanager
def idagg(
    folder: Path, *flags: str, window_s: int = 3600, workers: int = 1, redis_options: Sequence[str] = ALWAYS
) -> Iterator[Service]:
    folder.mkdir(exist_ok=True)
    port, admin_port = free_port(), free_port()
    with redis_server(folder, redis_options) as store:
        settings = [
            f"--workers={workers}",
            f"--port={port}",
            f"--admin-port={admin_port}",
            f"--redis-url={store.url}",
            f"--log-file={folder / _RECORDS}",
            f"--window={window_s}",
            *flags,
        ]
        with running("idagg", [sys.executable, "-m", "idagg", "serve", *settings], folder) as process:
            yield Service(process, port, folder, store=store, admin_port=admin_port, window_s=window_s)
