"""The leader's side of the store: the lock, sealing, and the outbox of what is owed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from idagg.store.client import Client
from idagg.store.hits import shard_tag
from idagg.window import Record


@dataclasses.dataclass(frozen=True, slots=True)
class Term:
    """The answer to a bid for leadership.

    ``epoch`` is 0 where another leads; ``lasts_ms`` is what is left of the present lease, whoever holds it;
    ``window_s`` is the length of the store's windows.
    """

    epoch: int
    lasts_ms: int
    window_s: int


@dataclasses.dataclass(frozen=True, slots=True)
class Owed:
    """An outbox entry: a sealed window. ``dropped`` counts hits whose endpoint was over the limit."""

    record: Record
    dropped: int


class WindowStore:
    """Errors: StoreAwayError (outcome unknown; all calls are safe to repeat); FencedError (another leads)."""

    def __init__(self, client: Client, *, namespace: str, window_s: int, exact_limit: int) -> None:
        self._client = client
        self._tag = shard_tag(namespace)
        self._window_s = window_s
        self._exact_limit = exact_limit

    async def lead(self, name: str, *, lease_ms: int) -> Term:
        """Take or keep the lock as ``name``."""
        epoch, lasts_ms, _, window_s = await self._client.script(
            "lead", self._tag, name, lease_ms, self._window_s
        )
        return Term(epoch, lasts_ms, window_s)

    async def resign(self, name: str) -> None:
        await self._client.script("resign", self._tag, name)

    async def seal(self, epoch: int) -> int:
        """Seal the oldest window that has ended; returns 0, or the ms until the next one ends."""
        wait_ms: int = (await self._client.script("seal", self._tag, epoch, self._exact_limit))[0]
        return wait_ms

    async def undelivered(self, *, limit: int = 100) -> list[Owed]:
        """The oldest windows that no sink has, oldest first."""
        return await self._owed("outbox", limit)

    async def unsent(self, *, limit: int = 100) -> list[Owed]:
        """The oldest windows that are in the log file for want of a broker, oldest first."""
        return await self._owed("unsent", limit)

    async def uncalled(self, *, limit: int = 100) -> list[Owed]:
        """The oldest windows with endpoints to be called, oldest first."""
        return await self._owed("callbacks", limit)

    async def depth(self, index: Literal["outbox", "unsent", "callbacks"]) -> int:
        """How many windows ``undelivered``, ``unsent`` or ``uncalled`` would give without a limit."""
        count: int = await self._client.command("ZCARD", f"{self._tag}:{index}")
        return count

    async def mark_logged(self, epoch: int, start_s: int) -> None:
        await self._client.script("mark", self._tag, epoch, start_s, "logged")

    async def mark_delivered(self, epoch: int, start_s: int) -> None:
        await self._client.script("mark", self._tag, epoch, start_s, "delivered")

    async def endpoints(self, start_s: int) -> list[str]:
        """The window's endpoints still to be called."""
        found = await self._client.command("SMEMBERS", f"{self._tag}:o:{start_s}:endpoints")
        return [endpoint.decode() for endpoint in found]

    async def mark_called(self, epoch: int, start_s: int, endpoints: Sequence[str]) -> None:
        await self._client.script("called", self._tag, epoch, start_s, *endpoints)

    async def give_up_calls(self, epoch: int, start_s: int) -> None:
        """Drop all of the window's endpoints that are still to be called."""
        await self._client.script("called", self._tag, epoch, start_s)

    async def _owed(self, index: str, limit: int) -> list[Owed]:
        starts = await self._client.command("ZRANGE", f"{self._tag}:{index}", 0, limit - 1)
        entries = [await self._entry(int(start)) for start in starts]
        return [entry for entry in entries if entry is not None]

    async def _entry(self, start_s: int) -> Owed | None:
        """None where the last that was owed of it has been done since its start was read."""
        pairs = await self._client.command("HGETALL", f"{self._tag}:o:{start_s}")
        if not pairs:
            return None
        field = {name.decode(): int(value) for name, value in pairs.items()}
        record = Record(
            start_s=start_s,
            length_s=field["length"],
            unique_ids=field["unique"],
            estimate=field["estimate"],
            hits=field["hits"],
            exact=bool(field["exact"]),
            epoch=field["epoch"],
        )
        return Owed(record, dropped=field["dropped"])
