"""The leader's lease in the store."""

from __future__ import annotations

import dataclasses

from idagg.store.client import Client


@dataclasses.dataclass(frozen=True, slots=True)
class Lease:
    """The answer to a candidate.

    ``epoch`` is 0 where the candidate does not lead; ``lasts_ms`` is what is left of the present lease,
    whoever holds it, 0 where nobody does; ``window_s`` is the length of the store's windows.
    """

    epoch: int
    lasts_ms: int
    window_s: int


class Election:
    """Raises StoreAwayError (outcome unknown; all calls are safe to repeat), StoreRefusedError."""

    def __init__(self, client: Client, tag: str, *, window_s: int) -> None:
        self._client = client
        self._tag = tag
        self._window_s = window_s

    async def lead(self, name: str, *, lease_ms: int, may_change_length: bool = False) -> Lease:
        """Take or keep the lease as ``name``; with windows of our length, if we may."""
        epoch, lasts_ms, window_s = await self._client.script(
            "lead", self._tag, name, lease_ms, self._window_s, int(may_change_length)
        )
        return Lease(epoch, lasts_ms, window_s)

    async def resign(self, name: str) -> None:
        await self._client.script("resign", self._tag, name)
