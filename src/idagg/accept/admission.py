"""The decision about an accept request, for the fast path, one-shot connections and the fallback app alike.

A request is either refused here, with a status, or taken; then the group commit answers its waiter.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Protocol

from idagg.accept.commit import Waiter
from idagg.accept.replies import UNAVAILABLE
from idagg.accept.request import TooManyError, parse, parse_bulk

TAKEN = 0


class Queue(Protocol):
    """Where requests wait for the store: a group commit, or a router to several.

    ``in_order``: all waiters are answered in the order in which they were added.
    """

    in_order: bool

    def add(self, waiter: Waiter, canonical_id: bytes, endpoint: bytes | None, /) -> bool: ...

    def add_many(self, waiter: Waiter, ids: Sequence[bytes], endpoint: bytes | None, /) -> bool: ...


class Admission:
    """Takes or refuses requests.

    ``tally`` counts refused requests by status. Its owner copies it to the metrics once a second, because a
    metric's update would cost more than the request. If ``keeps_endpoints`` is false, an endpoint is
    validated and then dropped, because callbacks are off.
    """

    def __init__(
        self, queue: Queue, tally: collections.Counter[int], *, keeps_endpoints: bool = True
    ) -> None:
        self._queue = queue
        self._tally = tally
        self._keeps_endpoints = keeps_endpoints
        self.full = 0  # requests refused since too many wait for the store

    @property
    def in_order(self) -> bool:
        """Whether taken requests are answered in the order in which they were taken."""
        return self._queue.in_order

    def one(self, waiter: Waiter, query: bytes) -> int:
        """Take a GET. Returns TAKEN, or the status to answer with."""
        hit = parse(query)
        return self.hit(waiter, *hit) if hit else self.refuse(400)

    def hit(self, waiter: Waiter, canonical_id: bytes, endpoint: bytes | None = None) -> int:
        """Take a request whose query is parsed already. Returns as ``one`` does."""
        if endpoint is not None and not self._keeps_endpoints:
            endpoint = None
        return TAKEN if self._queue.add(waiter, canonical_id, endpoint) else self.refuse(503)

    def many(self, waiter: Waiter, query: bytes, body: bytes) -> int:
        """Take a bulk POST. Returns TAKEN, or the status to answer with."""
        try:
            hits = parse_bulk(query, body)
        except TooManyError:
            return self.refuse(413)
        if hits is None:
            return self.refuse(400)
        ids, endpoint = hits
        if not self._queue.add_many(waiter, ids, endpoint if self._keeps_endpoints else None):
            return self.refuse(503)
        return TAKEN

    def refuse(self, status: int) -> int:
        """Count an answer given without the store. Returns its status."""
        self._tally[status] += 1
        if status == UNAVAILABLE:
            self.full += 1
        return status
