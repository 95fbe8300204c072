"""The leader's work: seal each window when it ends (see ``sealer.py``), and see to it that the count arrives.

A sealed window is a pending delivery until a sink has it: the broker where one is configured, else the log
file. If the broker does not confirm in time, the line is written to the log at once and the message stays
pending until the broker is back. Each step is marked in the store only once it is done. So the next leader
repeats at most the step that was under way, with the same message id and the same count.

Sealing and delivering are loops of their own, under one epoch, so that windows are sealed whatever the
sinks do. Each step of a delivery has its time limit. A leader that has not been able to deliver for
CANNOT_DELIVER_S gives the lead to one that may be.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from typing import Protocol

from idagg.errors import BrokerAwayError, LogFileError
from idagg.failpoints import reach
from idagg.flush import turns
from idagg.flush.leader import Leadership
from idagg.flush.roller import Roller
from idagg.flush.sealer import Sealer
from idagg.flush.turns import Turns
from idagg.store.pending import PendingWindow
from idagg.store.windows import WindowStore
from idagg.window import Counts, Period, Record, Rollup, Sink, iso

log = logging.getLogger("idagg.flush")

# Between two looks at whether a window has ended: messages sent late, and the time for them. A backlog must
# not hold up the next window, though the broker may take long for each.
LATE_AT_ONCE = 20
LATE_FOR_S = 1.0
# For how long windows stay pending for want of a sink before the lead is given away; twice as long each time
# that it comes back, since then nobody else is there, and callbacks under way are the price.
CANNOT_DELIVER_S = 10.0
MAX_CANNOT_DELIVER_S = 80.0


class Publisher(Protocol):
    """Where messages go. Raises BrokerAwayError, at once where the broker is known to be away."""

    @property
    def ready(self) -> asyncio.Event: ...

    async def publish(self, record: Record | Rollup) -> None: ...


class Lines(Protocol):
    """Where lines go. Raises LogFileError where the line is not on disk."""

    async def window(self, record: Record, *, reason: str | None) -> None: ...

    async def rollup(self, rollup: Rollup, *, reason: str | None) -> None: ...


class Observer(Protocol):
    def sealed(self, record: Record, *, dropped_endpoints: int) -> None: ...

    def delivered(self, record: Record, *, sink: str, lag_s: float) -> None: ...

    def pending(self, counts: Counts) -> None: ...

    def rolled(self, *, lag_s: float, gone: int) -> None: ...


class Flusher:
    def __init__(
        self,
        windows: WindowStore,
        leadership: Leadership,
        *,
        broker: Publisher | None,
        lines: Lines,
        observer: Observer,
        rollups: Collection[Period] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        """``rollups`` are delivered, too. ``now`` is the store's clock, as far as this process knows it; Unix
        time."""
        self._windows = windows
        self._leadership = leadership
        self._broker = broker
        self._lines = lines
        self._observer = observer
        self._now = now
        self._turns = Turns(leadership)
        self._merged = asyncio.Event()  # a window, since the last look at what is pending
        self._sealer = Sealer(windows, self._turns, on_look=self._tell_counts, on_merged=self._merged.set)
        self._roller = Roller(
            *(windows, self._turns, lambda: self._sealer.settled_through_s),
            deliver=rollups,
            on_look=observer.rolled,
        )
        self._cannot_since: float | None = None  # deliver, by the monotonic clock
        self._patience_s = CANNOT_DELIVER_S
        self._seen_s = -1  # the newest window that the observer was told of

    @property
    def trouble(self) -> str | None:
        """Why windows stay pending, in a sentence; also while the lead is left to others for that reason."""
        return self._turns.trouble if self._leadership.epoch or self._leadership.stands_back else None

    async def run(self) -> None:
        """Work while this process leads, until ``stop``; ends between two steps, never within one."""
        self._sealer.start()
        self._roller.start()
        self._turns.add("deliver", self._deliver_pending, self._windows.sealing)
        await self._turns.run()

    def stop(self) -> None:
        self._turns.stop()

    def _cannot_deliver(self, epoch: int) -> None:
        """Not as long as a sink is slow or full for a moment; then another process may have a better one."""
        now = time.monotonic()
        if self._cannot_since is None:
            self._cannot_since = now
        elif now - self._cannot_since >= self._patience_s:
            log.error("the lead is given away: this process has delivered nothing for %g s", self._patience_s)
            self._leadership.stand_back(epoch)
            self._patience_s = min(2 * self._patience_s, MAX_CANNOT_DELIVER_S)
            self._cannot_since = None

    async def _deliver_pending(self, epoch: int) -> None:
        """Deliver what is pending, and wait for more."""
        self._merged.clear()
        try:
            while windows := await self._windows.pending.deliveries():
                for window in windows:
                    if self._turns.stopping.is_set():
                        return
                    await self._deliver(epoch, window)
        except LogFileError:
            self._cannot_deliver(epoch)
            raise
        self._cannot_since = None
        self._patience_s = CANNOT_DELIVER_S
        self._leadership.do_not_stand_back()
        away = self._broker is not None and not self._broker.ready.is_set()
        more = not away and await self._send_late(epoch)
        more = await self._deliver_rollups(epoch) or more
        counts = await self._tell_counts(epoch)
        if more:
            return
        # One that refuses messages while it is there is asked again at the next look.
        broker_back = self._broker.ready.wait() if self._broker and away and counts.messages else None
        await self._turns.first(self._merged.wait(), broker_back, timeout_s=turns.LOOK_S)

    async def _deliver(self, epoch: int, window: PendingWindow) -> None:
        """To the broker; without one, or with one that does not confirm in time, to the log file."""
        record = window.record
        self._look_at(window)
        if self._broker is None:
            await self._lines.window(record, reason=None)
            await self._delivered(epoch, record, sink="log")
            return
        try:
            await self._broker.publish(record)
        except BrokerAwayError as error:
            await self._lines.window(record, reason=str(error))
            reach("before-mark")
            await self._windows.pending.mark_logged(epoch, record.start_s)
            reach("after-mark")
        else:
            reach("after-confirm")
            await self._delivered(epoch, record, sink="broker")

    async def _send_late(self, epoch: int) -> bool:
        """Send messages that are pending since the broker was away; whether there may be more to send now."""
        late = await self._windows.pending.messages(limit=LATE_AT_ONCE)
        until = time.monotonic() + LATE_FOR_S
        for window in late:
            if self._turns.stopping.is_set():
                return False
            if self._broker is not None:
                try:
                    await self._broker.publish(window.record)
                except BrokerAwayError:
                    return False
            # Without a broker the line, which is written, is all that there is to do.
            await self._delivered(epoch, window.record, sink="broker" if self._broker else "log")
            if time.monotonic() >= until:
                return True
        return len(late) == LATE_AT_ONCE

    async def _deliver_rollups(self, epoch: int) -> bool:
        """Deliver some of the pending roll-ups, as windows are; whether there may be more to deliver now."""
        away = self._broker is not None and not self._broker.ready.is_set()
        until = time.monotonic() + LATE_FOR_S
        for late in (False, True):
            if late and away:
                continue
            pending = await self._windows.rollups.pending(late=late, limit=LATE_AT_ONCE)
            for rollup in pending:
                if self._turns.stopping.is_set() or time.monotonic() >= until:
                    return True
                if not await self._deliver_rollup(epoch, rollup, logged=late):
                    break
            else:
                if len(pending) == LATE_AT_ONCE:
                    return True
        return False

    async def _deliver_rollup(self, epoch: int, rollup: Rollup, *, logged: bool) -> bool:
        """Whether it went where it is to go; else it stays pending."""
        reason = None
        if self._broker is not None:
            try:
                await self._broker.publish(rollup)
            except BrokerAwayError as error:
                if logged:
                    return False
                reason = str(error)
        if not logged and (self._broker is None or reason):
            await self._lines.rollup(rollup, reason=reason)
        reach("before-mark-rollup")
        await self._windows.rollups.mark(epoch, rollup, delivered=reason is None)
        reach("after-mark-rollup")
        return True

    async def _delivered(self, epoch: int, record: Record, *, sink: Sink) -> None:
        reach("before-mark")
        await self._windows.pending.mark_delivered(epoch, record.start_s, sink)
        reach("after-mark")
        self._observer.delivered(record, sink=sink, lag_s=self._now() - record.end_s)

    async def _tell_counts(self, epoch: int) -> Counts:
        """Tell the observer what is pending."""
        counts = await self._windows.pending.counts()
        counts = counts._replace(quarantined=counts.quarantined + self._sealer.quarantined)
        if self._leadership.epoch == epoch:  # else another process tells of it by now
            self._observer.pending(counts)
        return counts

    def _look_at(self, window: PendingWindow) -> None:
        record = window.record
        if record.start_s <= self._seen_s:
            return
        self._seen_s = record.start_s
        self._observer.sealed(record, dropped_endpoints=window.dropped)
        if record.suspect:
            log.warning(
                "window %s: its ids and its sketch differ by more than chance, since the store has lost "
                "writes: the count, %d, is the larger of the two and not exact; see whether Redis evicts "
                "keys or was restored from a copy",
                iso(record.start_s),
                record.unique_ids,
            )
        if window.dropped:
            log.warning(
                "window %s: %d hits named an endpoint over the limit", iso(record.start_s), window.dropped
            )
