"""The supervisor: holds the listening sockets and the embedded store, keeps workers running, tells how it is.

Workers are fresh interpreters. Each says a beat twice a second; one that has fallen silent is ended and
replaced. They die with this process: their standard input closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from idagg import __version__, metrics
from idagg.deliver.logfile import is_stdout, shown
from idagg.errors import CannotStartError, Exit, IdaggError
from idagg.run import sockets
from idagg.run.admin import AdminListener
from idagg.run.logs import log_to_stderr
from idagg.run.restart import YOUNG_S, Restarts
from idagg.run.status import SINKS, Beat, Order
from idagg.run.systemd import notify
from idagg.settings import Settings
from idagg.store.client import address
from idagg.store.embedded import EmbeddedStore

log = logging.getLogger("idagg.supervisor")

# Twenty beats. A worker's longest honest silence is a full batch, some tens of ms.
HUNG_S = 10.0
# From SIGABRT to SIGKILL, for one that hangs.
LAST_WORDS_S = 1.0
# From SIGTERM to SIGKILL: above the longest deadline of a request and that of a message together.
STOP_S = 20.0
# How often trouble that lasts is told again.
REMIND_S = 30.0


class CrashLoopError(IdaggError):
    """A worker died young too often in a row."""


class WorkerProcess:
    """A process in a slot: what it said last, and what became of it. Its ``life`` begins at once."""

    def __init__(self, order: Order, environment: dict[str, str]) -> None:
        self.order = order
        self.beat: Beat | None = None
        self.code: int | None = None  # of its exit; None, once it has ended: it could not even be started
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._listens_since: float | None = None
        self._stopping = False
        self.life = asyncio.create_task(self._live())

    def __repr__(self) -> str:
        return f"<WorkerProcess {self.order.slot} pid={self._process and self._process.pid} {self.beat}>"

    @property
    def served_s(self) -> float:
        """For how long it has listened."""
        return time.monotonic() - self._listens_since if self._listens_since else 0.0

    def stop(self) -> None:
        """Tell the process to stop, also one that is just being made."""
        self._stopping = True
        self.signal(signal.SIGTERM)

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def _live(self) -> None:
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "idagg.run.worker"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                pass_fds=[self.order.listener, self.order.stdout],
                env=self._environment,
                # Ctrl-C goes to the whole group, but it is for the supervisor to say when workers stop.
                start_new_session=True,
            )
        except OSError as error:
            log.error("worker-%d cannot be started: %s", self.order.slot, error)
            return
        assert process.stdin is not None
        with contextlib.suppress(RuntimeError):  # uvloop's, of a process that has died already
            process.stdin.write(self.order.line())
        if self._stopping:
            self.signal(signal.SIGTERM)
        who = f"worker-{self.order.slot} (pid {process.pid})"
        try:
            await self._listen_to(process)
        except TimeoutError:
            log.error("%s has been silent for %g s, ending it", who, HUNG_S)
            self.signal(signal.SIGABRT)  # it says where it hangs
            await asyncio.wait([asyncio.create_task(process.wait())], timeout=LAST_WORDS_S)
            self.signal(signal.SIGKILL)  # a stopped process takes nothing else
        except (TypeError, ValueError) as error:
            log.error("%s says what is not understood here, ending it: %s", who, error)
            self.signal(signal.SIGKILL)
        self.beat = None
        self.code = await process.wait()

    async def _listen_to(self, process: asyncio.subprocess.Process) -> None:
        """Take its beats until it ends. Raises TimeoutError where they do not come."""
        assert process.stdout is not None
        while True:
            async with asyncio.timeout(HUNG_S):
                line = await process.stdout.readline()
            if not line:
                return
            self.beat = Beat.parse(line)
            self._listens_since = self._listens_since or time.monotonic()


class Supervisor:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        self._listeners = sockets.listen(settings.host, settings.port, settings.workers)
        self._port: int = self._listeners[0].getsockname()[1]
        self._workers: list[WorkerProcess | None] = [None] * settings.workers  # by their slots
        self._alive: set[WorkerProcess] = set()  # those, and whoever is yet to serve or serves no more
        self._replace = asyncio.Event()
        self._stdout = standard_output(settings)
        self.metrics_folder = Path(tempfile.mkdtemp(prefix="idagg-metrics-"))
        self._store: EmbeddedStore | None = None
        self._redis_url = settings.redis_url or ""  # or the embedded store's, once it runs

    async def run(self) -> None:
        """Raises CannotStartError or CrashLoopError; returns after an orderly stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._replace.set)
        admin = AdminListener(self)
        try:
            admin_url = await admin.start(self._settings.admin_host, self._settings.admin_port)
            if not self._redis_url:
                await self._start_store()
            parts = [asyncio.create_task(self._keep(slot)) for slot in range(len(self._workers))]
            parts.append(asyncio.create_task(self._greet(admin_url)))
            parts.append(replacing := asyncio.create_task(self._replace_all()))
            if self._store:
                parts.append(asyncio.create_task(self._store.watch()))
            stop = asyncio.create_task(self._stop.wait())
            await asyncio.wait([stop, *parts], return_when=asyncio.FIRST_COMPLETED)
            notify("STOPPING=1")
            self._stop.set()
            replacing.cancel()
            for listener in self._listeners:
                listener.close()
            await _end(*self._alive)
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
            shutil.rmtree(self.metrics_folder, ignore_errors=True)

    def trouble(self) -> dict[str, str]:
        """What is wrong now, in a sentence a part; empty when all is well."""
        found: dict[str, str] = {}
        for slot, worker in enumerate(self._workers):
            beat = worker.beat if worker else None
            if beat is None:
                found[f"worker-{slot}"] = "it is not running"
                continue
            if beat.store:
                found["store"] = beat.store
            if beat.broker:
                found["broker"] = beat.broker
            if beat.delivery:
                found["delivery"] = beat.delivery
        return found

    async def _start_store(self) -> None:
        self._store = EmbeddedStore(self._settings.state_dir)
        await self._store.start()
        self._redis_url = self._store.url

    def _start(self, slot: int) -> WorkerProcess:
        taken = {worker.order.writer for worker in self._alive}
        writer = next(number for number in itertools.count() if number not in taken)
        order = Order(
            self._settings, self._redis_url, slot, self._listeners[slot].fileno(), writer, self._stdout
        )
        environment = {**os.environ, metrics.FOLDER_VARIABLE: str(self.metrics_folder)}
        worker = WorkerProcess(order, environment)

        def ended(life: asyncio.Task[None]) -> None:
            self._alive.discard(worker)
            metrics.forget(self.metrics_folder, writer)

        self._alive.add(worker)
        worker.life.add_done_callback(ended)
        return worker

    async def _keep(self, slot: int) -> None:
        """Keep the slot filled until the stop."""
        restarts = Restarts()
        while not self._stop.is_set():
            worker = self._workers[slot]
            if worker is None:
                worker = self._workers[slot] = self._start(slot)
            await worker.life
            if self._stop.is_set() or self._workers[slot] is not worker:
                continue
            self._workers[slot] = None
            if worker.code == Exit.CANNOT_START:
                raise CannotStartError(f"worker-{slot} cannot start: see the line above")
            delay_s = restarts.after(worker.served_s)
            if delay_s is None:
                raise CrashLoopError(
                    f"worker-{slot} died {restarts.young_deaths} times in a row as soon as it had "
                    "started: see what it said above"
                )
            log.error("worker-%d died (%s), starting it again", slot, _died_of(worker.code))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._stop.wait()

    async def _replace_all(self) -> None:
        """Replace the workers one by one at each SIGHUP; those that come meanwhile count as one."""
        while True:
            await self._replace.wait()
            self._replace.clear()
            notify("RELOADING=1")
            log.info("replacing the workers one by one")
            for slot in range(len(self._workers)):
                trouble = await self._replace_one(slot)
                if trouble:
                    log.error("worker-%d and those behind it are not replaced: %s", slot, trouble)
                    break
            else:
                log.info("all workers are replaced")
            notify("READY=1")

    async def _replace_one(self, slot: int) -> str | None:
        """Have a successor serve beside the worker for a while, then stop the worker; or say why not."""
        successor = self._start(slot)
        while not successor.life.done() and successor.served_s < YOUNG_S:  # noqa: ASYNC110  it grows by itself
            await asyncio.sleep(0.02)
        beat = successor.beat
        if beat is None:
            return f"the successor died ({_died_of(successor.code)})"
        if beat.store:
            await _end(successor)
            return f"the successor is not ready: {beat.store}"
        worker, self._workers[slot] = self._workers[slot], successor
        if worker:
            await _end(worker)
        return None

    async def _greet(self, admin_url: str) -> None:
        """Say what a person wants to know once all workers listen; then tell of trouble, and of its end."""
        while not all(worker and worker.beat for worker in self._workers):  # noqa: ASYNC110  any of many sets it
            await asyncio.sleep(0.02)
        notify("READY=1", f"STATUS={len(self._workers)} workers listen")
        # The person at the terminal reads this; whoever reads records reads nothing else.
        aside = sys.stderr if is_stdout(self._settings.log_file) else sys.stdout
        print(self._greeting(admin_url), file=aside, flush=True)
        told: dict[str, str] = {}
        told_at = time.monotonic()
        while not self._stop.is_set():
            trouble = {part: said for part, said in self.trouble().items() if part not in SINKS}
            if trouble != told or (trouble and time.monotonic() - told_at > REMIND_S):
                for part, sentence in trouble.items():
                    if told.get(part) == sentence:
                        log.warning("%s: still waiting: %s", part, sentence)
                    else:
                        log.warning("%s: %s", part, sentence)
                for part in told.keys() - trouble.keys():
                    log.info("%s: well again", part)
                told, told_at = trouble, time.monotonic()
            await asyncio.sleep(0.25)

    def _greeting(self, admin_url: str) -> str:
        settings, log_file = self._settings, shown(self._settings.log_file)
        public = sockets.shown(settings.host, self._port)
        if settings.amqp_url:
            queue = f"queue {settings.amqp_queue}"
            way = f"exchange {settings.amqp_exchange}" if settings.amqp_exchange else queue
            sink = f"to RabbitMQ's {way}, or {log_file} while it is away"
        else:
            sink = f"to {log_file} (for RabbitMQ: --amqp-url)"
        if self._store:
            store = (
                f"embedded {self._store.binary}, data in {self._store.data}; for one VM (more: --redis-url)"
            )
        else:
            store = f"Redis at {address(settings.redis_url or '')}"
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


async def _end(*workers: WorkerProcess) -> None:
    """Stop them, and wait for their end, which comes one way or the other."""
    if not workers:
        return
    for worker in workers:
        worker.stop()
    _, late = await asyncio.wait([worker.life for worker in workers], timeout=STOP_S)
    if late:
        log.error("%d workers did not stop within %g s, ending them", len(late), STOP_S)
    for worker in workers:
        worker.signal(signal.SIGKILL)


def _died_of(code: int | None) -> str:
    if code is None:
        return "it could not be started"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def standard_output(settings: Settings) -> int:
    """A descriptor for workers to write to. Raises CannotStartError where it is closed and they have to."""
    if sys.stdout is not None:
        return os.dup(1)
    if is_stdout(settings.log_file):
        raise CannotStartError(
            "standard output is closed, and no window could be delivered there: open it, or change --log-file"
        )
    return os.open(os.devnull, os.O_WRONLY)


def serve(settings: Settings) -> int:
    """``idagg serve``."""
    log_to_stderr("idagg")

    async def run() -> None:
        await Supervisor(settings).run()

    try:
        uvloop.run(run())
    except CrashLoopError as error:
        log.critical("%s", error)
        return Exit.CRASH_LOOP
    return Exit.OK
