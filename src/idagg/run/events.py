"""The stream of statuses at ``/api/v1/events``."""

from __future__ import annotations

from aiohttp import web

from idagg.run.broadcast import Broadcast
from idagg.run.fleet import Fleet


class Events:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._status = b""
        self.broadcast = Broadcast(
            self._make,
            fleet.essence,
            lambda _: self._status,
            name="/api/v1/events",
            instead="close a page, or ask for /api/v1/status",
        )

    async def stream(self, request: web.Request) -> web.StreamResponse:
        return await self.broadcast.stream(request)

    async def close(self) -> None:
        await self.broadcast.close()

    async def _make(self) -> None:
        self._status = (await self._fleet.status()).model_dump_json().encode()
        self.broadcast.tell()
