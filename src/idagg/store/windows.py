"""The leader's side of the store, put together."""

from __future__ import annotations

from collections.abc import Callable

from idagg.store.client import Client
from idagg.store.election import Agreed, Election
from idagg.store.merging import Merging
from idagg.store.pending import Pending
from idagg.store.sealing import Sealing
from idagg.store.shards import shard_tag


class WindowStore:
    """``home`` is a client of the home shard, whose owner closes it. ``client_of`` makes clients of the other
    shards, by tag; without it, they are in the same place.

    ``proves``: the clients wait for replicas, and what is shown has to be on them.
    """

    def __init__(
        self,
        home: Client,
        *,
        namespace: str,
        window_s: int,
        exact_limit: int,
        shards: int = 1,
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
        self.merging = Merging(home, tag)
        self.pending = Pending(home, tag, proves=proves)

    def shard(self, index: int) -> Sealing:
        """The shard's sealing; a client of it is made when it is first asked for."""
        if index == 0:
            return self.sealing
        if index not in self._others:
            tag = shard_tag(self._namespace, index)
            client = self._client_of(tag) if self._client_of else self._home
            self._others[index] = client, Sealing(client, tag, proves=self._proves)
        return self._others[index][1]

    async def close(self) -> None:
        """Close the other shards' clients."""
        for client, _ in self._others.values():
            if client is not self._home:
                await client.close()
