"""The supervisor: holds the listening sockets and the embedded store, and keeps all processes running.

Workers accept requests. One worker of all machines is the leader. Each machine has one callback process,
which calls endpoints while a worker of its machine leads. It is a separate process so that no endpoint can
delay an accept request.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import logging
import math
import os
import signal
import sys
import time
from typing import Any, TypeVar

import uvloop

from idagg import __version__, metrics
from idagg.deliver.logfile import is_stdout, shown
from idagg.errors import CannotStartError, Exit, IdaggError
from idagg.run import sockets, terminal
from idagg.run.admin import AdminListener
from idagg.run.child import Child, end
from idagg.run.logs import log_to_stderr
from idagg.run.machine import Machine
from idagg.run.messages import SINKS, CallbackStart, Heartbeat, Leads, WorkerStart
from idagg.run.restart import YOUNG_S, Restarts
from idagg.run.runtime import RuntimeFolder
from idagg.run.starts import FailedStarts, delay_s
from idagg.run.status import Rate
from idagg.run.status import line as status_line
from idagg.run.systemd import notify, watchdog_s
from idagg.run.troubles import Troubles
from idagg.settings import Settings
from idagg.store.address import shown as shown_url
from idagg.store.embedded import EmbeddedStore

T = TypeVar("T")

log = logging.getLogger("idagg.supervisor")

CALLBACK_MODULE = "idagg.run.callback_process"
# A callback process that has run this long is considered stable. For one that dies earlier, the restart delay
# grows, up to this value.
CALM_S = 30.0
# Interval at which the callback process is told of a new leader.
TELL_S = 0.25
# A worker may be without a heartbeat for so long: until it is killed for that, and its successor has asked
# the store. If it takes longer, this process does not do its work.
SILENT_S = 30.0
# From SIGHUP to the question whether the terminal is still there.
HANGUP_S = 0.2
# Interval at which systemd's status line is renewed.
STATUS_S = 1.0


class CrashLoopError(IdaggError):
    """A worker died right after its start too often in a row."""


class Supervisor:
    """Starts, watches, replaces and stops the processes of this machine."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        self._listeners = sockets.listen(settings.host, settings.port, settings.workers)
        self._port: int = self._listeners[0].getsockname()[1]
        self._workers: list[Child[Heartbeat] | None] = [None] * settings.workers  # by their slots
        self._callbacks: Child[Heartbeat] | None = None
        self._deaths = collections.Counter[str]()  # by kind of process
        self._alive: set[Child[Any]] = set()  # those, and processes that are starting or stopping
        self._replace = asyncio.Event()
        self._stdout = standard_output(settings)
        self._runtime = RuntimeFolder()
        self.metrics_folder = self._runtime.metrics
        self._store: EmbeddedStore | None = None
        self._redis_url = settings.redis_url or ""  # or the embedded store's, once it runs

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT. Raises CannotStartError or CrashLoopError."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)  # of no use here, and their default is to kill
        self._outlives_terminal = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # nohup
        self._had_terminal = terminal.is_there()
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        admin = AdminListener(self)
        try:
            admin_url = await admin.start(self._settings.admin_host, self._settings.admin_port)
            if not self._redis_url:
                await self._start_store()
            parts = [asyncio.create_task(self._keep(slot)) for slot in range(len(self._workers))]
            parts.append(asyncio.create_task(self._greet(admin_url)))
            if self._settings.callbacks != "off":
                parts.append(asyncio.create_task(self._keep_callbacks()))
            parts.append(replacing := asyncio.create_task(self._replace_all()))
            if self._store:
                parts.append(asyncio.create_task(self._store.watch()))
            if interval_s := watchdog_s():
                parts.append(asyncio.create_task(self._feed_watchdog(interval_s)))
            stop = asyncio.create_task(self._stop.wait())
            await asyncio.wait([stop, *parts], return_when=asyncio.FIRST_COMPLETED)
            notify("STOPPING=1")
            self._stop.set()
            replacing.cancel()
            for listener in self._listeners:
                listener.close()
            await end(*self._alive)
            for task in parts:
                task.cancel()
            results = await asyncio.gather(*parts, return_exceptions=True)
            for result in results:
                if isinstance(result, Exception):
                    raise result
        finally:
            await admin.close()
            if self._store:
                await self._store.stop()
            self._runtime.remove()

    def trouble(self) -> dict[str, str]:
        """Present trouble, one sentence for each part; empty if there is none."""
        found: dict[str, str] = {}
        if self._settings.callbacks != "off" and not self._callbacks:
            found["callbacks"] = "the callback process has died: no endpoint is called until it runs again"
        for slot, worker in enumerate(self._workers):
            heartbeat = worker.said if worker else None
            if heartbeat is None:
                found[f"worker-{slot}"] = "it is not running, its new connections wait until it runs again"
                continue
            for part in ("store", "broker", "delivery"):
                if sentence := getattr(heartbeat, part):
                    found[part] = sentence
        if self._store and self._store.trouble:
            found["store"] = self._store.trouble  # the cause of what the workers say
        return found

    def machine(self) -> Machine:
        """The present moment, for metrics and the status line."""
        workers = [worker.said if worker else None for worker in self._workers]
        callbacks = self._callbacks.said if self._callbacks else None
        pids = {f"worker-{slot}": worker.pid for slot, worker in enumerate(workers) if worker}
        if callbacks:
            pids["callbacks"] = callbacks.pid
        if self._store and self._store.pid:
            pids["store"] = self._store.pid
        return Machine(
            self._settings,
            workers,
            pids | {"supervisor": os.getpid()},
            self._deaths,
            self._store.data if self._store else None,
        )

    async def _start_store(self) -> None:
        assert self._settings.state_dir is not None  # the settings see to that
        self._store = EmbeddedStore(self._settings.state_dir, self._runtime.path)
        self._redis_url = self._store.url
        await self._store.start()

    def _start_worker(self, slot: int) -> Child[Heartbeat]:
        writer, listener = self._free_writer(), self._listeners[slot].fileno()
        start = WorkerStart(self._settings, self._redis_url, writer, self._stdout, slot, listener)
        return self._watched(
            Child(
                f"worker-{slot}",
                "idagg.run.worker",
                start.line(),
                Heartbeat.parse,
                writer=writer,
                environment=self._environment(writer),
                pass_fds=[listener, self._stdout],
            )
        )

    def _start_callbacks(self) -> Child[Heartbeat]:
        writer = self._free_writer()
        return self._watched(
            Child(
                "the callback process",
                CALLBACK_MODULE,
                CallbackStart(self._settings, self._redis_url, writer, self._stdout).line(),
                Heartbeat.parse,
                writer=writer,
                environment=self._environment(writer),
                pass_fds=[self._stdout],
            )
        )

    def _free_writer(self) -> int:
        taken = {child.writer for child in self._alive}
        return next(number for number in itertools.count() if number not in taken)

    def writers(self) -> list[int]:
        """The numbers of the running processes' metrics files."""
        return [child.writer for child in self._alive]

    def _environment(self, writer: int) -> dict[str, str]:
        variables = {**os.environ, metrics.FOLDER_VARIABLE: str(self.metrics_folder)}
        try:
            metrics.reserve(self.metrics_folder, writer)
        except OSError as error:
            log.error("a process runs without metrics: %s in %s", error.strerror, self.metrics_folder)
            del variables[metrics.FOLDER_VARIABLE]
        return variables

    def _watched(self, child: Child[T]) -> Child[T]:
        def ended(life: asyncio.Task[None]) -> None:
            self._alive.discard(child)
            metrics.forget(self.metrics_folder, child.writer)

        self._alive.add(child)
        child.life.add_done_callback(ended)
        return child

    async def _keep(self, slot: int) -> None:
        """Keep a worker running in this slot until the supervisor stops."""
        restarts = Restarts()
        while not self._stop.is_set():
            worker = self._workers[slot]
            if worker is None:
                worker = self._workers[slot] = self._start_worker(slot)
            await worker.life
            if self._stop.is_set() or self._workers[slot] is not worker:
                continue
            self._workers[slot] = None
            if worker.code == Exit.CANNOT_START:
                raise CannotStartError(f"worker-{slot} cannot start: its log lines above give the reason")
            delay_s = restarts.after(worker.served_s)
            if delay_s is None:
                raise CrashLoopError(
                    f"worker-{slot} died {restarts.young_deaths} times in a row as soon as it had "
                    "started: idagg stops and counts nothing here, its log lines above give the reason"
                )
            self._deaths["worker"] += 1
            log.error(
                "worker-%d died (%s), starting it again: ids that it had not answered may not be counted",
                slot,
                worker.died_of,
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._stop.wait()

    async def _keep_callbacks(self) -> None:
        """Keep the callback process running until the supervisor stops, and tell it when this machine leads.

        It is restarted without a limit: no endpoint may end the callbacks for good.
        """
        restarts = Restarts(young_s=CALM_S, longest_delay_s=CALM_S, limit=math.inf)
        while not self._stop.is_set():
            child = self._callbacks = self._start_callbacks()
            told = 0
            while not child.life.done():
                epoch = max(
                    (worker.said.epoch for worker in self._workers if worker and worker.said), default=0
                )
                if epoch != told and child.served_s:
                    child.send(Leads(epoch).line())
                    told = epoch
                await asyncio.wait([child.life], timeout=TELL_S)
            if self._stop.is_set() or child.code == Exit.OK:  # stopped by a reload
                continue
            self._callbacks = None
            self._deaths["callbacks"] += 1
            delay_s = restarts.after(child.served_s) or 0
            log.error(
                "the callback process died (%s), starting it again in %g s: no endpoint is called until then",
                child.died_of,
                delay_s,
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._stop.wait()

    def _on_hangup(self) -> None:
        """Replace the workers, or, if the terminal was closed, stop as every program does."""
        if not self._had_terminal:
            self._replace.set()
            return
        # A shell may send the signal shortly before it closes the terminal.
        asyncio.get_running_loop().call_later(HANGUP_S, self._judge_hangup)

    def _judge_hangup(self) -> None:
        if terminal.is_there():
            self._replace.set()
        elif not self._outlives_terminal:
            self._stop.set()

    async def _feed_watchdog(self, interval_s: float) -> None:
        """Tell systemd in time that this process and each worker are alive, as long as they are."""
        heard: dict[int, float] = {}
        while True:
            now = time.monotonic()
            for slot, worker in enumerate(self._workers):
                if slot not in heard or (worker and worker.said):
                    heard[slot] = now
            if all(now - at < SILENT_S for at in heard.values()):
                notify("WATCHDOG=1")
            await asyncio.sleep(interval_s / 4)

    async def _replace_all(self) -> None:
        """At each SIGHUP, replace the workers one by one. Further signals during this count as one."""
        while True:
            await self._replace.wait()
            self._replace.clear()
            notify("RELOADING=1")
            log.info("replacing the workers one by one")
            for slot in range(len(self._workers)):
                trouble = await self._replace_one(slot)
                if trouble:
                    log.error("worker-%d and all later ones go on, they are not replaced: %s", slot, trouble)
                    break
            else:
                if self._callbacks:
                    self._callbacks.stop()
                log.info("all workers are replaced")
            notify("READY=1")

    async def _replace_one(self, slot: int) -> str | None:
        """Replace the worker once a new one has served beside it for YOUNG_S; or return why not."""
        successor = self._start_worker(slot)
        while not successor.life.done() and successor.served_s < YOUNG_S:  # noqa: ASYNC110  it grows by itself
            await asyncio.sleep(0.02)
        heartbeat = successor.said
        if heartbeat is None:
            return f"the new worker died ({successor.died_of})"
        if heartbeat.store:
            await end(successor)
            return f"the new worker is not ready: {heartbeat.store}"
        worker, self._workers[slot] = self._workers[slot], successor
        if worker:
            await end(worker)
        return None

    async def _greet(self, admin_url: str) -> None:
        """Print the greeting once all workers listen. Then log each trouble, and its end."""
        while not all(worker and worker.said for worker in self._workers):  # noqa: ASYNC110  any of many sets it
            await asyncio.sleep(0.02)
        notify("READY=1", f"STATUS={len(self._workers)} workers listen")
        FailedStarts().none()
        # The greeting is for the terminal. If records go to standard output, it must not mix with them.
        aside = sys.stderr if is_stdout(self._settings.log_file) else sys.stdout
        print(self._greeting(admin_url), file=aside, flush=True)
        await self._report()

    async def _report(self) -> None:
        """Log each trouble, reminders while it lasts, and its end. Keep systemd's status line true."""
        troubles, rate = Troubles(told_elsewhere=SINKS), Rate()
        shown_line, shown_at = "", -math.inf
        while not self._stop.is_set():
            now = time.monotonic()
            for level, sentence in troubles.lines(self.trouble(), now):
                log.log(level, "%s", sentence)
            if now - shown_at >= STATUS_S:
                machine = self.machine()
                text = status_line(machine, rate.of(machine.running, now), troubles.lasts_s(now))
                if text != shown_line:
                    notify(f"STATUS={text}")
                shown_line, shown_at = text, now
            await asyncio.sleep(0.25)

    def _greeting(self, admin_url: str) -> str:
        settings, log_file = self._settings, shown(self._settings.log_file)
        public = sockets.shown(settings.host, self._port)
        if settings.amqp_url:
            queue = f"queue {settings.amqp_queue}"
            way = f"exchange {settings.amqp_exchange}" if settings.amqp_exchange else queue
            sink = f"to RabbitMQ's {way}, or to {log_file} while RabbitMQ is away"
        else:
            sink = f"to {log_file} (for RabbitMQ: --amqp-url)"
        if self._store:
            store = (
                f"embedded {self._store.binary}, data in {self._store.data}; for one VM (more: --redis-url)"
            )
        else:
            store = f"Redis at {shown_url(settings.redis_url or '')}"
        return "\n".join(
            (
                f"idagg {__version__} counts unique ids in windows of {settings.window} s",
                f"  try      curl 'http://{public}/api/verve/accept?id=123'",
                f"  counts   {sink}",
                f"  store    {store}",
                f"  workers  {len(self._workers)}",
                f"  admin    {admin_url}/metrics",
            )
        )


def standard_output(settings: Settings) -> int:
    """A descriptor of standard output for the workers.

    Raises CannotStartError if standard output is closed and is the log file.
    """
    if sys.stdout is not None:
        return os.dup(1)
    if is_stdout(settings.log_file):
        raise CannotStartError(
            "standard output is closed, and no window could be delivered there: open it, or change --log-file"
        )
    return os.open(os.devnull, os.O_WRONLY)


def serve(settings: Settings) -> int:
    """Run ``idagg serve``."""
    log_to_stderr("idagg")

    async def run() -> None:
        await Supervisor(settings).run()

    try:
        uvloop.run(run())
    except CrashLoopError as error:
        log.critical("%s", error)
        return Exit.CRASH_LOOP
    except CannotStartError as error:
        wait_s = delay_s(FailedStarts().one_more())
        if not wait_s:
            raise
        notify(f"STATUS={error}")
        log.critical("%s; the next start is not before %g s", error, wait_s)
        time.sleep(wait_s)
        return Exit.CANNOT_START
    return Exit.OK
