"""What a worker sees of the windows and of the store's clock, for metrics and heartbeats."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable

from idagg.batch import BatchResult
from idagg.errors import StoreError
from idagg.metrics import Metrics
from idagg.run.messages import Lead
from idagg.run.traffic import Tally
from idagg.store.current import Look
from idagg.window import Counts, Record

log = logging.getLogger("idagg.worker")

# Interval at which the leader looks at the open window.
LEADER_LOOK_S = 1.0
# The others look for the clock and for lateness alone; with hundreds of workers this stays next to nothing.
LOOK_S = 10.0
# What took longer says too little of the clock: half of it is the error of the skew.
_PROMPT_S = 0.5


class Observation:
    """Is told by the group commits, the flusher and the leadership, and looks at the store by itself.

    Nothing that it has not seen, or that another process sees now, is told as a number: it is None.
    """

    def __init__(self, metrics: Metrics, ask: Callable[[], Awaitable[Look]]) -> None:
        """``ask`` raises StoreError."""
        self._metrics = metrics
        self._ask = ask
        self.tally = Tally()
        self._leads = asyncio.Event()
        self._last: Record | None = None  # window that was sealed
        self._counts: Counts | None = None  # of what is pending
        self._so_far: int | None = None  # ids of the open window
        self._open_s: int | None = None  # its start
        self.skew_s: float | None = None  # this machine's clock minus the store's
        self.late_s: float | None = None  # by which the oldest window is not sealed

    def now_s(self) -> float:
        """The store's time, by this machine's clock and the skew that was seen last."""
        return time.time() - (self.skew_s or 0.0)

    @property
    def lead(self) -> Lead | None:
        """What the leader alone knows; None in any other worker."""
        if not self._leads.is_set():
            return None
        last, counts = self._last, self._counts
        lead = Lead(so_far=self._so_far, open_s=self._open_s)
        if last:
            lead = dataclasses.replace(
                lead,
                start_s=last.start_s,
                unique_ids=last.unique_ids,
                hits=last.hits,
                exact=last.exact,
                estimate=last.estimate,
                length_s=last.length_s,
            )
        return dataclasses.replace(lead, **counts._asdict()) if counts else lead

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self._look()
            if self._leads.is_set():
                await asyncio.sleep(LEADER_LOOK_S)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._leads.wait()

    async def _look(self) -> None:
        sent_s = time.time()
        try:
            seen = await self._ask()
        except StoreError as error:  # the trouble is told by those who need the store
            log.debug("the open window cannot be looked at: %s", error)
            self._so_far = self._open_s = self.late_s = None
            return
        self._so_far, self.late_s = seen.ids, seen.late_s
        self._open_s = seen.start_s or None
        took_s = time.time() - sent_s
        if 0 <= took_s < _PROMPT_S:
            self.skew_s = sent_s + took_s / 2 - seen.now_s

    def batch(self, result: BatchResult) -> None:
        self.tally.batch(result)
        self._metrics.batch(result)

    def leads(self, epoch: int) -> None:
        self._metrics.leads(epoch)
        self._last = self._counts = None
        if epoch:
            self._leads.set()
        else:
            self._leads.clear()

    def sealed(self, record: Record, *, dropped_endpoints: int) -> None:
        self._metrics.sealed(record, dropped_endpoints=dropped_endpoints)
        self._last = record

    def delivered(self, record: Record, *, sink: str, lag_s: float) -> None:
        self._metrics.delivered(record, sink=sink, lag_s=lag_s)

    def rolled(self, *, lag_s: float, gone: int) -> None:
        self._metrics.rolled(lag_s=lag_s, gone=gone)

    def pending(self, counts: Counts) -> None:
        self._counts = counts
