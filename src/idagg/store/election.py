"""The leader's lease in the store."""

from __future__ import annotations

import dataclasses
from typing import Literal

from idagg.store.client import Client

# Whose leader may be succeeded by one that brings windows of another length: the one of the epoch of this
# number, of any, or of none.
Successor = int | Literal["any", "none"]


@dataclasses.dataclass(frozen=True, slots=True)
class Lease:
    """The answer to a candidate.

    ``epoch`` is 0 where the candidate does not lead; ``lasts_ms`` is what is left of the present lease,
    whoever holds it, 0 where nobody does; ``window_s`` is the length of the store's windows. ``last_epoch``
    is the one that began last, whose ever: between two answers with the same, nobody has taken the lease.
    """

    epoch: int
    lasts_ms: int
    window_s: int
    last_epoch: int


class Election:
    """Raises StoreAwayError (outcome unknown; all calls are safe to repeat), StoreRefusedError."""

    def __init__(self, client: Client, tag: str, *, window_s: int) -> None:
        self._client = client
        self._tag = tag
        self._window_s = window_s

    async def lead(self, name: str, *, lease_ms: int, may_change_after: Successor = "none") -> Lease:
        """Take or keep the lease as ``name``. Where our windows are of another length than the store's, it is
        taken only if it was last held in the epoch ``may_change_after``."""
        answer = await self._client.script(
            "lead", self._tag, name, lease_ms, self._window_s, may_change_after
        )
        return Lease(*answer)

    async def resign(self, name: str) -> None:
        await self._client.script("resign", self._tag, name)
