"""The callback process: calls endpoints while a worker of this machine leads.

Any API user can choose an endpoint, so this process shares nothing with the accept path: it has its own event
loop, memory and descriptors, and gets only the CPU time that others leave. If it dies or hangs, the
supervisor replaces it; attempts that it had begun count as made. It reads pending callbacks from the store
itself, under the leader's epoch, so they do not pass through the leading worker.

The supervisor runs ``python -m idagg.run.callback_process``. ``idagg.run.messages`` has their messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import os
import resource
import ssl
from pathlib import Path

import uvloop

from idagg.deliver.callback import CONCURRENCY, Callbacks
from idagg.deliver.guard import Guard
from idagg.deliver.logfile import LogFile
from idagg.deliver.post import Poster, Proxy, tls_context
from idagg.deliver.resolve import Resolver
from idagg.deliver.route import Router
from idagg.errors import Exit
from idagg.flush.caller import Caller
from idagg.metrics import Metrics
from idagg.run import stores
from idagg.run.logs import take_dropped
from idagg.run.messages import HEARTBEAT_S, CallbackStart, Heartbeat, Leads
from idagg.run.process import begin, first_message, later_messages, send, work
from idagg.signing import Signer
from idagg.store.shards import shard_tag
from idagg.store.windows import WindowStore

log = logging.getLogger("idagg.callbacks")

STORE_TIMEOUT_S = 5.0
# Nothing waits for this process's lines, and at its niceness it may wait long for a CPU.
LOG_TIMEOUT_S = 30.0
# Other processes have 0. With 19, this one gets 1/70 of a busy CPU and all of an idle one.
NICENESS = 19
# If memory runs out, the kernel kills this process before the other idagg processes.
OOM_SCORE = 500
# MAX_CALLBACKS endpoints of maximum length, and the memory of their calls.
MAX_BYTES = 1 << 30
MAX_FILES = CONCURRENCY + 256
# Heartbeats from one count of the waiting endpoints to the next: 2 s.
_COUNTED_EVERY = 4


class Assigned:
    """The leadership that the supervisor reports; a `Leader` for the `Caller`."""

    def __init__(self) -> None:
        self.epoch = 0
        self._changed = asyncio.Event()

    def tell(self, epoch: int) -> None:
        self.epoch = epoch
        self._changed.set()

    async def elected(self) -> int:
        while not self.epoch:
            self._changed.clear()
            await self._changed.wait()
        return self.epoch

    def lost(self, epoch: int) -> None:
        if self.epoch == epoch:
            self.epoch = 0


class CallbackProcess:
    """All parts of the callback process, their start, and their orderly stop."""

    def __init__(self, start: CallbackStart, *, heartbeats: int) -> None:
        settings = start.settings
        self._heartbeats = heartbeats  # a descriptor
        self._assigned = Assigned()
        self._metrics = Metrics()
        servers = stores.servers(start.redis_url, settings)
        self._client = servers.client(shard_tag(settings.namespace), timeout_s=STORE_TIMEOUT_S)
        windows = WindowStore(
            self._client,
            namespace=settings.namespace,
            window_s=settings.window,
            exact_limit=settings.exact_limit,
            proves=settings.replicas > 0,
        )
        proxy = Proxy.parse(settings.callback_proxy) if settings.callback_proxy else None
        self._resolver = Resolver(CONCURRENCY)
        self._callbacks = Callbacks(
            router=Router(
                Guard(settings.callback_allow, only_allowed=settings.callbacks == "listed"),
                self._resolver,
                has_proxy=proxy is not None,
            ),
            poster=Poster(tls=_tls(settings.callback_ca), proxy=proxy),
            log=LogFile(settings.log_file, timeout_s=LOG_TIMEOUT_S),
            namespace=settings.namespace,
            signer=Signer(settings.callback_secret.split(",") if settings.callback_secret else ()),
            rate=settings.callback_rate,
            limit=settings.callback_limit,
            on_result=self._metrics.called,
        )
        self._caller = Caller(
            windows,
            self._assigned,
            self._callbacks,
            on_given_up=functools.partial(self._metrics.called, "given_up"),
        )

    async def run(self) -> None:
        """Work until asked to end. Attempts under way are given up; they count as made."""
        await work(
            callbacks=self._callbacks.run(),
            caller=self._caller.run(),
            supervisor=self._listen(),
            heartbeat=self._beat(),
        )
        self._resolver.close()
        await self._client.close()

    async def _listen(self) -> None:
        """Receive the epoch from the supervisor."""
        async with contextlib.aclosing(later_messages()) as lines:
            async for line in lines:
                self._assigned.tell(Leads.parse(line).epoch)

    async def _beat(self) -> None:
        waiting: dict[str, int] = {}
        for count in itertools.count():
            if count % _COUNTED_EVERY == 0:
                waiting = self._callbacks.waiting()
            self._metrics.tasks(len(asyncio.all_tasks()))
            self._metrics.log_lines_dropped(take_dropped())
            send(self._heartbeats, Heartbeat(pid=os.getpid(), waiting=waiting))
            await asyncio.sleep(HEARTBEAT_S)


def _tls(ca: Path | None) -> ssl.SSLContext:
    try:
        return tls_context(None if ca is None else str(ca))
    except OSError as error:  # the file was valid when idagg was started
        log.error("the CA file %s cannot be read, callbacks trust only the system's CAs: %s", ca, error)
        return tls_context()


def restrain() -> None:
    """Limit this process's CPU time, memory and descriptors in favour of the other processes."""
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    # If the kernel schedules by session (sched_autogroup), it compares the niceness of sessions, not of
    # processes, and this process has its own session.
    with contextlib.suppress(OSError):  # not every kernel has autogroups
        Path("/proc/self/autogroup").write_text(str(NICENESS))
    with contextlib.suppress(OSError):  # a container may not show the file
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    for kind, most in ((resource.RLIMIT_DATA, MAX_BYTES), (resource.RLIMIT_NOFILE, MAX_FILES)):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main() -> int:
    start = first_message(CallbackStart.parse)
    heartbeats = begin("callbacks", writer=start.writer, stdout=start.stdout)
    restrain()

    async def serve() -> None:
        await CallbackProcess(start, heartbeats=heartbeats).run()

    uvloop.run(serve())
    return Exit.OK


if __name__ == "__main__":
    raise SystemExit(main())
