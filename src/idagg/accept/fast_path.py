"""The fast path: what all connections of a listener share. ``connection.py`` says how one of them works."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re

from idagg.accept.admission import Admission
from idagg.accept.commit import TICK_S
from idagg.accept.connection import Connection
from idagg.accept.fallback import Fallback
from idagg.accept.head import FAST
from idagg.accept.replies import Replies
from idagg.accept.turns import Turns

_NOTHING = re.compile(rb"(?!)").match


class FastPath:
    """What all connections of a listener share. Call it to make the protocol of a new connection.

    Without an admission there is no accept path: every request goes to the fallback app.
    """

    def __init__(
        self,
        admission: Admission | None,
        fallback: Fallback,
        *,
        epoch_s: float,
        deadline_s: float,
        keepalive_s: int,
        max_age_s: float = math.inf,
        cors_origin: str | None = None,
    ) -> None:
        self.admission = admission
        self.fallback = fallback
        self.tally = fallback.tally
        self.match = FAST if admission else _NOTHING
        self.replies = Replies(epoch_s, cors_origin)
        self.turns = Turns()
        self.keepalive_s = keepalive_s
        self.max_age_s = max_age_s
        self.connections: set[Connection] = set()
        self.late: set[Connection] = set()
        self.unjudged_bytes = 0  # and what is set aside for bodies
        self.ticks = 0  # since the start
        self.patience_ticks = max(1, int(deadline_s / 2 / TICK_S))  # that a request may wait to be judged
        self.now_s = 0  # whole seconds since the start; advanced by ``second``
        self.leaving = False

    def __call__(self) -> Connection:
        return Connection(self)

    def tick(self) -> None:
        """To be called every TICK_S."""
        self.ticks += 1
        for connection in list(self.late):
            connection.catch_up()

    def second(self, epoch_s: float) -> None:
        """To be called once a second."""
        self.now_s += 1
        self.replies.at(epoch_s)
        for connection in list(self.connections):
            connection.expire(self.now_s)

    def drain(self) -> None:
        """From now on an answer with nothing unanswered behind it is its connection's last, and says so. An
        idle connection stays for one more request: a client that is just sending it must not find it
        closed."""
        self.leaving = True
        for connection in self.connections:
            connection.leave()

    async def close(self, within_s: float) -> None:
        """Close each connection once its answers are out. Cut off those that have unanswered requests after
        that time, or do not take it."""
        for connection in list(self.connections):
            connection.finish()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while any(map(Connection.is_busy, self.connections)):  # noqa: ASYNC110  any of many ends it
                    await asyncio.sleep(TICK_S / 10)
        await asyncio.sleep(TICK_S)
        for connection in list(self.connections):
            connection.abort()
