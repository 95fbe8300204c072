"""Server-sent events, made once for all listeners: one producer, which works while somebody listens.

An event is made at once, on each change, and once a second: what keeps a connection alive in proxies, too. No
event is kept for a listener that is slow: it gets the newest one when it can take it, or is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from aiohttp import ClientConnectionResetError, web

from idagg.run.problems import ProblemError
from idagg.tasks import end

log = logging.getLogger("idagg.admin")

# Each costs a descriptor, and an event a second.
MAX_LISTENERS = 32
PAUSE_S = 1.0
# Interval at which a change is looked for.
LOOK_S = 0.25
# Time in which a listener has to make room for an event.
SLOW_S = 5.0
# For how long a listener whose stream has ended waits before it connects again.
RETRY_MS = 1000
# The second is for nginx, which would keep what is short until there is more.
_FIELDS = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}


class Broadcast:
    """Tells all listeners.

    ``make`` makes the next event, and calls ``tell``; ``essence`` is what is told at once when it changes;
    ``event`` is the data for a listener that has seen the event of this number, 0 if it has seen none.
    ``name`` and ``instead`` are for sentences: what is listened to, and what one listener too many can do.
    """

    def __init__(
        self,
        make: Callable[[], Awaitable[None]],
        essence: Callable[[], object],
        event: Callable[[int], bytes],
        *,
        name: str,
        instead: str,
    ) -> None:
        self._make = make
        self._essence = essence
        self._event = event
        self._name = name
        self._instead = instead
        self.number = 0  # of the newest event
        self.listeners = 0
        self.producing: asyncio.Task[None] | None = None
        self._is_old = True  # nobody has listened since the newest event, and it may be of long ago
        self._news = asyncio.Event()  # replaced with each event
        self._is_over = False

    def tell(self) -> None:
        """There is a new event."""
        self.number += 1
        self._is_old = False
        self._wake()

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Serve one listener until it goes, is slow, or this ends."""
        if self.listeners >= MAX_LISTENERS:
            raise ProblemError(
                503,
                f"{MAX_LISTENERS} clients listen to {self._name} already: {self._instead}",
                headers={"Retry-After": "5"},
            )
        response = web.StreamResponse(headers=_FIELDS)
        self.listeners += 1
        try:
            if self.producing is None and not self._is_over:
                self._is_old = True
                self.producing = asyncio.create_task(self._produce())
                self.producing.add_done_callback(self._produced)
            await response.prepare(request)
            await self._send(response)
        finally:
            self.listeners -= 1
            if not self.listeners and self.producing is not None:
                self.producing.cancel()
                self.producing = None
        return response

    async def close(self) -> None:
        """End all streams. Listeners connect again, to the next program after a reload."""
        self._is_over = True
        self._wake()
        if self.producing is not None:
            await end(self.producing)

    async def _send(self, response: web.StreamResponse) -> None:
        seen = 0
        begin = b"retry: %d\n\n" % RETRY_MS
        while not self._is_over and self.producing is not None:
            if self._is_old or self.number == seen:
                await self._news.wait()
                continue
            data = self._event(seen)
            seen = self.number
            try:
                async with asyncio.timeout(SLOW_S):
                    await response.write(b"%bdata: %b\n\n" % (begin, data))
            except TimeoutError:
                raise ClientConnectionResetError("the listener is slow") from None
            begin = b""

    async def _produce(self) -> None:
        while True:
            made_at, told = time.monotonic(), self._essence()
            await self._make()
            while time.monotonic() - made_at < PAUSE_S:
                await asyncio.sleep(LOOK_S)
                if self._essence() != told:
                    break

    def _produced(self, producing: asyncio.Task[None]) -> None:
        if producing.cancelled():
            return
        log.error(
            "%s cannot be made: its listeners are sent away, and counts are not affected",
            self._name,
            exc_info=producing.exception(),
        )
        self.producing = None
        self._wake()

    def _wake(self) -> None:
        """Have all listeners look for what is new."""
        news, self._news = self._news, asyncio.Event()
        news.set()
