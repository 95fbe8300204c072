"""How long it takes to call thousands of endpoints, and whether some that never answer delay the others."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

from bench.flushing.results import Calls
from bench.service import Service, idagg
from bench.tools import say
from idagg.store.client import Client
from idagg.store.hits import MAX_BATCH, HitStore
from idagg.window import iso
from kit.servers import free_port
from kit.waiting import first_window


def _hosts(net: int, count: int) -> list[str]:
    return [f"127.{net}.{number >> 8}.{number & 255}" for number in range(1, count + 1)]


# Endpoints share hosts, as those of real callers do; each tarpit has its own, which is the worst case.
_HOSTS = _hosts(1, 1000)
_WINDOW_S = 3
_PATIENCE_S = 60


class _Arrivals:
    """When each path was called, Unix time."""

    def __init__(self, wanted: int) -> None:
        self.first: dict[bytes, float] = {}
        self.repeated = 0
        self.all = asyncio.Event()
        self._wanted = wanted

    def note(self, path: bytes) -> None:
        self.repeated += path in self.first
        self.first.setdefault(path, time.time())
        if len(self.first) == self._wanted:
            self.all.set()


class _Answering(asyncio.Protocol):
    def __init__(self, arrivals: _Arrivals) -> None:
        self._arrivals = arrivals
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        if self._data.endswith(b"}"):  # the body's end
            self._arrivals.note(self._data.split(b" ", 2)[1])
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self._transport.close()


async def calls(folder: Path, endpoints: int, tarpits: int) -> Calls:
    loop = asyncio.get_running_loop()
    arrivals = _Arrivals(endpoints)
    port, dead_port = free_port(), free_port()
    tarpit_hosts = _hosts(2, tarpits)
    answering = await loop.create_server(lambda: _Answering(arrivals), _HOSTS, port)
    silent = await loop.create_server(asyncio.Protocol, ["127.0.0.1", *tarpit_hosts], dead_port)
    urls = [f"http://{_HOSTS[number % len(_HOSTS)]}:{port}/{number}" for number in range(endpoints)]
    urls += [f"http://{host}:{dead_port}/" for host in tarpit_hosts]
    with idagg(folder, "--callback-allow=127.0.0.0/8", window_s=_WINDOW_S) as service:
        service.ready()
        ends_s = await _put(service, [url.encode() for url in urls])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ends_s + _PATIENCE_S - time.time()):
                await arrivals.all.wait()
    answering.close()
    silent.close()
    after_s = sorted(arrived - ends_s for arrived in arrivals.first.values())
    return Calls(
        endpoints,
        tarpits,
        after_s[len(after_s) // 2],
        after_s[-1],
        endpoints - len(after_s),
        arrivals.repeated,
    )


async def _put(service: Service, urls: list[bytes]) -> int:
    """Have them called at the end of a window; returns that."""
    start_s = first_window(_WINDOW_S)
    say(f"a window with {len(urls):,} endpoints, from {iso(start_s)[11:19]}")
    await asyncio.sleep(start_s + 0.1 - time.time())
    link = Client(service.store.url)
    hits = HitStore(link, namespace="idagg", window_s=_WINDOW_S, exact_limit=1)
    for seq, first in enumerate(range(0, len(urls), MAX_BATCH), 1):
        await hits.add(seq, [b"1"], urls[first : first + MAX_BATCH])
    await link.close()
    return start_s + _WINDOW_S
