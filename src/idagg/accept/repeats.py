"""The repeat cache: ids that a worker knows to be in the window that is open now.

Where most requests repeat an id, most of what they cost is to store that id again. So a worker remembers the
ids of batches with many repeats. A later request for one of them, a repeat, waits for the next batch as every
request does, but its id is not sent. There is no time in here: a clock of this machine cannot tell that the
window is still open, since the machine may have been stopped. The store tells, with its answer to that batch.

Why that answer can be trusted: all ids in the cache come from batches that were acknowledged to this worker
and went to one window. The store keeps a token for each worker: the batch that it applied last, the window of
that batch, and the batch since which it has missed none. The worker sends with each batch the token that it
was acknowledged last. If the store's is the same, the store has every id of the cache, because a replica, a
log on disk and a snapshot are prefixes of what was applied. After a FLUSHALL, after a failover that lost
writes, and where another server answers, the tokens differ. Then the answer does not ``continue``, and the
cache begins anew.

May live here: which ids are remembered. Not here: requests that wait, the store.
"""

from __future__ import annotations

from collections.abc import Sequence

from idagg.store.hits import Stored

# Some 100 bytes each.
MAX_IDS = 65_536


class RepeatCache:
    """``ids`` is the same set for ever, so that it can be looked into without a call."""

    def __init__(self) -> None:
        self.ids: set[bytes] = set()

    def learn(self, ids: Sequence[bytes], repeats: Sequence[bytes], stored: Stored) -> None:
        """Take in the answer to a batch that sent ``ids``, and did not send ``repeats``.

        Traffic in which no id comes again must cost no memory. So the ids of a batch are remembered where at
        least half of the batch's requests were not new: then an id that is remembered saves one sent id or
        more, on average.
        """
        if not stored.continues:
            self.ids.clear()
            repeats = ()
        if 2 * stored.new_ids > len(ids) + len(repeats):
            return
        if len(self.ids) + len(ids) > MAX_IDS:
            # Those that repeat most are in this batch, too.
            self.ids.clear()
            self.ids.update(repeats)
        self.ids.update(ids)
