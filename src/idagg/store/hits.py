"""The accepting side of the store: batches of ids go in."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, Protocol

from idagg.store.parts import exact_share
from idagg.store.shards import ONE_SHARD, Regime, shard_tag

# What one script call carries at most: Lua's unpack() is limited to about 8,000 values, and at about 1 us
# an id the script holds Redis for no more than some 4 ms.
MAX_BATCH = 4096
# Precedent: none; 10,000 callbacks, 1% of them to endpoints that hang, take some seconds of a minute (bench).
MAX_ENDPOINTS = 10_000
# The store forgets a worker once many have had batches in later windows (seal.lua). The windows of its own
# are long sealed by then, and nothing of them is lost.
_REMEMBERED_S = 3600
# Arguments of accept.lua: first those that batches of several workers may share, then those of the batch, and
# then its endpoints.
COMMON, OWN = 5, 5


class Scripts(Protocol):
    """Where scripts run: a Client, or the way through the combiner."""

    async def script(self, name: str, tag: str, *args: bytes | str | int) -> Any: ...


class Stored(NamedTuple):
    """The store's answer to a batch.

    ``start_s`` is the start of the window that took the batch. ``new_ids`` is how many of its ids were not in
    it before: all of them where the store does not know. ``continues``: the window is the one that took the
    last batch acknowledged, and the store still has all that was acknowledged of it.
    """

    start_s: int
    new_ids: int
    continues: bool


class _Acknowledged(NamedTuple):
    """The last batch of which the store's answer came; as in accept.lua."""

    seq: int = 0
    start_s: int = 0
    since: int = 0


class HitStore:
    """Counts batches for one worker on one shard, under a name that no other has or had.

    ``regime`` is the one by which the ids of the batches were found to be this shard's. ``on_lost`` is called
    if the store does not have the last batch that it had acknowledged, unless that is long ago.
    """

    def __init__(
        self,
        scripts: Scripts,
        *,
        namespace: str,
        shard: int = 0,
        regime: Regime = ONE_SHARD,
        window_s: int,
        exact_limit: int,
        endpoint_limit: int = MAX_ENDPOINTS,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._scripts = scripts
        self._tag = shard_tag(namespace, shard)
        self._fixed = (
            *(window_s, exact_limit, exact_share(exact_limit, regime.shards), endpoint_limit),
            *(f"{regime.number} {regime.shards}", secrets.token_hex(8)),
        )
        self._acknowledged = _Acknowledged()
        self._on_lost = on_lost

    async def add(
        self, seq: int, ids: Sequence[bytes], endpoints: Collection[bytes] = (), repeats: int = 0
    ) -> Stored:
        """Count up to MAX_BATCH canonical ids, and ``repeats`` further hits of ids in the window of the last
        batch acknowledged. These are counted if the answer ``continues``, and only then.

        Safe to repeat with the same ``seq``, which rises with each batch. Raises StoreAwayError where it may
        or may not have been counted, StoreRefusedError where it was not; OtherRegimeError, since the open
        window has another regime.
        """
        array = b'["%b"]' % b'","'.join(ids) if ids else b"[]"
        last = self._acknowledged
        start_s, new_ids, since, found = await self._scripts.script(
            "accept", self._tag, *self._fixed, seq, b"%d %d %d" % last, repeats, array, *endpoints
        )
        self._acknowledged = _Acknowledged(seq, start_s, since)
        # The store may have a later one, whose answer did not come.
        if found < last.seq and start_s - last.start_s <= _REMEMBERED_S:
            self._on_lost()
        return Stored(start_s, new_ids, continues=(start_s, since) == (last.start_s, last.since))
