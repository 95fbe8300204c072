"""The supervisor's side of the callback process: keeps it running, and tells it when this machine leads."""

from __future__ import annotations

import asyncio
import time

from idagg.run.child import Child
from idagg.run.children import Children
from idagg.run.keeper import Keeper
from idagg.run.messages import CallbackStart, Heartbeat, Leads
from idagg.run.workers import Workers
from idagg.tasks import Tasks

CALLBACK_MODULE = "idagg.run.callback_process"
# A callback process that has been silent for so long hangs. At its niceness it is slow on a busy machine:
# with 8 busy processes on 2 CPUs, its start was seen to take more than 10 s.
CALLBACKS_HUNG_S = 60.0
# Interval at which the callback process is told of a new leader.
TELL_S = 0.25
# It is told of the same leader again after this time: it gives up an epoch that the store refuses, and a
# store that has lost data can issue that number once more.
TELL_AGAIN_S = 2.0


class CallbackKeeper:
    """Keeps the callback process running, unless the settings in force have none. No endpoint may end the
    callbacks for good. ``child`` is one that the program executed before has left."""

    def __init__(
        self, children: Children, parts: Tasks, workers: Workers, child: Child[Heartbeat] | None
    ) -> None:
        self._children = children
        self._workers = workers
        self._keeper = Keeper(
            children,
            parts,
            self._start,
            kind="callbacks",
            loss="no endpoint is called until then",
            child=child,
            tend=self._tell,
        )

    @property
    def child(self) -> Child[Heartbeat] | None:
        """None while none runs."""
        return self._keeper.child

    @property
    def is_missing(self) -> bool:
        return self._children.settings.callbacks != "off" and not self.child

    def begin(self) -> None:
        if self._children.settings.callbacks != "off":
            self._keeper.begin()

    async def replace(self) -> None:
        """Replace the process by one with the settings that are in force now."""
        await self._keeper.end()
        self.begin()

    async def _tell(self, child: Child[Heartbeat]) -> None:
        """Tell it which epoch this machine leads by, until it ends."""
        told, told_at = -1, 0.0  # an adopted process may have been told anything
        while not child.life.done():
            epoch, now = self._workers.epoch, time.monotonic()
            if child.served_s and (epoch != told or now - told_at >= TELL_AGAIN_S):
                child.send(Leads(epoch).line())
                told, told_at = epoch, now
            await asyncio.wait([child.life], timeout=TELL_S)

    def _start(self) -> Child[Heartbeat]:
        start = CallbackStart(*self._children.common(self._children.settings))
        return self._children.start("the callback process", CALLBACK_MODULE, start, hung_s=CALLBACKS_HUNG_S)
