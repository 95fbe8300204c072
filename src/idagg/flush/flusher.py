"""The leader's work: seal each window when it ends, and see to it that the count arrives.

A sealed window is owed to a sink: the broker where one is configured, else the log file. Where the broker
does not confirm in time, the line is written to the log at once and the message stays owed until the broker
is back. Each step is marked in the store only once it is done, so whoever leads next repeats at most the step
that was under way, with the same message id and the same count.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from typing import Protocol

from idagg.errors import BrokerAwayError, FencedError, LogFileError, StoreError
from idagg.failpoints import reach
from idagg.flush.leader import Leadership
from idagg.store.windows import Owed, WindowStore
from idagg.window import Record, iso

log = logging.getLogger("idagg.flush")

# Between two tries after the store or the log file failed.
RETRY_S = 0.5
# The store's clock may be stepped: never sleep long on what it said.
LOOK_S = 1.0
# Between two looks at whether a window has ended: messages sent late, and the time for them. A backlog must
# not hold up the next window, though the broker may take long for each.
LATE_AT_ONCE = 20
LATE_FOR_S = 1.0
# The sketch's standard error, 1.04/sqrt(2**14); five of them, and some room for very small counts.
SKETCH_ERROR = 0.0081
SKETCH_SLACK = 5


class Publisher(Protocol):
    """Where messages go. Raises BrokerAwayError, at once where the broker is known to be away."""

    @property
    def ready(self) -> asyncio.Event: ...

    async def publish(self, record: Record) -> None: ...


class Lines(Protocol):
    """Where lines go. Raises LogFileError where the line is not on disk."""

    async def window(self, record: Record, *, reason: str | None) -> None: ...


class Observer(Protocol):
    def sealed(self, record: Record, *, dropped_endpoints: int, suspicious: bool) -> None: ...

    def delivered(self, record: Record, *, sink: str, lag_s: float) -> None: ...

    def depth(self, *, undelivered: int, unsent: int, aside: int) -> None: ...


def suspicious(record: Record) -> bool:
    """Whether exact count and estimate differ by more than the sketch explains: a sign of lost writes."""
    off = abs(record.unique_ids - record.estimate)
    return record.exact and off > 5 * SKETCH_ERROR * record.unique_ids + SKETCH_SLACK


class Flusher:
    def __init__(
        self,
        windows: WindowStore,
        leadership: Leadership,
        *,
        broker: Publisher | None,
        lines: Lines,
        observer: Observer,
    ) -> None:
        self._windows = windows
        self._leadership = leadership
        self._broker = broker
        self._lines = lines
        self._observer = observer
        self._stopping = asyncio.Event()
        self._trouble: str | None = None
        self._seen_s = -1  # the newest window that the observer was told of

    async def run(self) -> None:
        """Work while this process leads, until ``stop``; ends between two steps, never within one."""
        while not self._stopping.is_set():
            if not self._leadership.epoch:
                await self._first(self._leadership.elected(), timeout_s=None)
                continue
            epoch = self._leadership.epoch
            try:
                async with self._windows.setting_aside(epoch):
                    await self._turn(epoch)
            except FencedError:
                self._leadership.lost(epoch)
            except (StoreError, LogFileError) as error:
                self._tell(str(error))
                await self._first(timeout_s=RETRY_S)
            else:
                self._tell(None)

    def stop(self) -> None:
        self._stopping.set()

    def _tell(self, trouble: str | None) -> None:
        """Once when it begins or changes, and once when it ends."""
        if trouble and trouble != self._trouble:
            log.error("windows stay owed, trying again: %s", trouble)
        elif self._trouble and not trouble:
            log.info("windows are delivered again")
        self._trouble = trouble

    async def _turn(self, epoch: int) -> None:
        """Seal what has ended, deliver what is owed, and wait for the next to do."""
        reach("before-seal")
        while not (wait_ms := await self._windows.seal(epoch)):
            reach("after-seal")
        await self._tell_depth()  # a log file that is full ends the turn below
        while owed := await self._windows.undelivered():
            for entry in owed:
                if self._stopping.is_set():
                    return
                await self._deliver(epoch, entry)
        away = self._broker is not None and not self._broker.ready.is_set()
        more = not away and await self._send_late(epoch)
        unsent = await self._tell_depth()
        if more:
            return
        # One that refuses messages while it is there is asked again at the next look.
        broker_back = self._broker.ready.wait() if self._broker and away and unsent else None
        await self._first(broker_back, timeout_s=min(wait_ms / 1000, LOOK_S))

    async def _deliver(self, epoch: int, owed: Owed) -> None:
        """To the broker; without one, or with one that does not confirm in time, to the log file."""
        record = owed.record
        self._look_at(owed)
        if self._broker is None:
            await self._lines.window(record, reason=None)
            await self._delivered(epoch, record, sink="log")
            return
        try:
            await self._broker.publish(record)
        except BrokerAwayError as error:
            await self._lines.window(record, reason=str(error))
            reach("before-mark")
            await self._windows.mark_logged(epoch, record.start_s)
            reach("after-mark")
        else:
            reach("after-confirm")
            await self._delivered(epoch, record, sink="broker")

    async def _send_late(self, epoch: int) -> bool:
        """Send messages that are owed since the broker was away; whether there may be more to send now."""
        late = await self._windows.unsent(limit=LATE_AT_ONCE)
        until = time.monotonic() + LATE_FOR_S
        for owed in late:
            if self._stopping.is_set():
                return False
            if self._broker is not None:
                try:
                    await self._broker.publish(owed.record)
                except BrokerAwayError:
                    return False
            # Without a broker the line, which is written, is all that is owed.
            await self._delivered(epoch, owed.record, sink="broker" if self._broker else "log")
            if time.monotonic() >= until:
                return True
        return len(late) == LATE_AT_ONCE

    async def _delivered(self, epoch: int, record: Record, *, sink: str) -> None:
        reach("before-mark")
        await self._windows.mark_delivered(epoch, record.start_s)
        reach("after-mark")
        self._observer.delivered(record, sink=sink, lag_s=time.time() - record.end_s)

    async def _tell_depth(self) -> int:
        """Tell the observer what is owed; returns the number of messages that are sent late."""
        unsent = await self._windows.depth("unsent")
        self._observer.depth(
            undelivered=await self._windows.depth("outbox"), unsent=unsent, aside=await self._windows.aside()
        )
        return unsent

    def _look_at(self, owed: Owed) -> None:
        record = owed.record
        if record.start_s <= self._seen_s:
            return
        self._seen_s = record.start_s
        odd = suspicious(record)
        self._observer.sealed(record, dropped_endpoints=owed.dropped, suspicious=odd)
        if odd:
            log.warning(
                "window %s: %d ids and an estimate of %d: the store may have lost writes",
                iso(record.start_s),
                record.unique_ids,
                record.estimate,
            )
        if owed.dropped:
            log.warning(
                "window %s: %d hits named an endpoint over the limit", iso(record.start_s), owed.dropped
            )

    async def _first(self, *events: Awaitable[object] | None, timeout_s: float | None) -> None:
        """Wait for the first of the events, a stop, or the time."""
        waiting = [asyncio.ensure_future(event) for event in (self._stopping.wait(), *events) if event]
        try:
            await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
