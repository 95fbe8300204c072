"""The servers to compare, each with a folder, a port and, where it stores, a Redis of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from bench.measure import free_port, running
from bench.tools import go_program

_PEERS = Path(__file__).parent / "peers"
_LOG = "unique_id_capture.log"
# How Redis keeps its log.
_ALWAYS = ("--appendonly", "yes", "--appendfsync", "always")
_EVERY_SECOND = ("--appendonly", "yes", "--appendfsync", "everysec")
_NO_LOG = ("--appendonly", "no")
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

    def ids(self) -> int:
        command = ["redis-cli", "-s", str(self.socket), "EVAL", _COUNT, "0"]
        return int(subprocess.run(command, stdout=subprocess.PIPE, timeout=60, check=True).stdout)


@dataclasses.dataclass(frozen=True)
class Server:
    process: subprocess.Popen[bytes]
    port: int
    folder: Path
    store: Store | None = None
    began: float = dataclasses.field(default_factory=time.monotonic)

    def stored(self) -> int | None:
        """Ids in the store, and those of windows that idagg has sealed meanwhile; None without a store."""
        if self.store is None:
            return None
        log = self.folder / _LOG
        sealed = re.findall(r"unique_ids=(\d+)", log.read_text()) if log.exists() else []
        return self.store.ids() + sum(map(int, sealed))

    def wait(self) -> float:
        """How many seconds it took to answer a first request; raises with its output where it does not."""
        while time.monotonic() < self.began + 30 and self.process.poll() is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
                connection.request("GET", "/api/verve/accept?id=1")
                if connection.getresponse().status == 200:
                    return time.monotonic() - self.began
            time.sleep(0.01)
        output = "".join(path.read_text() for path in self.folder.glob("*.out"))
        raise RuntimeError(f"the server in {self.folder.name} does not answer:\n{output}")


@contextlib.contextmanager
def _redis(folder: Path, log: Sequence[str] = _ALWAYS) -> Iterator[Store]:
    private = ["--port", "0", "--unixsocket", "redis.sock", "--save", ""]
    with running("redis", ["redis-server", *private, *log], folder) as process:
        while not (folder / "redis.sock").exists() and process.poll() is None:
            time.sleep(0.01)
        yield Store(process, folder / "redis.sock")


@contextlib.contextmanager
def _idagg(folder: Path, cache: Path, *, workers: int = 1, log: Sequence[str] = _ALWAYS) -> Iterator[Server]:
    port = free_port()
    with _redis(folder, log) as store:
        settings = [
            f"--workers={workers}",
            f"--port={port}",
            f"--admin-port={free_port()}",
            f"--redis-url=unix://{store.socket}",
            f"--log-file={folder / _LOG}",
            "--window=3600",
        ]
        with running("idagg", [sys.executable, "-m", "idagg", "serve", *settings], folder) as process:
            yield Server(process, port, folder, store)


@contextlib.contextmanager
def _peer(
    command: Sequence[str], folder: Path, cache: Path, *, stores: bool = True, port: int = 0
) -> Iterator[Server]:
    """Any other server: it reads from its environment where to listen and where to store."""
    port = port or free_port()
    with contextlib.ExitStack() as stack:
        variables = {"PORT": str(port)}
        store = stack.enter_context(_redis(folder)) if stores else None
        if store:
            variables["REDIS_SOCKET"] = str(store.socket)
        process = stack.enter_context(running("peer", command, folder, **variables))
        yield Server(process, port, folder, store)


def _python(program: str, *arguments: str) -> list[str]:
    return [sys.executable, str(_PEERS / program), *arguments]


def _go(how: str, folder: Path, cache: Path) -> AbstractContextManager[Server]:
    return _peer([go_program(_PEERS / "go", cache), how], folder, cache)


def _nginx(configuration: str, folder: Path, cache: Path, *, stores: bool) -> AbstractContextManager[Server]:
    shutil.copytree(_PEERS / configuration, folder, dirs_exist_ok=True)
    port = free_port()
    (folder / "listen.conf").write_text(f"listen 127.0.0.1:{port} backlog=4096;")
    command = ["nginx", "-p", "./", "-c", "nginx.conf", "-e", "stderr"]
    return _peer(command, folder, cache, stores=stores, port=port)


# Starts a server, given a folder of its own and the one that is kept between runs of the bench.
START: dict[str, Callable[[Path, Path], AbstractContextManager[Server]]] = {
    "nginx": partial(_nginx, "nginx_constant", stores=False),
    "null": partial(_peer, _python("null_protocol.py"), stores=False),
    "idagg": _idagg,
    "idagg-2": partial(_idagg, workers=2),
    "idagg-everysec": partial(_idagg, log=_EVERY_SECOND),
    "idagg-nolog": partial(_idagg, log=_NO_LOG),
    "go-group": partial(_go, "group"),
    "go-sadd": partial(_go, "sadd"),
    "nginx-lua": partial(_nginx, "nginx_lua", stores=True),
    "aiohttp-group": partial(_peer, _python("aiohttp_service.py", "group")),
    "aiohttp-sadd": partial(_peer, _python("aiohttp_service.py", "sadd")),
    "fastapi": partial(_peer, _python("fastapi_service.py", "1")),
    "fastapi-2": partial(_peer, _python("fastapi_service.py", "2")),
}
