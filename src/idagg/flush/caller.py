"""The leader's other work: have each window's endpoints called, beside the flush and never in its way.

It runs in the callback process, which is told the epoch of its machine's leader. Nothing else connects the
two: what is to be called, and what became of it, is in the store, whose scripts refuse an epoch that has
passed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from idagg.errors import FencedError, LogFileError, StoreError
from idagg.failpoints import reach
from idagg.store.windows import WindowStore
from idagg.tasks import end
from idagg.window import PendingCallback, Record, iso

log = logging.getLogger("idagg.flush")

LOOK_S = 0.5
# Before a window's callbacks go on when the store or the log file failed; twice as long each time.
RETRY_S = 1.0
MAX_RETRY_S = 60.0
# No attempt begins later than this after a leader has taken up the window: all attempts and the pauses
# between them, and some room for destinations that are paced.
LIFE_S = 900
# Callbacks in memory, over all windows, at up to some 2.5 KiB each: ten windows in which all fail.
MAX_CALLBACKS = 100_000
# Windows with pending callbacks; beyond that those of the oldest are given up, so that the store stays
# bounded.
MAX_BACKLOG = 120


class Leader(Protocol):
    """Says whether this machine leads."""

    @property
    def epoch(self) -> int:
        """0 while it does not."""

    async def elected(self) -> int: ...

    def lost(self, epoch: int) -> None:
        """The store has refused this epoch."""


class Ledger:
    """A window's callbacks in the store, for one epoch."""

    def __init__(self, windows: WindowStore, epoch: int, start_s: int) -> None:
        self._windows = windows
        self._epoch = epoch
        self._start_s = start_s

    async def spend(self, attempts: Sequence[PendingCallback]) -> Sequence[bool]:
        counted: list[bool] = []
        for i in range(0, len(attempts), 500):
            counted += await self._windows.pending.count_attempts(
                self._epoch, self._start_s, attempts[i : i + 500]
            )
        reach("attempt")
        return counted

    async def done(self, endpoints: Sequence[str]) -> None:
        reach("callback")
        for i in range(0, len(endpoints), 500):
            await self._windows.pending.mark_called(self._epoch, self._start_s, endpoints[i : i + 500])


class Calls(Protocol):
    async def deliver(
        self, record: Record, pending: Iterable[PendingCallback], ledger: Ledger, *, deadline: float
    ) -> None: ...


class Caller:
    """``on_given_up`` hears how many endpoints are not called because too many windows wait."""

    def __init__(
        self,
        windows: WindowStore,
        leader: Leader,
        calls: Calls,
        *,
        on_given_up: Callable[[int], None] = lambda endpoints: None,
    ) -> None:
        self._windows = windows
        self._leader = leader
        self._calls = calls
        self._on_given_up = on_given_up
        self._retry_s = RETRY_S  # one for all windows: they share the store and the log file
        self._under_way: dict[int, tuple[asyncio.Task[None], int]] = {}  # by start: its task, its callbacks

    async def run(self) -> None:
        """Work while this machine leads, until cancelled; the next leader goes on with what is under way."""
        told = None
        try:
            while True:
                epoch = await self._leader.elected()
                try:
                    async with self._windows.sealing.quarantining(epoch):
                        await self._look(epoch)
                except FencedError:
                    self._leader.lost(epoch)
                except StoreError as error:
                    if str(error) != told:
                        log.warning("callbacks wait: %s", error)
                    told = str(error)
                else:
                    told = None
                await asyncio.sleep(LOOK_S)
                if self._leader.epoch != epoch:
                    await self._drop()
        finally:
            await self._drop()

    async def _look(self, epoch: int) -> None:
        backlog = (await self._windows.pending.counts()).callbacks
        for window in await self._windows.pending.with_callbacks(limit=MAX_BACKLOG):
            record = window.record
            if record.start_s in self._under_way:
                continue
            if backlog > MAX_BACKLOG:
                backlog -= 1
                given_up = await self._windows.pending.callbacks(record.start_s)
                await self._windows.pending.give_up_callbacks(epoch, record.start_s)
                log.error("window %s: its callbacks are given up, too many windows wait", iso(record.start_s))
                self._on_given_up(len(given_up))
                continue
            if sum(count for _, count in self._under_way.values()) >= MAX_CALLBACKS:
                return
            pending = await self._windows.pending.callbacks(record.start_s)
            if not pending:
                continue  # the last of them was called while we looked
            task = asyncio.create_task(self._call(epoch, record, pending))
            self._under_way[record.start_s] = task, len(pending)

    async def _call(self, epoch: int, record: Record, pending: Sequence[PendingCallback]) -> None:
        ledger = Ledger(self._windows, epoch, record.start_s)
        deadline = asyncio.get_running_loop().time() + LIFE_S
        try:
            await self._calls.deliver(record, pending, ledger, deadline=deadline)
            self._retry_s = RETRY_S
        except FencedError:
            self._leader.lost(epoch)
        except (StoreError, LogFileError) as error:
            # Those not marked are called again, under the same webhook-id, while attempts are left.
            retry_s = self._retry_s
            log.error(
                "window %s: callbacks are interrupted for %g s: %s", iso(record.start_s), retry_s, error
            )
            await asyncio.sleep(retry_s)
            self._retry_s = min(2 * retry_s, MAX_RETRY_S)
        finally:
            self._under_way.pop(record.start_s, None)

    async def _drop(self) -> None:
        await end(*(task for task, _ in self._under_way.values()))
        self._under_way.clear()  # a task that was cancelled before it began has not seen to it
