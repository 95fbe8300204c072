"""The accepting side of the store: batches of ids go in."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence

from idagg.store.client import Scripts

# What one script call carries at most: Lua's unpack() is limited to about 8,000 values, and at about 1 us
# an id the script holds Redis for no more than some 4 ms.
MAX_BATCH = 4096
# Precedent: none; 10,000 callbacks at 100 at a time and 100 ms each take 10 s of a minute.
MAX_ENDPOINTS = 10_000


def shard_tag(namespace: str, shard: int = 0) -> str:
    return f"{{{namespace}:{shard}}}"


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

    async def add(self, seq: int, ids: Sequence[bytes], endpoints: Collection[bytes] = ()) -> int:
        """Count 1 to MAX_BATCH canonical ids; returns the start of their window, s.

        Safe to repeat with the same ``seq``, which rises with each batch. Raises StoreAwayError where it may
        or may not have been counted, StoreRefusedError where it was not.
        """
        start: int = await self._scripts.script(
            "accept", self._tag, *self._fixed, seq, b'["%b"]' % b'","'.join(ids), *endpoints
        )
        return start
