"""Fair turns: connections with more than one request are served in slices, in rotation.

A client can pipeline thousands of requests in one read. If they were served at once, every other client of
the worker would wait. So each connection with more than a single plain request queues here. Each turn of the
event loop serves the queue for at most TURN_S, one slice of a connection at a time. New single requests are
served between the turns.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import time
from typing import Protocol

log = logging.getLogger("idagg.accept")

# A quarter of the latency measured at low load (bench, open loop at 10,000 requests a second).
TURN_S = 0.001


class Work(Protocol):
    def work(self) -> bool:
        """Do one slice. True: there is more to do now."""

    def abort(self) -> None:
        """End after an error in ``work``."""


class Turns:
    """The queue of connections that wait for a slice."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: collections.deque[Work] = collections.deque()

    def join(self, work: Work) -> None:
        """Queue ``work`` for one of the next turns. It must not join again before that."""
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
            except Exception:  # one client's error must not affect the others
                log.exception("a request could not be judged, its connection is closed")
                work.abort()
            if time.monotonic() >= ends_s:
                break
        if waiting:
            self._loop.call_soon(self._turn)
