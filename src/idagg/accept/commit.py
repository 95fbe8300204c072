"""Group commit: many requests, one command to the store.

One batch travels at a time. While it does, arriving ids collect in the next one; so the batch grows with the
load and with the store's latency. Nothing is made per request but its place in two lists: no future, no task,
no clock reading.

Clients that send their next request when they have their answer would fall into two halves that take turns,
each paying for batches half as large. So the next batch waits for as many as were just answered, but no
longer than LINGER_S after their answers.

Batches are settled in the order in which they were opened, and the requests of one in the order in which they
came. That is what keeps pipelined answers in order, and what makes one deadline per batch enough: a batch
expires ``deadline_s`` after its first request, no request joins one older than a tick, and no later batch can
expire before it. Batches that wait behind each other travel as one, or a store that is slower than the ticks
would never catch up.

Nobody is taken who would wait for half of the deadline for their turn, as slow as the store is now; and who
cannot be stored in time any more is not sent: a store that works for requests that have expired meanwhile
would not be done with the next in time, either.

Repeats that a worker answers from memory (``known.py``) are hits, too: batches bring the store how many.

May live here: the queue of batches and who is waiting. Not here: sockets, HTTP, Redis.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from idagg.accept.known import Known
from idagg.errors import StoreAwayError, StoreRefusedError
from idagg.store.hits import Stored

log = logging.getLogger("idagg.accept")

TICK_S = 0.1
# The least that the event loop's timers can tell apart.
LINGER_S = 0.001
# A worker's queue at full speed for about a second; some 100 bytes a place.
MAX_WAITING = 65_536
_RETRY_S = 0.05


class Waiter(Protocol):
    """Someone who is owed an answer."""

    def answer(self, stored: bool) -> None:
        """Called once, in turn."""


class Hits(Protocol):
    """Where batches go."""

    async def add(
        self, seq: int, ids: Sequence[bytes], endpoints: Collection[bytes] = (), repeats: int = 0
    ) -> Stored: ...


class Observer(Protocol):
    """Who is told of each batch, once it is settled."""

    def batch(self, *, ids: int, repeats: int, stored: bool, took_s: float) -> None: ...


class _Batch:
    __slots__ = ("endpoints", "expires_at", "ids", "repeats", "waiters")

    def __init__(self, expires_at: float) -> None:
        self.expires_at = expires_at
        self.ids: list[bytes] = []
        self.waiters: list[Waiter] = []
        self.endpoints: set[bytes] = set()
        self.repeats = 0

    def join(self, later: _Batch) -> None:
        self.ids += later.ids
        self.waiters += later.waiters
        self.endpoints |= later.endpoints


class GroupCommit:
    def __init__(
        self,
        hits: Hits,
        observer: Observer,
        known: Known,
        *,
        deadline_s: float,
        max_batch: int,
        max_waiting: int = MAX_WAITING,
        now: Callable[[], float],
        linger_s: float = LINGER_S,
    ) -> None:
        self._hits = hits
        self._observer = observer
        self.known = known
        self._deadline_s = deadline_s
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._now = now
        self._linger_s = linger_s
        self._enough = max_batch  # requests at which the open batch has to be looked at
        self._seq = 0
        self._open: _Batch | None = None
        self._closed: collections.deque[_Batch] = collections.deque()
        self._queued = 0  # requests in _closed
        self._wake: asyncio.Future[None] | None = None
        self._lingering = False
        self._stopping = False
        self._took_s = 0.0  # the store, for a batch; forgets by half what was slower
        self.trouble: str | None = None  # why the last batch was not stored

    def __repr__(self) -> str:
        collecting = len(self._open.waiters) if self._open else 0
        return f"<GroupCommit seq={self._seq} queued={self._queued} collecting={collecting}>"

    def add(self, waiter: Waiter, canonical_id: bytes, endpoint: bytes | None = None) -> bool:
        """Count the id; ``waiter`` is answered when it is stored, or cannot be. False: no room, not taken."""
        batch = self._open
        if batch is None:
            if self._queued and self._is_full():
                return False
            batch = self._begin()
        batch.ids.append(canonical_id)
        batch.waiters.append(waiter)
        if endpoint is not None:
            batch.endpoints.add(endpoint)
        if len(batch.waiters) >= self._enough:
            if len(batch.waiters) >= self._max_batch:
                self._close_batch()
            else:
                self._rouse()
        return True

    def in_turn(self, waiter: Waiter) -> None:
        """Answer ``waiter`` when its turn comes, without counting anything."""
        if self._open is None and self._closed:  # where there is no room, this must not make any
            self._closed[-1].waiters.append(waiter)
            self._queued += 1
        else:
            (self._open or self._begin()).waiters.append(waiter)

    def tick(self) -> None:
        """To be called every TICK_S: nobody joins a batch that waits since before the last tick."""
        if self._open is not None:
            self._close_batch()
        elif self.known.hits and not self._closed:
            self._begin()

    async def run(self) -> None:
        """Carry batches until ``stop`` was called and nobody waits."""
        while True:
            if not self._closed:
                if self._open is not None:
                    self._close_batch()
                elif self._stopping:
                    if not self.known.hits:
                        return
                    self._begin()
                    continue
                else:
                    self._wake = asyncio.get_running_loop().create_future()
                    await self._wake
                    continue
            batch = self._next()
            began = time.monotonic()
            carries = bool(batch.ids or not batch.waiters)  # without either, it brings hits of repeats
            stored = not carries or await self._carry(batch)
            for waiter in batch.waiters:
                try:
                    waiter.answer(stored)
                except Exception:  # one client's trouble must not become everyone's
                    log.exception("an answer could not be given")
            if carries:
                took_s = time.monotonic() - began
                self._observer.batch(ids=len(batch.ids), repeats=batch.repeats, stored=stored, took_s=took_s)
            await self._gather(len(batch.waiters))

    def _next(self) -> _Batch:
        """The oldest batch, together with those behind it for which there is room."""
        batch = self._closed.popleft()
        while self._closed and not self._too_late(batch):
            if len(batch.waiters) + len(self._closed[0].waiters) > self._max_batch:
                break
            batch.join(self._closed.popleft())
        self._queued -= len(batch.waiters)
        return batch

    def _is_full(self) -> bool:
        ahead_s = (self._queued // self._max_batch + 1) * self._took_s
        return self._queued >= self._max_waiting or ahead_s >= self._deadline_s / 2

    def _too_late(self, batch: _Batch) -> bool:
        """Whether the store, as slow as it was last, may not be done with the batch in time."""
        return self._now() + min(2 * self._took_s, self._deadline_s / 2) >= batch.expires_at

    async def _gather(self, answered: int) -> None:
        """Give those who were just answered the time to come again, and join those who collect meanwhile."""
        if self._closed or self._stopping or not self._linger_s:
            return
        collecting = len(self._open.waiters) if self._open else 0
        self._enough = min(collecting + answered, self._max_batch)
        self._lingering = True
        loop = asyncio.get_running_loop()
        self._wake = wake = loop.create_future()
        timer = loop.call_later(self._linger_s, self._rouse)
        await wake
        timer.cancel()
        self._lingering = False
        self._enough = self._max_batch

    def stop(self) -> None:
        """Let ``run`` return once everyone who waits has been answered."""
        self._stopping = True
        self._rouse()

    def _begin(self) -> _Batch:
        self._open = batch = _Batch(self._now() + self._deadline_s)
        if not self._lingering:
            self._rouse()
        return batch

    def _close_batch(self) -> None:
        assert self._open is not None
        self._closed.append(self._open)
        self._queued += len(self._open.waiters)
        self._open = None
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None:
            if not self._wake.done():
                self._wake.set_result(None)
            self._wake = None

    async def _carry(self, batch: _Batch) -> bool:
        """Whether the batch was stored within its time."""
        if self._too_late(batch):
            return False
        batch.repeats, self.known.hits = self.known.hits, 0
        self._seq += 1
        may_be_stored = False
        try:
            async with asyncio.timeout_at(batch.expires_at):
                while True:
                    sent_at = self._now()
                    left_at = self.known.now()
                    try:
                        stored = await self._hits.add(self._seq, batch.ids, batch.endpoints, batch.repeats)
                    except StoreAwayError as error:
                        may_be_stored = True
                        self.trouble = str(error)
                        self.known.forget()
                        await asyncio.sleep(_RETRY_S)
                    else:
                        self.trouble = None
                        self._took_s = max(self._now() - sent_at, self._took_s / 2)
                        self.known.learn(batch.ids, stored, left_at)
                        return True
        except StoreRefusedError as error:
            self.trouble = str(error)
            if not (may_be_stored or self._stopping):  # it might count them twice; there would be no end
                self.known.hits += batch.repeats
                batch.repeats = 0
        except TimeoutError:
            self._took_s = self._deadline_s
            self.trouble = self.trouble or f"the store did not answer within {self._deadline_s:g} s"
        return False
