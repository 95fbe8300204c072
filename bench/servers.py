"""The servers to compare, each with a folder, a port and, where it stores, a Redis of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from bench import service
from bench.service import EVERY_SECOND, NO_LOG, Server, redis_server
from bench.tools import go_program, rust_program
from idagg.store.client import Script
from kit.processes import running
from kit.servers import free_port

_PEERS = Path(__file__).parent / "peers"


def _idagg(
    folder: Path, cache: Path, *, workers: int = 1, log: Sequence[str] = service.ALWAYS
) -> AbstractContextManager[Server]:
    return service.idagg(folder, workers=workers, redis_options=log)


@contextlib.contextmanager
def _peer(
    command: Sequence[str],
    folder: Path,
    cache: Path,
    *,
    stores: bool = True,
    redis_options: Sequence[str] = service.ALWAYS,
    port: int = 0,
    **variables: str,
) -> Iterator[Server]:
    """Any other server: it reads from its environment where to listen and where to store."""
    port = port or free_port()
    with contextlib.ExitStack() as stack:
        variables["PORT"] = str(port)
        store = stack.enter_context(redis_server(folder, redis_options)) if stores else None
        if store:
            variables["REDIS_SOCKET"] = str(store.socket)
        process = stack.enter_context(running("peer", command, folder, **variables))
        yield Server(process, port, folder, store)


def _python(program: str, *arguments: str) -> list[str]:
    return [sys.executable, str(_PEERS / program), *arguments]


def _go(how: str, folder: Path, cache: Path) -> AbstractContextManager[Server]:
    return _peer([go_program(_PEERS / "go", cache), how], folder, cache)


def rust(
    how: str, folder: Path, cache: Path, *, redis_options: Sequence[str] = service.ALWAYS
) -> AbstractContextManager[Server]:
    # Relative to the folder, in which it runs.
    (folder / "accept.lua").write_text(Script.load("accept").text)
    command = [rust_program(_PEERS / "rust", cache), how]
    return _peer(command, folder, cache, redis_options=redis_options, ACCEPT_SCRIPT="accept.lua")


def _nginx(
    configuration: str, folder: Path, cache: Path, *, stores: bool, listen: str = "", behind: int = 0
) -> AbstractContextManager[Server]:
    shutil.copytree(_PEERS / configuration, folder, dirs_exist_ok=True)
    port = free_port()
    (folder / "listen.conf").write_text(f"listen 127.0.0.1:{port} backlog=4096 {listen};")
    (folder / "behind.conf").write_text(f"server 127.0.0.1:{behind};")
    command = ["nginx", "-p", "./", "-c", "nginx.conf", "-e", "stderr"]
    return _peer(command, folder, cache, stores=stores, port=port)


def _haproxy(folder: Path, cache: Path, *, behind: int) -> AbstractContextManager[Server]:
    command = ["haproxy", "-db", "-f", str(_PEERS / "haproxy" / "haproxy.cfg")]
    return _peer(command, folder, cache, stores=False, BEHIND=str(behind))


@contextlib.contextmanager
def _balanced(
    balancer: Callable[..., AbstractContextManager[Server]], behind: str, folder: Path, cache: Path
) -> Iterator[Server]:
    """A server and a load balancer in front of it; the port is the balancer's."""
    (folder / "balancer").mkdir()
    with (
        START[behind](folder, cache) as server,
        balancer(folder / "balancer", cache, behind=server.port) as front,
    ):
        yield dataclasses.replace(server, port=front.port, balancer=front.process)


_nginx_balancer = partial(_nginx, "nginx_balancer", stores=False)

# Starts a server, given a folder of its own and the one that is kept between runs of the bench.
START: dict[str, Callable[[Path, Path], AbstractContextManager[Server]]] = {
    "nginx": partial(_nginx, "nginx_constant", stores=False),
    "nginx-deferred": partial(_nginx, "nginx_constant", stores=False, listen="deferred"),
    "null": partial(_peer, _python("null_protocol.py"), stores=False),
    "idagg": _idagg,
    "idagg-2": partial(_idagg, workers=2),
    "idagg-everysec": partial(_idagg, log=EVERY_SECOND),
    "idagg-nolog": partial(_idagg, log=NO_LOG),
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
