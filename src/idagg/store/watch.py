"""A look, now and then, at whether the servers are still set up so that they keep what they acknowledge."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from idagg.errors import StoreError
from idagg.store.address import Kind
from idagg.store.client import Client
from idagg.store.probe import look, risks
from idagg.store.servers import Servers

log = logging.getLogger("idagg.store")

# A setting is changed by a person, or by a failover; an operator learns of it within the minute.
LOOK_S = 30.0
# While the servers do not answer, which others tell.
RETRY_S = 2.0
_TIMEOUT_S = 5.0


class Watch:
    """``risk`` says how ids are lost, or may be; None while nothing is known against the servers."""

    def __init__(
        self,
        servers: Servers,
        tags: Sequence[str],
        *,
        kind: Kind,
        replicas: int,
        on_look: Callable[[int], None] = lambda risks: None,
    ) -> None:
        self._servers = servers
        self._tags = tags
        self._kind: Kind = kind
        self._replicas = replicas
        self._on_look = on_look
        self._found: dict[str, list[str]] = {}  # by tag, when its server answered last
        self.risk: str | None = None

    async def run(self) -> None:
        """Look for ever."""
        while True:
            answered = await asyncio.gather(*map(self._look, self._tags))
            if not any(answered):
                await asyncio.sleep(RETRY_S)
                continue
            # Several shards can have one server.
            found = list(dict.fromkeys(risk for of_one in self._found.values() for risk in of_one))
            self._on_look(len(found))
            told, self.risk = self.risk, "; ".join(found) or None
            if self.risk and self.risk != told:
                log.warning("%s", self.risk)
            elif told and not self.risk:
                log.info("the store's servers keep what they acknowledge again")
            await asyncio.sleep(LOOK_S if all(answered) else RETRY_S)

    async def _look(self, tag: str) -> bool:
        """False if the shard's server does not answer."""
        client: Client = self._servers.client(tag, timeout_s=_TIMEOUT_S)
        try:
            seen = await look(client)
        except StoreError:
            return False
        finally:
            await client.close()
        self._found[tag] = risks(seen, kind=self._kind, replicas=self._replicas)
        return True
