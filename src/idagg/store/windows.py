"""The side of the store that looks at windows, seals and delivers them, put together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from idagg.errors import StoreError
from idagg.store.client import Client
from idagg.store.current import Current, Look
from idagg.store.election import Agreed, Election
from idagg.store.kept import KEEP_S
from idagg.store.merging import Merging
from idagg.store.pending import Pending
from idagg.store.sealing import Sealing
from idagg.store.shards import shard_tag
from idagg.store.sketches import RollUps, Sketches


class WindowStore:
    """``home`` is a client of the home shard, whose owner closes it. ``client_of`` makes clients of the other
    shards, by tag; without it, they are in the same place.

    ``keep_s``: for how long records can be read back. ``proves``: the clients wait for replicas, and what is
    shown has to be on them.
    """

    def __init__(
        self,
        home: Client,
        *,
        namespace: str,
        window_s: int,
        exact_limit: int,
        shards: int = 1,
        keep_s: int = KEEP_S,
        client_of: Callable[[str], Client] | None = None,
        proves: bool = False,
    ) -> None:
        tag = shard_tag(namespace)
        self._namespace = namespace
        self._home = home
        self._client_of = client_of
        self._proves = proves
        self._others: dict[int, tuple[Client, Sealing]] = {}
        self.election = Election(home, tag, Agreed(window_s, exact_limit, shards))
        self.sealing = Sealing(home, tag, proves=proves)
        self.merging = Merging(home, tag, keep_s=keep_s)
        self.pending = Pending(home, tag, proves=proves)
        self.rollups = RollUps(home, tag)

    def shard(self, index: int) -> Sealing:
        """The shard's sealing; a client of it is made when it is first asked for."""
        if index == 0:
            return self.sealing
        if index not in self._others:
            tag = shard_tag(self._namespace, index)
            client = self._client_of(tag) if self._client_of else self._home
            self._others[index] = client, Sealing(client, tag, proves=self._proves)
        return self._others[index][1]

    def sketches(self, index: int) -> Sketches:
        return Sketches(self._client(index), shard_tag(self._namespace, index))

    async def now(self, shards: int = 1) -> Look:
        """What is not sealed, of the first so many shards together, and the home shard's clock.

        Raises StoreError if the home shard is away; of others, what they have is missing.
        """
        tags = [shard_tag(self._namespace, index) for index in range(shards)]
        asked = [Current(self._client(index), tag).look() for index, tag in enumerate(tags)]
        home, *others = await asyncio.gather(*asked, return_exceptions=True)
        if isinstance(home, BaseException):
            raise home
        for other in others:
            if isinstance(other, StoreError):
                home = home._replace(ids=None)
            elif isinstance(other, BaseException):
                raise other
            else:
                ids = None if home.ids is None or other.ids is None else home.ids + other.ids
                home = home._replace(ids=ids, late_s=max(home.late_s, other.late_s))
        return home

    def _client(self, index: int) -> Client:
        self.shard(index)  # makes it
        return self._others[index][0] if index else self._home

    async def close(self) -> None:
        """Close the other shards' clients."""
        for client, _ in self._others.values():
            if client is not self._home:
                await client.close()
