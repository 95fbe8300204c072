"""The leader's loops: each does its work turn by turn while this process leads, whatever becomes of the
others.

What keeps a loop from its work is told once for all loops that meet it, and the loop tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable

from idagg.errors import FencedError, LogFileError, StoreError
from idagg.flush.leader import Leadership
from idagg.store.sealing import Sealing
from idagg.tasks import end

log = logging.getLogger("idagg.flush")

# Between two tries after the store or the log file failed.
RETRY_S = 0.5
# Several loops meet the same trouble one after the other: what changes about it is told so much later.
GATHER_S = 1.0
# The store's clock may be stepped: never sleep long on what it said.
LOOK_S = 1.0

Turn = Callable[[int], Awaitable[None]]


class Turns:
    """Runs loops until ``stop``; each ends between two turns, never within one.

    ``trouble`` says what keeps them from their work, in a sentence; None when nothing does.
    """

    def __init__(self, leadership: Leadership) -> None:
        self.leadership = leadership
        self.stopping = asyncio.Event()
        self.trouble: str | None = None
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._more = asyncio.Event()
        self._troubles: dict[str, str] = {}  # by the loop that has it
        self._told: str | None = None
        self._told_at = -math.inf  # by the loop's clock

    def add(self, name: str, turn: Turn, sealing: Sealing) -> None:
        """A loop of this name, if there is none yet. What it finds damaged is quarantined in that shard."""
        if name not in self._loops:
            self._loops[name] = asyncio.create_task(self._while_leading(name, turn, sealing))
            self._more.set()

    async def run(self) -> None:
        """Wait for the loops, also for those that are added meanwhile. An unhandled error in one ends all."""
        try:
            while not all(loop.done() for loop in self._loops.values()):
                self._more.clear()
                more = asyncio.ensure_future(self._more.wait())
                try:
                    # A task group would pass a cancellation on only once, and it may be lost (see `end`).
                    await asyncio.wait(
                        [more, *(loop for loop in self._loops.values() if not loop.done())],
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                finally:
                    more.cancel()
                for loop in self._loops.values():
                    if loop.done():
                        loop.result()
        finally:
            while not all(loop.done() for loop in self._loops.values()):
                with contextlib.suppress(asyncio.CancelledError):  # this ends all the same, and they first
                    await end(*self._loops.values())
            await asyncio.gather(*self._loops.values(), return_exceptions=True)  # one error has been raised

    def stop(self) -> None:
        self.stopping.set()

    async def first(self, *events: Awaitable[object] | None, timeout_s: float | None) -> None:
        """Wait for the first of the events, a stop, or the time."""
        waiting = [asyncio.ensure_future(event) for event in (self.stopping.wait(), *events) if event]
        try:
            await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _while_leading(self, name: str, turn: Turn, sealing: Sealing) -> None:
        while not self.stopping.is_set():
            if not self.leadership.epoch:
                await self.first(self.leadership.elected(), timeout_s=None)
                continue
            epoch = self.leadership.epoch
            try:
                async with sealing.quarantining(epoch):
                    await turn(epoch)
            except FencedError:
                self.leadership.lost(epoch)
            except (StoreError, LogFileError) as error:
                self._tell(name, str(error))
                await self.first(timeout_s=RETRY_S)
            else:
                self._tell(name, None)

    def _tell(self, loop: str, trouble: str | None) -> None:
        """Once when it begins or changes, and once when it ends; what several loops meet is told once."""
        if trouble:
            self._troubles[loop] = trouble
        else:
            self._troubles.pop(loop, None)
        trouble = "; ".join(dict.fromkeys(self._troubles.values())) or None
        self.trouble = trouble
        now = asyncio.get_running_loop().time()
        if trouble and trouble != self._told and (not self._told or now - self._told_at >= GATHER_S):
            log.error("windows stay pending, trying again: %s", trouble)
            self._told_at = now
        elif self._told and not trouble:
            log.info("windows are delivered again")
        elif trouble:
            return  # told already, or soon: the loop tries again
        self._told = trouble
