"""The supervisor: composes the parts that hold this machine's sockets and processes, and runs them.

Workers accept requests. One worker of all machines is the leader. Each machine has one callback process,
which calls endpoints while a worker of its machine leads. It is a separate process so that no endpoint can
delay an accept request.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import uvloop

from idagg import __version__, metrics
from idagg.deliver.logfile import is_stdout
from idagg.errors import CannotStartError, Exit
from idagg.metrics import SupervisorMetrics
from idagg.run import sockets
from idagg.run.admin import AdminListener
from idagg.run.callback_keeper import CallbackKeeper
from idagg.run.child import Child, end
from idagg.run.children import Children
from idagg.run.combiner_keeper import CombinerKeeper
from idagg.run.fleet import Fleet
from idagg.run.greeting import greeting
from idagg.run.logs import log_to_stderr
from idagg.run.machine import Machine
from idagg.run.messages import READY_WITHOUT, Heartbeat
from idagg.run.reload import (
    Inherited,
    RehearsalError,
    execute,
    hold_signals,
    inherited,
    let_signals,
    monotonic_usec,
    rehearse,
    take_over,
)
from idagg.run.reload_requests import ReloadRequests
from idagg.run.runtime import RuntimeFolder
from idagg.run.starts import FailedStarts, delay_s
from idagg.run.status import line as status_line
from idagg.run.systemd import notify, watchdog_s
from idagg.run.terminal import Hangup
from idagg.run.troubles import Troubles
from idagg.run.workers import CrashLoopError, Workers
from idagg.settings import Settings
from idagg.store.embedded import EmbeddedStore
from idagg.tasks import Tasks

log = logging.getLogger("idagg.supervisor")

# Time for a signal that has come to be handled, before later ones wait for the next program.
SIGNALLED_S = 0.01
# A worker may be without a heartbeat for so long: until it is killed for that, and its successor has asked
# the store. If it takes longer, this process does not do its work.
SILENT_S = 30.0
# Interval at which systemd's status line is renewed.
STATUS_S = 1.0


class Supervisor:
    """Starts, watches, replaces and stops the processes of this machine.

    After a reload, ``left`` is what the program executed before has left.
    """

    def __init__(self, settings: Settings, left: Inherited | None = None) -> None:
        self._leave = asyncio.Event()  # a stop signal has come
        self._hurry = asyncio.Event()  # and another one
        self._over = asyncio.Event()  # a stop signal has come, or a part has ended
        self._parts = Tasks(self._over)
        self._left = left
        stdout = standard_output(settings)
        self._runtime = RuntimeFolder(None if left is None else Path(left.metrics_folder).parent)
        self.metrics_folder = self._runtime.metrics
        self._store: EmbeddedStore | None = None
        store_url = (settings.redis_url if left is None else left.redis_url) or ""
        self.fleet = Fleet(self)
        self._children = Children(settings, store_url, self.metrics_folder, stdout, on_said=self.fleet.heard)
        self._combiners = CombinerKeeper(
            self._children,
            self._parts,
            self.metrics_folder,  # which nobody else may enter, and which is emptied at a start
            held=left.combiner if left else None,
            at=left.combiner_at if left else None,
        )
        callbacks = None
        if left is None:
            listeners = sockets.listen(settings.host, settings.port, settings.workers)
            self._admin_listener = listen_admin(settings)
            slots: list[Child[Heartbeat] | None] = [None] * settings.workers
        else:
            take_over(left)
            listeners = [socket.socket(fileno=number) for number in left.listeners]
            self._admin_listener = socket.socket(fileno=left.admin)
            slots = [self._children.adopted(held) for held in left.workers]
            callbacks = self._children.adopted(left.callbacks)
            if left.store:
                self._store = EmbeddedStore.adopt(left.store)
        self._workers = Workers(self._children, self._parts, listeners, slots, self._combiners)
        for held in left.rest if left else ():
            self._workers.end_adopted(held)
        self._callbacks = CallbackKeeper(self._children, self._parts, self._workers, callbacks)
        self._admin = AdminListener(self)
        os.environ.update(self._children.environment(metrics.SUPERVISOR))
        metrics.write_as(metrics.SUPERVISOR)
        self._reloads = ReloadRequests(
            SupervisorMetrics(),
            control=left.control if left else None,
            waiting=left.waiting if left else (),
        )
        self._hangup = Hangup(
            self._reloads.want, self._on_stop_signal, left.outlives_terminal if left else None
        )

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT. Raises CannotStartError or CrashLoopError."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop_signal)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)  # of no use here, and their default is to kill
        self._hangup.begin()
        let_signals()
        try:
            await self._admin.start(self._admin_listener)
            if not self._children.store_url:
                await self._start_store()
            self._combiners.begin()
            self._workers.begin()
            self._parts.begin(self._tell_trouble())
            self._callbacks.begin()
            self._parts.begin(self.fleet.run())
            if self._store:
                self._parts.begin(self._store.watch())
            if interval_s := watchdog_s():
                self._parts.begin(self._feed_watchdog(interval_s))
            reloading = self._parts.begin(self._reload_when_wanted())
            await self._over.wait()
            notify("STOPPING=1")
            if self._leave.is_set():
                await self._drain()
            self._children.stopping.set()
            reloading.cancel()
            self._workers.close()
            await end(*self._children.running)
            await self.fleet.withdraw()
            await self._parts.end()
        finally:
            self._reloads.close()
            await self._admin.close()
            self._admin_listener.close()
            if self._store:
                await self._store.stop()
            self._runtime.remove()

    def _on_stop_signal(self) -> None:
        if self._leave.is_set():
            self._hurry.set()
        self._leave.set()
        self._over.set()

    async def _drain(self) -> None:
        """Let load balancers notice that this machine stops, while it accepts and answers every request.

        Another stop signal ends this, and so does the end of a part. Precedent: nats-server's lame duck mode.
        """
        drain_s = self._children.settings.drain
        self._workers.drain(drain_s, others=[self._callbacks.child, self._combiners.child])
        if not drain_s:
            return
        log.info("stopping in %g s: until then /readyz answers 503, and requests are accepted", drain_s)
        hurry = asyncio.create_task(self._hurry.wait())
        await self._parts.one_ends(hurry, timeout_s=drain_s)
        hurry.cancel()

    @property
    def settings(self) -> Settings:
        """Those in force now."""
        return self._children.settings

    @property
    def store_url(self) -> str:
        """Empty until the embedded store runs."""
        return self._children.settings.redis_url or self._children.store_url

    @property
    def admin_address(self) -> str:
        host, port, *_ = self._admin_listener.getsockname()
        return sockets.shown(host, port)

    def trouble(self) -> dict[str, str]:
        """Present trouble, one sentence for each part; empty if there is none."""
        found: dict[str, str] = {}
        if self._leave.is_set():
            found["drain"] = "idagg stops here: load balancers have to send requests to other machines"
        if self._callbacks.is_missing:
            found["callbacks"] = "the callback process has died: no endpoint is called until it runs again"
        if self._combiners.is_missing:
            found["combiner"] = "the combiner has died: workers do without it, which costs Redis more CPU"
        said = self._workers.said
        for slot, heartbeat in enumerate(said):
            if heartbeat is None:
                found[f"worker-{slot}"] = (
                    "it is not running: the other workers accept its new connections"
                    if any(said)
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
        workers = self._workers.said
        callbacks = self._callbacks.child.said if self._callbacks.child else None
        pids = {f"worker-{slot}": worker.pid for slot, worker in enumerate(workers) if worker}
        if callbacks:
            pids["callbacks"] = callbacks.pid
        if self._combiners.child and self._combiners.child.said:
            pids["combiner"] = self._combiners.child.said.pid
        if self._store and self._store.pid:
            pids["store"] = self._store.pid
        return Machine(
            self._children.settings,
            workers,
            pids | {"supervisor": os.getpid()},
            self._children.deaths,
            self._store.data if self._store else None,
            self._workers.ages_s,
            callbacks.waiting if callbacks else {},
        )

    def writers(self) -> list[int]:
        """The numbers of the running processes' metrics files."""
        return [child.writer for child in self._children.running]

    async def _start_store(self) -> None:
        state_dir = self._children.settings.state_dir
        assert state_dir is not None  # the settings see to that
        self._store = EmbeddedStore(state_dir, self._runtime.path)
        self._children.store_url = self._store.url
        await self._store.start()

    async def _feed_watchdog(self, interval_s: float) -> None:
        """Tell systemd in time that this process and each worker are alive, as long as they are."""
        heard: dict[int, float] = {}
        while True:
            now, said = time.monotonic(), self._workers.said
            heard = {slot: at for slot, at in heard.items() if slot < len(said)}
            for slot, heartbeat in enumerate(said):
                if slot not in heard or heartbeat:
                    heard[slot] = now
            if all(now - at < SILENT_S for at in heard.values()):
                notify("WATCHDOG=1")
            await asyncio.sleep(interval_s / 4)

    async def _reload_when_wanted(self) -> None:
        """Reload when it is wanted.

        The first half is this program's: it has the installed one rehearse, and executes it. There, the
        second half replaces all other processes.
        """
        reloads, slots = self._reloads, self._workers.slots
        try:
            if self._left is not None:
                wanted = Settings.from_json(orjson.dumps(self._left.wanted))
                reloads.tell(await self._replace_all(wanted), len(slots))
            while True:
                await reloads.next()
                reloads.tell(await self._become_anew(), len(slots))
        finally:
            reloads.refuse("idagg is being stopped")

    async def _become_anew(self) -> str:
        """Execute the program that is installed now. Returns only if that fails: why."""
        notify("RELOADING=1", monotonic_usec())
        while True:
            log.info("reloading: the installed program checks itself and its settings")
            variables = self._reloads.take()
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
                if self._reloads.is_wanted:
                    continue  # settings may have changed since they were read
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
        children, slots, callbacks = self._children, self._workers.slots, self._callbacks.child
        combiner = self._combiners.child

        def held(child: Child[Any] | None) -> dict[str, Any] | None:
            return dataclasses.asdict(child.held) if child is not None and child in children.running else None

        rest = children.running - {callbacks, combiner, *slots}
        return Inherited(
            children.settings,
            children.store_url,
            str(self.metrics_folder),
            [listener.fileno() for listener in self._workers.listeners],
            self._admin_listener.fileno(),
            [held(worker) for worker in slots],
            held(callbacks),
            [dataclasses.asdict(child.held) for child in rest],
            self._store.held() if self._store else None,
            self._reloads.control,
            self._reloads.waiting,
            wanted,
            __version__,
            self._hangup.outlives_terminal,
            held(combiner),
            self._combiners.at(children.settings),
        )

    async def _replace_all(self, wanted: Settings) -> str | None:
        """Replace all processes by ones with these settings; or return why not."""
        old = self._children.settings
        has_moved = (wanted.admin_host, wanted.admin_port) != (old.admin_host, old.admin_port)
        try:
            is_ours = 0 != wanted.admin_port == old.admin_port
            admin_listener = listen_admin(wanted, is_ours=is_ours) if has_moved else self._admin_listener
        except CannotStartError as error:
            return str(error)
        self._combiners.prepare(wanted)
        trouble = await self._workers.replace_all(wanted)
        if trouble:
            if has_moved:
                admin_listener.close()
            await self._combiners.settle()
            return trouble
        if has_moved:
            await self._admin.close()
            self._admin_listener.close()
            self._admin, self._admin_listener = AdminListener(self), admin_listener
            await self._admin.start(admin_listener)
        await self._callbacks.replace()
        await self._workers.all_ended()
        await self._combiners.settle()
        log.info("all workers are replaced")
        return None

    async def _tell_trouble(self) -> None:
        """Print the greeting once all workers listen. Then log each trouble, and its end."""
        if self._left is None:
            while not all(self._workers.said):  # noqa: ASYNC110  any of many sets it
                await asyncio.sleep(0.02)
            notify("READY=1", f"STATUS={len(self._workers.slots)} workers listen")
            FailedStarts().none()
            settings = self._children.settings
            text = greeting(
                settings,
                public=sockets.shown(settings.host, self._workers.listeners[0].getsockname()[1]),
                admin=sockets.shown(settings.admin_host, self._admin_listener.getsockname()[1]),
                embedded=f"{self._store.binary}, data in {self._store.data}" if self._store else None,
            )
            # The greeting is for the terminal. If records go to standard output, it must not mix with them.
            print(text, file=sys.stderr if is_stdout(settings.log_file) else sys.stdout, flush=True)
        await self._report()

    async def _report(self) -> None:
        """Log each trouble, reminders while it lasts, and its end. Keep systemd's status line true."""
        troubles = Troubles(told_elsewhere=READY_WITHOUT)
        shown_line, shown_at = "", -math.inf
        while not self._children.stopping.is_set():
            now = time.monotonic()
            found = self.trouble()
            if not self._leave.is_set():
                for level, sentence in troubles.lines(found, now):
                    log.log(level, "%s", sentence)
            if now - shown_at >= STATUS_S:
                machine = self.machine()
                notes = ["stopping"] if self._leave.is_set() else []
                notes += [self._reloads.failed] if self._reloads.failed else []
                text = status_line(machine, troubles.lasts_s(now), notes)
                if text != shown_line:
                    notify(f"STATUS={text}")
                shown_line, shown_at = text, now
            await asyncio.sleep(0.25)


def listen_admin(settings: Settings, *, is_ours: bool = False) -> socket.socket:
    """The admin listener's socket; ``is_ours`` as in ``sockets.listen``. Raises CannotStartError."""
    flags = "--admin-host or --admin-port"
    (listener,) = sockets.listen(settings.admin_host, settings.admin_port, 1, flags=flags, is_ours=is_ours)
    return listener


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
