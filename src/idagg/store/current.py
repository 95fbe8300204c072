"""What can be seen of the windows that are not sealed, and the store's clock."""

from __future__ import annotations

from typing import NamedTuple

from idagg.store.client import Client


class Look(NamedTuple):
    """One look at a shard.

    ``now_s`` is the store's clock, Unix time. ``start_s`` is the start of the open window, 0 if there has not
    been any, and ``ids`` are those that it has so far. ``late_s``: for so long the oldest window with ids
    that has ended is not sealed; 0 if there is none. ``end_s`` is the open window's end, and ``shards`` are
    those that its ids are spread over: both may differ from this process' settings for a window.
    """

    now_s: float
    start_s: int
    ids: int | None  # None: a shard could not be asked
    late_s: float
    end_s: int = 0
    shards: int = 1


class Current:
    """Raises StoreError."""

    def __init__(self, client: Client, tag: str) -> None:
        self._client = client
        self._tag = tag

    async def look(self) -> Look:
        now_us, start_s, ids, late_ms, end_s, shards = await self._client.script("current", self._tag)
        return Look(now_us / 1e6, start_s, ids, late_ms / 1000, end_s, shards)
