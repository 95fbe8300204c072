"""The supervisor's side of a process that it keeps running without a limit of restarts."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable

from idagg.run.child import Child, end
from idagg.run.children import Children
from idagg.run.messages import Heartbeat
from idagg.run.restart import Restarts
from idagg.tasks import Tasks

log = logging.getLogger("idagg.supervisor")

# A process that has run this long is considered stable. For one that dies earlier, the restart delay grows,
# up to this value.
CALM_S = 30.0


async def _life(child: Child[Heartbeat]) -> None:
    await asyncio.wait([child.life])


class Keeper:
    """Keeps ``child`` running until the supervisor stops; it is None while none runs.

    ``kind`` is what its deaths are counted as, and ``loss`` says what they mean. ``tend`` returns once the
    process has ended.
    """

    def __init__(
        self,
        children: Children,
        parts: Tasks,
        start: Callable[[], Child[Heartbeat]],
        *,
        kind: str,
        loss: str,
        child: Child[Heartbeat] | None = None,
        tend: Callable[[Child[Heartbeat]], Awaitable[None]] = _life,
    ) -> None:
        self.child = child
        self._children = children
        self._parts = parts
        self._start = start
        self._kind = kind
        self._loss = loss
        self._tend = tend
        self._keeping: asyncio.Task[None] | None = None

    def begin(self) -> None:
        if self._keeping is None:
            self._keeping = self._parts.begin(self._keep())

    async def end(self) -> None:
        """End the process, and start none any more."""
        if self._keeping:
            keeping, self._keeping = self._keeping, None
            await self._parts.give_up(keeping)
        if self.child:
            child, self.child = self.child, None
            await end(child)

    async def _keep(self) -> None:
        children = self._children
        restarts = Restarts(young_s=CALM_S, longest_delay_s=CALM_S, limit=math.inf)
        while not children.stopping.is_set():
            child = self.child = self.child or self._start()
            await self._tend(child)
            self.child = None
            if children.stopping.is_set():
                return
            children.deaths[self._kind] += 1
            delay_s = restarts.after(child.served_s) or 0
            log.error(
                "%s died (%s), starting it again in %g s: %s", child.name, child.died_of, delay_s, self._loss
            )
            await children.pause(delay_s)
