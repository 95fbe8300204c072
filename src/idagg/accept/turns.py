"""Fair turns: connections that sent more than one request at a time are worked off a little at a time.

A client can pipeline thousands of requests in one read. Served at once, they would hold up every other
client of the worker for as long as they take. So whatever is not a single plain request waits here, and each
turn of the event loop works for at most TURN_S on those who wait, one slice of each in rotation. New single
requests are served in between.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import time
from typing import Protocol

log = logging.getLogger("idagg.accept")

# A quarter of the latency that callers see when it is quiet (bench, open loop at 10,000 requests a second).
TURN_S = 0.001


class Work(Protocol):
    def work(self) -> bool:
        """Do a slice. True: there is more, and it can be done now."""

    def abort(self) -> None:
        """It has failed."""


class Turns:
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: collections.deque[Work] = collections.deque()

    def join(self, work: Work) -> None:
        """Have ``work`` called in one of the next turns. It must not join again before that."""
        if not self._waiting:
            self._loop.call_soon(self._turn)
        self._waiting.append(work)

    def _turn(self) -> None:
        ends_s = time.monotonic() + TURN_S
        waiting = self._waiting
        while waiting:
            work = waiting.popleft()
            try:
                if work.work():
                    waiting.append(work)
            except Exception:  # one client's trouble must not become everyone's
                log.exception("a request could not be looked at, its connection is closed")
                work.abort()
            if time.monotonic() >= ends_s:
                break
        if waiting:
            self._loop.call_soon(self._turn)
