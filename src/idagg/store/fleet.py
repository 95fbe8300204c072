"""The states that machines publish on the home shard, each for a short time."""

from __future__ import annotations

import zlib
from typing import NamedTuple

from idagg.store.client import Client

# A machine that dies is to be missed: it is still listed for so long after its last word. The reader judges
# how fresh that is.
STAYS_S = 600.0
# Machines at most, dead ones included. Those that have published last are kept.
MAX_MACHINES = 256
# A state packed, at most: what is larger is not published. 256 workers need 14 KB.
MAX_BYTES = 65_536
# What a state says unpacked, at most: one that was written by another program must not fill the memory.
_MOST_UNPACKED = 1 << 20
# Fast, and close to the best for documents of some KB that repeat their names. Each publication is written to
# Redis' disk and sent to its replicas.
_LEVEL = 1


class Published(NamedTuple):
    """A machine's state, so many seconds old by the store's clock."""

    id: str
    age_s: float
    state: bytes


class FleetStore:
    """Raises StoreError."""

    def __init__(self, client: Client, tag: str) -> None:
        self._client = client
        self._tag = tag

    async def publish(self, machine: str, state: bytes) -> None:
        """Publish a machine's state for STAYS_S."""
        packed = zlib.compress(state, _LEVEL)
        if len(packed) <= MAX_BYTES:
            await self._publish(machine, packed)

    async def withdraw(self, machine: str) -> None:
        """Forget a machine, because it stops."""
        await self._publish(machine, b"")

    async def all(self) -> list[Published]:
        """The states of all machines. One that is not readable is left out."""
        found = await self._client.script("fleet", self._tag, _ms(STAYS_S), MAX_MACHINES)
        return [
            Published(machine.decode(errors="replace"), age_ms / 1000, state)
            for machine, age_ms, packed in found
            if (state := _unpacked(packed)) is not None
        ]

    async def _publish(self, machine: str, packed: bytes) -> None:
        await self._client.script("publish", self._tag, machine, packed, _ms(STAYS_S), MAX_MACHINES)


def _unpacked(packed: bytes) -> bytes | None:
    unpacking = zlib.decompressobj()
    try:
        state = unpacking.decompress(packed, _MOST_UNPACKED)
    except zlib.error:
        return None
    return state if unpacking.eof else None


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
