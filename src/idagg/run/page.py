"""The status page's routes on the admin listener: ``/``, and what its script asks for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, Protocol

import orjson
from aiohttp import web

from idagg.errors import StoreError
from idagg.read import fleet
from idagg.read.page import plot
from idagg.read.page.models import View
from idagg.read.page.patch import patch
from idagg.read.page.render import Page
from idagg.read.page.view import view
from idagg.run.broadcast import Broadcast
from idagg.store.kept import KeptWindow
from idagg.tasks import end

log = logging.getLogger("idagg.admin")

# A view that is not older than this is shown again: nobody keeps the supervisor busy by asking.
_FRESH_S = 0.25
# Interval at which the kept windows are read again, where nothing new is expected of them.
_READ_S = 15.0
# The same, while a window that has ended is not delivered.
_READ_SOON_S = 0.9
# Time for which a view waits for them. It goes without where the store takes longer, or is away.
_READING_S = 0.3


class Fleet(Protocol):
    async def status(self) -> fleet.Status: ...

    def essence(self) -> object:
        """What is told at once when it changes."""


class Windows(Protocol):
    async def newest(self, from_s: int, limit: int) -> Sequence[KeptWindow]:
        """The newest ones that begin at this time or later. Raises StoreError."""


class StatusPage:
    """Serves the page, and tells all open pages what changes."""

    def __init__(self, fleet: Fleet, kept: Windows) -> None:
        self._fleet = fleet
        self._kept = kept
        self._page = Page()
        self._windows: Sequence[KeptWindow] = ()
        self._read_at = -_READ_S
        self._reading: asyncio.Task[None] | None = None
        self._making = asyncio.Lock()
        self._made_at = -_FRESH_S
        self._view: View | None = None
        self._whole: dict[str, Any] = {}  # the view as JSON
        self._patch = b""  # from the view before
        self.broadcast = Broadcast(
            self._make,
            fleet.essence,
            self._event,
            name="/page/events",
            instead="this page has to ask for what is new",
        )

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/", self._html),
            web.get("/page/view", self._latest),
            web.get("/page/events", self._events, allow_head=False),
        ]

    async def close(self) -> None:
        """End the streams."""
        await self.broadcast.close()
        if self._reading:
            await end(self._reading)

    async def _html(self, request: web.Request) -> web.Response:
        body = self._page.html(await self._present())
        headers = {"Content-Security-Policy": self._page.policy}
        return web.Response(body=body, content_type="text/html", charset="utf-8", headers=headers)

    async def _latest(self, request: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(await self._present()), content_type="application/json")

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: the whole view, then a merge patch for each change of it."""
        return await self.broadcast.stream(request)

    def _event(self, seen: int) -> bytes:
        return self._patch if seen and seen == self.broadcast.number - 1 else orjson.dumps(self._whole)

    async def _present(self) -> View:
        if self._view is None or time.monotonic() - self._made_at > _FRESH_S:
            await self._make()
        assert self._view is not None
        return self._view

    async def _make(self) -> None:
        async with self._making:
            status = await self._fleet.status()
            await self._look_at_windows(status)
            self._view = view(status, self._windows, self._page.build)
            whole = orjson.loads(orjson.dumps(self._view))
            self._patch = orjson.dumps(patch(self._whole, whole))
            self._whole = whole
            self._made_at = time.monotonic()
            self.broadcast.tell()

    async def _look_at_windows(self, status: fleet.Status) -> None:
        """Read the kept windows, where there may be news of them."""
        span = plot.span(status.now.timestamp(), status.window_s)
        newest = max((window.record.end_s for window in self._windows), default=0)
        is_settled = newest >= span.end_s and all(window.sink for window in self._windows)
        is_due = time.monotonic() - self._read_at >= (_READ_S if is_settled else _READ_SOON_S)
        if is_due and (self._reading is None or self._reading.done()):
            self._read_at = time.monotonic()
            self._reading = asyncio.create_task(self._read(span))
        if self._reading is not None and not self._reading.done():
            await asyncio.wait([self._reading], timeout=_READING_S)

    async def _read(self, span: plot.Span) -> None:
        try:
            self._windows = await self._kept.newest(span.start_s, plot.PLACES)
        except StoreError as error:
            log.debug("the status page shows the windows that were read last: %s", error)
