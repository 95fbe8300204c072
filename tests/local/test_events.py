"""The stream of statuses, for many listeners at once."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import socket
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from aiohttp import web

from idagg.read.fleet import Status
from idagg.run import broadcast
from idagg.run.broadcast import MAX_LISTENERS
from idagg.run.events import Events
from idagg.run.fleet import Fleet
from idagg.run.http_server import PIECE_BYTES, HttpServer
from kit.waiting import LIMIT_S, until
from kit.wire import Wire, connect

REQUEST = b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n"


class Counted:
    """A fleet that counts how often it is asked."""

    def __init__(self) -> None:
        self.made = 0
        self.state = 0
        self.namespace = "idagg"
        self.fails = False

    def essence(self) -> object:
        return self.state

    async def status(self) -> Status:
        if self.fails:
            raise RuntimeError("no status")
        self.made += 1
        return Status(
            now=datetime.datetime.now(datetime.UTC),
            namespace=self.namespace,
            window_s=self.made,
            machine="a",
            ready=True,
            machines=[],
        )


class Served:
    def __init__(self, fleet: Counted, stream: Events, port: int) -> None:
        self.fleet = fleet
        self.stream = stream
        self.port = port


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    fleet = Counted()
    stream = Events(cast(Fleet, fleet))
    server = HttpServer([web.get("/events", stream.stream)], [])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        await server.start(listening)
        yield Served(fleet, stream, listening.getsockname()[1])
        await stream.close()
        await server.close()


class Listener:
    """A client that reads events."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._rest = b""

    @classmethod
    async def of(cls, served: Served) -> Listener:
        wire = await connect(served.port)
        await wire.send(REQUEST)
        return cls(wire)

    async def event(self) -> dict[str, Any]:
        """The next one. Raises ConnectionError at the end of the stream."""
        while b"}\n\n" not in self._rest:
            async with asyncio.timeout(LIMIT_S):
                data = await asyncio.get_running_loop().sock_recv(self.wire.socket, 1 << 20)
            self._rest += data
            if not data or self._rest.endswith(b"\r\n0\r\n\r\n"):
                raise ConnectionResetError
        event, _, self._rest = self._rest.partition(b"}\n\n")
        found = json.loads(event.partition(b"data: ")[2] + b"}")
        return cast(dict[str, Any], found)

    async def ended(self) -> None:
        """Read to the end of the stream."""
        with contextlib.suppress(ConnectionError):
            while True:
                await self.event()


async def test_one_producer_for_all(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each listener is told at once; a status is made once, and none when nobody listens."""
    monkeypatch.setattr(broadcast, "PAUSE_S", 600)
    listeners = [await Listener.of(served) for _ in range(5)]
    assert {(await listener.event())["window_s"] for listener in listeners} == {1}
    served.fleet.state += 1
    assert {(await listener.event())["window_s"] for listener in listeners} == {2}
    late = await Listener.of(served)
    assert (await late.event())["window_s"] == 2
    for listener in (*listeners, late):
        listener.wire.close()
    await until(lambda: served.stream.broadcast.producing is None)
    made = served.fleet.made
    again = await Listener.of(served)
    assert (await again.event())["window_s"] == made + 1  # and not an old one
    again.wire.close()


async def test_a_change_is_told_at_once(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "PAUSE_S", 600)
    listener = await Listener.of(served)
    await listener.event()
    served.fleet.state += 1
    assert (await listener.event())["window_s"] == 2
    listener.wire.close()


async def test_the_stream_can_be_read_by_browsers(served: Served) -> None:
    listener = await Listener.of(served)
    said = b""
    async with asyncio.timeout(LIMIT_S):
        while b"}\n\n" not in said:
            said += await asyncio.get_running_loop().sock_recv(listener.wire.socket, 65_536)
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nContent-Type: text/event-stream\r\n" in head
    assert b"\r\nCache-Control: no-store" in head
    lines = body.splitlines()
    assert lines[1:3] == [b"retry: 1000", b""]
    assert lines[3].startswith(b'data: {"now":"')
    listener.wire.close()


async def test_at_most_so_many(served: Served) -> None:
    """One more is told so, and is served once another has gone."""
    listeners = [await Listener.of(served) for _ in range(MAX_LISTENERS)]
    for listener in listeners:
        await listener.event()
    refused = await connect(served.port)
    await refused.send(REQUEST)
    answer = await refused.answer()
    assert answer is not None
    assert (answer.status, answer.headers["Content-Type"]) == (503, "application/problem+json")
    assert "Retry-After" in answer.headers
    listeners.pop().wire.reset()
    await until(lambda: served.stream.broadcast.listeners == MAX_LISTENERS - 1)
    listeners.append(await Listener.of(served))
    await listeners[-1].event()
    for wire in (refused, *(listener.wire for listener in listeners)):
        wire.close()


async def test_a_slow_listener_is_dropped(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its events are not kept, others are not delayed, and the log does not call it a failure."""
    monkeypatch.setattr(broadcast, "PAUSE_S", 0.01)
    monkeypatch.setattr(broadcast, "LOOK_S", 0.01)
    monkeypatch.setattr(broadcast, "SLOW_S", 600)  # a machine that stands still makes everybody slow
    served.fleet.namespace = "x" * 1_000_000
    slow, quick = await Listener.of(served), await Listener.of(served)
    await until(lambda: served.stream.broadcast.listeners == 2)
    for _ in range(30):  # more than the kernel keeps for the other one
        await quick.event()
    assert served.stream.broadcast.listeners == 2
    for listener in (slow, quick):
        listener.wire.close()
    await until(lambda: not served.stream.broadcast.listeners)
    monkeypatch.setattr(broadcast, "SLOW_S", 0.3)
    slow = await Listener.of(served)
    await slow.event()
    await until(lambda: not served.stream.broadcast.listeners)
    await slow.ended()
    assert "failed" not in caplog.text
    slow.wire.close()


@pytest.mark.parametrize("kind", ["answer", "large answer", "stream"])
async def test_a_client_that_vanishes_in_mid_answer(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is no failure: the log says nothing, and the next client is served."""

    async def vanish(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        if "stay" not in request.query:
            request.transport.abort()
        if kind != "stream":
            return web.Response(body=b"x" * (2 * PIECE_BYTES if kind == "large answer" else 10))
        stream = web.StreamResponse()
        await stream.prepare(request)
        await stream.write(b"x")
        return stream

    server = HttpServer([web.get("/", vanish)], [])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        await server.start(listening)
        port = listening.getsockname()[1]
        gone = await connect(port)
        await gone.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await gone.answer() is None
        wire = await connect(port)
        await wire.send(b"GET /?stay HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await wire.answer()
        assert answer is not None
        assert answer.status == 200
        await server.close()
    assert not caplog.records
    for one in (gone, wire):
        one.close()


async def test_the_end(served: Served) -> None:
    """All streams end properly, and nothing waits for a listener."""
    listeners = [await Listener.of(served) for _ in range(3)]
    for listener in listeners:
        await listener.event()
    async with asyncio.timeout(LIMIT_S):
        await served.stream.close()
    for listener in listeners:
        await listener.ended()
        listener.wire.close()


async def test_a_status_that_cannot_be_made(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """Listeners are sent away, the log says why, and the next one is served."""
    listener = await Listener.of(served)
    await listener.event()
    served.fleet.fails = True
    await listener.ended()
    assert "/api/v1/events cannot be made" in caplog.text
    served.fleet.fails = False
    again = await Listener.of(served)
    await again.event()
    for wire in (listener.wire, again.wire):
        with contextlib.suppress(OSError):
            wire.close()
