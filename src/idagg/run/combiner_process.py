"""The combiner process: carries the batches of this machine's many workers to the store.

``idagg.store.combining`` says how, and why.

If it dies or hangs, the supervisor replaces it. Workers send their batches themselves meanwhile.

The supervisor runs ``python -m idagg.run.combiner_process``. ``idagg.run.messages`` has their messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal

import uvloop

from idagg.errors import Exit
from idagg.metrics import Metrics
from idagg.run import stores
from idagg.run.logs import take_dropped
from idagg.run.messages import HEARTBEAT_S, CombinerStart, Heartbeat
from idagg.run.process import begin, first_message, later_messages, send
from idagg.store.client import Client
from idagg.store.combining import PATIENCE_S, Combiner, socket_path
from idagg.tasks import end

log = logging.getLogger("idagg.combiner")


class CombinerProcess:
    """All parts of the combiner process, their start, and their end."""

    def __init__(self, start: CombinerStart, *, heartbeats: int) -> None:
        self._path = socket_path(start.combiner)
        self._heartbeats = heartbeats  # a descriptor
        self._metrics = Metrics()
        self._clients: list[Client] = []
        servers = stores.servers(start.redis_url, start.settings)

        def client(tag: str) -> Client:
            # By then its workers have sent the batch themselves.
            self._clients.append(servers.client(tag, timeout_s=PATIENCE_S))
            return self._clients[-1]

        self._combiner = Combiner(client)

    async def run(self) -> None:
        """Work until SIGTERM or SIGINT, and end at once: workers send again what has no answer. An unhandled
        error in any part ends the process."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        parts = [
            asyncio.create_task(self._combiner.run(self._path), name="combiner"),
            asyncio.create_task(self._listen(), name="supervisor"),
            asyncio.create_task(self._beat(), name="heartbeat"),
        ]
        stopped = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait([stopped, *parts], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        await end(*reversed(parts))
        for client in self._clients:
            await client.close()

    async def _listen(self) -> None:
        """End with the supervisor, which closes our standard input then."""
        async with contextlib.aclosing(later_messages()) as lines:
            async for _ in lines:
                """There is nothing to tell yet."""
        log.error("the supervisor has died, stopping")

    async def _beat(self) -> None:
        while True:
            self._metrics.tasks(len(asyncio.all_tasks()))
            self._metrics.log_lines_dropped(take_dropped())
            send(self._heartbeats, Heartbeat(pid=os.getpid()))
            await asyncio.sleep(HEARTBEAT_S)


def main() -> int:
    start = first_message(CombinerStart.parse)
    heartbeats = begin("combiner", writer=start.writer, stdout=start.stdout)

    async def serve() -> None:
        await CombinerProcess(start, heartbeats=heartbeats).run()

    uvloop.run(serve())
    return Exit.OK


if __name__ == "__main__":
    raise SystemExit(main())
