"""Whose turn it is to be called: decided without I/O or clock."""

from __future__ import annotations

import collections
import heapq
import itertools
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Schedule(Generic[T]):
    """At most ``concurrency`` items run at a time, and ``per_host`` of one host.

    Of those, at most ``fresh`` began less than ``fresh_s`` ago. Most end sooner, so that as a rule no more
    run at all; what takes longer makes room for others then, as far as ``concurrency`` goes.

    Hosts that have an item waiting and a slot left stand in a ring. A turn takes the oldest item of the host
    in front, which goes to the back: however many items a host has, another waits for one turn of it at most.
    Items asleep wait for their time outside.
    """

    def __init__(self, *, concurrency: int, per_host: int, fresh: int, fresh_s: float) -> None:
        self._slots = concurrency
        self._per_host = per_host
        self._fresh_slots = fresh
        self._fresh_s = fresh_s
        self._waiting: dict[str, collections.deque[T]] = {}
        self._running: collections.Counter[str] = collections.Counter()
        self._fresh: dict[T, float] = {}  # until when each is, the oldest first
        self._ring: collections.OrderedDict[str, None] = collections.OrderedDict()
        self._asleep: list[tuple[float, int, str, T]] = []
        self._order = itertools.count()

    def add(self, host: str, item: T) -> None:
        self._waiting.setdefault(host, collections.deque()).append(item)
        self._stand(host)

    def sleep(self, host: str, item: T, until: float) -> None:
        """Add ``item`` when it is ``until``."""
        heapq.heappush(self._asleep, (until, next(self._order), host, item))

    def wakes_at(self) -> float | None:
        """When `take` may give an item that it did not give just now, if nothing is added or released."""
        moments = [entry[0] for entry in self._asleep[:1]]
        if self._ring and self._slots:
            moments += itertools.islice(self._fresh.values(), 1)
        return min(moments, default=None)

    def take(self, now: float) -> T | None:
        """The item to run now, or None; it holds its slots until `release`."""
        while self._asleep and self._asleep[0][0] <= now:
            _, _, host, item = heapq.heappop(self._asleep)
            self.add(host, item)
        while self._fresh and next(iter(self._fresh.values())) <= now:
            del self._fresh[next(iter(self._fresh))]
        if not self._slots or len(self._fresh) >= self._fresh_slots or not self._ring:
            return None
        host, _ = self._ring.popitem(last=False)
        item = self._waiting[host].popleft()
        if not self._waiting[host]:
            del self._waiting[host]
        self._slots -= 1
        self._running[host] += 1
        self._fresh[item] = now + self._fresh_s
        self._stand(host)
        return item

    def release(self, host: str, item: T) -> None:
        self._slots += 1
        self._fresh.pop(item, None)
        self._running[host] -= 1
        if not self._running[host]:
            del self._running[host]
        self._stand(host)

    def withdraw(self, which: Callable[[T], bool]) -> list[T]:
        """Take out the items that wait or sleep, and that ``which`` is true of."""
        gone = [item for *_, item in self._asleep if which(item)]
        self._asleep = [entry for entry in self._asleep if not which(entry[-1])]
        heapq.heapify(self._asleep)
        for host, items in list(self._waiting.items()):
            gone += filter(which, items)
            self._waiting[host] = collections.deque(itertools.filterfalse(which, items))
            if not self._waiting[host]:
                del self._waiting[host]
                self._ring.pop(host, None)
        return gone

    def _stand(self, host: str) -> None:
        if host in self._waiting and self._running[host] < self._per_host:
            self._ring.setdefault(host)
