"""The supervisor: holds the listening sockets and the embedded store, keeps workers running, tells how it is.

Workers are fresh interpreters. Each says a beat twice a second; one that has fallen silent is ended and
replaced. They die with this process: their standard input closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from idagg import __version__, metrics
from idagg.errors import CannotStartError, Exit, IdaggError
from idagg.run import sockets
from idagg.run.admin import AdminDoor
from idagg.run.logs import log_to_stderr
from idagg.run.restart import Restarts
from idagg.run.status import Beat, Order
from idagg.run.systemd import notify
from idagg.settings import Settings
from idagg.store.client import address
from idagg.store.embedded import EmbeddedStore

log = logging.getLogger("idagg.supervisor")

# Twenty beats. A worker's longest honest silence is a full batch, some tens of ms.
HUNG_S = 10.0
# From SIGABRT to SIGKILL, for one that hangs.
LAST_WORDS_S = 1.0
# From SIGTERM to SIGKILL: above the default deadline of a request and that of a message.
STOP_S = 20.0
# How often trouble that lasts is told again.
REMIND_S = 30.0


class CrashLoopError(IdaggError):
    """A worker died young too often in a row."""


class WorkerProcess:
    """One slot: the process in it now, and what it said last."""

    def __init__(self, slot: int, listener: socket.socket) -> None:
        self.slot = slot
        self.listener = listener
        self.beat: Beat | None = None
        self.process: asyncio.subprocess.Process | None = None
        self._stopping = False

    def __repr__(self) -> str:
        return f"<WorkerProcess {self.slot} pid={self.process.pid if self.process else None} {self.beat}>"

    async def serve(self, order: Order, environment: dict[str, str]) -> float:
        """Run a process until it ends; returns for how long it listened, s."""
        self.beat = None
        self.process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "idagg.run.worker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=[self.listener.fileno()],
            env=environment,
            # Ctrl-C goes to the whole group, but it is for the supervisor to say when workers stop.
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(RuntimeError):  # uvloop's, of a process that has died already
            process.stdin.write(order.line())
        if self._stopping:
            self.signal(signal.SIGTERM)
        began = time.monotonic()
        try:
            while True:
                async with asyncio.timeout(HUNG_S):
                    line = await process.stdout.readline()
                if not line:
                    break
                if self.beat is None:
                    began = time.monotonic()
                self.beat = Beat.parse(line)
        except TimeoutError:
            log.error(
                "worker-%d (pid %d) has been silent for %g s, ending it", self.slot, process.pid, HUNG_S
            )
            self.signal(signal.SIGABRT)  # it says where it hangs
            await asyncio.wait([asyncio.create_task(process.wait())], timeout=LAST_WORDS_S)
            self.signal(signal.SIGKILL)  # a stopped process takes nothing else
        served_s = time.monotonic() - began if self.beat else 0.0
        self.beat = None
        await process.wait()
        return served_s

    def stop(self) -> None:
        """Tell the process to stop, also one that is just being made."""
        self._stopping = True
        self.signal(signal.SIGTERM)

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)


class Supervisor:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        self._listeners = sockets.listen(settings.host, settings.port, settings.workers)
        self._port: int = self._listeners[0].getsockname()[1]
        self.workers = [WorkerProcess(slot, listener) for slot, listener in enumerate(self._listeners)]
        self.metrics_folder = Path(tempfile.mkdtemp(prefix="idagg-metrics-"))
        self._store: EmbeddedStore | None = None

    async def run(self) -> None:
        """Raises CannotStartError or CrashLoopError; returns after an orderly stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        admin = AdminDoor(self)
        try:
            admin_url = await admin.start(self._settings.admin_host, self._settings.admin_port)
            redis_url = self._settings.redis_url or await self._start_store()
            parts = [asyncio.create_task(self._keep(worker, redis_url)) for worker in self.workers]
            parts.append(asyncio.create_task(self._greet(admin_url)))
            if self._store:
                parts.append(asyncio.create_task(self._store.watch()))
            stop = asyncio.create_task(self._stop.wait())
            await asyncio.wait([stop, *parts], return_when=asyncio.FIRST_COMPLETED)
            notify("STOPPING=1")
            self._stop.set()
            await self._stop_workers(parts[: len(self.workers)])
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
        for worker in self.workers:
            if worker.beat is None:
                found[f"worker-{worker.slot}"] = "it is not running"
            elif worker.beat.store:
                found["store"] = worker.beat.store
            if worker.beat and worker.beat.broker:
                found["broker"] = worker.beat.broker
        return found

    async def _start_store(self) -> str:
        self._store = EmbeddedStore(self._settings.state_dir)
        await self._store.start()
        return self._store.url

    async def _keep(self, worker: WorkerProcess, redis_url: str) -> None:
        """Keep the slot filled until the stop."""
        order = Order(self._settings, redis_url, worker.slot, worker.listener.fileno())
        environment = {**os.environ, metrics.FOLDER_VARIABLE: str(self.metrics_folder)}
        restarts = Restarts()
        while not self._stop.is_set():
            served_s = await worker.serve(order, environment)
            metrics.forget(self.metrics_folder, worker.slot)
            if self._stop.is_set():
                return
            assert worker.process is not None
            code = worker.process.returncode
            if code == Exit.CANNOT_START:
                raise CannotStartError(f"worker-{worker.slot} cannot start: see the line above")
            delay_s = restarts.after(served_s)
            if delay_s is None:
                raise CrashLoopError(
                    f"worker-{worker.slot} died {restarts.young_deaths} times in a row as soon as it had "
                    "started: see what it said above"
                )
            log.error("worker-%d died (%s), starting it again", worker.slot, _died_of(code))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._stop.wait()

    async def _stop_workers(self, keepers: list[asyncio.Task[None]]) -> None:
        for listener in self._listeners:
            listener.close()
        for worker in self.workers:
            worker.stop()
        _, late = await asyncio.wait(keepers, timeout=STOP_S)
        if late:
            log.error("%d workers did not stop within %g s, ending them", len(late), STOP_S)
        for worker in self.workers:
            worker.signal(signal.SIGKILL)

    async def _greet(self, admin_url: str) -> None:
        """Say what a person wants to know once all workers listen; then tell of trouble, and of its end."""
        while not all(worker.beat for worker in self.workers):  # noqa: ASYNC110  any of many sets it
            await asyncio.sleep(0.02)
        notify("READY=1", f"STATUS={len(self.workers)} workers listen")
        print(self._greeting(admin_url), flush=True)  # noqa: T201  the person at the terminal reads this
        told: dict[str, str] = {}
        told_at = time.monotonic()
        while not self._stop.is_set():
            trouble = self.trouble()
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
        settings = self._settings
        door = sockets.shown(settings.host, self._port)
        if settings.amqp_url:
            sink = f"to RabbitMQ's queue {settings.amqp_queue}, or {settings.log_file} while it is away"
        else:
            sink = f"to {settings.log_file} (for RabbitMQ: --amqp-url)"
        if self._store:
            store = (
                f"embedded {self._store.binary}, data in {self._store.data}; for one VM (more: --redis-url)"
            )
        else:
            store = f"Redis at {address(settings.redis_url or '')}"
        return "\n".join(
            (
                f"idagg {__version__} counts unique ids in windows of {settings.window} s",
                f"  try      curl 'http://{door}/api/verve/accept?id=123'",
                f"  counts   {sink}",
                f"  store    {store}",
                f"  workers  {len(self.workers)}",
                f"  admin    {admin_url}/metrics",
            )
        )


def _died_of(code: int | None) -> str:
    return signal.Signals(-code).name if code and code < 0 else f"exit code {code}"


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
