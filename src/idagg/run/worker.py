"""A worker process: one event loop that accepts requests and is a candidate for leader.

This is the composition root of accept, store, flush and deliver. The supervisor runs
``python -m idagg.run.worker``. ``idagg.run.messages`` has their messages.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import gc
import logging
import math
import os
import resource
import signal
import socket
import time
from collections.abc import Collection

import uvloop

from idagg import libraries
from idagg.accept.admission import Admission
from idagg.accept.commit import TICK_S, linger_s
from idagg.accept.connection import EXCHANGE_S
from idagg.accept.fallback import Fallback, accept_routes, health_routes
from idagg.accept.fast_path import FastPath
from idagg.accept.listener import Listener, most_connections
from idagg.accept.routing import Router
from idagg.deliver.logfile import LogFile
from idagg.errors import CannotStartError, Exit
from idagg.flush.flusher import Flusher
from idagg.flush.leader import PATIENCE_S, Leadership
from idagg.metrics import Metrics
from idagg.run import sinks, stores
from idagg.run.logs import take_dropped
from idagg.run.messages import HEARTBEAT_S, Assignment, Heartbeat, WorkerStart
from idagg.run.observation import Observation
from idagg.run.process import begin, first_message, later_messages, send
from idagg.run.shard_news import ShardNews
from idagg.store.address import kind_of
from idagg.store.client import Client
from idagg.store.combining import Combined, socket_path
from idagg.store.hits import MAX_BATCH, HitStore
from idagg.store.shards import Regime, shard_tag
from idagg.store.watch import Watch
from idagg.store.windows import WindowStore
from idagg.tasks import end
from idagg.window import DAY_S

log = logging.getLogger("idagg.worker")

# Longer than a request may wait for the store, because no client waits for a flush.
FLUSH_TIMEOUT_S = 5.0
# Time for which a starting worker waits for the store to say over how many shards ids are spread. New
# connections wait meanwhile. After it, requests are taken without that, and may be answered 503.
FIRST_WORD_S = 1.0
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
        self._idle_s = LAST_REQUEST_S  # for which idle connections are kept at the end
        self._leaving: str | None = None  # one sentence, once this machine stops
        self._listeners: dict[int, Listener] | None = None  # by the inherited descriptor; None: not yet
        loop = asyncio.get_running_loop()

        servers = stores.servers(start.redis_url, settings)
        home = shard_tag(settings.namespace)
        self._shard_clients: dict[int, Client | Combined] = {}

        def hits(shard: int, regime: Regime) -> HitStore:
            client = self._shard_clients.get(shard)
            if client is None:
                client = servers.client(shard_tag(settings.namespace, shard))
                if start.combiner is not None:
                    client = Combined(client, socket_path(start.combiner), deadline_s=settings.deadline)
                self._shard_clients[shard] = client
            return HitStore(
                client,
                namespace=settings.namespace,
                shard=shard,
                regime=regime,
                window_s=settings.window,
                exact_limit=settings.exact_limit,
                on_lost=functools.partial(self._on_lost, shard),
            )

        tally = collections.Counter[int]()
        self._seen = Observation(
            self._metrics,
            lambda: self._windows.now(self._router.regime.shards if self._leadership.epoch else 1),
        )
        self._router = Router(
            hits,
            Regime(0, stores.shards(settings)),
            self._seen,
            tally,
            deadline_s=settings.deadline,
            max_batch=MAX_BATCH,
            now=loop.time,
            linger_s=linger_s(settings.workers),
        )
        self._shard_news = ShardNews()
        self._admission = admission = Admission(
            self._router, tally, keeps_endpoints=settings.callbacks != "off"
        )
        self._fallback = Fallback(
            [*accept_routes(admission, settings.cors_origin), *health_routes(self._not_ready)],
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
        self._windows = windows = WindowStore(
            self._client,
            namespace=settings.namespace,
            window_s=settings.window,
            exact_limit=settings.exact_limit,
            shards=stores.shards(settings),
            keep_s=settings.keep_records * DAY_S,
            client_of=functools.partial(servers.client, timeout_s=FLUSH_TIMEOUT_S),
            proves=settings.replicas > 0,
        )
        lines = LogFile(settings.log_file)
        self._leadership = Leadership(
            windows.election,
            windows.election.agreed,
            patience_s=PATIENCE_S if settings.redis_url else 0,  # no other idagg uses the embedded store
            on_change=self._seen.leads,
            on_regime=self._router.follow,
        )
        self._broker = sinks.broker(settings)
        self._watch = None
        if start.slot == 0 and settings.redis_url:  # one of a machine's workers; the embedded store is ours
            self._watch = Watch(
                servers,
                [shard_tag(settings.namespace, index) for index in range(stores.shards(settings))],
                kind=kind_of(settings.redis_url),
                replicas=settings.replicas,
                on_look=self._metrics.risks,
            )
        self._flusher = Flusher(
            windows,
            self._leadership,
            broker=self._broker,
            lines=lines,
            observer=self._seen,
            rollups=settings.rollups,
            now=self._seen.now_s,
        )

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then answer the requests already taken, resign, and return.

        An unhandled error in any part ends the process: the next process starts from a known state.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        commit = asyncio.create_task(self._router.run(), name="commit")
        flusher = asyncio.create_task(self._flusher.run(), name="flusher")
        candidacy = asyncio.create_task(self._leadership.run(), name="candidacy")
        others = [
            asyncio.create_task(self._tick(), name="tick"),
            asyncio.create_task(self._connect_broker(), name="broker"),
            asyncio.create_task(self._seen.run(), name="observation"),
        ]
        if self._watch:
            others.append(asyncio.create_task(self._watch.run(), name="watch"))
        await self._fallback.start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_WORD_S):
                await self._leadership.answered.wait()
        others.append(asyncio.create_task(self._listen_to_supervisor(), name="supervisor"))
        if self._listeners is None:
            self._accept_at([self._start.listener])
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
        # A listener is closed once nobody holds it any more.
        for descriptor in {self._start.listener, *self._start.listeners}:
            os.close(descriptor)
        assert self._listeners is not None
        for listener in self._listeners.values():
            await listener.close()
        self._flusher.stop()
        await flusher
        await end(candidacy)
        await self._leadership.resign()
        await self._last_requests()
        await self._public.close(EXCHANGE_S)
        await self._fallback.close()
        self._router.stop()
        await commit
        await end(*others)
        if self._broker:
            await self._broker.close()
        for client in self._shard_clients.values():
            await client.close()
        await self._windows.close()
        await self._client.close()

    def _shards_away(self) -> dict[int, str]:
        """Why shards store no ids, by their index."""
        away = self._router.trouble()
        leadership = self._leadership
        if leadership.trouble and (leadership.notice or not leadership.differs):
            away.setdefault(0, leadership.trouble)
        return away

    def _not_ready(self) -> str | None:
        """Why load balancers have to leave this worker; None if they need not."""
        return self._leaving or self._store_trouble()

    def _store_trouble(self) -> str | None:
        """Why this worker is not ready; None if it is: ids of some shards at least are stored."""
        leadership = self._leadership
        if leadership.trouble and leadership.differs and not leadership.notice:
            return leadership.trouble
        away, regime = self._shards_away(), self._router.regime
        if len(away) == regime.shards or (away and not regime.number):
            return away[min(away)]  # the home shard's, if it is one of them: without it, the others take none
        return None

    def _shard_trouble(self) -> str | None:
        """Which shards' ids are not stored while others' are; None if there is no such shard."""
        away, shards = self._shards_away(), self._router.regime.shards
        if not away or self._store_trouble():
            return None
        which = ", ".join(map(str, sorted(away)))
        return (
            f"of {shards} shards, {which} store no ids: these are answered 503, and windows are delivered "
            f"once all shards are back: {away[min(away)]}"
        )

    def _tell_shards(self) -> None:
        """Log which shards are away, and that they are back."""
        away = self._shards_away()
        some = away if self._shard_trouble() else {}
        now = asyncio.get_running_loop().time()
        if news := self._shard_news.look(now, some, away.keys()):
            sentence, is_good = news
            log.log(logging.INFO if is_good else logging.WARNING, "%s", sentence)

    def _on_lost(self, shard: int) -> None:
        self._metrics.lost()
        log.error(
            "%s, shard %d, does not have the last ids that it had acknowledged: windows since then come out "
            "too small; look for FLUSHALL, a failover or an old snapshot there",
            self._shard_clients[shard].address,
            shard,
        )

    async def _last_requests(self) -> None:
        """Wait for idle clients to send one more request."""
        give_up_at = time.monotonic() + self._idle_s
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
            self._router.tick()
            self._public.tick()
            self._tell_shards()
            if loop.time() >= next_second:
                next_second += 1
                self._public.second(time.time())
                tally = self._fallback.take_tally()
                self._seen.tally.others(tally)
                self._metrics.traffic(
                    tally,
                    self._fallback.take_reasons(),
                    {"full": self._admission.full, "connections": self._public.turned_away},
                    connections=len(self._public.connections),
                    connections_limit=self._connections_limit,
                    waiting=self._router.waiting,
                )
                self._admission.full = self._public.turned_away = 0

    async def _connect_broker(self) -> None:
        """Connect to the broker at the first election, because only a leader publishes."""
        await self._leadership.elected()
        if self._broker:
            await asyncio.shield(self._broker.start())  # it stays for the last messages
        await asyncio.Event().wait()

    async def _listen_to_supervisor(self) -> None:
        """Receive assignments. Stop if the supervisor dies, which closes our standard input."""
        async with contextlib.aclosing(later_messages()) as lines:
            async for line in lines:
                self._take_on(Assignment.parse(line))
        log.error("the supervisor has died, stopping")
        self._stop.set()
        await asyncio.Event().wait()

    def _take_on(self, assignment: Assignment) -> None:
        if assignment.idle_s is not None:
            self._idle_s = assignment.idle_s
        if assignment.listeners is not None and not self._stop.is_set():
            self._accept_at(assignment.listeners)
        if assignment.drain_s is not None and not self._leaving:
            self._leaving = "this machine is about to stop"
            last_s = max(0.0, assignment.drain_s - LAST_REQUEST_S)
            asyncio.get_running_loop().call_later(last_s, self._public.drain)

    def _accept_at(self, descriptors: Collection[int]) -> None:
        """Accept the connections of these listeners, and of no others."""
        if self._listeners is None:
            self._listeners = {}
        for number in self._listeners.keys() - set(descriptors):
            self._listeners.pop(number).stop()
        for number in set(descriptors) - self._listeners.keys():
            # A duplicate: the listener can be assigned again after this one is closed.
            self._listeners[number] = Listener(socket.socket(fileno=os.dup(number)), self._public)

    async def _beat(self) -> None:
        """Send heartbeats to the supervisor, the first once the store has answered or failed."""
        await self._leadership.answered.wait()
        while True:
            broker = self._broker.trouble if self._broker and self._leadership.epoch else None
            away = self._shards_away()
            heartbeat = Heartbeat(
                self._leadership.epoch,
                self._store_trouble(),
                broker,
                self._flusher.trouble,
                self._watch.risk if self._watch else None,
                shards=self._shard_trouble() or self._leadership.notice,
                pid=os.getpid(),
                answered=self._seen.tally.answered,
                skew_s=self._seen.skew_s,
                late_s=self._seen.late_s,
                lead=self._seen.lead,
                traffic=self._seen.tally.traffic(time.monotonic()),
                spread=self._router.regime.shards,
                away=sorted(away),
            )
            self._metrics.tasks(len(asyncio.all_tasks()))
            self._metrics.log_lines_dropped(take_dropped())
            self._metrics.differs(self._leadership.differs)
            self._metrics.shards_away(len(away))
            try:
                send(self._heartbeats, heartbeat)
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
