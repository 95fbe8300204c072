"""The supervisor's side of the callback process: keeps it running, and tells it when this machine leads."""

from __future__ import annotations

import asyncio
import logging
import math
import time

from idagg.run.child import Child, end
from idagg.run.children import Children
from idagg.run.messages import CallbackStart, Heartbeat, Leads
from idagg.run.restart import Restarts
from idagg.run.workers import Workers
from idagg.tasks import Tasks

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
# It is told of the same leader again after this time: it gives up an epoch that the store refuses, and a
# store that has lost data can issue that number once more.
TELL_AGAIN_S = 2.0


class CallbackKeeper:
    """Keeps ``child``, the callback process, running; it is None while none runs."""

    def __init__(
        self, children: Children, parts: Tasks, workers: Workers, child: Child[Heartbeat] | None
    ) -> None:
        self.child = child
        self._children = children
        self._parts = parts
        self._workers = workers
        self._keeping: asyncio.Task[None] | None = None

    @property
    def is_missing(self) -> bool:
        return self._children.settings.callbacks != "off" and not self.child

    def begin(self) -> None:
        off = self._children.settings.callbacks == "off"
        self._keeping = None if off else self._parts.begin(self._keep())

    async def replace(self) -> None:
        """Replace the process by one with the settings that are in force now."""
        if self._keeping:
            await self._parts.give_up(self._keeping)
        if self.child:
            child, self.child = self.child, None
            await end(child)
        self.begin()

    async def _keep(self) -> None:
        """Keep the callback process running until the supervisor stops.

        It is restarted without a limit: no endpoint may end the callbacks for good.
        """
        children = self._children
        restarts = Restarts(young_s=CALM_S, longest_delay_s=CALM_S, limit=math.inf)
        while not children.stopping.is_set():
            child = self.child = self.child or self._start()
            told, told_at = -1, 0.0  # an adopted process may have been told anything
            while not child.life.done():
                epoch, now = self._workers.epoch, time.monotonic()
                if child.served_s and (epoch != told or now - told_at >= TELL_AGAIN_S):
                    child.send(Leads(epoch).line())
                    told, told_at = epoch, now
                await asyncio.wait([child.life], timeout=TELL_S)
            self.child = None
            if children.stopping.is_set():
                return
            children.deaths["callbacks"] += 1
            delay_s = restarts.after(child.served_s) or 0
            log.error(
                "the callback process died (%s), starting it again in %g s: no endpoint is called until then",
                child.died_of,
                delay_s,
            )
            await children.pause(delay_s)

    def _start(self) -> Child[Heartbeat]:
        start = CallbackStart(*self._children.common(self._children.settings))
        return self._children.start("the callback process", CALLBACK_MODULE, start, hung_s=CALLBACKS_HUNG_S)
