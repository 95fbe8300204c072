"""The servers to compare, each with a folder, a port and, where it stores, a Redis of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.measure import free_port, running
from bench.tools import environment

_HERE = Path(__file__).parent
_LOG = "unique_id_capture.log"
_NGINX = """
daemon off;
worker_processes 1;
pid nginx.pid;
events { worker_connections 16384; }
http {
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path temp;
  proxy_temp_path temp;
  fastcgi_temp_path temp;
  uwsgi_temp_path temp;
  scgi_temp_path temp;
  server {
    listen 127.0.0.1:%d backlog=4096;
    default_type text/plain;
    location / { return 200 ok; }
  }
}
"""
_MEMBERS = """
local members = 0
for _, key in ipairs(redis.call('KEYS', '*')) do
  if redis.call('TYPE', key).ok == 'set' then
    members = members + redis.call('SCARD', key)
  end
end
return members
"""


@dataclasses.dataclass(frozen=True)
class Store:
    process: subprocess.Popen[bytes]
    socket: Path

    def ids(self) -> int:
        """Members of all sets, which is where every server here keeps its ids."""
        command = ["redis-cli", "-s", str(self.socket), "EVAL", _MEMBERS, "0"]
        return int(subprocess.run(command, stdout=subprocess.PIPE, timeout=60, check=True).stdout)


@dataclasses.dataclass(frozen=True)
class Server:
    process: subprocess.Popen[bytes]
    port: int
    folder: Path
    store: Store | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    def stored(self) -> int:
        """Ids in the store, and those of windows that were sealed meanwhile."""
        log = self.folder / _LOG
        sealed = re.findall(r"unique_ids=(\d+)", log.read_text()) if log.exists() else []
        return (self.store.ids() if self.store else 0) + sum(map(int, sealed))

    def wait(self) -> None:
        """Return when the server answers; raise with its output where it does not."""
        for _ in range(300):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
                connection.request("GET", "/api/verve/accept?id=1")
                if connection.getresponse().status == 200:
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        output = "".join(path.read_text() for path in self.folder.glob("*.out"))
        raise RuntimeError(f"{self.name} does not answer:\n{output}")


@contextlib.contextmanager
def _redis(folder: Path) -> Iterator[Store]:
    private = ["--port", "0", "--unixsocket", "redis.sock", "--save", ""]
    durable = ["--appendonly", "yes", "--appendfsync", "always"]
    with running("redis", ["redis-server", *private, *durable], folder) as process:
        yield Store(process, folder / "redis.sock")


@contextlib.contextmanager
def _nginx(folder: Path, cache: Path) -> Iterator[Server]:
    port = free_port()
    (folder / "nginx.conf").write_text(_NGINX % port)
    with running("nginx", ["nginx", "-p", "./", "-c", "nginx.conf", "-e", "stderr"], folder) as process:
        yield Server(process, port, folder)


@contextlib.contextmanager
def _idagg(folder: Path, cache: Path) -> Iterator[Server]:
    here = importlib.util.find_spec("idagg")
    python = sys.executable if here else environment(cache / "idagg", "--editable", str(_HERE.parent))
    port = free_port()
    with _redis(folder) as store:
        settings = [
            "--workers=1",
            f"--port={port}",
            f"--admin-port={free_port()}",
            f"--redis-url=unix://{store.socket}",
            f"--log-file={folder / _LOG}",
            "--window=3600",
        ]
        with running("idagg", [python, "-m", "idagg", "serve", *settings], folder) as process:
            yield Server(process, port, folder, store)


@contextlib.contextmanager
def _fastapi(folder: Path, cache: Path) -> Iterator[Server]:
    python = environment(cache / "peers", "fastapi", "uvicorn[standard]", "redis[hiredis]")
    port = free_port()
    settings = [
        f"--app-dir={_HERE / 'peers'}",
        f"--port={port}",
        "--loop=uvloop",
        "--http=httptools",
        "--no-access-log",
    ]
    command = [python, "-m", "uvicorn", "fastapi_sadd:app", *settings]
    with (
        _redis(folder) as store,
        running("uvicorn", command, folder, REDIS_SOCKET=str(store.socket)) as process,
    ):
        yield Server(process, port, folder, store)


# Starts a server, given a folder of its own and the one that is kept between runs of the bench.
START: dict[str, Callable[[Path, Path], contextlib.AbstractContextManager[Server]]] = {
    "nginx": _nginx,
    "idagg": _idagg,
    "fastapi": _fastapi,
}
