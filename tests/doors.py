"""Both doors on sockets of their own, before a real store, and a client that speaks bytes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import socket
import struct
from collections.abc import AsyncIterator
from email.message import Message
from email.parser import BytesParser

from fakes import Batches
from idagg.accept.app import AppDoor, application
from idagg.accept.commit import GroupCommit, Hits
from idagg.accept.entrance import Entrance
from idagg.accept.front import FrontDoor
from idagg.accept.known import Known
from idagg.store.client import Client
from idagg.store.hits import MAX_BATCH, HitStore
from idagg.store.link import Link


@dataclasses.dataclass
class Doors:
    commit: GroupCommit
    front: FrontDoor
    app: AppDoor
    ports: dict[str, int]
    refused: list[int]
    wires: list[Wire] = dataclasses.field(default_factory=list)

    async def connect(self, door: str) -> Wire:
        """A new connection; closed with the doors, if it is not before."""
        wire = Wire()
        self.wires.append(wire)
        await asyncio.get_running_loop().sock_connect(wire.socket, ("127.0.0.1", self.ports[door]))
        return wire


@contextlib.asynccontextmanager
async def open_doors(
    hits: Hits, *, deadline_s: float = 2.0, max_waiting: int = 65_536
) -> AsyncIterator[Doors]:
    loop = asyncio.get_running_loop()
    commit = GroupCommit(
        hits,
        Batches(),
        Known(lambda: 0.0),  # what it knows does not age while a test is held up
        deadline_s=deadline_s,
        max_batch=MAX_BATCH,
        max_waiting=max_waiting,
        now=loop.time,
    )
    refused: list[int] = []
    app = AppDoor(application(commit, lambda: commit.trouble, refused.append))
    await app.start()
    front = FrontDoor(commit, app, epoch_s=0)
    running = asyncio.create_task(commit.run())
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    ports = {"front": listener.getsockname()[1]}
    entrance = Entrance(listener, front)
    server = await loop.create_server(app, "127.0.0.1", 0)
    ports["app"] = server.sockets[0].getsockname()[1]
    try:
        yield (doors := Doors(commit, front, app, ports, refused))
    finally:
        for wire in doors.wires:
            wire.close()
        await entrance.close()
        server.close()
        front.close()
        await app.close()
        commit.stop()
        await running


@contextlib.asynccontextmanager
async def open_doors_before(url: str) -> AsyncIterator[Doors]:
    """Doors before the store at ``url``, which is emptied first."""
    client, link = Client(url, timeout_s=5), Link(url)
    await client.command("FLUSHALL")
    try:
        async with open_doors(HitStore(link, namespace="t", window_s=3600, exact_limit=10**6)) as doors:
            yield doors
    finally:
        await link.close()
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

    async def answer(self) -> Answer | None:
        """The next answer; None where the connection is closed instead."""
        while b"\r\n\r\n" not in self._got:
            if not await self._receive():
                return None
        head, _, self._got = self._got.partition(b"\r\n\r\n")
        line, _, fields = head.partition(b"\r\n")
        headers = _parsed(fields)
        length = int(headers.get("Content-Length", "0"))
        while len(self._got) < length:
            if not await self._receive():
                return None
        body, self._got = self._got[:length], self._got[length:]
        return Answer(int(line.split()[1]), headers, body)

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
