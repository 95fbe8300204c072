"""The stream of statuses at ``/api/v1/events``: server-sent events, made once for all listeners.

An event is the status, at once, on each change, and once a second: what keeps a connection alive in proxies,
too. No event is kept for a listener that is slow: it gets the newest one when it can take it, or is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import time

from aiohttp import ClientConnectionResetError, web

from idagg.run.fleet import LOOK_S, Fleet
from idagg.run.problems import ProblemError
from idagg.tasks import end

log = logging.getLogger("idagg.admin")

MAX_LISTENERS = 32
PAUSE_S = 1.0
# Time in which a listener has to make room for an event.
SLOW_S = 5.0
# For how long a listener whose stream has ended waits before it connects again.
RETRY_MS = 1000


class Events:
    """One producer for all listeners. It works while there is one."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._listeners = 0
        self._event: bytes | None = None  # the newest one
        self._news = asyncio.Event()  # replaced with each event
        self._producing: asyncio.Task[None] | None = None
        self._is_over = False

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Serve one listener until it goes, is slow, or this listener stops."""
        if self._listeners >= MAX_LISTENERS:
            raise ProblemError(
                503,
                f"{MAX_LISTENERS} clients listen already: close a page, or ask for /api/v1/status",
                headers={"Retry-After": "5"},
            )
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        )
        self._listeners += 1
        try:
            if self._producing is None:
                self._event = None
                self._producing = asyncio.create_task(self._produce())
                self._producing.add_done_callback(self._produced)
            await response.prepare(request)
            await self._send(request, response)
        finally:
            self._listeners -= 1
            if not self._listeners and self._producing is not None:
                self._producing.cancel()
                self._producing = None
        return response

    async def close(self) -> None:
        """End all streams. Listeners connect again, to the next program after a reload."""
        self._is_over = True
        self._wake()
        if self._producing is not None:
            await end(self._producing)

    async def _send(self, request: web.Request, response: web.StreamResponse) -> None:
        sent: bytes | None = None
        begin = b"retry: %d\n\n" % RETRY_MS
        while not self._is_over and self._producing is not None:
            news, event = self._news, self._event
            if event is None or event is sent:
                await news.wait()
                continue
            try:
                async with asyncio.timeout(SLOW_S):
                    await response.write(begin + event)
            except TimeoutError:
                raise ClientConnectionResetError("the listener is slow") from None
            sent, begin = event, b""

    async def _produce(self) -> None:
        while True:
            made_at, told = time.monotonic(), self._fleet.essence()
            status = await self._fleet.status()
            self._event = b"data: %b\n\n" % status.model_dump_json().encode()
            self._wake()
            while time.monotonic() - made_at < PAUSE_S:
                await asyncio.sleep(LOOK_S)
                if self._fleet.essence() != told:
                    break

    def _produced(self, producing: asyncio.Task[None]) -> None:
        if producing.cancelled():
            return
        log.error(
            "no status can be made: listeners at /api/v1/events are sent away, and counts are not affected",
            exc_info=producing.exception(),
        )
        self._producing = None
        self._wake()

    def _wake(self) -> None:
        """Have all listeners look for what is new."""
        news, self._news = self._news, asyncio.Event()
        news.set()
