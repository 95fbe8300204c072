"""The leader's other work: have each window's endpoints called, beside the flush and never in its way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from idagg.errors import FencedError, LogFileError, StoreError
from idagg.failpoints import reach
from idagg.flush.leader import Leadership
from idagg.store.windows import WindowStore
from idagg.tasks import end
from idagg.window import Record, iso

log = logging.getLogger("idagg.flush")

LOOK_S = 0.5
# Before a window's endpoints are called again because none could be marked; twice as long each time, since
# whoever is called cannot help it.
RETRY_S = 1.0
MAX_RETRY_S = 60.0
# Three attempts of 10 s each, and the pauses between them.
PATIENCE_S = 40
# Endpoints under way, over all windows: what bounds memory, at up to 2 KiB each.
MAX_ENDPOINTS = 20_000
# Windows that wait for their calls; beyond that the oldest are given up, so that the store stays bounded.
MAX_BACKLOG = 120


class Calls(Protocol):
    async def deliver(
        self,
        record: Record,
        endpoints: Iterable[str],
        done: Callable[[Sequence[str]], Awaitable[None]],
        *,
        deadline: float,
    ) -> None: ...


class Caller:
    """``on_given_up`` hears how many endpoints are not called because too many windows wait."""

    def __init__(
        self,
        windows: WindowStore,
        leadership: Leadership,
        calls: Calls,
        *,
        on_given_up: Callable[[int], None] = lambda endpoints: None,
    ) -> None:
        self._windows = windows
        self._leadership = leadership
        self._calls = calls
        self._on_given_up = on_given_up
        self._retry_s = RETRY_S  # one for all windows: they share the store and the log file
        self._under_way: dict[int, tuple[asyncio.Task[None], int]] = {}  # by start: its task, its endpoints

    async def run(self) -> None:
        """Work while this process leads, until cancelled; the next leader goes on with what is under way."""
        try:
            while True:
                epoch = await self._leadership.elected()
                try:
                    async with self._windows.setting_aside(epoch):
                        await self._look(epoch)
                except FencedError:
                    self._leadership.lost(epoch)
                except StoreError as error:
                    log.warning("callbacks wait: %s", error)
                await asyncio.sleep(LOOK_S)
                if self._leadership.epoch != epoch:
                    await self._drop()
        finally:
            await self._drop()

    async def _look(self, epoch: int) -> None:
        backlog = await self._windows.depth("callbacks")
        for owed in await self._windows.uncalled(limit=MAX_BACKLOG):
            record = owed.record
            if record.start_s in self._under_way:
                continue
            if backlog > MAX_BACKLOG:
                backlog -= 1
                log.error("window %s: its callbacks are given up, too many windows wait", iso(record.start_s))
                endpoints = await self._windows.endpoints(record.start_s)
                await self._windows.give_up_calls(epoch, record.start_s)
                self._on_given_up(len(endpoints))
                continue
            if sum(count for _, count in self._under_way.values()) >= MAX_ENDPOINTS:
                return
            endpoints = await self._windows.endpoints(record.start_s)
            if not endpoints:
                continue  # the last of them was called while we looked
            task = asyncio.create_task(self._call(epoch, record, endpoints))
            self._under_way[record.start_s] = task, len(endpoints)

    async def _call(self, epoch: int, record: Record, endpoints: list[str]) -> None:
        async def done(endpoints: Sequence[str]) -> None:
            reach("callback")
            await self._windows.mark_called(epoch, record.start_s, endpoints)

        deadline = asyncio.get_running_loop().time() + max(record.length_s, PATIENCE_S)
        try:
            await self._calls.deliver(record, endpoints, done, deadline=deadline)
            self._retry_s = RETRY_S
        except FencedError:
            self._leadership.lost(epoch)
        except (StoreError, LogFileError) as error:
            # Those not marked are called again, under the same webhook-id.
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
