"""The leader's lease in the store."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

from idagg.store.client import Client
from idagg.store.shards import ONE_SHARD, Regime

# Whose leader may be succeeded by one that brings settings of its own: that of the epoch of this number, any
# epoch's, or none.
Successor = int | Literal["any", "none"]


class Agreed(NamedTuple):
    """The settings that all processes of a namespace must have alike, or a window's count would depend on who
    counts and who seals.

    Only a process with other ``shards`` can count all the same, since it goes by the store's regime.
    """

    window_s: int
    exact_limit: int
    shards: int = 1

    def __str__(self) -> str:
        return f"in windows of {self.window_s} s, exactly up to {self.exact_limit} ids"

    def counts_like(self, other: Agreed) -> bool:
        """Whether a process with these settings can count for those of the others."""
        return self._replace(shards=0) == other._replace(shards=0)

    def differing_flags(self, other: Agreed) -> str:
        """``--window and --exact-limit``; nothing where they are the same."""
        flags = zip(("--window", "--exact-limit", "--shards"), self, other, strict=True)
        return " and ".join(flag for flag, ours, theirs in flags if ours != theirs)


def spread_otherwise(shards: int) -> str:
    return (
        f"the store's ids are spread over {shards} shards for other running instances: this one counts so, "
        "too, and does not lead: give it the same --shards"
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Lease:
    """The answer to a candidate.

    ``epoch`` is 0 where the candidate does not lead; ``lasts_ms`` is what is left of the present lease,
    whoever holds it, 0 where nobody does. ``last_epoch`` is the one that began last, whose ever: between two
    answers with the same, nobody has taken the lease. ``store`` is what the store's processes agree on,
    ``regime`` that of the window that is open on the home shard.
    """

    epoch: int
    lasts_ms: int
    last_epoch: int
    store: Agreed
    regime: Regime = ONE_SHARD


class Election:
    """Raises StoreAwayError (outcome unknown; all calls are safe to repeat), StoreRefusedError."""

    def __init__(self, client: Client, tag: str, agreed: Agreed) -> None:
        self._client = client
        self._tag = tag
        self.agreed = agreed

    async def lead(self, name: str, *, lease_ms: int, may_change_after: Successor = "none") -> Lease:
        """Take or keep the lease as ``name``. Where our settings are not the store's, it is taken only if it
        was last held in the epoch ``may_change_after``; they are the store's then."""
        epoch, lasts_ms, last_epoch, *store, number, spread = await self._client.script(
            "lead", self._tag, name, lease_ms, *self.agreed, may_change_after
        )
        return Lease(epoch, lasts_ms, last_epoch, Agreed(*store), Regime(number, spread))

    async def resign(self, name: str) -> None:
        await self._client.script("resign", self._tag, name)
