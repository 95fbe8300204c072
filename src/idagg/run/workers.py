"""The workers by their slots: they are kept running, share the listeners, and are replaced at a reload."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from idagg.errors import CannotStartError, Exit, IdaggError
from idagg.run import sockets
from idagg.run.child import Child, end
from idagg.run.children import Children
from idagg.run.combiner_keeper import CombinerKeeper
from idagg.run.messages import Assignment, Heartbeat, WorkerStart
from idagg.run.restart import YOUNG_S, Restarts
from idagg.settings import Settings
from idagg.tasks import Tasks

log = logging.getLogger("idagg.supervisor")

# Time for which replaced workers keep idle connections. nginx closes them at once.
IDLE_S = 5.0
# Time for workers to hear that a listener is not theirs any more, before it is closed.
ASSIGNED_S = 0.5


class CrashLoopError(IdaggError):
    """A worker died right after its start too often in a row."""


class Workers:
    """The workers of this machine, and the sockets of its public listener.

    ``slots`` are the workers that accept, None where none runs. One that has been replaced is in no slot.
    """

    def __init__(
        self,
        children: Children,
        parts: Tasks,
        listeners: Sequence[socket.socket],
        slots: Iterable[Child[Heartbeat] | None],
        combiners: CombinerKeeper,
    ) -> None:
        self.listeners = list(listeners)
        self.slots = list(slots)
        self._children = children
        self._parts = parts
        self._combiners = combiners
        self._keepers: list[asyncio.Task[None]] = []  # by slot
        self._ending: list[asyncio.Task[None]] = []  # the ends of workers that are replaced
        self._drain_s: float | None = None
        for worker in self.slots:
            if worker:
                worker.on_change = self._assign

    @property
    def said(self) -> list[Heartbeat | None]:
        """Their last heartbeats, by slot."""
        return [worker.said if worker else None for worker in self.slots]

    @property
    def ages_s(self) -> list[float | None]:
        """How old those are."""
        now = time.monotonic()
        return [now - worker.said_at if worker and worker.said else None for worker in self.slots]

    @property
    def epoch(self) -> int:
        """The epoch in which one of them leads, or 0."""
        return max((heartbeat.epoch for heartbeat in self.said if heartbeat), default=0)

    def begin(self) -> None:
        """Keep a worker running in each slot."""
        self._keepers = [self._parts.begin(self._keep(slot)) for slot in range(len(self.slots))]

    def end_adopted(self, held: Mapping[str, Any]) -> None:
        """End a process that the program executed before has left, and had begun to end."""
        child = self._children.adopted(held)
        assert child is not None
        self._ending.append(asyncio.create_task(end(child)))

    def drain(self, drain_s: float, others: Iterable[Child[Heartbeat] | None]) -> None:
        """Tell all workers that the listeners close in so many seconds. ``others`` are no workers."""
        self._drain_s = drain_s
        if not drain_s:
            return
        for worker in self._children.running.difference(others):
            worker.send(Assignment(drain_s=drain_s).line())

    def close(self) -> None:
        """Give up the listeners: those that workers hold, too, close with them."""
        close_all(self.listeners)

    async def replace_all(self, wanted: Settings) -> str | None:
        """Replace all workers by ones with these settings, which are in force then; or return why not."""
        old = self._children.settings
        before = len(self.slots)
        has_moved = (wanted.host, wanted.port) != (old.host, old.port)
        # They listen once all workers are there to accept.
        try:
            opened = (
                sockets.bind(wanted.host, wanted.port, wanted.workers, is_ours=0 != wanted.port == old.port)
                if has_moved
                else sockets.bind_more(self.listeners[0], max(0, wanted.workers - len(self.listeners)))
            )
        except (CannotStartError, OSError) as error:
            return str(error)
        log.info("replacing the workers one by one")
        for slot in range(wanted.workers):
            trouble = await self._replace_one(slot, wanted, opened)
            if trouble:
                log.error("worker-%d and all later ones go on, they are not replaced: %s", slot, trouble)
                await self._shrink(before)
                await self.all_ended()
                close_all(opened)
                return f"worker-{slot} and all later ones are not replaced: {trouble}"
        self._children.settings = wanted
        await self._shrink(wanted.workers)
        for listener in opened:
            listener.listen(sockets.BACKLOG)
        left = self.listeners if has_moved else []
        self.listeners = [*([] if has_moved else self.listeners), *opened]
        self._assign()
        if left:
            await asyncio.sleep(ASSIGNED_S)
            for listener in left:
                listener.shutdown(socket.SHUT_RDWR)  # workers hold it, too
            close_all(left)
        return None

    async def all_ended(self) -> None:
        """Wait for the end of all workers that were replaced."""
        await asyncio.gather(*self._ending)
        self._ending.clear()

    def _start(
        self, slot: int, settings: Settings, workers: int, opened: Sequence[socket.socket] = ()
    ) -> Child[Heartbeat]:
        """Start a worker for a slot of so many. ``opened`` are listeners that it serves later."""
        own = [listener.fileno() for listener in self.listeners[slot::workers]]
        held = [listener.fileno() for listener in (*self.listeners, *opened)]
        first = own[0] if own else held[0]
        combiner = self._combiners.at(settings)
        start = WorkerStart(*self._children.common(settings), slot, first, held, combiner)
        later = Assignment(own, self._drain_s).line()
        worker = self._children.start(f"worker-{slot}", "idagg.run.worker", start, later=later, pass_fds=held)
        worker.on_change = self._assign
        return worker

    def _assign(self) -> None:
        """Tell each worker at which listeners it accepts, after one has begun to listen, or died."""
        running = [worker if worker and worker.said else None for worker in self.slots]
        shares = sockets.spread(
            [listener.fileno() for listener in self.listeners],
            [worker.pass_fds if worker else None for worker in running],
        )
        for worker, share in zip(running, shares, strict=True):
            if worker:
                worker.send(Assignment(share, self._drain_s).line())

    async def _keep(self, slot: int) -> None:
        """Keep a worker running in this slot until the supervisor stops."""
        children, restarts = self._children, Restarts()
        while not children.stopping.is_set():
            worker = self.slots[slot]
            if worker is None:
                worker = self.slots[slot] = self._start(slot, children.settings, len(self.slots))
            await asyncio.wait([worker.life])  # awaited by itself, it would be cancelled with this task
            if children.stopping.is_set() or self.slots[slot] is not worker:
                continue
            self.slots[slot] = None
            if worker.code == Exit.CANNOT_START:
                raise CannotStartError(f"worker-{slot} cannot start: its log lines above give the reason")
            delay_s = restarts.after(worker.served_s)
            if delay_s is None:
                raise CrashLoopError(
                    f"worker-{slot} died {restarts.young_deaths} times in a row as soon as it had "
                    "started: idagg stops and counts nothing here, its log lines above give the reason"
                )
            children.deaths["worker"] += 1
            log.error(
                "worker-%d died (%s), starting it again: ids that it had not answered may not be counted",
                slot,
                worker.died_of,
            )
            await children.pause(delay_s)

    async def _replace_one(self, slot: int, wanted: Settings, opened: Sequence[socket.socket]) -> str | None:
        """Replace the worker once a new one has served beside it for YOUNG_S; or return why not."""
        successor = self._start(slot, wanted, wanted.workers, opened)
        while not (successor.life.done() or (successor.said and successor.served_s >= YOUNG_S)):  # noqa: ASYNC110  it grows by itself
            await asyncio.sleep(0.02)
        heartbeat = successor.said
        if heartbeat is None:
            return f"the new worker died ({successor.died_of})"
        if heartbeat.store:
            await end(successor)
            return f"the new worker is not ready: {heartbeat.store}"
        if slot == len(self.slots):
            self.slots.append(successor)
            self._keepers.append(self._parts.begin(self._keep(slot)))
            return None
        worker, self.slots[slot] = self.slots[slot], successor
        self._assign()
        if worker:
            self._end_soon(worker)
        return None

    async def _shrink(self, workers: int) -> None:
        """End the workers of the slots from this one on. The others accept at their listeners."""
        left = self.slots[workers:]
        for keeper in self._keepers[workers:]:
            await self._parts.give_up(keeper)
        del self.slots[workers:], self._keepers[workers:]
        self._assign()
        for worker in left:
            if worker:
                self._end_soon(worker)

    def _end_soon(self, worker: Child[Heartbeat]) -> None:
        """End a worker that others have replaced. There is time for each idle connection's last request."""
        worker.send(Assignment([], idle_s=IDLE_S).line())
        self._ending.append(asyncio.create_task(end(worker)))


def close_all(listeners: Iterable[socket.socket]) -> None:
    for listener in listeners:
        listener.close()
