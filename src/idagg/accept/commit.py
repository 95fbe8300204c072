"""Group commit: many requests, one command to the store.

One batch is at the store at a time. Meanwhile, arriving ids collect in the next one; so the batch grows with
the load and with the store's latency. Nothing is made per request but its place in two lists: no future, no
task, no clock reading.

Clients that send their next request when they have their answer would fall into two halves that take turns,
each paying for batches half as large. So the next batch waits for as many requests as were just answered, but
no longer than LINGER_S after their answers.

Batches are settled in the order in which they were opened, and the requests of one in the order in which they
came. That keeps pipelined answers in order, and makes one deadline per batch enough: a batch expires
``deadline_s`` after its first request, no request joins one older than a tick, and no later batch can expire
before it. Batches that wait behind each other are sent as one, or a store that is slower than the ticks would
never catch up.

A request is not taken if, as slow as the store is now, half of the deadline would pass before its turn. A
batch is not sent if it cannot be stored in time any more: a store that works for requests that have expired
meanwhile would not be done with the next in time, either.

Repeats (see ``repeats.py``) wait with a batch without their ids. If the answer does not confirm them, nothing
in the batch is answered yet: it goes to the store again, in front of all others, with the ids of its repeats,
and is settled as a whole. That happens once a window. To answer a part of it earlier would need a list of
which waiter is a repeat, or a later answer of a pipelined connection would overtake an earlier one.

May live here: the queue of batches and who is waiting. Not here: sockets, HTTP, Redis.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from idagg.accept.repeats import RepeatCache
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
    """Someone who waits for an answer."""

    def answer(self, stored: bool) -> None:
        """Called once, in turn."""


class Hits(Protocol):
    """Where batches go."""

    async def add(
        self, seq: int, ids: Sequence[bytes], endpoints: Collection[bytes] = (), repeats: int = 0
    ) -> Stored: ...


class Observer(Protocol):
    """Hears of each batch, once the store has answered it, or will not."""

    def batch(self, *, requests: int, ids: int, repeats: int, stored: bool, took_s: float) -> None:
        """``requests`` calls of ``add`` and ``add_many`` are answered now. ``ids`` were sent. ``repeats``
        were counted without being sent."""


class _Batch:
    """Its weight is what it takes of the bounds: one for each waiter, and for a waiter with many ids, one for
    each id."""

    __slots__ = ("endpoints", "expires_at", "extra", "ids", "in_turn", "repeats", "waiters")

    def __init__(self, expires_at: float) -> None:
        self.expires_at = expires_at
        self.ids: list[bytes] = []
        self.repeats: list[bytes] = []  # ids that are not sent, since the repeat cache has them
        self.waiters: list[Waiter] = []
        self.in_turn = 0  # waiters that brought no id
        self.extra = 0  # weight above one for each waiter
        self.endpoints: set[bytes] = set()

    @property
    def weight(self) -> int:
        return len(self.waiters) + self.extra

    @property
    def requests(self) -> int:
        return len(self.waiters) - self.in_turn

    @property
    def needs_store(self) -> bool:
        return bool(self.ids or self.repeats)

    def join(self, later: _Batch) -> None:
        self.ids += later.ids
        self.repeats += later.repeats
        self.waiters += later.waiters
        self.in_turn += later.in_turn
        self.extra += later.extra
        self.endpoints |= later.endpoints


class GroupCommit:
    def __init__(
        self,
        hits: Hits,
        observer: Observer,
        *,
        deadline_s: float,
        max_batch: int,
        max_waiting: int = MAX_WAITING,
        now: Callable[[], float],
        linger_s: float = LINGER_S,
    ) -> None:
        self._hits = hits
        self._observer = observer
        self.repeats = RepeatCache()
        self._known = self.repeats.ids  # one look-up less for each request
        self._deadline_s = deadline_s
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._now = now
        self._linger_s = linger_s
        self._expected = max_batch  # waiters in the open batch at which lingering ends
        self._look_at = max_batch  # waiters at which the open batch has to be looked at
        self._seq = 0
        self._open: _Batch | None = None
        self._closed: collections.deque[_Batch] = collections.deque()
        self._queued = 0  # weight in _closed
        self._at_store = 0  # weight of the batch that is
        self._wake: asyncio.Future[None] | None = None
        self._lingering = False
        self._stopping = False
        self._took_s = 0.0  # the store, for a batch; forgets by half what was slower
        self.trouble: str | None = None  # why the last batch was not stored

    def __repr__(self) -> str:
        collecting = self._open.weight if self._open else 0
        return f"<GroupCommit seq={self._seq} queued={self._queued} collecting={collecting}>"

    @property
    def waiting(self) -> int:
        """How much is not settled yet, in ids; a waiter without an id counts as one."""
        return self._at_store + self._queued + (self._open.weight if self._open else 0)

    def add(self, waiter: Waiter, canonical_id: bytes, endpoint: bytes | None = None) -> bool:
        """Count the id; ``waiter`` is answered when it is stored, or cannot be. False: no room, not taken."""
        batch = self._open
        if batch is None:
            if self._queued and self._is_full(self._queued):
                return False
            batch = self._begin()
        if endpoint is not None:
            batch.ids.append(canonical_id)
            batch.endpoints.add(endpoint)
        elif canonical_id in self._known:
            batch.repeats.append(canonical_id)
        else:
            batch.ids.append(canonical_id)
        batch.waiters.append(waiter)
        if len(batch.waiters) >= self._look_at:
            self._look(batch)
        return True

    def add_many(self, waiter: Waiter, ids: Sequence[bytes], endpoint: bytes | None = None) -> bool:
        """Count 1 to ``max_batch`` ids, in one batch, as ``add`` does. False: no room, none was taken."""
        assert 1 <= len(ids) <= self._max_batch
        batch = self._open
        if batch is not None and batch.weight + len(ids) > self._max_batch:
            if self._is_full(self._queued + batch.weight):
                return False
            self._close_batch()
            batch = None
        if batch is None:
            if self._queued and self._is_full(self._queued):
                return False
            batch = self._begin()
        if endpoint is not None:
            batch.ids += ids
            batch.endpoints.add(endpoint)
        else:
            for canonical_id in ids:
                (batch.repeats if canonical_id in self._known else batch.ids).append(canonical_id)
        batch.waiters.append(waiter)
        batch.extra += len(ids) - 1
        self._watch(batch)
        if len(batch.waiters) >= self._look_at:
            self._look(batch)
        return True

    def in_turn(self, waiter: Waiter) -> None:
        """Answer ``waiter`` when its turn comes, without counting anything."""
        if self._open is None and self._closed:  # where there is no room, this must not make any
            batch = self._closed[-1]
            self._queued += 1
        else:
            batch = self._open or self._begin()
        batch.waiters.append(waiter)
        batch.in_turn += 1

    def tick(self) -> None:
        """To be called every TICK_S: nobody joins a batch that waits since before the last tick."""
        if self._open is not None:
            self._close_batch()

    async def run(self) -> None:
        """Send batches until ``stop`` was called and nobody waits."""
        while True:
            if not self._closed:
                if self._open is not None:
                    self._close_batch()
                elif self._stopping:
                    return
                else:
                    self._wake = asyncio.get_running_loop().create_future()
                    await self._wake
                    continue
            batch = self._next()
            is_settled = await self._settle(batch)
            self._at_store = 0
            if is_settled:
                await self._gather(len(batch.waiters))

    def _next(self) -> _Batch:
        """The oldest batch, together with those behind it for which there is room."""
        batch = self._closed.popleft()
        while self._closed and not self._too_late(batch):
            if batch.weight + self._closed[0].weight > self._max_batch:
                break
            batch.join(self._closed.popleft())
        self._at_store = batch.weight
        self._queued -= batch.weight
        return batch

    def _is_full(self, queued: int) -> bool:
        ahead_s = (queued // self._max_batch + 1) * self._took_s
        return queued >= self._max_waiting or ahead_s >= self._deadline_s / 2

    def _too_late(self, batch: _Batch) -> bool:
        """Whether the store, as slow as it was last, may not be done with the batch in time."""
        return self._now() + min(2 * self._took_s, self._deadline_s / 2) >= batch.expires_at

    async def _gather(self, answered: int) -> None:
        """Give those who were just answered the time to come again, and join those who collect meanwhile."""
        if self._closed or self._stopping or not self._linger_s:
            return
        collecting = len(self._open.waiters) if self._open else 0
        self._expect(collecting + answered)
        self._lingering = True
        loop = asyncio.get_running_loop()
        self._wake = wake = loop.create_future()
        timer = loop.call_later(self._linger_s, self._rouse)
        await wake
        timer.cancel()
        self._lingering = False
        self._expect(self._max_batch)

    def stop(self) -> None:
        """Let ``run`` return once everyone who waits has been answered."""
        self._stopping = True
        self._rouse()

    def _begin(self) -> _Batch:
        self._open = batch = _Batch(self._now() + self._deadline_s)
        self._watch(batch)
        if not self._lingering:
            self._rouse()
        return batch

    def _expect(self, waiters: int) -> None:
        self._expected = waiters
        self._watch(self._open)

    def _watch(self, batch: _Batch | None) -> None:
        """Both of a batch's bounds as one number of waiters, so that ``add`` has one comparison to make."""
        self._look_at = min(self._expected, self._max_batch - (batch.extra if batch else 0))

    def _look(self, batch: _Batch) -> None:
        if batch.weight >= self._max_batch:
            self._close_batch()
        else:
            self._rouse()

    def _close_batch(self) -> None:
        assert self._open is not None
        self._closed.append(self._open)
        self._queued += self._open.weight
        self._open = None
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None:
            if not self._wake.done():
                self._wake.set_result(None)
            self._wake = None

    async def _settle(self, batch: _Batch) -> bool:
        """Answer all of the batch's waiters. False: not yet, since its repeats have to be sent."""
        if not batch.needs_store:
            self._answer(batch, True)
            return True
        began = time.monotonic()
        is_sent = not self._too_late(batch)
        answer = await self._send(batch) if is_sent else None
        took_s = time.monotonic() - began
        sent = len(batch.ids) if is_sent else 0
        if answer is not None:
            self.repeats.learn(batch.ids, batch.repeats, answer)
            if not answer.continues and self._distrust(batch):
                self._observer.batch(requests=0, ids=sent, repeats=0, stored=True, took_s=took_s)
                return False
        self._answer(batch, answer is not None)
        self._observer.batch(
            requests=batch.requests,
            ids=sent,
            repeats=len(batch.repeats) if answer is not None else 0,
            stored=answer is not None,
            took_s=took_s,
        )
        return True

    def _distrust(self, batch: _Batch) -> bool:
        """Send the repeats of all that wait, since what the cache said until now may be wrong. True where the
        batch, which was at the store, has some. Then it waits again, in front of all others."""
        for waiting in (*self._closed, self._open):
            if waiting is not None:
                waiting.ids += waiting.repeats
                waiting.repeats = []
        if not batch.repeats:
            return False
        batch.ids, batch.repeats = batch.repeats, []
        batch.endpoints = set()
        self._closed.appendleft(batch)
        self._queued += batch.weight
        return True

    def _answer(self, batch: _Batch, stored: bool) -> None:
        for waiter in batch.waiters:
            try:
                waiter.answer(stored)
            except Exception:  # one client's trouble must not become everyone's
                log.exception("an answer could not be given")

    async def _send(self, batch: _Batch) -> Stored | None:
        """The store's answer to the batch. None where the batch was refused, or no answer came in time."""
        self._seq += 1
        try:
            async with asyncio.timeout_at(batch.expires_at):
                while True:
                    sent_at = self._now()
                    try:
                        repeats = len(batch.repeats)
                        answer = await self._hits.add(self._seq, batch.ids, batch.endpoints, repeats)
                    except StoreAwayError as error:
                        self.trouble = str(error)
                        await asyncio.sleep(_RETRY_S)
                    else:
                        self.trouble = None
                        self._took_s = max(self._now() - sent_at, self._took_s / 2)
                        return answer
        except StoreRefusedError as error:
            self.trouble = str(error)
        except TimeoutError:
            self._took_s = self._deadline_s
            self.trouble = self.trouble or f"the store did not answer within {self._deadline_s:g} s"
        return None
