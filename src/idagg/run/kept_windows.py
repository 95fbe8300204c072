"""The kept windows, as the supervisor reads them for what the admin listener serves."""

from __future__ import annotations

from idagg.run.children import Children
from idagg.run.stores import servers
from idagg.store.client import Client
from idagg.store.kept import Kept, KeptWindow
from idagg.store.shards import shard_tag

# A store that takes longer is away for a page that is shown each second.
_TIMEOUT_S = 2.0


class KeptWindows:
    """Connects to the home shard when it is asked for the first time."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._client: Client | None = None
        self._url = ""

    async def newest(self, from_s: int, limit: int) -> list[KeptWindow]:
        """Those that begin at this time or later, newest first. Raises StoreError."""
        settings = self._children.settings
        tag = shard_tag(settings.namespace)
        url = settings.redis_url or self._children.store_url
        if self._client is None or url != self._url:
            await self.close()
            self._client = servers(url, settings.in_force()).client(tag, timeout_s=_TIMEOUT_S)
            self._url = url
        return await Kept(self._client, tag).page(from_s, 2**40, limit=limit, newest_first=True)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()
