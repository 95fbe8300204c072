"""The order and pace of callbacks. Pure: time comes in as an argument."""

from __future__ import annotations

import collections
import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Destination(NamedTuple):
    """An address that is dialled, in one form for all spellings of endpoints."""

    address: str
    is_paced: bool


class Schedule(Generic[T]):
    """A fair queue of items by destination.

    At most ``concurrency`` items run at a time, and at most ``per_destination`` of one destination. Items of
    a paced destination begin at least ``pace_s`` apart.

    Destinations that have a waiting item and a free slot, and do not pause, form a ring. ``take`` takes the
    oldest item of the first destination and moves that destination to the end. So a destination with many
    items delays the others by one item per round.
    """

    def __init__(self, *, concurrency: int, per_destination: int, pace_s: float) -> None:
        self._slots = concurrency
        self._per_destination = per_destination
        self._pace_s = pace_s
        self._waiting: dict[Destination, collections.deque[T]] = {}
        self._running: collections.Counter[Destination] = collections.Counter()
        self._pausing: dict[Destination, float] = {}  # end of each pause, the earliest first
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
        """The time at which `take` may return an item again, if nothing is added or released before."""
        return next(iter(self._pausing.values()), None) if self._waiting and self._slots else None

    def __iter__(self) -> Iterator[T]:
        """The waiting items."""
        return itertools.chain.from_iterable(self._waiting.values())

    def release(self, destination: Destination) -> None:
        self._slots += 1
        self._running[destination] -= 1
        if not self._running[destination]:
            del self._running[destination]
        self._stand(destination)

    def withdraw(self, which: Callable[[T], bool]) -> list[T]:
        """Remove and return the waiting items for which ``which`` is true."""
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
    """The start times of many pieces of work, so that they take no more than a ``share`` of one CPU.

    The pauses lie between any two pieces. The cost of a piece is measured. Unused time is not saved up.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._cost_s = 0.001  # until it is measured
        self._used_s = 0.0
        self._next_at = 0.0

    def begun(self, now: float, used_s: float) -> float:
        """Note that a piece begins, after ``used_s`` of CPU time in all. Returns when the next may begin."""
        if self._used_s:
            self._cost_s += (used_s - self._used_s - self._cost_s) / 64
        self._used_s = used_s
        self._next_at = max(self._next_at, now) + self._cost_s / self._share
        return self._next_at


class Sleepers(Generic[T]):
    """Items that wait for a point in time."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._order = itertools.count()

    def add(self, until: float, item: T) -> None:
        heapq.heappush(self._heap, (until, next(self._order), item))

    def wakes_at(self) -> float | None:
        return self._heap[0][0] if self._heap else None

    def __iter__(self) -> Iterator[T]:
        return (item for *_, item in self._heap)

    def due(self, now: float) -> list[T]:
        """Remove and return the items whose time has come."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            found.append(heapq.heappop(self._heap)[-1])
        return found

    def withdraw(self, which: Callable[[T], bool]) -> list[T]:
        """Remove and return the items for which ``which`` is true."""
        gone = [item for *_, item in self._heap if which(item)]
        self._heap = [entry for entry in self._heap if not which(entry[-1])]
        heapq.heapify(self._heap)
        return gone
