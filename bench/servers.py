"""The servers to compare, each with a folder, a port and, where it stores, a Redis of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from bench.service import ACCEPT, ALWAYS, EVERY_SECOND, NO_LOG, Running, Store, answers, idagg
from bench.tools import go_program, rust_program
from idagg.store.client import Script
from kit.processes import running
from kit.servers import free_port

_PEERS = Path(__file__).parent / "peers"
_START_S = 30


@contextlib.contextmanager
def _idagg(
    folder: Path, cache: Path, *, workers: int = 1, log: Mapping[str, str] | None = ALWAYS
) -> Iterator[Running]:
    with idagg(folder, workers=workers, redis_options=log, first=ACCEPT) as service:
        yield service.running


@contextlib.contextmanager
def _peer(
    command: Sequence[str], folder: Path, cache: Path, *, stores: bool = True, port: int = 0, **variables: str
) -> Iterator[Running]:
    """Any other server: it reads from its environment where to listen and where to store."""
    port = port or free_port()
    with contextlib.ExitStack() as stack:
        variables["PORT"] = str(port)
        store = stack.enter_context(Store(folder)) if stores else None
        if store:
            variables["REDIS_SOCKET"] = str(store.socket)
        began_s = time.monotonic()
        process = stack.enter_context(running("peer", command, folder, **variables))
        while not answers(port):
            if process.poll() is not None or time.monotonic() > began_s + _START_S:
                raise RuntimeError(f"{folder.name} does not answer:\n{(folder / 'peer.out').read_text()}")
            time.sleep(0.002)
        yield Running(process.pid, port, time.monotonic() - began_s, store)


def _python(program: str, *arguments: str) -> list[str]:
    return [sys.executable, str(_PEERS / program), *arguments]


def _go(how: str, folder: Path, cache: Path) -> AbstractContextManager[Running]:
    return _peer([go_program(_PEERS / "go", cache), how], folder, cache)


def rust(how: str, folder: Path, cache: Path) -> AbstractContextManager[Running]:
    # Relative to the folder, in which it runs.
    (folder / "accept.lua").write_text(Script.load("accept").text)
    command = [rust_program(_PEERS / "rust", cache), how]
    return _peer(command, folder, cache, ACCEPT_SCRIPT="accept.lua")


def _nginx(
    configuration: str, folder: Path, cache: Path, *, stores: bool, listen: str = "", behind: int = 0
) -> AbstractContextManager[Running]:
    shutil.copytree(_PEERS / configuration, folder, dirs_exist_ok=True)
    port = free_port()
    (folder / "listen.conf").write_text(f"listen 127.0.0.1:{port} backlog=4096 {listen};")
    (folder / "behind.conf").write_text(f"server 127.0.0.1:{behind};")
    command = ["nginx", "-p", "./", "-c", "nginx.conf", "-e", "stderr"]
    return _peer(command, folder, cache, stores=stores, port=port)


def _haproxy(folder: Path, cache: Path, *, behind: int) -> AbstractContextManager[Running]:
    command = ["haproxy", "-db", "-f", str(_PEERS / "haproxy" / "haproxy.cfg")]
    return _peer(command, folder, cache, stores=False, BEHIND=str(behind))


@contextlib.contextmanager
def _balanced(
    balancer: Callable[..., AbstractContextManager[Running]], behind: str, folder: Path, cache: Path
) -> Iterator[Running]:
    """A server and a load balancer in front of it; the port is the balancer's."""
    (folder / "balancer").mkdir()
    with (
        START[behind](folder, cache) as server,
        balancer(folder / "balancer", cache, behind=server.port) as front,
    ):
        yield dataclasses.replace(server, port=front.port, balancer=front.pid)


_nginx_balancer = partial(_nginx, "nginx_balancer", stores=False)

# Starts a server, given a folder of its own and the one that is kept between runs of the bench.
START: dict[str, Callable[[Path, Path], AbstractContextManager[Running]]] = {
    "nginx": partial(_nginx, "nginx_constant", stores=False),
    "nginx-deferred": partial(_nginx, "nginx_constant", stores=False, listen="deferred"),
    "null": partial(_peer, _python("null_protocol.py"), stores=False),
    "idagg": _idagg,
    "idagg-2": partial(_idagg, workers=2),
    "idagg-everysec": partial(_idagg, log=EVERY_SECOND),
    "idagg-nolog": partial(_idagg, log=NO_LOG),
    "idagg-embedded": partial(_idagg, log=None),
    "go-group": partial(_go, "group"),
    "go-sadd": partial(_go, "sadd"),
    "rust-sadd": partial(rust, "sadd"),
    "rust-script": partial(rust, "script"),
    "nginx-lua": partial(_nginx, "nginx_lua", stores=True),
    "aiohttp-group": partial(_peer, _python("aiohttp_service.py", "group")),
    "aiohttp-sadd": partial(_peer, _python("aiohttp_service.py", "sadd")),
    "haproxy-nginx": partial(_balanced, _haproxy, "nginx"),
    "haproxy-idagg": partial(_balanced, _haproxy, "idagg"),
    "nginx-nginx": partial(_balanced, _nginx_balancer, "nginx"),
    "nginx-idagg": partial(_balanced, _nginx_balancer, "idagg"),
    "fastapi": partial(_peer, _python("fastapi_service.py", "1")),
    "fastapi-2": partial(_peer, _python("fastapi_service.py", "2")),
}
