"""What a real part cannot be made to do."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

from idagg.batch import BatchResult
from idagg.errors import StoreError
from idagg.store.hits import Stored


class Hits:
    """A store that holds every batch until it is told what to say."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, list[bytes], set[bytes]]] = []
        self.repeats: list[int] = []  # how many each batch brought
        self._replies: asyncio.Queue[StoreError | Stored | None] = asyncio.Queue()

    async def add(
        self, seq: int, ids: Sequence[bytes], endpoints: Collection[bytes] = (), repeats: int = 0
    ) -> Stored:
        self.sent.append((seq, list(ids), set(endpoints)))
        self.repeats.append(repeats)
        reply = await self._replies.get()
        if isinstance(reply, StoreError):
            raise reply
        return reply or Stored(60, len(ids), continues=True)

    def reply(self, *replies: StoreError | Stored | None) -> None:
        """None: stored; no id was there before, and all is as it was."""
        for reply in replies:
            self._replies.put_nowait(reply)


class Batches:
    """Hears of batches, and says nothing."""

    def __init__(self) -> None:
        self.settled: list[tuple[int, int, int, bool]] = []  # requests, ids, repeats; whether stored
        self.waits: list[float | None] = []
        self.causes: list[str | None] = []

    def batch(self, result: BatchResult) -> None:
        self.settled.append(result[:4])
        self.waits.append(result.waited_s)
        self.causes.append(result.cause)


class Transport(asyncio.Transport):
    """Keeps what is written; nothing may be written behind the end."""

    written, paused, ended = b"", False, False

    def write(self, data: Any) -> None:
        self.written += b"behind the end" if self.ended else data

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


async def settle() -> None:
    """Let everything that can happen without time or the network happen."""
    for _ in range(20):
        await asyncio.sleep(0)
