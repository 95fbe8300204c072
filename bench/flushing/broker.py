"""How long after a window's end RabbitMQ has its count, by the number of ids in the window."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiormq
from aiormq.abc import DeliveredMessage

from bench.filling import fill
from bench.flushing.results import Flush
from bench.service import Service, idagg
from bench.tools import say
from idagg.window import iso
from kit.waiting import first_window

# The tests know how to start a RabbitMQ that nobody else meets.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from kit.servers import RabbitServer, ensure_installed

_QUEUE = "counts_queue"
_FIRST_ID = 100_000_000
_LAG = "idagg_flush_lag_seconds_sum"
# A window that is no older is as good as the next one.
_LATE_S = 3


async def flushes(folder: Path, counts: Sequence[int], *, window_s: int) -> AsyncIterator[Flush]:
    ensure_installed()
    say("starting RabbitMQ")
    with RabbitServer() as rabbit:
        connection = await aiormq.connect(rabbit.url)
        channel = await connection.channel()
        await channel.queue_declare(_QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
        arrivals: asyncio.Queue[tuple[float, dict[str, object]]] = asyncio.Queue()

        async def take(message: DeliveredMessage) -> None:
            arrivals.put_nowait((time.time(), json.loads(message.body)))

        await channel.basic_consume(_QUEUE, take, no_ack=True)
        with idagg(folder, f"--amqp-url={rabbit.url}", window_s=window_s) as service:
            service.ready()
            for count in counts:
                yield await _flush(service, count, arrivals)
        await connection.close()


async def _flush(
    service: Service, count: int, arrivals: asyncio.Queue[tuple[float, dict[str, object]]]
) -> Flush:
    start_s = first_window(service.window_s, after_s=-_LATE_S)
    say(f"a window with {count:,} ids, from {iso(start_s)[11:19]}")
    await asyncio.sleep(max(0, start_s + 0.1 - time.time()))  # when the window before it has gone
    began_s = time.time()
    memory = service.store.used_memory()
    if await fill(service, _FIRST_ID, count) != {start_s}:
        raise RuntimeError(f"the window of {service.window_s} s is too short to put {count:,} ids in")
    filled_s = time.time() - began_s
    memory = service.store.used_memory() - memory
    set_memory = int(service.store.ask("MEMORY", "USAGE", f"{{idagg:0}}:w:{start_s}:ids"))
    lag_s = service.metric(_LAG)

    while True:
        arrived, record = await arrivals.get()
        if record["window_start"] == iso(start_s):
            break
    if record["unique_ids"] != count:
        raise RuntimeError(f"{count:,} ids were put in, {record['unique_ids']:,} were counted")
    await asyncio.sleep(1)  # the confirm comes a little later than the message
    return Flush(
        count,
        filled_s,
        (arrived - start_s - service.window_s) * 1e3,
        (service.metric(_LAG) - lag_s) * 1e3,
        memory / count,
        set_memory / count,
    )
