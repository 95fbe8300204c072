"""Endpoints of strangers, in a process of their own that takes processor time from nobody of ours."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import ssl
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import trustme
import uvloop

from kit.hostile import HOSTILE, answering, hostile_hosts, talking

HTTPS = "https"
HTTPS_HOSTS = [f"127.1.0.{number}" for number in range(1, 251)]
_ALL = "0.0.0.0"
_LIMIT_S = 600.0
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Strangers:
    """``ports`` has one for each kind."""

    def __init__(self, pid: int, ca: Path, pipe: Connection) -> None:
        self.pid = pid
        self.ca = ca
        self._pipe = pipe
        self.ports: dict[str, int] = pipe.recv()

    def calls(self) -> dict[str, tuple[int, int]]:
        """By kind, how many callbacks there were, and the most calls that one of them got."""
        self._pipe.send(None)
        found: dict[str, tuple[int, int]] = self._pipe.recv()
        return found

    def hostile(self) -> list[bytes]:
        """The hostile endpoints."""
        return [
            f"http://{host}:{self.ports[kind]}/{kind}".encode()
            for kind in HOSTILE
            for host in hostile_hosts(kind)
        ]

    def https(self, count: int) -> list[bytes]:
        """Endpoints that answer at once, over some hosts."""
        hosts = HTTPS_HOSTS
        port = self.ports[HTTPS]
        return [f"https://{hosts[number % len(hosts)]}:{port}/{number}".encode() for number in range(count)]


@contextlib.contextmanager
def strangers(folder: Path) -> Iterator[Strangers]:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    ca.issue_cert(*HTTPS_HOSTS).private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(theirs, folder / "server.pem"), daemon=True
    )
    process.start()
    theirs.close()
    try:
        assert process.pid
        yield Strangers(process.pid, folder / "ca.pem", ours)
    finally:
        ours.close()
        process.join()


def _serve(pipe: Connection, certificate: Path) -> None:
    os.setsid()  # the kernel may schedule by sessions, and the generator is of another then
    os.nice(19)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")
    uvloop.run(_answer(pipe, certificate))


async def _answer(pipe: Connection, certificate: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    async with contextlib.AsyncExitStack() as stack:
        servers = {
            kind: await stack.enter_async_context(talking(way.talk, host=_ALL, limit_s=_LIMIT_S))
            for kind, way in HOSTILE.items()
        }
        https = talking(answering(_OK), tls, host=_ALL, limit_s=_LIMIT_S)
        servers[HTTPS] = await stack.enter_async_context(https)
        pipe.send({kind: server.port for kind, server in servers.items()})
        with contextlib.suppress(EOFError):
            while True:
                await asyncio.to_thread(pipe.recv)
                calls = {kind: server.calls() for kind, server in servers.items()}
                pipe.send({kind: (len(of), max(of.values(), default=0)) for kind, of in calls.items()})
