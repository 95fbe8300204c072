"""The leader's work on a shard: it seals windows, and quarantines what it cannot read."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator

from idagg.errors import DamagedError
from idagg.store.client import Client

log = logging.getLogger("idagg.store")


class Sealing:
    """Raises StoreAwayError (outcome unknown; all calls are safe to repeat), FencedError (another leads)."""

    def __init__(self, client: Client, tag: str) -> None:
        self._client = client
        self._tag = tag

    async def seal(self, epoch: int) -> int:
        """Seal the oldest window that has ended; returns 0, or the ms until the next one ends.

        Raises DamagedError where it cannot be read: nothing was done, and nothing will be until it is
        quarantined.
        """
        wait_ms: int
        wait_ms, *damage = await self._client.script("seal", self._tag, epoch)
        if damage:
            member, what = damage
            raise DamagedError("open", member, what.decode(errors="replace"))
        return wait_ms

    @contextlib.asynccontextmanager
    async def quarantining(self, epoch: int) -> AsyncIterator[None]:
        """Take what turns out to be damaged out of its index, so that all else can go on. What the index
        names stays in the store, for a person."""
        try:
            yield
        except DamagedError as damage:
            await self._client.script(
                "quarantine", self._tag, epoch, damage.index, damage.member, str(damage)
            )
            log.error("window %s is quarantined in %s:quarantine: %s", damage.name, self._tag, damage)
