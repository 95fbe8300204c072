"""The repeat cache: ids known to be in the open window.

If most requests repeat an id, most of their cost is storing that id again. So a worker remembers the ids of
batches with many repeats. A later request for one of them, a repeat, waits for the next batch as every
request does, but its id is not sent. No clock is read here: this machine may have been suspended, so its
clock cannot prove that the window is still open. The store's answer to that batch does.

Proof that the answer can be trusted: all ids in the cache come from batches that the store acknowledged to
this worker, and that went to one window. For each worker the store keeps a token: the last batch that it
applied, the window of that batch, and the batch since which none is missing. With each batch the worker sends
the token that was last acknowledged to it. If the store's token is the same, the store has every id of the
cache, because a replica, an append-only file and a snapshot are prefixes of what was applied. After a
FLUSHALL, after a failover that lost writes, or if another server answers, the tokens differ. Then the
answer's ``continues`` is false, and the cache is cleared.

This module decides which ids are remembered. It knows nothing of waiting requests or of the store.
"""

from __future__ import annotations

from collections.abc import Sequence

from idagg.store.hits import Stored

# About 100 bytes each.
MAX_IDS = 65_536


class RepeatCache:
    """The remembered ids. ``ids`` is always the same set, so that callers can look it up directly."""

    def __init__(self, max_ids: int = MAX_IDS) -> None:
        self.ids: set[bytes] = set()
        self._max_ids = max_ids

    def learn(self, ids: Sequence[bytes], repeats: Sequence[bytes], stored: Stored) -> None:
        """Update the cache with the answer to a batch that sent ``ids`` and did not send ``repeats``.

        Traffic without repeats must cost no memory. So a batch's ids are remembered only if at least half of
        its ids, repeats included, were not new. Then each remembered id saves at least one sent id, on
        average.
        """
        if not stored.continues:
            self.ids.clear()
            repeats = ()
        if 2 * stored.new_ids > len(ids) + len(repeats):
            return
        if len(self.ids) + len(ids) > self._max_ids:
            # The ids that repeat most often are in this batch, too.
            self.ids.clear()
            self.ids.update(repeats)
        self.ids.update(ids)
