"""The accepting side of the store: batches of ids go in."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from typing import NamedTuple

from idagg.store.client import Scripts

# What one script call carries at most: Lua's unpack() is limited to about 8,000 values, and at about 1 us
# an id the script holds Redis for no more than some 4 ms.
MAX_BATCH = 4096
# Precedent: none; 10,000 callbacks, 1% of them to endpoints that hang, take some seconds of a minute (bench).
MAX_ENDPOINTS = 10_000


class Stored(NamedTuple):
    """Where a batch went: the window's start, how many of the ids were not in it before (all of them where
    the store does not know), and how long it takes ids from now on."""

    start_s: int
    new_ids: int
    left_s: float


def shard_tag(namespace: str) -> str:
    return f"{{{namespace}:0}}"


class HitStore:
    """Counts batches for one worker, under a name that no other process has or had."""

    def __init__(
        self,
        scripts: Scripts,
        *,
        namespace: str,
        window_s: int,
        exact_limit: int,
        endpoint_limit: int = MAX_ENDPOINTS,
    ) -> None:
        self._scripts = scripts
        self._tag = shard_tag(namespace)
        self._fixed = (window_s, exact_limit, endpoint_limit, secrets.token_hex(8))

    async def add(
        self, seq: int, ids: Sequence[bytes], endpoints: Collection[bytes] = (), repeats: int = 0
    ) -> Stored:
        """Count up to MAX_BATCH canonical ids, and ``repeats`` further hits of ids counted before.

        Safe to repeat with the same ``seq``, which rises with each batch. Raises StoreAwayError where it may
        or may not have been counted, StoreRefusedError where it was not.
        """
        array = b'["%b"]' % b'","'.join(ids) if ids else b"[]"
        start_s, new_ids, left_ms = await self._scripts.script(
            "accept", self._tag, *self._fixed, seq, repeats, array, *endpoints
        )
        return Stored(start_s, new_ids, left_ms / 1000)
