"""Ids that are surely in the window that is open now: a repeat of one needs no store.

Where most requests repeat an id, most of what they cost is finding that out again. So a worker remembers the
ids of the batches of which the store said that half or more were repeats: traffic without repeats is never
remembered, and in traffic with many, an id goes to the store about twice as often as one worker must send it.

*Surely*: the store says with each batch which window took it and how long that goes on, by the one clock
that counts. Here that time begins when the batch is sent, which is before the store looked at its clock; so
it ends here before the window does. It is believed for FRESH_S, in which no clock of ours can go far wrong.
What is in doubt goes to the store: where another window has begun, where the store was away or a connection
to it was lost, where the end is near.

The id of a repeat is stored before its ``ok``, its hit is not: hits travel with the next batch. So nothing is
remembered in a window's last HITS_TRAVEL_S; and hits on their way are lost with a worker that is killed, or a
batch that the store does not answer.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

from idagg.store.hits import Stored

# Some 100 bytes each.
MAX_KNOWN = 65_536
# The group commit's tick and the store's answer, with room.
HITS_TRAVEL_S = 0.5
# A clock that is slewed as fast as chrony may, by 8%, is 80 ms off then: less than HITS_TRAVEL_S.
FRESH_S = 1.0
# Unlike monotonic(), it goes on while the machine is suspended.
_now = functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME)


class Known:
    def __init__(self, now: Callable[[], float] = _now) -> None:
        self.now = now
        self.ids: set[bytes] = set()
        self.hits = 0  # repeats of which the store has not heard
        self._start_s = 0  # of the window that they are in
        self._until = 0.0  # by ``now``

    def repeat(self, canonical_id: bytes, endpoint: bytes | None) -> bool:
        """Whether a request says nothing new to the store: then it may be answered, and is a hit."""
        if canonical_id not in self.ids or endpoint is not None or self.now() >= self._until:
            return False
        self.hits += 1
        return True

    def learn(self, ids: Sequence[bytes], stored: Stored, sent_at: float) -> None:
        """Hear what became of a batch that was sent at ``sent_at``, by ``now``."""
        if stored.start_s != self._start_s:
            self.ids = set()
            self._start_s = stored.start_s
        self._until = sent_at + min(stored.left_s - HITS_TRAVEL_S, FRESH_S)
        if 2 * stored.new_ids <= len(ids):
            if len(self.ids) + len(ids) > MAX_KNOWN:
                self.ids = set()
            self.ids.update(ids)

    def forget(self) -> None:
        """The store may not be the one that it was."""
        self.ids = set()
        self._until = 0.0
