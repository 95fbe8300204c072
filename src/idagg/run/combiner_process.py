"""The combiner process: carries the batches of this machine's many workers to the store.

``idagg.store.combining`` says how, and why.

If it dies or hangs, the supervisor replaces it. Workers send their batches themselves meanwhile.

The supervisor runs ``python -m idagg.run.combiner_process``. ``idagg.run.messages`` has their messages.
"""

from __future__ import annotations

import asyncio
import os

import uvloop

from idagg.errors import Exit
from idagg.metrics import Metrics
from idagg.run import stores
from idagg.run.logs import take_dropped
from idagg.run.messages import HEARTBEAT_S, CombinerStart, Heartbeat
from idagg.run.process import begin, first_message, send, work
from idagg.store.client import Client
from idagg.store.combining import PATIENCE_S, Combiner, socket_path


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
        """End at once when asked to: workers send again what has no answer."""
        await work(combiner=self._combiner.run(self._path), heartbeat=self._beat())
        for client in self._clients:
            await client.close()

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
