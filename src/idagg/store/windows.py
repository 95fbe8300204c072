"""The side of the store that looks at windows, seals and delivers them, put together."""

from __future__ import annotations

from idagg.store.client import Client
from idagg.store.current import Current
from idagg.store.election import Agreed, Election
from idagg.store.pending import Pending
from idagg.store.sealing import Sealing
from idagg.store.shards import shard_tag


class WindowStore:
    def __init__(self, client: Client, *, namespace: str, window_s: int, exact_limit: int) -> None:
        tag = shard_tag(namespace)
        self.election = Election(client, tag, Agreed(window_s, exact_limit))
        self.sealing = Sealing(client, tag)
        self.pending = Pending(client, tag)
        self.current = Current(client, tag)
