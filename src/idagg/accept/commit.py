"""Group commit: many requests, one command to the store.

One batch is at the store at a time. Ids that arrive meanwhile collect in the next batch, so batches grow with
the load and with the store's latency. A request costs two list entries: no future, no task, no clock reading.

Linger: a client usually sends its next request after its answer. Without a pause, such clients would split
into two groups that alternate, each with batches half as large. So the next batch waits for as many requests
as were just answered, but no longer than ``linger_s`` says. With many workers, which share cores, clients
come back later. A batch that leaves without them is small, and costs Redis the same fsync as a large one.
Group commits of several shards wait together (``Crowd``).

Order: batches are answered in the order in which they were opened, and requests in the order of arrival. So
pipelined answers stay in order, and one deadline per batch is enough. A batch expires ``deadline_s`` after
its first request. No request joins a batch older than a tick, and no later batch can expire earlier. Batches
that queue up are sent as one; otherwise a store slower than the ticks would never catch up.

Overload: if half of the deadline would pass before a request's turn, at the store's present latency, it is
not taken. If a batch can no longer be stored in time, it is not sent, because the work for expired requests
would delay the next ones past their deadline, too.

Repeats (see ``repeats.py``) wait in a batch, but their ids are not sent. If the store's answer does not
confirm them, no request of the batch is answered yet. The batch is sent again, before all others, with the
ids of its repeats, and then answered as a whole. This happens once per window. To answer the rest of it
earlier would need a list of the waiters that are repeats. Without one, pipelined answers would change order.

With several shards, each has a group commit (``routing.py``).

Probe: a worker in trouble is not ready, so a load balancer sends it no request whose success could end the
trouble. So after a failed batch, if no request waits, an empty batch is sent now and then. It passes through
everything that a batch with ids does: the connection, the script, its permissions, a write, the replicas.

This module has the queue of batches and the waiters. It knows nothing of sockets, HTTP or Redis.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from idagg.accept.repeats import MAX_IDS, RepeatCache
from idagg.batch import BatchResult, Cause
from idagg.errors import StoreAwayError, StoreRefusedError
from idagg.store.hits import Stored

log = logging.getLogger("idagg.accept")

TICK_S = 0.1
# The resolution of the event loop's timers.
LINGER_S = 0.001
# Up to so many workers on a machine, clients come back within LINGER_S.
_FEW_WORKERS = 4
_LONGEST_LINGER_S = 0.008
# About one second of requests at full speed; about 100 bytes each.
MAX_WAITING = 65_536
_RETRY_S = 0.05
# Interval at which an empty batch is sent while the last batch failed and no request waits.
PROBE_S = 0.5


def linger_s(workers: int) -> float:
    """How long each of ``workers`` on one machine lingers, at most."""
    return LINGER_S if workers <= _FEW_WORKERS else min(LINGER_S * workers / 2, _LONGEST_LINGER_S)


class Waiter(Protocol):
    """A request that waits for its answer."""

    def answer(self, stored: bool) -> None:
        """Answer the request. Called once, in the order of arrival."""


class Hits(Protocol):
    """The store, as batches need it."""

    async def add(
        self, seq: int, ids: Sequence[bytes], endpoints: Collection[bytes] = (), repeats: int = 0
    ) -> Stored: ...


class Observer(Protocol):
    """Is told of each batch after the store has answered, or has failed to."""

    def batch(self, result: BatchResult, /) -> None: ...


class Crowd:
    """The clients whom several group commits have just answered, and who are expected back at any of them.

    A group commit cannot know on its own how many of them come back to it, and would often leave a moment too
    early or too late. So all that linger wait for all clients, no longer than ``linger_s`` from the first
    answer, and leave together. ``missing`` is how many are not back yet. Clients whose request had several
    parts are not waited for.
    """

    def __init__(self, linger_s: float) -> None:
        self.missing = 0
        self._linger_s = linger_s
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: list[Callable[[], None]] = []

    def answered(self, clients: int) -> None:
        """Expect so many clients back."""
        if self._linger_s:
            self.missing += clients
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(self._linger_s, self.go)

    def back(self) -> None:
        """Expect one client less."""
        if self.missing:
            self.missing -= 1
            if not self.missing:
                self.go()

    def wait(self, go: Callable[[], None]) -> None:
        """Have ``go`` called once nobody is missing, or is waited for any more."""
        self._waiting.append(go)

    def go(self) -> None:
        """Expect nobody any more."""
        self.missing = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, []
        for go in waiting:
            go()


class _Batch:
    """Requests that go to the store together.

    ``weight`` is compared with the limits: one for each waiter, or one for each id of a waiter with several.
    """

    __slots__ = ("endpoints", "expires_at", "extra", "ids", "parts", "repeats", "waiters")

    def __init__(self, expires_at: float) -> None:
        self.expires_at = expires_at
        self.ids: list[bytes] = []
        self.repeats: list[bytes] = []  # ids that are not sent, because the repeat cache has them
        self.waiters: list[Waiter] = []
        self.parts = 0  # waiters that are no request of their own
        self.extra = 0  # weight above one for each waiter
        self.endpoints: set[bytes] = set()

    @property
    def weight(self) -> int:
        return len(self.waiters) + self.extra

    @property
    def requests(self) -> int:
        return len(self.waiters) - self.parts

    def join(self, later: _Batch) -> None:
        self.ids += later.ids
        self.repeats += later.repeats
        self.waiters += later.waiters
        self.parts += later.parts
        self.extra += later.extra
        self.endpoints |= later.endpoints


class GroupCommit:
    """The queue of batches, and the loop that sends them to the store one at a time."""

    in_order = True

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
        crowd: Crowd | None = None,
        max_repeats: int = MAX_IDS,
    ) -> None:
        self._hits = hits
        self._observer = observer
        self.repeats = RepeatCache(max_repeats)
        self._known = self.repeats.ids  # saves one attribute look-up per request
        self._deadline_s = deadline_s
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._now = now
        self._linger_s = linger_s
        self._crowd = crowd
        self._expected = max_batch  # number of waiters in the open batch that ends the linger
        self._look_at = max_batch  # number of waiters at which ``_look`` is called
        self._seq = 0
        self._open: _Batch | None = None
        self._closed: collections.deque[_Batch] = collections.deque()
        self._queued = 0  # weight in _closed
        self._at_store = 0  # weight of the batch at the store
        self._wake: asyncio.Future[None] | None = None
        self._lingering = False
        self._stopping = False
        self._took_s = 0.0  # the store's latency per batch; a slower past one decays by half per batch
        self.trouble: str | None = None  # why the last batch was not stored, and no later one since
        self._cause: Cause = "slow"  # the same in one word
        self._probing: asyncio.Timeout | None = None

    def __repr__(self) -> str:
        collecting = self._open.weight if self._open else 0
        return f"<GroupCommit seq={self._seq} queued={self._queued} collecting={collecting}>"

    @property
    def waiting(self) -> int:
        """Number of ids not answered yet."""
        return self._at_store + self._queued + (self._open.weight if self._open else 0)

    def add(self, waiter: Waiter, canonical_id: bytes, endpoint: bytes | None = None) -> bool:
        """Queue the id; ``waiter`` is answered once it is stored or has failed. False: full, not queued."""
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

    def add_many(
        self, waiter: Waiter, ids: Sequence[bytes], endpoint: bytes | None = None, *, is_part: bool = False
    ) -> bool:
        """Queue 1 to ``max_batch`` ids in one batch, as ``add`` does. False: full, none was queued.

        ``is_part``: the waiter is no request of its own.
        """
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
        batch.parts += is_part
        self._watch(batch)
        if len(batch.waiters) >= self._look_at:
            self._look(batch)
        return True

    def tick(self) -> None:
        """Close the open batch. To be called every TICK_S, so that no request joins an older batch."""
        if self._open is not None:
            self._close_batch()

    async def run(self) -> None:
        """Send batches until ``stop`` has been called and no request waits."""
        while True:
            if not self._closed:
                if self._open is not None:
                    if self._crowd is not None and self._crowd.missing and not self._stopping:
                        await self._join_crowd(self._crowd)
                    if self._open is not None:
                        self._close_batch()
                elif self._stopping:
                    return
                else:
                    await self._rest()
                    continue
            batch = self._next()
            is_settled = await self._settle(batch)
            self._at_store = 0
            if not is_settled:
                continue
            if self._crowd is not None:
                self._crowd.answered(batch.requests)
            else:
                await self._gather(len(batch.waiters))

    def _next(self) -> _Batch:
        """The oldest batch, joined with as many of the following ones as fit."""
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
        """Whether the batch may expire before the store answers, at the store's last latency."""
        return self._now() + min(2 * self._took_s, self._deadline_s / 2) >= batch.expires_at

    async def _gather(self, answered: int) -> None:
        """Linger: let the clients just answered send their next request into the open batch."""
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

    async def _rest(self) -> None:
        """Wait for a request; in trouble, for so long that the store is to be asked again."""
        loop = asyncio.get_running_loop()
        self._wake = wake = loop.create_future()
        if self.trouble is None:
            await wake
            return
        timer = loop.call_later(PROBE_S, self._rouse)
        await wake
        timer.cancel()
        if self._open is None and not self._closed and not self._stopping:
            await self._probe()

    async def _probe(self) -> None:
        """Send an empty batch, once."""
        probe = _Batch(self._now() + self._deadline_s)
        self._seq += 1
        sent_at = self._now()
        try:
            async with asyncio.timeout(self._deadline_s) as self._probing:
                answer = await self._hits.add(self._seq, probe.ids)
        except (StoreAwayError, StoreRefusedError) as error:
            self.trouble = str(error)
        except TimeoutError:
            self.trouble = self._no_answer()
        else:
            self._is_well(sent_at)
            # The store may have applied batches whose answers were lost, or may be another one.
            self.repeats.learn(probe.ids, probe.repeats, answer)
            if not answer.continues:
                self._distrust(probe)
        finally:
            self._probing = None

    async def _join_crowd(self, crowd: Crowd) -> None:
        """Linger together with other group commits."""
        self._wake = wake = asyncio.get_running_loop().create_future()
        crowd.wait(self._rouse)
        await wake

    def stop(self) -> None:
        """Let ``run`` return once every waiter is answered."""
        self._stopping = True
        if self._probing is not None and not self._probing.expired():
            self._probing.reschedule(0)  # nobody wants to know any more
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
        """Combine both limits of a batch into one number of waiters, so that ``add`` compares once."""
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
        """Store the batch and answer its waiters. False: not yet, because its repeats must be sent."""
        began = time.monotonic()
        is_sent = not self._too_late(batch)
        answer = await self._send(batch) if is_sent else None
        took_s = time.monotonic() - began
        if not is_sent:
            self._cause = "slow"
        sent = len(batch.ids) if is_sent else 0
        if answer is not None:
            self.repeats.learn(batch.ids, batch.repeats, answer)
            if not answer.continues and self._distrust(batch):
                self._observer.batch(BatchResult(0, sent, 0, True, took_s))
                return False
        stored = answer is not None
        self._answer(batch, stored)
        self._observer.batch(
            BatchResult(
                requests=batch.requests,
                ids=sent,
                repeats=len(batch.repeats) if stored else 0,
                stored=stored,
                took_s=took_s,
                waited_s=self._now() + self._deadline_s - batch.expires_at,
                cause=None if stored else self._cause,
            )
        )
        return True

    def _distrust(self, batch: _Batch) -> bool:
        """Turn all waiting repeats into ids to send, because the repeat cache may have been wrong.

        True if ``batch``, which the store has answered, had repeats. It is then first in the queue again.
        """
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
            except Exception:  # one client's error must not stop the answers of the others
                log.exception("an answer could not be written, its client gets none")

    async def _send(self, batch: _Batch) -> Stored | None:
        """The store's answer to the batch; None if it was refused or did not come in time."""
        self._seq += 1
        self._cause = "slow"
        trouble = None  # of this batch: what another met can be long over
        try:
            async with asyncio.timeout_at(batch.expires_at):
                while True:
                    sent_at = self._now()
                    try:
                        repeats = len(batch.repeats)
                        answer = await self._hits.add(self._seq, batch.ids, batch.endpoints, repeats)
                    except StoreAwayError as error:
                        self.trouble = trouble = str(error)
                        self._cause = "away"
                        await asyncio.sleep(_RETRY_S)
                    else:
                        self._is_well(sent_at)
                        return answer
        except StoreRefusedError as error:
            self.trouble = str(error)
            self._cause = "refused"
        except TimeoutError:
            self._took_s = self._deadline_s
            self.trouble = trouble or self._no_answer()
        return None

    def _is_well(self, sent_at: float) -> None:
        self.trouble = None
        self._took_s = max(self._now() - sent_at, self._took_s / 2)

    def _no_answer(self) -> str:
        return f"the store did not answer within {self._deadline_s:g} s"
