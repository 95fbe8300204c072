"""Callbacks: POST a window's count to the endpoints collected in it.

The steps of a callback:

1. The addresses of its host are looked up.
2. It waits for its turn, in a queue per dialled address.
3. The attempt is counted in the store. This comes before the attempt: if a call crashes this process, it is
   not repeated without end.
4. The attempt is made. Then the callback has ended, or it sleeps until the next attempt.

`Schedule`, `Silence` and `retry` decide, without I/O or clock. `Callbacks` executes their decisions. Only
attempts and lookups run in tasks. A callback that waits or sleeps is an entry in a queue.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import functools
import hashlib
import itertools
import logging
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Protocol

from idagg import __version__
from idagg.deliver import outcome, retry
from idagg.deliver.answer import AnswerReader
from idagg.deliver.guard import BlockedAddressError
from idagg.deliver.logfile import CallbackLine
from idagg.deliver.outcome import Outcome
from idagg.deliver.post import Poster, PostError, Target, in_words
from idagg.deliver.route import Route, Router
from idagg.deliver.schedule import Schedule, Sleepers, Spacing
from idagg.deliver.silence import Silence
from idagg.signing import Signer
from idagg.window import PendingCallback, Record

log = logging.getLogger("idagg.deliver")

# Each has a descriptor and a task, about 30 KiB with TLS.
CONCURRENCY = 500
PER_DESTINATION = 4
TIMEOUT_S = 10.0
# Writes to the store are grouped: an attempt waits this long for other attempts, an outcome for other
# outcomes. Each write costs the store an fsync, which delays the writes of hits.
TOGETHER_S = 0.02
# A script with more entries would block the store for longer than a hit takes.
MOST_TOGETHER = 50
# Share of one CPU. Without a limit, 10,000 calls with TLS keep one busy for 10 s, at any priority.
MOST_BUSY = 0.5
# Reasons that are told; a receiver has a say in their text.
MOST_REASONS = 7
# The resolution of the event loop's timers.
SHORTEST_S = 0.001


class CallbackLog(Protocol):
    """The log file, as callbacks need it: it gets each endpoint's outcome."""

    async def callbacks(self, lines: Sequence[CallbackLine]) -> None: ...


class Ledger(Protocol):
    """A window's pending callbacks in the store, so that another leader can go on."""

    async def spend(self, attempts: Sequence[PendingCallback]) -> Sequence[bool]:
        """Count attempts before they are made. Returns for each whether its callback is still pending."""

    async def done(self, endpoints: Sequence[str]) -> None:
        """Remove the endpoints from the pending callbacks."""


_NOT_MADE = Outcome(error=outcome.EXPIRED)
# The callback was no longer pending when its attempt was to be counted. It is not logged.
_NO_MORE = Outcome()


@dataclasses.dataclass(eq=False, slots=True)
class _Delivery:
    """The state of one run of `Callbacks.deliver`."""

    record: Record
    ledger: Ledger
    deadline: float
    body: bytes
    ended: asyncio.Queue[list[_Call] | Exception] = dataclasses.field(default_factory=asyncio.Queue)
    tasks: set[asyncio.Task[None]] = dataclasses.field(default_factory=set)
    postponed: list[PendingCallback] = dataclasses.field(default_factory=list)
    lookups: int = 0  # in progress
    let_in: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    over_limit: dict[str, list[_Call]] = dataclasses.field(default_factory=dict)  # by destination address
    is_over: bool = False


@dataclasses.dataclass(eq=False, slots=True)
class _Call:
    """One endpoint of a delivery. ``outcome`` is that of its last attempt."""

    delivery: _Delivery
    endpoint: str
    attempts: int
    target: Target | None = None
    route: Route | None = None
    outcome: Outcome = _NOT_MADE
    silenced_s: int | None = None


class Callbacks:
    """Calls endpoints: many at a time, few of one destination, for any number of deliveries at once.

    ``limit`` is the maximum number of callbacks of a window to one paced destination. ``on_result`` is called
    once per endpoint, with its `Outcome.result`.
    """

    def __init__(
        self,
        *,
        router: Router,
        poster: Poster,
        log: CallbackLog,
        namespace: str,
        signer: Signer,
        rate: float = 50,
        limit: int | None = None,
        concurrency: int = CONCURRENCY,
        timeout_s: float = TIMEOUT_S,
        pause_s: Callable[..., float] = retry.pause_s,
        on_result: Callable[[str], None] = lambda result: None,
    ) -> None:
        self._router = router
        self._poster = poster
        self._log = log
        self._namespace = namespace
        self._signer = signer
        self._limit = limit
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._on_result = on_result
        self._silence = Silence()
        self._asleep = Sleepers[_Call]()
        self._schedule = Schedule[_Call](
            concurrency=concurrency, per_destination=PER_DESTINATION, pace_s=1 / rate
        )
        self._unroutable: list[_Call] = []  # lookup failed; this still counts as an attempt
        self._spacing = Spacing(MOST_BUSY)
        self._deliveries: set[_Delivery] = set()
        self._work = asyncio.Event()

    async def run(self) -> None:
        """Make the attempts that are due, until cancelled. ``deliver`` makes no progress without it."""
        loop = asyncio.get_running_loop()
        while True:
            self._work.clear()
            self._find(self._asleep.due(loop.time()))
            due, self._unroutable = self._unroutable, []
            while len(due) < MOST_TOGETHER and (call := self._schedule.take(loop.time())) is not None:
                due.append(call)
            if due or any(delivery.postponed for delivery in self._deliveries):
                await self._spend(due)
                await asyncio.sleep(TOGETHER_S)
                continue
            moments = (self._asleep.wakes_at(), self._schedule.wakes_at())
            wakes_at = min((at for at in moments if at is not None), default=None)
            try:
                async with asyncio.timeout_at(wakes_at):
                    await self._work.wait()
            except TimeoutError:
                pass

    async def deliver(
        self, record: Record, pending: Iterable[PendingCallback], ledger: Ledger, *, deadline: float
    ) -> None:
        """POST ``record`` to each endpoint. When a callback ends, log it once and then mark it done.

        At ``deadline``, in the loop's time, every callback still waiting ends with its last outcome. An error
        of the log file or the ledger ends the delivery; endpoints not yet marked done may then have been
        called and logged.
        """
        delivery = _Delivery(record, ledger, deadline, record.as_json())
        self._deliveries.add(delivery)
        expiry = asyncio.get_running_loop().call_at(deadline, self._expire, delivery)
        try:
            left = self._begin(delivery, pending)
            while left:
                groups = [await delivery.ended.get()]
                await asyncio.sleep(TOGETHER_S)
                while len(groups) < MOST_TOGETHER and not delivery.ended.empty():
                    groups.append(delivery.ended.get_nowait())
                left -= await self._settle(delivery, groups)
        finally:
            expiry.cancel()
            delivery.is_over = True
            self._deliveries.discard(delivery)
            self._withdraw(delivery)
            for task in delivery.tasks:
                task.cancel()
            await asyncio.gather(*delivery.tasks, return_exceptions=True)

    def waiting(self) -> dict[str, int]:
        """How many endpoints are still to be called, by what became of their last attempt; the most frequent
        reasons. Takes 20 ms where there are 100,000."""
        reasons = collections.Counter(
            "not tried yet" if call.outcome is _NOT_MADE else call.outcome.text
            for call in itertools.chain(self._unroutable, self._asleep, self._schedule)
        )
        most = dict(reasons.most_common(MOST_REASONS))
        others = reasons.total() - sum(most.values())
        return most | ({"other": others} if others else {})

    # The steps of a callback, in their order.

    def _begin(self, delivery: _Delivery, pending: Iterable[PendingCallback]) -> int:
        """Put each callback into its queue. Returns their number."""
        now = asyncio.get_running_loop().time()
        # Callbacks with attempts under an earlier leader come first within the limit of their destination.
        callbacks = sorted(pending, key=lambda callback: -callback.attempts)
        at_once: list[_Call] = []
        for callback in callbacks:
            call = _Call(delivery, callback.endpoint, callback.attempts)
            if self._silence.until(call.endpoint, now) is not None:
                self._end(call, Outcome(error=outcome.SILENCED))
            elif call.attempts >= retry.ATTEMPTS:
                self._end(call, Outcome(error=outcome.INTERRUPTED))  # during its last attempt
            elif callback.due_in_s > 0:
                self._asleep.add(now + callback.due_in_s, call)
            else:
                at_once.append(call)
        self._find(at_once)
        self._work.set()
        return len(callbacks)

    def _find(self, calls: Iterable[_Call]) -> None:
        """Start the lookups of the calls' hosts, one per host and port."""
        groups: dict[tuple[_Delivery, str, int], list[_Call]] = {}
        for call in calls:
            try:
                call.target = target = Target.parse(call.endpoint)
            except ValueError:
                self._end(call, Outcome(error=outcome.INVALID))
            else:
                groups.setdefault((call.delivery, target.host, target.port), []).append(call)
        for (delivery, host, port), group in groups.items():
            delivery.lookups += 1
            self._start(
                delivery,
                self._look_up(host, port, group),
                functools.partial(self._looked_up, delivery),
            )

    async def _look_up(self, host: str, port: int, calls: list[_Call]) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                routes = await self._router.routes(host, port)
        except BlockedAddressError:
            for call in calls:
                self._end(call, Outcome(error=outcome.BLOCKED))
        except OSError as error:  # a timeout is one, too
            for call in calls:
                call.route, call.outcome = None, Outcome(error=in_words(error))
            self._unroutable += calls
        else:
            for call in calls:
                self._queue(call, routes[call.attempts % len(routes)])

    def _looked_up(self, delivery: _Delivery) -> None:
        delivery.lookups -= 1
        if not delivery.lookups:  # all callbacks of each destination are known now
            for calls in delivery.over_limit.values():
                delivery.ended.put_nowait(calls)
            delivery.over_limit = {}
        if asyncio.get_running_loop().time() >= delivery.deadline:
            self._expire(delivery)
        self._work.set()

    def _queue(self, call: _Call, route: Route) -> None:
        """Queue the call for its turn, or end it if it is over its destination's limit."""
        delivery, destination = call.delivery, route.destination
        is_new = call.route is None
        call.route = route
        if is_new and destination.is_paced and self._limit is not None:
            delivery.let_in[destination.address] += 1
            if delivery.let_in[destination.address] > self._limit:
                call.outcome = Outcome(error=outcome.LIMIT)
                delivery.over_limit.setdefault(destination.address, []).append(call)
                return
        self._schedule.add(destination, call)

    async def _spend(self, due: Iterable[_Call]) -> None:
        """Count the attempts in the store, then make them."""
        by_delivery: dict[_Delivery, list[_Call]] = {delivery: [] for delivery in self._deliveries}
        for call in due:
            by_delivery.setdefault(call.delivery, []).append(call)
        for delivery, calls in by_delivery.items():
            postponed, delivery.postponed = delivery.postponed, []
            counted = await self._count(delivery, [*map(self._spent, calls), *postponed])
            for call, is_pending in zip(calls, counted, strict=False):
                if is_pending and not delivery.is_over:
                    await self._make(call)
                else:
                    self._release(call)
                    call.outcome = _NO_MORE
                    delivery.ended.put_nowait([call])

    def _spent(self, call: _Call) -> PendingCallback:
        """The attempt, as the store records it: its number, and when another leader may make the next."""
        attempts = call.attempts + 1
        pause_s = self._pause_s(attempts, chance=1) if attempts < retry.ATTEMPTS else 0
        return PendingCallback(call.endpoint, attempts, pause_s)

    async def _count(self, delivery: _Delivery, attempts: Sequence[PendingCallback]) -> Sequence[bool]:
        if attempts and not delivery.is_over:
            try:
                return await delivery.ledger.spend(attempts)
            except Exception as error:  # ends this delivery, and no other
                delivery.ended.put_nowait(error)
        return [False] * len(attempts)

    async def _make(self, call: _Call) -> None:
        call.attempts += 1
        if call.route is None:
            self._rest(call)
            return
        self._start(call.delivery, self._attempt(call, call.route), functools.partial(self._made, call))
        now = asyncio.get_running_loop().time()
        wait_s = self._spacing.begun(now, time.process_time()) - now
        if wait_s >= SHORTEST_S:
            await asyncio.sleep(wait_s)

    async def _attempt(self, call: _Call, route: Route) -> None:
        assert call.target is not None
        loop = asyncio.get_running_loop()
        began = loop.time()
        record, body = call.delivery.record, call.delivery.body
        reader = AnswerReader()
        answer = error = None
        call.outcome = Outcome(error=outcome.INTERRUPTED)
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._poster.post(
                    call.target.with_count(record.unique_ids),
                    route.address,
                    self._headers(record, call.endpoint, body),
                    body,
                    reader=reader,
                )
        except TimeoutError:
            answer = reader.so_far
            error = None if answer else outcome.TIMEOUT
        except PostError as exc:
            error = str(exc)
        except Exception as exc:  # an untrusted answer must end this call only
            log.exception("a callback failed with an unexpected error")
            error = type(exc).__name__
        call.outcome = Outcome(answer, error, round((loop.time() - began) * 1000))

    def _headers(self, record: Record, endpoint: str, body: bytes) -> dict[str, str]:
        # The same over retries and leaders, but different for each window and endpoint.
        digest = hashlib.sha256(endpoint.encode()).hexdigest()[:16]
        webhook_id = f"{record.message_id(self._namespace)}:{digest}"
        return {
            "content-type": "application/json",
            "user-agent": f"idagg/{__version__}",
            **self._signer.headers(webhook_id, int(time.time()), body),
        }

    def _made(self, call: _Call) -> None:
        self._release(call)
        self._rest(call)
        self._work.set()

    def _release(self, call: _Call) -> None:
        if call.route is not None:
            self._schedule.release(call.route.destination)

    def _rest(self, call: _Call) -> None:
        """Let the callback sleep until its next attempt, or end it."""
        delivery, came_to = call.delivery, call.outcome
        if delivery.is_over:
            return
        if came_to.is_retried and call.attempts < retry.ATTEMPTS:
            asked = came_to.answer.retry_after if came_to.answer else None
            pause_s = self._pause_s(
                call.attempts,
                chance=random.random(),  # noqa: S311  spreads retries; no secret
                retry_after=asked,
                unix_s=time.time(),
            )
            wakes_at = asyncio.get_running_loop().time() + pause_s
            if wakes_at < delivery.deadline:
                if asked:  # the next leader needs this time, too
                    delivery.postponed.append(PendingCallback(call.endpoint, call.attempts, pause_s))
                self._asleep.add(wakes_at, call)
                return
        self._end(call, came_to)

    def _end(self, call: _Call, came_to: Outcome) -> None:
        call.outcome = came_to
        if came_to.result == "ok":
            self._silence.worked(call.endpoint)
        elif came_to.is_failure:
            now = asyncio.get_running_loop().time()
            call.silenced_s = self._silence.failed(call.endpoint, now, is_gone=came_to.is_gone)
        call.delivery.ended.put_nowait([call])

    async def _settle(self, delivery: _Delivery, groups: Iterable[list[_Call] | Exception]) -> int:
        """Log callbacks that have ended and mark them done. Returns their number."""
        lines: list[CallbackLine] = []
        calls: list[_Call] = []
        count = 0
        for group in groups:
            if isinstance(group, Exception):
                raise group
            count += len(group)
            known = [call for call in group if call.outcome is not _NO_MORE]
            if known:
                lines.append(_line(delivery, known))
                calls += known
        await self._log.callbacks(lines)
        await delivery.ledger.done([call.endpoint for call in calls])
        for call in calls:
            self._on_result(call.outcome.result)
        return count

    # The end of a delivery, and its tasks.

    def _expire(self, delivery: _Delivery) -> None:
        """End the callbacks that are not being attempted. Attempts in progress have their own timeout."""
        for call in self._withdraw(delivery):
            self._end(call, call.outcome)

    def _withdraw(self, delivery: _Delivery) -> list[_Call]:
        def is_of_it(call: _Call) -> bool:
            return call.delivery is delivery

        unroutable = list(filter(is_of_it, self._unroutable))
        self._unroutable = list(itertools.filterfalse(is_of_it, self._unroutable))
        return [*unroutable, *self._asleep.withdraw(is_of_it), *self._schedule.withdraw(is_of_it)]

    def _start(
        self, delivery: _Delivery, work: Coroutine[None, None, None], then: Callable[[], None]
    ) -> None:
        """Run a task of the delivery, then ``then``, even if the task is cancelled before its first step."""
        task = asyncio.get_running_loop().create_task(work)
        delivery.tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            delivery.tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            if isinstance(error, Exception):
                delivery.ended.put_nowait(error)
            then()

        task.add_done_callback(ended)


def _line(delivery: _Delivery, calls: Sequence[_Call]) -> CallbackLine:
    """The line of one callback, or of all that were over one destination's limit."""
    call = calls[0]
    answer = call.outcome.answer
    is_over_limit = call.outcome.error == outcome.LIMIT
    return CallbackLine(
        window_s=delivery.record.start_s,
        url=None if is_over_limit else call.endpoint,
        address=call.route.destination.address if is_over_limit and call.route else None,
        endpoints=len(calls) if is_over_limit else None,
        status=answer.status if answer else None,
        location=answer.location if answer else None,
        error=call.outcome.error,
        attempts=call.attempts,
        ms=call.outcome.ms,
        silenced_s=call.silenced_s,
    )
