"""Servers of strangers: they are called, answer whatever they like, and count.

Tests and the bench share them: an answer without an end, by the byte, in circles.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

from idagg.deliver.target import Target

LIMIT_S = 30.0  # no test waits this long unless it fails
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
GZIP = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
GZIP_BOMB = b"a\r\n\x1f\x8b\x08\0\0\0\0\0\0\x03\r\n" + 1000 * b"\0"

Talk = Callable[["Visit"], Awaitable[None]]


class Visit:
    """A connection that a stranger has taken, and what it does with it."""

    def __init__(
        self, stranger: Stranger, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._stranger = stranger
        self.reader = reader
        self.writer = writer
        writer.transport.set_write_buffer_limits(8192)

    async def request(self) -> bytes:
        """Read one whole request."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        request = head + await self.reader.readexactly(int(length[1]) if length else 0)
        self._stranger.requests.append(request)
        return request

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()
        self._stranger.sent += len(data)

    async def pour(self, data: bytes) -> None:
        """Say it without end, 8 MB/s or so, until the other one hangs up."""
        while True:
            await self.say(data * (8192 // len(data) + 1))
            await asyncio.sleep(0.001)

    async def wait(self) -> None:
        """Until the other one hangs up."""
        while await self.reader.read(65_536):
            pass

    def reset(self) -> None:
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


class Stranger:
    """A server that does whatever it likes, and counts."""

    def __init__(self) -> None:
        self.port = 0
        self.visits = 0
        self.open = 0
        self.sent = 0
        self.requests: list[bytes] = []
        self.left = asyncio.Event()  # the last visit is over, at either end

    def calls(self) -> Counter[str]:
        """How many there were of each webhook-id: of each window and endpoint."""
        found = (re.search(rb"\r\nwebhook-id: (\S+)", request) for request in self.requests)
        return Counter(match[1].decode() for match in found if match)

    def target(self, host: str = "a.test", *, is_tls: bool = False, path: bytes = b"/x?y") -> Target:
        return Target(is_tls, host, self.port, path)


@contextlib.asynccontextmanager
async def talking(
    talk: Talk, tls: ssl.SSLContext | None = None, *, host: str = "127.0.0.1", limit_s: float = LIMIT_S
) -> AsyncIterator[Stranger]:
    """It listens at ``host``; 0.0.0.0 is all of 127.0.0.0/8."""
    stranger = Stranger()
    tasks: set[asyncio.Task[None]] = set()

    async def visited(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stranger.visits += 1
        stranger.open += 1
        try:
            await talk(Visit(stranger, reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort() if tls else writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            stranger.open -= 1
            if not stranger.open:
                stranger.left.set()

    def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(visited(reader, writer))
        tasks.add(task)

    # Small buffers, so that what was sent is what was taken.
    with socket.create_server((host, 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        server = await asyncio.start_server(taken, sock=listening, ssl=tls, backlog=4096)
        stranger.port = listening.getsockname()[1]
        try:
            async with asyncio.timeout(limit_s):
                yield stranger
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def answering(answer: bytes) -> Talk:
    async def talk(visit: Visit) -> None:
        await visit.request()
        await visit.say(answer)

    return talk


def pouring(first: bytes, more: bytes) -> Talk:
    async def talk(visit: Visit) -> None:
        await visit.request()
        await visit.say(first)
        await visit.pour(more)

    return talk


def dripping(first: bytes, *, pause_s: float, said: Callable[[], None] = lambda: None) -> Talk:
    """A byte now and then, until the other one hangs up."""

    async def talk(visit: Visit) -> None:
        await visit.request()
        await visit.say(first)
        said()
        while True:
            await visit.say(b"x")
            await asyncio.sleep(pause_s)

    return talk


class Kind(NamedTuple):
    """A way to be hostile, and what the log says of it: a status, which ends the callback, or an error."""

    talk: Talk
    status: str | None = None
    error: str | None = None
    location: str | None = None


HOSTILE = {
    "interim": Kind(pouring(INTERIM, INTERIM), error="answer too long"),
    "head": Kind(pouring(b"HTTP/1.1 200 OK\r\n", b"X: x\r\n"), "200"),
    "chunks": Kind(pouring(CHUNKED, b"1\r\nx\r\n"), "200"),
    "trailers": Kind(pouring(CHUNKED + b"0\r\n", b"X: x\r\n"), "200"),
    "drip": Kind(dripping(b"HTTP/1.1 2", pause_s=1), error="timeout"),
    "redirects": Kind(answering(b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n"), "302", location="/again"),
    "gzip": Kind(pouring(GZIP, GZIP_BOMB), "200"),
    "401": Kind(answering(b"HTTP/1.1 401 Who?\r\nWWW-Authenticate: Basic realm=x\r\n\r\n"), "401"),
    "cookies": Kind(answering(b"HTTP/1.1 200 OK\r\n" + 40 * b"Set-Cookie: a=b\r\n" + b"\r\n"), "200"),
}
# So many endpoints of each kind, each on a host of its own.
OF_EACH = 17


def hostile_hosts(kind: str) -> list[str]:
    net = list(HOSTILE).index(kind)
    return [f"127.37.{net}.{number}" for number in range(1, OF_EACH + 1)]
