"""A worker process: one event loop that accepts requests and is a candidate for leader.

This is the composition root of accept, store, flush and deliver. The supervisor runs
``python -m idagg.run.worker``. ``idagg.run.messages`` has their messages.
"""

from __future__ import annotations

import asyncio
import collections
import gc
import logging
import math
import os
import resource
import signal
import socket
import sys
import time

import uvloop

from idagg import libraries
from idagg.accept.admission import Admission
from idagg.accept.commit import TICK_S, Cause, GroupCommit, linger_s
from idagg.accept.connection import EXCHANGE_S
from idagg.accept.fallback import Fallback, accept_routes, health_routes
from idagg.accept.fast_path import FastPath
from idagg.accept.listener import Listener, most_connections
from idagg.deliver.logfile import LogFile
from idagg.errors import CannotStartError, Exit
from idagg.flush.flusher import Flusher
from idagg.flush.leader import PATIENCE_S, Leadership
from idagg.metrics import Metrics
from idagg.run import sinks
from idagg.run.logs import take_dropped
from idagg.run.messages import HEARTBEAT_S, Heartbeat, WorkerStart
from idagg.run.observation import Observation
from idagg.run.process import begin, first_message
from idagg.store.hits import MAX_BATCH, HitStore
from idagg.store.servers import Servers
from idagg.store.shards import shard_tag
from idagg.store.windows import WindowStore
from idagg.tasks import end

log = logging.getLogger("idagg.worker")

# Longer than a request may wait for the store, because no client waits for a flush.
FLUSH_TIMEOUT_S = 5.0
# Time for which a worker is not ready after a failed batch, if nothing else is wrong.
TROUBLE_LASTS_S = 2.0
# Limit of open files, connections included. Shells and systemd set 1,024, which is the limit of select().
# Precedent for raising it: Go's runtime.
MAX_FILES = 65_536
# Time for which a stopping worker keeps idle connections. Precedent: nginx closes them at once.
LAST_REQUEST_S = 1.0


class Worker:
    """All parts of a worker process, their start, and their orderly stop."""

    def __init__(self, start: WorkerStart, *, heartbeats: int) -> None:
        settings = start.settings
        self._start = start
        self._heartbeats = heartbeats  # a descriptor
        self._connections_limit = most_connections()
        self._stop = asyncio.Event()
        self._metrics = Metrics()
        self._answered = 0  # requests
        self._failed_at = -math.inf  # when a batch was last not stored, by the loop's clock
        loop = asyncio.get_running_loop()

        servers = Servers(start.redis_url)
        home = shard_tag(settings.namespace)
        self._hits = servers.client(home)
        self._commit = GroupCommit(
            HitStore(
                self._hits,
                namespace=settings.namespace,
                window_s=settings.window,
                exact_limit=settings.exact_limit,
            ),
            self,
            deadline_s=settings.deadline,
            max_batch=MAX_BATCH,
            now=loop.time,
            linger_s=linger_s(settings.workers),
        )
        tally = collections.Counter[int]()
        self._admission = admission = Admission(
            self._commit, tally, keeps_endpoints=settings.callbacks != "off"
        )
        self._fallback = Fallback(
            [*accept_routes(admission, settings.cors_origin), *health_routes(self._store_trouble)],
            tally,
            cors_origin=settings.cors_origin,
        )
        self._public = FastPath(
            admission,
            self._fallback,
            epoch_s=time.time(),
            deadline_s=settings.deadline,
            keepalive_s=settings.keepalive,
            max_age_s=settings.max_connection_age or math.inf,
            cors_origin=settings.cors_origin,
        )

        self._client = servers.client(home, timeout_s=FLUSH_TIMEOUT_S)
        windows = WindowStore(
            self._client,
            namespace=settings.namespace,
            window_s=settings.window,
            exact_limit=settings.exact_limit,
        )
        self._seen = Observation(self._metrics, windows.current)
        lines = LogFile(settings.log_file)
        self._leadership = Leadership(
            windows.election,
            windows.election.agreed,
            patience_s=PATIENCE_S if settings.redis_url else 0,  # no other idagg uses the embedded store
            on_change=self._seen.leads,
        )
        self._broker = sinks.broker(settings)
        self._flusher = Flusher(
            windows,
            self._leadership,
            broker=self._broker,
            lines=lines,
            observer=self._seen,
            now=self._seen.now_s,
        )

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then answer the requests already taken, resign, and return.

        An unhandled error in any part ends the process: the next process starts from a known state.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        commit = asyncio.create_task(self._commit.run(), name="commit")
        flusher = asyncio.create_task(self._flusher.run(), name="flusher")
        candidacy = asyncio.create_task(self._leadership.run(), name="candidacy")
        others = [
            asyncio.create_task(self._tick(), name="tick"),
            asyncio.create_task(self._connect_broker(), name="broker"),
            asyncio.create_task(self._seen.run(), name="observation"),
            asyncio.create_task(self._watch_supervisor(), name="supervisor"),
        ]
        await self._fallback.start()
        listener = Listener(socket.socket(fileno=self._start.listener), self._public)
        others.append(asyncio.create_task(self._beat(), name="heartbeat"))
        # These objects live as long as the process: the garbage collector need not scan them again.
        gc.collect()
        gc.freeze()

        stop = asyncio.create_task(self._stop.wait())
        done, _ = await asyncio.wait(
            [stop, commit, flusher, candidacy, *others], return_when=asyncio.FIRST_COMPLETED
        )
        if stop not in done:
            for task in done:
                task.result()
            raise RuntimeError(f"{[task.get_name() for task in done]} ended by itself")

        self._public.drain()
        await listener.close()
        self._flusher.stop()
        await flusher
        await end(candidacy)
        await self._leadership.resign()
        await self._last_requests()
        await self._public.close(EXCHANGE_S)
        await self._fallback.close()
        self._commit.stop()
        await commit
        await end(*others)
        if self._broker:
            await self._broker.close()
        await self._hits.close()
        await self._client.close()

    def batch(
        self,
        *,
        requests: int,
        ids: int,
        repeats: int,
        stored: bool,
        took_s: float,
        waited_s: float | None = None,
        cause: Cause | None = None,
    ) -> None:
        """Record a batch that the group commit reports."""
        if not stored:
            self._failed_at = asyncio.get_running_loop().time()
        self._answered += requests
        self._metrics.batch(
            requests=requests,
            ids=ids,
            repeats=repeats,
            stored=stored,
            took_s=took_s,
            waited_s=waited_s,
            cause=cause,
        )

    def _store_trouble(self) -> str | None:
        """Why this worker is not ready; None if it is.

        A failed batch counts for TROUBLE_LASTS_S only: while the worker is not ready, the load balancer sends
        no request whose success could end the trouble.
        """
        lately = asyncio.get_running_loop().time() - self._failed_at < TROUBLE_LASTS_S
        return (lately and self._commit.trouble) or self._leadership.trouble

    async def _last_requests(self) -> None:
        """Wait at most LAST_REQUEST_S for idle clients to send one more request."""
        give_up_at = time.monotonic() + LAST_REQUEST_S
        while self._public.connections:
            if time.monotonic() > give_up_at:
                return
            await asyncio.sleep(TICK_S)

    async def _tick(self) -> None:
        """The one timer of the public listener, with a resolution of TICK_S."""
        loop = asyncio.get_running_loop()
        next_second = loop.time() + 1
        while True:
            await asyncio.sleep(TICK_S)
            self._commit.tick()
            self._public.tick()
            if loop.time() >= next_second:
                next_second += 1
                self._public.second(time.time())
                tally = self._fallback.take_tally()
                self._answered += sum(tally.values())
                self._metrics.traffic(
                    tally,
                    self._fallback.take_reasons(),
                    {"full": self._admission.full, "connections": self._public.turned_away},
                    connections=len(self._public.connections),
                    connections_limit=self._connections_limit,
                    waiting=self._commit.waiting,
                )
                self._admission.full = self._public.turned_away = 0

    async def _connect_broker(self) -> None:
        """Connect to the broker at the first election, because only a leader publishes."""
        await self._leadership.elected()
        if self._broker:
            self._broker.start()
        await asyncio.Event().wait()

    async def _watch_supervisor(self) -> None:
        """Stop if the supervisor dies, which closes our standard input."""
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        loop.add_reader(sys.stdin.fileno(), gone.set)
        await gone.wait()
        loop.remove_reader(sys.stdin.fileno())
        log.error("the supervisor has died, stopping")
        self._stop.set()
        await asyncio.Event().wait()

    async def _beat(self) -> None:
        """Send heartbeats to the supervisor, the first once the store has answered or failed."""
        await self._leadership.answered.wait()
        while True:
            broker = self._broker.trouble if self._broker and self._leadership.epoch else None
            heartbeat = Heartbeat(
                self._leadership.epoch,
                self._store_trouble(),
                broker,
                self._flusher.trouble,
                pid=os.getpid(),
                answered=self._answered,
                skew_s=self._seen.skew_s,
                late_s=self._seen.late_s,
                lead=self._seen.lead,
            )
            self._metrics.tasks(len(asyncio.all_tasks()))
            self._metrics.log_lines_dropped(take_dropped())
            self._metrics.differs(self._leadership.differs)
            try:
                os.write(self._heartbeats, heartbeat.line())
            except BlockingIOError:
                pass  # the supervisor is busy: skip this heartbeat
            except BrokenPipeError:
                self._stop.set()
            await asyncio.sleep(HEARTBEAT_S)


def main() -> int:
    start = first_message(WorkerStart.parse)
    heartbeats = begin(f"worker-{start.slot}", writer=start.writer, stdout=start.stdout)
    try:
        libraries.check()
    except CannotStartError as error:
        log.error("%s", error)
        return Exit.CANNOT_START
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MAX_FILES)), hard))

    async def serve() -> None:
        await Worker(start, heartbeats=heartbeats).run()

    uvloop.run(serve())
    return Exit.OK


if __name__ == "__main__":
    raise SystemExit(main())
