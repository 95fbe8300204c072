"""What happens at a window's end, and Redis' bytes per id.

How soon RabbitMQ has the count, by the ids in the window; how soon thousands of endpoints are called, and
whether some that never answer delay the others.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import tempfile
import time
from pathlib import Path

import aiormq
from aiormq.abc import DeliveredMessage

from bench.accepting import accepting
from bench.samples import Findings
from bench.service import Idagg, idagg
from bench.tools import numbers, say
from idagg.store.shards import shard_tag
from idagg.window import iso
from kit.servers import RabbitServer, ensure_installed, free_port
from kit.waiting import first_window

_QUEUE = "counts_queue"
# As many as a cluster has by default.
_SHARDS = 16
_FIRST_ID = 100_000_000
# A window that is no older is as good as the next one.
_LATE_S = 3


def _hosts(net: int, count: int) -> list[str]:
    return [f"127.{net}.{number >> 8}.{number & 255}" for number in range(1, count + 1)]


# Endpoints share hosts, as those of real callers do; each tarpit has its own, which is the worst case.
_HOSTS = _hosts(1, 1000)
_CALLS_WINDOW_S = 3
_PATIENCE_S = 60

_Arrivals = asyncio.Queue[tuple[float, dict[str, object]]]


def add_options(group: argparse._ArgumentGroup, *, quick: bool) -> None:
    add = group.add_argument
    add(
        "--ids",
        type=numbers,
        default=[200_000] if quick else [1000, 100_000, 1_000_000, 6_000_000],
        help="in the window, one window for each count, default: %(default)s",
    )
    add("--flush-window", type=int, default=5 if quick else 40, help="s, the ids must fit in: %(default)s")
    add(
        "--endpoints",
        type=int,
        default=2000 if quick else 10_000,
        help="to call, 1%% of them tarpits, default: %(default)s",
    )


def measure(found: Findings, options: argparse.Namespace) -> None:
    # Not in /tmp, which may be memory, where an fsync costs nothing.
    with tempfile.TemporaryDirectory(dir=options.cache, prefix="run-") as name:
        folder = Path(name)
        asyncio.run(_flushes(found, folder, options))
        tarpits = options.endpoints // 100
        for some in [tarpits] if options.quick else sorted({0, tarpits}):
            asyncio.run(_calls(found, folder, options.endpoints - some, some))
        if not options.quick:
            asyncio.run(accepting(found, folder, options.endpoints))


async def _flushes(found: Findings, folder: Path, options: argparse.Namespace) -> None:
    ensure_installed()
    say("starting RabbitMQ")
    with RabbitServer() as rabbit:
        connection = await aiormq.connect(rabbit.url)
        channel = await connection.channel()
        await channel.queue_declare(_QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
        arrivals: _Arrivals = asyncio.Queue()

        async def take(message: DeliveredMessage) -> None:
            arrivals.put_nowait((time.time(), json.loads(message.body)))

        await channel.basic_consume(_QUEUE, take, no_ack=True)
        flags = [f"--amqp-url={rabbit.url}"]
        with idagg(folder, *flags, window_s=options.flush_window) as service:
            for count in options.ids:
                say(str(found.add("flush", count, await _flush(service, count, arrivals))))
        flags.append(f"--shards={_SHARDS}")
        with idagg(folder, *flags, window_s=options.flush_window) as service:
            count = max(options.ids)
            figures = await _flush(service, count, arrivals, shards=_SHARDS)
            say(str(found.add("flush, shards", count, figures)))
        await connection.close()


async def _flush(service: Idagg, count: int, arrivals: _Arrivals, *, shards: int = 1) -> dict[str, float]:
    start_s = first_window(service.window, after_s=-_LATE_S)
    say(f"a window with {count:,} ids, from {iso(start_s)[11:19]}")
    await asyncio.sleep(max(0, start_s + 0.1 - time.time()))  # when the window before it has gone
    memory = service.redis.used_memory()
    if await service.fill(_FIRST_ID, count, shards=shards) != {start_s}:
        raise RuntimeError(f"the window of {service.window} s is too short to put {count:,} ids in")
    memory = service.redis.used_memory() - memory
    sets = [f"{shard_tag('idagg', shard)}:w:{start_s}:ids" for shard in range(shards)]
    set_memory = sum(int(service.redis.ask("MEMORY", "USAGE", name)) for name in sets)
    lag_ms = service.lag_ms()

    while True:
        arrived, record = await arrivals.get()
        if record["window_start"] == iso(start_s):
            break
    if record["unique_ids"] != count:
        raise RuntimeError(f"{count:,} ids were put in, {record['unique_ids']:,} were counted")
    await asyncio.sleep(1)  # the confirm comes a little later than the message
    return {
        "at the consumer ms": (arrived - start_s - service.window) * 1e3,
        "confirmed ms": service.lag_ms() - lag_ms,
        "bytes/id": memory / count,
        "of them in the set": set_memory / count,
    }


class _Called:
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
    def __init__(self, arrivals: _Called) -> None:
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


async def _calls(found: Findings, folder: Path, endpoints: int, tarpits: int) -> None:
    loop = asyncio.get_running_loop()
    arrivals = _Called(endpoints)
    port, dead_port = free_port(), free_port()
    tarpit_hosts = _hosts(2, tarpits)
    answering = await loop.create_server(lambda: _Answering(arrivals), _HOSTS, port)
    silent = await loop.create_server(asyncio.Protocol, ["127.0.0.1", *tarpit_hosts], dead_port)
    urls = [f"http://{_HOSTS[number % len(_HOSTS)]}:{port}/{number}" for number in range(endpoints)]
    urls += [f"http://{host}:{dead_port}/" for host in tarpit_hosts]
    with idagg(folder, "--callback-allow=127.0.0.0/8", window_s=_CALLS_WINDOW_S) as service:
        start_s = first_window(_CALLS_WINDOW_S)
        ends_s = start_s + _CALLS_WINDOW_S
        say(f"a window with {len(urls):,} endpoints, from {iso(start_s)[11:19]}")
        await asyncio.sleep(start_s + 0.1 - time.time())
        await service.put([url.encode() for url in urls])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ends_s + _PATIENCE_S - time.time()):
                await arrivals.all.wait()
    answering.close()
    silent.close()
    after_s = sorted(arrived - ends_s for arrived in arrivals.first.values())
    missing = endpoints - len(after_s)
    figures = {
        "endpoints": endpoints,
        "tarpits": tarpits,
        "half s": after_s[len(after_s) // 2],
        "all s": math.inf if missing else after_s[-1],
        "missing": missing,
        "repeated": arrivals.repeated,
    }
    say(str(found.add("calls", "beside tarpits" if tarpits else "without tarpits", figures)))
    if missing:
        found.troubles.append(f"{missing:,} callbacks did not come")
