"""What becomes of an accept request: the one decision, for the fast path, one-shot connections and the
fallback app.

A request is refused here, with its status, or it is taken, and the group commit answers its waiter.
"""

from __future__ import annotations

import collections

from idagg.accept.commit import GroupCommit, Waiter
from idagg.accept.request import TooManyError, parse, parse_bulk

TAKEN = 0


class Admission:
    """``tally`` counts requests by the status of answers that the store has no part in. A metric's update
    would cost more than the request; who owns the tally moves it now and then. Without ``keeps_endpoints``
    nobody is called: an endpoint is judged, and forgotten."""

    def __init__(
        self, commit: GroupCommit, tally: collections.Counter[int], *, keeps_endpoints: bool = True
    ) -> None:
        self.commit = commit
        self._tally = tally
        self._keeps_endpoints = keeps_endpoints

    def one(self, waiter: Waiter, query: bytes) -> int:
        """TAKEN, or the status to answer a GET with."""
        hit = parse(query)
        return self.hit(waiter, *hit) if hit else self.refuse(400)

    def hit(self, waiter: Waiter, canonical_id: bytes, endpoint: bytes | None = None) -> int:
        """The same, of a query that is parsed already."""
        if endpoint is not None and not self._keeps_endpoints:
            endpoint = None
        return TAKEN if self.commit.add(waiter, canonical_id, endpoint) else self.refuse(503)

    def many(self, waiter: Waiter, query: bytes, body: bytes) -> int:
        """TAKEN, or the status to answer a bulk POST with. All of its ids are stored, or none."""
        try:
            hits = parse_bulk(query, body)
        except TooManyError:
            return self.refuse(413)
        if hits is None:
            return self.refuse(400)
        ids, endpoint = hits
        if not self.commit.add_many(waiter, ids, endpoint if self._keeps_endpoints else None):
            return self.refuse(503)
        return TAKEN

    def refuse(self, status: int) -> int:
        """Count an answer that is not the store's; returns its status."""
        self._tally[status] += 1
        return status
