"""The supervisor: holds the listening sockets and the embedded store, and keeps all processes running.

Workers accept requests. One worker of all machines is the leader. Each machine has one callback process,
which calls endpoints while a worker of its machine leads. It is a separate process so that no endpoint can
delay an accept request.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import orjson
import uvloop

from idagg import __version__, metrics
from idagg.deliver.logfile import is_stdout, shown
from idagg.errors import CannotStartError, Exit, IdaggError
from idagg.metrics import SupervisorMetrics
from idagg.run import sockets, terminal
from idagg.run.admin import AdminListener
from idagg.run.child import Child, end
from idagg.run.control import Control, Request
from idagg.run.fleet import Fleet
from idagg.run.logs import log_to_stderr
from idagg.run.machine import Machine
from idagg.run.messages import READY_WITHOUT, Assignment, CallbackStart, Heartbeat, Leads, WorkerStart
from idagg.run.reload import (
    Inherited,
    RehearsalError,
    environment,
    execute,
    held_from,
    hold_signals,
    inherited,
    let_signals,
    monotonic_usec,
    rehearse,
    take_over,
)
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
from idagg.tasks import end as tasks_end

T = TypeVar("T")

log = logging.getLogger("idagg.supervisor")

CALLBACK_MODULE = "idagg.run.callback_process"
# A callback process that has been silent for so long hangs. At its niceness it is slow on a busy machine:
# with 8 busy processes on 2 CPUs, its start was seen to take more than 10 s.
CALLBACKS_HUNG_S = 60.0
# A callback process that has run this long is considered stable. For one that dies earlier, the restart delay
# grows, up to this value.
CALM_S = 30.0
# Interval at which the callback process is told of a new leader.
TELL_S = 0.25
# Time for a signal that has come to be handled, before later ones wait for the next program.
SIGNALLED_S = 0.01
# Time for which replaced workers keep idle connections. nginx closes them at once.
IDLE_S = 5.0
# Time for workers to hear that a listener is not theirs any more, before it is closed.
ASSIGNED_S = 0.5
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
    """Starts, watches, replaces and stops the processes of this machine.

    After a reload, ``inherited`` is what the program executed before has left.
    """

    def __init__(self, settings: Settings, inherited: Inherited | None = None) -> None:
        self._settings = settings  # in force; a reload changes them at its end
        self._leave = asyncio.Event()  # a stop signal has come
        self._hurry = asyncio.Event()  # and another one
        self._stop = asyncio.Event()  # all processes are to end
        self._over = asyncio.Event()  # a stop signal has come, or a part has ended
        self._parts: list[asyncio.Task[None]] = []
        self._keepers: list[asyncio.Task[None]] = []  # those of the workers, by slot
        self._workers: list[Child[Heartbeat] | None] = [None] * settings.workers  # by their slots
        self._callbacks: Child[Heartbeat] | None = None
        self._deaths = collections.Counter[str]()  # by kind of process
        self._calling: asyncio.Task[None] | None = None  # keeps the callback process
        self._alive: set[Child[Any]] = set()  # those, and processes that are starting or stopping
        self._drain_s: float | None = None
        self._reload_wanted = asyncio.Event()
        self._requests: list[Request] = []  # for a reload
        self._reload_failed: str | None = None  # a sentence, until the next one goes well
        self._stdout = standard_output(settings)
        self._runtime = RuntimeFolder(None if inherited is None else Path(inherited.metrics_folder).parent)
        self.metrics_folder = self._runtime.metrics
        self._store: EmbeddedStore | None = None
        self._ending: list[asyncio.Task[None]] = []  # the ends of workers that are replaced
        if inherited is None:
            self._listeners = sockets.listen(settings.host, settings.port, settings.workers)
            self._admin_listener = listen_admin(settings)
            self._redis_url = settings.redis_url or ""  # or the embedded store's, once it runs
        else:
            take_over(inherited)
            self._listeners = [socket.socket(fileno=number) for number in inherited.listeners]
            self._admin_listener = socket.socket(fileno=inherited.admin)
            self._redis_url = inherited.redis_url
            self._workers = [self._adopted(held) for held in inherited.workers]
            self._callbacks = self._adopted(inherited.callbacks)
            for held in inherited.rest:
                child = self._watched(Child(held_from(held), Heartbeat.parse))
                self._ending.append(asyncio.create_task(end(child)))
            if inherited.store:
                self._store = EmbeddedStore.adopt(inherited.store)
            self._requests = [Request(socket.socket(fileno=number)) for number in inherited.waiting]
        self._inherited = inherited
        self._control = Control(self._on_request, inherited.control if inherited else None)
        self.fleet = Fleet(self)
        self._admin = AdminListener(self)
        os.environ.update(self._environment(metrics.SUPERVISOR))
        metrics.write_as(metrics.SUPERVISOR)
        self._metrics = SupervisorMetrics()

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT. Raises CannotStartError or CrashLoopError."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop_signal)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)  # of no use here, and their default is to kill
        self._outlives_terminal = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # nohup
        if self._inherited is not None:
            self._outlives_terminal = self._inherited.outlives_terminal
        self._had_terminal = terminal.is_there()
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        let_signals()
        try:
            await self._admin.start(self._admin_listener)
            if not self._redis_url:
                await self._start_store()
            self._keepers = [self._begin(self._keep(slot)) for slot in range(len(self._workers))]
            self._begin(self._tell_trouble())
            self._keep_calling()
            if self._store:
                self._begin(self._store.watch())
            if interval_s := watchdog_s():
                self._begin(self._feed_watchdog(interval_s))
            reloading = self._begin(self._reload_when_wanted())
            await self._over.wait()
            notify("STOPPING=1")
            if self._leave.is_set():
                await self._drain()
            self._stop.set()
            reloading.cancel()
            for listener in self._listeners:
                listener.close()
            await end(*self._alive)
            for task in self._parts:
                task.cancel()
            results = await asyncio.gather(*self._parts, return_exceptions=True)
            for result in results:
                if isinstance(result, Exception):
                    raise result
        finally:
            self._control.close()
            await self._admin.close()
            self._admin_listener.close()
            if self._store:
                await self._store.stop()
            self._runtime.remove()

    def _begin(self, part: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a part of the supervisor. If it ends, the supervisor does."""
        task = asyncio.create_task(part)
        self._parts.append(task)
        task.add_done_callback(lambda task: self._over.set() if task in self._parts else None)
        return task

    async def _give_up(self, part: asyncio.Task[None]) -> None:
        self._parts.remove(part)
        await tasks_end(part)

    def _on_stop_signal(self) -> None:
        if self._leave.is_set():
            self._hurry.set()
        self._leave.set()
        self._over.set()

    def _on_request(self, request: Request) -> None:
        self._requests.append(request)
        self._reload_wanted.set()

    async def _drain(self) -> None:
        """Let load balancers notice that this machine stops, while it accepts and answers every request.

        Another stop signal ends this, and so does the end of a part. Precedent: nats-server's lame duck mode.
        """
        self._drain_s = self._settings.drain
        if not self._drain_s:
            return
        log.info("stopping in %g s: until then /readyz answers 503, and requests are accepted", self._drain_s)
        for worker in self._alive - {self._callbacks}:
            worker.send(Assignment(drain_s=self._drain_s).line())
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait([hurry, *self._parts], timeout=self._drain_s, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()

    @property
    def settings(self) -> Settings:
        """Those in force now."""
        return self._settings

    def trouble(self) -> dict[str, str]:
        """Present trouble, one sentence for each part; empty if there is none."""
        found: dict[str, str] = {}
        if self._leave.is_set():
            found["drain"] = "idagg stops here: load balancers have to send requests to other machines"
        if self._settings.callbacks != "off" and not self._callbacks:
            found["callbacks"] = "the callback process has died: no endpoint is called until it runs again"
        for slot, worker in enumerate(self._workers):
            heartbeat = worker.said if worker else None
            if heartbeat is None:
                found[f"worker-{slot}"] = (
                    "it is not running: the other workers accept its new connections"
                    if any(other and other.said for other in self._workers)
                    else "it is not running: its new connections wait until it runs again"
                )
                continue
            for part in ("store", "broker", "delivery", "risk", "shards"):
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

    def _start_worker(
        self, slot: int, settings: Settings, workers: int, opened: Sequence[socket.socket] = ()
    ) -> Child[Heartbeat]:
        """Start a worker for a slot of so many. ``opened`` are listeners that it serves later."""
        own = [listener.fileno() for listener in self._listeners[slot::workers]]
        held = [listener.fileno() for listener in (*self._listeners, *opened)]
        start = WorkerStart(
            settings,
            self._url(settings),
            self._free_writer(),
            self._stdout,
            slot,
            own[0] if own else held[0],
            held,
        )
        assignment = Assignment(own, self._drain_s)
        return self._watched(
            Child.start(
                f"worker-{slot}",
                "idagg.run.worker",
                start.line() + assignment.line(),
                Heartbeat.parse,
                writer=start.writer,
                environment=self._environment(start.writer),
                pass_fds=[*held, self._stdout],
            )
        )

    def _start_callbacks(self) -> Child[Heartbeat]:
        settings = self._settings
        start = CallbackStart(settings, self._url(settings), self._free_writer(), self._stdout)
        return self._watched(
            Child.start(
                "the callback process",
                CALLBACK_MODULE,
                start.line(),
                Heartbeat.parse,
                writer=start.writer,
                environment=self._environment(start.writer),
                pass_fds=[self._stdout],
                hung_s=CALLBACKS_HUNG_S,
            )
        )

    def _adopted(self, held: Mapping[str, Any] | None) -> Child[Heartbeat] | None:
        return None if held is None else self._watched(Child(held_from(held), Heartbeat.parse))

    def _url(self, settings: Settings) -> str:
        return settings.redis_url or self._redis_url

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
        child.on_change = self._assign
        return child

    def _assign(self) -> None:
        """Tell each worker at which listeners it accepts, after one has begun to listen, or died."""
        running = [worker if worker and worker.said else None for worker in self._workers]
        shares = sockets.spread(
            [listener.fileno() for listener in self._listeners],
            [worker.pass_fds if worker else None for worker in running],
        )
        for worker, share in zip(running, shares, strict=True):
            if worker:
                worker.send(Assignment(share, self._drain_s).line())

    async def _keep(self, slot: int) -> None:
        """Keep a worker running in this slot until the supervisor stops."""
        restarts = Restarts()
        while not self._stop.is_set():
            worker = self._workers[slot]
            if worker is None:
                worker = self._workers[slot] = self._start_worker(slot, self._settings, len(self._workers))
            await asyncio.wait([worker.life])  # awaited by itself, it would be cancelled with this task
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
            child = self._callbacks = self._callbacks or self._start_callbacks()
            told = -1  # an adopted process may have been told anything
            while not child.life.done():
                epoch = max(
                    (worker.said.epoch for worker in self._workers if worker and worker.said), default=0
                )
                if epoch != told and child.served_s:
                    child.send(Leads(epoch).line())
                    told = epoch
                await asyncio.wait([child.life], timeout=TELL_S)
            self._callbacks = None
            if self._stop.is_set():
                return
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

    def _keep_calling(self) -> None:
        self._calling = None if self._settings.callbacks == "off" else self._begin(self._keep_callbacks())

    def _on_hangup(self) -> None:
        """Reload, or, if the terminal was closed, stop as every program does."""
        if not self._had_terminal:
            self._reload_wanted.set()
            return
        # A shell may send the signal shortly before it closes the terminal.
        asyncio.get_running_loop().call_later(HANGUP_S, self._judge_hangup)

    def _judge_hangup(self) -> None:
        if terminal.is_there():
            self._reload_wanted.set()
        elif not self._outlives_terminal:
            self._on_stop_signal()

    async def _feed_watchdog(self, interval_s: float) -> None:
        """Tell systemd in time that this process and each worker are alive, as long as they are."""
        heard: dict[int, float] = {}
        while True:
            now = time.monotonic()
            heard = {slot: at for slot, at in heard.items() if slot < len(self._workers)}
            for slot, worker in enumerate(self._workers):
                if slot not in heard or (worker and worker.said):
                    heard[slot] = now
            if all(now - at < SILENT_S for at in heard.values()):
                notify("WATCHDOG=1")
            await asyncio.sleep(interval_s / 4)

    async def _reload_when_wanted(self) -> None:
        """Reload at each SIGHUP and each request. Those that come during a reload count as one more.

        The first half is this program's: it has the installed one rehearse, and executes it. There, the
        second half replaces all other processes.
        """
        try:
            if self._inherited is not None:
                wanted = Settings.from_json(orjson.dumps(self._inherited.wanted))
                self._reloaded(await self._replace_all(wanted))
            while True:
                await self._reload_wanted.wait()
                self._reload_wanted.clear()
                self._reloaded(await self._become_anew())
        finally:
            self._answer("idagg is being stopped", Exit.TROUBLE)

    async def _become_anew(self) -> str:
        """Execute the program that is installed now. Returns only if that fails: why."""
        notify("RELOADING=1", monotonic_usec())
        log.info("reloading: the installed program checks itself and its settings")
        given = [request.environment for request in self._requests if request.environment is not None]
        variables = environment(given[-1] if given else None)
        try:
            wanted = await rehearse(self._inheritance(None), variables)
        except RehearsalError as error:
            return str(error)
        await self._admin.close()
        hold_signals()
        try:
            await asyncio.sleep(SIGNALLED_S)
            if self._leave.is_set():
                return "idagg is being stopped"
            for handler in logging.getLogger().handlers:
                handler.flush()
            execute(self._inheritance(wanted), variables)
        except OSError as error:
            return f"the installed program cannot be executed: {error.strerror}"
        finally:
            let_signals()
            self._admin = AdminListener(self)
            await self._admin.start(self._admin_listener)

    def _inheritance(self, wanted: dict[str, Any] | None) -> Inherited:
        def held(child: Child[Any] | None) -> dict[str, Any] | None:
            return dataclasses.asdict(child.held) if child is not None and child in self._alive else None

        rest = self._alive - {self._callbacks, *self._workers}
        return Inherited(
            self._settings,
            self._redis_url,
            str(self.metrics_folder),
            [listener.fileno() for listener in self._listeners],
            self._admin_listener.fileno(),
            [held(worker) for worker in self._workers],
            held(self._callbacks),
            [dataclasses.asdict(child.held) for child in rest],
            self._store.held() if self._store else None,
            self._control.descriptor,
            [request.client.fileno() for request in self._requests],
            wanted,
            __version__,
            self._outlives_terminal,
        )

    def _reloaded(self, trouble: str | None) -> None:
        """Tell everybody what came of the reload; ``trouble``: why it failed."""
        workers = f"{len(self._workers)} workers listen"
        if trouble is None:
            self._reload_failed = None
            self._metrics.reloaded("done")
            log.info("reloaded: idagg %s, %s", __version__, workers)
            notify("READY=1", f"STATUS={workers}")
            self._answer(f"reloaded: idagg {__version__}, {workers}", Exit.OK)
        else:
            sentence = f"the reload failed, idagg serves on as before: {trouble}"
            self._reload_failed = sentence
            self._metrics.reloaded("failed")
            log.error("%s", sentence)
            notify("READY=1", f"STATUS={sentence}")
            self._answer(sentence, Exit.TROUBLE)

    def _notes(self) -> list[str]:
        """What else the status line has to say."""
        stopping = ["stopping"] if self._leave.is_set() else []
        return [*stopping, self._reload_failed] if self._reload_failed else stopping

    def _answer(self, sentence: str, code: Exit) -> None:
        requests, self._requests = self._requests, []
        for request in requests:
            request.tell(sentence, exit_code=code)

    async def _replace_all(self, wanted: Settings) -> str | None:
        """Replace all processes by ones with these settings; or return why not."""
        old = self._settings
        before = len(self._workers)
        has_moved = (wanted.host, wanted.port) != (old.host, old.port)
        admin_has_moved = (wanted.admin_host, wanted.admin_port) != (old.admin_host, old.admin_port)
        count = wanted.workers if has_moved else max(0, wanted.workers - len(self._listeners))
        # They listen once all workers are there to accept.
        opened: list[socket.socket] = []
        admin_listener = self._admin_listener
        try:
            opened += (
                sockets.bind(wanted.host, wanted.port, count)
                if has_moved
                else (sockets.bind_more(self._listeners[0], count))
            )
            if admin_has_moved:
                admin_listener = listen_admin(wanted)
        except (CannotStartError, OSError) as error:
            close_all(opened)
            return str(error)
        log.info("replacing the workers one by one")
        for slot in range(wanted.workers):
            trouble = await self._replace_one(slot, wanted, opened)
            if trouble:
                log.error("worker-%d and all later ones go on, they are not replaced: %s", slot, trouble)
                await self._shrink(before)
                await self._all_ended()
                close_all(opened)
                if admin_has_moved:
                    admin_listener.close()
                return f"worker-{slot} and all later ones are not replaced: {trouble}"
        self._settings = wanted
        await self._shrink(wanted.workers)
        for listener in opened:
            listener.listen(sockets.BACKLOG)
        left = self._listeners if has_moved else []
        self._listeners = [*([] if has_moved else self._listeners), *opened]
        self._assign()
        if left:
            await asyncio.sleep(ASSIGNED_S)
            for listener in left:
                listener.shutdown(socket.SHUT_RDWR)  # workers hold it, too
            close_all(left)
        if admin_has_moved:
            await self._admin.close()
            self._admin_listener.close()
            self._admin, self._admin_listener = AdminListener(self), admin_listener
            await self._admin.start(admin_listener)
        if self._calling:
            await self._give_up(self._calling)
        if self._callbacks:
            callbacks, self._callbacks = self._callbacks, None
            await end(callbacks)
        self._keep_calling()
        await self._all_ended()
        log.info("all workers are replaced")
        return None

    async def _replace_one(self, slot: int, wanted: Settings, opened: Sequence[socket.socket]) -> str | None:
        """Replace the worker once a new one has served beside it for YOUNG_S; or return why not."""
        successor = self._start_worker(slot, wanted, wanted.workers, opened)
        while not (successor.life.done() or (successor.said and successor.served_s >= YOUNG_S)):  # noqa: ASYNC110  it grows by itself
            await asyncio.sleep(0.02)
        heartbeat = successor.said
        if heartbeat is None:
            return f"the new worker died ({successor.died_of})"
        if heartbeat.store:
            await end(successor)
            return f"the new worker is not ready: {heartbeat.store}"
        if slot == len(self._workers):
            self._workers.append(successor)
            self._keepers.append(self._begin(self._keep(slot)))
            return None
        worker, self._workers[slot] = self._workers[slot], successor
        self._assign()
        if worker:
            self._end_soon(worker)
        return None

    def _end_soon(self, worker: Child[Heartbeat]) -> None:
        """End a worker that others have replaced. There is time for each idle connection's last request."""
        worker.send(Assignment([], idle_s=IDLE_S).line())
        self._ending.append(asyncio.create_task(end(worker)))

    async def _all_ended(self) -> None:
        await asyncio.gather(*self._ending)
        self._ending.clear()

    async def _shrink(self, workers: int) -> None:
        """End the workers of the slots from this one on. The others accept at their listeners."""
        left = self._workers[workers:]
        for keeper in self._keepers[workers:]:
            await self._give_up(keeper)
        del self._workers[workers:], self._keepers[workers:]
        self._assign()
        for worker in left:
            if worker:
                self._end_soon(worker)

    async def _tell_trouble(self) -> None:
        """Print the greeting once all workers listen. Then log each trouble, and its end."""
        if self._inherited is None:
            while not all(worker and worker.said for worker in self._workers):  # noqa: ASYNC110  any of many sets it
                await asyncio.sleep(0.02)
            notify("READY=1", f"STATUS={len(self._workers)} workers listen")
            FailedStarts().none()
            # The greeting is for the terminal. If records go to standard output, it must not mix with them.
            aside = sys.stderr if is_stdout(self._settings.log_file) else sys.stdout
            print(self._greeting(), file=aside, flush=True)
        await self._report()

    async def _report(self) -> None:
        """Log each trouble, reminders while it lasts, and its end. Keep systemd's status line true."""
        troubles, rate = Troubles(told_elsewhere=READY_WITHOUT), Rate()
        shown_line, shown_at = "", -math.inf
        while not self._stop.is_set():
            now = time.monotonic()
            found = self.trouble()
            if not self._leave.is_set():
                for level, sentence in troubles.lines(found, now):
                    log.log(level, "%s", sentence)
            if now - shown_at >= STATUS_S:
                machine = self.machine()
                text = status_line(
                    machine, rate.of(machine.running, now), troubles.lasts_s(now), self._notes()
                )
                if text != shown_line:
                    notify(f"STATUS={text}")
                shown_line, shown_at = text, now
            await asyncio.sleep(0.25)

    def _greeting(self) -> str:
        settings, log_file = self._settings, shown(self._settings.log_file)
        public = sockets.shown(settings.host, self._listeners[0].getsockname()[1])
        admin = sockets.shown(settings.admin_host, self._admin_listener.getsockname()[1])
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
                f"  admin    http://{admin}/metrics",
            )
        )


def listen_admin(settings: Settings) -> socket.socket:
    """The admin listener's socket. Raises CannotStartError."""
    flags = "--admin-host or --admin-port"
    (listener,) = sockets.listen(settings.admin_host, settings.admin_port, 1, flags=flags)
    return listener


def close_all(listeners: Iterable[socket.socket]) -> None:
    for listener in listeners:
        listener.close()


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
    return _run(settings, None)


def resume() -> int:
    """Run ``idagg serve`` where this process was it before, and has executed this program at a reload."""
    found = inherited()
    assert found is not None, "nothing is inherited"
    return _run(found.settings, found)


def _run(settings: Settings, found: Inherited | None) -> int:
    log_to_stderr("idagg")

    async def run() -> None:
        await Supervisor(settings, found).run()

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
