"""Whose turn it is to be called: decided without I/O or clock."""

from __future__ import annotations

import collections
import heapq
import itertools
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Destination(NamedTuple):
    """What is dialled, however endpoints spell it."""

    address: str
    is_paced: bool


class Schedule(Generic[T]):
    """At most ``concurrency`` items run at a time, and ``per_destination`` of one destination. Items of a
    paced destination begin at least ``pace_s`` apart.

    Destinations that have an item waiting and a slot left, and do not pause, stand in a ring. A turn takes
    the oldest item of the destination in front, which goes to the back: however many items a destination has,
    another waits for one turn of it at most.
    """

    def __init__(self, *, concurrency: int, per_destination: int, pace_s: float) -> None:
        self._slots = concurrency
        self._per_destination = per_destination
        self._pace_s = pace_s
        self._waiting: dict[Destination, collections.deque[T]] = {}
        self._running: collections.Counter[Destination] = collections.Counter()
        self._pausing: dict[Destination, float] = {}  # until when, the first to end in front
        self._ring: collections.OrderedDict[Destination, None] = collections.OrderedDict()

    def add(self, destination: Destination, item: T) -> None:
        self._waiting.setdefault(destination, collections.deque()).append(item)
        self._stand(destination)

    def take(self, now: float) -> T | None:
        """The item to run now, or None; it holds its slots until `release`."""
        while self._pausing and (first := next(iter(self._pausing.items())))[1] <= now:
            del self._pausing[first[0]]
            self._stand(first[0])
        if not self._slots or not self._ring:
            return None
        destination, _ = self._ring.popitem(last=False)
        item = self._waiting[destination].popleft()
        if not self._waiting[destination]:
            del self._waiting[destination]
        self._slots -= 1
        self._running[destination] += 1
        if destination.is_paced:
            self._pausing[destination] = now + self._pace_s
        self._stand(destination)
        return item

    def wakes_at(self) -> float | None:
        """When `take` may give an item that it did not give just now, if nothing is added or released."""
        return next(iter(self._pausing.values()), None) if self._waiting and self._slots else None

    def release(self, destination: Destination) -> None:
        self._slots += 1
        self._running[destination] -= 1
        if not self._running[destination]:
            del self._running[destination]
        self._stand(destination)

    def withdraw(self, which: Callable[[T], bool]) -> list[T]:
        """Take out the items that wait and that ``which`` is true of."""
        gone: list[T] = []
        for destination, items in list(self._waiting.items()):
            gone += filter(which, items)
            self._waiting[destination] = collections.deque(itertools.filterfalse(which, items))
            if not self._waiting[destination]:
                del self._waiting[destination]
                self._ring.pop(destination, None)
        return gone

    def _stand(self, destination: Destination) -> None:
        if (
            destination in self._waiting
            and destination not in self._pausing
            and self._running[destination] < self._per_destination
        ):
            self._ring.setdefault(destination)


class Spacing:
    """When the next of many pieces of work may begin, so that they take no more than a ``share`` of a
    processor, and leave it to others between any two of them.

    What a piece costs is learnt; what was not used is not saved up.
    """

    def __init__(self, share: float, *, guess_s: float = 0.001) -> None:
        self._share = share
        self._cost_s = guess_s
        self._used_s = 0.0
        self._next_at = 0.0

    def begun(self, now: float, used_s: float) -> float:
        """A piece begins; ``used_s`` is the processor time taken in all. Returns when the next may."""
        if self._used_s:
            self._cost_s += (used_s - self._used_s - self._cost_s) / 64
        self._used_s = used_s
        self._next_at = max(self._next_at, now) + self._cost_s / self._share
        return self._next_at


class Sleepers(Generic[T]):
    """Items that wait for their time."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._order = itertools.count()

    def add(self, until: float, item: T) -> None:
        heapq.heappush(self._heap, (until, next(self._order), item))

    def wakes_at(self) -> float | None:
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[T]:
        """Take out those whose time has come."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            found.append(heapq.heappop(self._heap)[-1])
        return found

    def withdraw(self, which: Callable[[T], bool]) -> list[T]:
        """Take out those that ``which`` is true of."""
        gone = [item for *_, item in self._heap if which(item)]
        self._heap = [entry for entry in self._heap if not which(entry[-1])]
        heapq.heapify(self._heap)
        return gone
