"""The public listener on a socket of its own, before a real store, and a client that speaks bytes."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import functools
import math
import socket
import struct
from collections.abc import AsyncIterator
from email.message import Message
from email.parser import BytesParser
from typing import Literal

from fakes import Batches
from idagg.accept.admission import Admission
from idagg.accept.commit import GroupCommit, Hits
from idagg.accept.connection import EXCHANGE_S
from idagg.accept.fallback import Fallback, accept_routes, health_routes
from idagg.accept.fast_path import FastPath
from idagg.accept.listener import Listener
from idagg.store.client import Client
from idagg.store.hits import MAX_BATCH, HitStore

PathName = Literal["fast", "fallback"]


@dataclasses.dataclass
class Doors:
    commit: GroupCommit
    public: FastPath
    port: int
    tally: collections.Counter[int]
    wires: list[Wire] = dataclasses.field(default_factory=list)

    async def connect(self) -> Wire:
        """A new connection; closed with the listener, if it is not before."""
        wire = Wire()
        self.wires.append(wire)
        await asyncio.get_running_loop().sock_connect(wire.socket, ("127.0.0.1", self.port))
        return wire


@contextlib.asynccontextmanager
async def open_doors(
    hits: Hits,
    *,
    path: PathName = "fast",
    deadline_s: float = 2.0,
    max_waiting: int = 65_536,
    keepalive_s: int = 75,
    max_age_s: float = math.inf,
    cors_origin: str | None = None,
) -> AsyncIterator[Doors]:
    """``path`` says what answers accept requests: the fast path, as clients find it, or the fallback app
    alone."""
    loop = asyncio.get_running_loop()
    commit = GroupCommit(
        hits, Batches(), deadline_s=deadline_s, max_batch=MAX_BATCH, max_waiting=max_waiting, now=loop.time
    )
    tally = collections.Counter[int]()
    admission = Admission(commit, tally)
    routes = [*accept_routes(admission, cors_origin), *health_routes(lambda: commit.trouble)]
    fallback = Fallback(routes, tally, cors_origin=cors_origin)
    await fallback.start()
    public = FastPath(
        admission if path == "fast" else None,
        fallback,
        epoch_s=0,
        deadline_s=deadline_s,
        keepalive_s=keepalive_s,
        max_age_s=max_age_s,
        cors_origin=cors_origin,
    )
    running = asyncio.create_task(commit.run())
    server = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port = server.getsockname()[1]
    listener = Listener(server, public)
    try:
        yield (doors := Doors(commit, public, port, tally))
    finally:
        for wire in doors.wires:
            wire.close()
        await listener.close()
        if not await _empty(public):
            await public.close(EXCHANGE_S)  # it gives those who are left time to read
        await fallback.close()
        commit.stop()
        await running


async def _empty(public: FastPath) -> bool:
    """Whether all connections have ended with their clients, in a moment."""
    for _ in range(20):
        if not public.connections:
            return True
        await asyncio.sleep(0.001)
    return False


@contextlib.asynccontextmanager
async def open_doors_before(url: str, path: PathName = "fast") -> AsyncIterator[Doors]:
    """A listener before the store at ``url``, which is emptied first."""
    await forget(url)
    link = Client(url)
    try:
        store = HitStore(link, namespace="t", window_s=3600, exact_limit=10**6)
        async with open_doors(store, path=path) as doors:
            yield doors
    finally:
        await link.close()


async def forget(url: str) -> None:
    """Empty the store."""
    client = Client(url, timeout_s=5)
    await client.command("FLUSHALL")
    await client.close()


async def counted(url: str) -> set[bytes]:
    """The ids in the store."""
    client = Client(url, timeout_s=5)
    try:
        found: set[bytes] = set()
        for key in await client.command("KEYS", "*:ids"):
            found |= set(await client.command("SMEMBERS", key))
        return found
    finally:
        await client.close()


@dataclasses.dataclass
class Answer:
    status: int
    headers: Message
    body: bytes
    version: str = "HTTP/1.1"


@functools.lru_cache  # answers are many, and differ in their second only
def _parsed(fields: bytes) -> Message:
    return BytesParser().parsebytes(fields)


class Wire:
    """A connection, seen from the client. A bare socket: what came in before a reset can still be read."""

    def __init__(self) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._got = b""

    async def send(self, data: bytes, *, step: int | None = None) -> None:
        """Send it whole, or in pieces that arrive one by one. A server that hangs up early is no error."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(data), step or len(data)):
                await loop.sock_sendall(self.socket, data[start : start + (step or len(data))])
                if step:
                    await asyncio.sleep(0)

    async def answer(self, *, bodiless: bool = False) -> Answer | None:
        """The next answer; None where the connection is closed instead. ``bodiless``: to a HEAD request."""
        while b"\r\n\r\n" not in self._got:
            if not await self._receive():
                return None
        head, _, self._got = self._got.partition(b"\r\n\r\n")
        line, _, fields = head.partition(b"\r\n")
        headers = _parsed(fields)
        length = 0 if bodiless else int(headers.get("Content-Length", "0"))
        while len(self._got) < length:
            if not await self._receive():
                return None
        body, self._got = self._got[:length], self._got[length:]
        version, status, *_ = line.split()
        return Answer(int(status), headers, body, version.decode())

    async def closed(self) -> bool:
        """Whether the server closes the connection and says nothing more."""
        return not self._got and not await self._receive()

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Vanish: the server gets a reset, not an end."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    async def _receive(self) -> bool:
        async with asyncio.timeout(5):
            try:
                data = await asyncio.get_running_loop().sock_recv(self.socket, 65536)
            except ConnectionError:
                return False
        self._got += data
        return bool(data)
