"""The fault proxy does to a connection what it is told, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import cast

import pytest

from kit.proxy import Proxy
from kit.wire import Wire, connect


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """Before a server that answers with what it is sent."""

    class Echo(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.Transport, transport)

        def data_received(self, data: bytes) -> None:
            self.transport.write(data)

    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    async with server, Proxy(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy


class Peer:
    def __init__(self, wire: Wire) -> None:
        self._socket = wire.socket

    async def echo(self, text: bytes) -> bytes:
        """What comes back of it before the connection ends."""
        loop = asyncio.get_running_loop()
        found = b""
        with contextlib.suppress(ConnectionError):
            await loop.sock_sendall(self._socket, text)
            while len(found) < len(text) and (data := await loop.sock_recv(self._socket, 100)):
                found += data
        return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
async def peer(proxy: Proxy) -> AsyncIterator[Peer]:
    peer = Peer(await connect(proxy.port))
    assert await peer.echo(b"hello") == b"hello"
    yield peer
    peer.close()


async def test_delay(proxy: Proxy, peer: Peer) -> None:
    """Both ways take longer."""
    proxy.delay_s = 0.05
    began_s = time.monotonic()
    assert await peer.echo(b"hello") == b"hello"
    assert time.monotonic() - began_s >= 0.1


async def test_bytes_per_s(proxy: Proxy, peer: Peer) -> None:
    """A thin line: what is twice as long takes twice the time, each way."""
    proxy.bytes_per_s = 1000
    for length in (25, 50):
        began_s = time.monotonic()
        assert await peer.echo(b"x" * length) == b"x" * length
        assert time.monotonic() - began_s >= 2 * length / 1000


@pytest.mark.parametrize("way", ["stall", "stall_replies"])
async def test_stall(proxy: Proxy, peer: Peer, way: str) -> None:
    """Nothing comes back, and the connection stays; then it does."""
    setattr(proxy, way, True)
    echo = asyncio.create_task(peer.echo(b"hello"))
    assert await asyncio.wait([echo], timeout=0.1) == (set(), {echo})
    setattr(proxy, way, False)
    assert await echo == b"hello"


async def test_cut(proxy: Proxy, peer: Peer) -> None:
    """So many bytes come back, then the end; the next connection is whole."""
    proxy.cut_after = 8
    assert [await peer.echo(text) for text in (b"hello", b"hello", b"hello")] == [b"hello", b"hel", b""]
    assert proxy.cut.is_set()
    another = Peer(await connect(proxy.port))
    assert await another.echo(b"hello") == b"hello"
    another.close()


async def test_refuse(proxy: Proxy, peer: Peer) -> None:
    """Open connections end, and new ones too, until it lets them pass."""
    for refuse in (True, False):
        proxy.refuse = refuse
        another = Peer(await connect(proxy.port))
        assert await another.echo(b"hello") == (b"" if refuse else b"hello")
        assert await peer.echo(b"hello") == b""
        another.close()
