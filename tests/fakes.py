"""What a real part cannot be made to do."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from idagg.errors import StoreError


class Hits:
    """A store that holds every batch until it is told what to say."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, list[bytes], set[bytes]]] = []
        self._replies: asyncio.Queue[StoreError | None] = asyncio.Queue()

    async def add(self, seq: int, ids: Sequence[bytes], endpoints: Collection[bytes] = ()) -> int:
        self.sent.append((seq, list(ids), set(endpoints)))
        reply = await self._replies.get()
        if reply is not None:
            raise reply
        return 0

    def reply(self, *replies: StoreError | None) -> None:
        """None: stored."""
        for reply in replies:
            self._replies.put_nowait(reply)


class Batches:
    """Hears of batches, and says nothing."""

    def __init__(self) -> None:
        self.settled: list[tuple[int, bool]] = []

    def batch(self, *, requests: int, stored: bool, took_s: float) -> None:
        self.settled.append((requests, stored))


async def settle() -> None:
    """Let everything that can happen without time or the network happen."""
    for _ in range(20):
        await asyncio.sleep(0)
