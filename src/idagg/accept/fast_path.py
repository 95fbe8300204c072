"""The fast path: the state that all connections of a listener share. ``connection.py`` has a single one."""

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
    """The shared state of a listener's connections. A call creates the protocol of a new connection.

    If ``admission`` is None, there is no accept path: every request goes to the fallback app.
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
        self.unjudged_bytes = 0  # and bytes reserved for bodies
        self.ticks = 0  # since the start
        self.patience_ticks = max(1, int(deadline_s / 2 / TICK_S))  # limit of an unjudged request's wait
        self.now_s = 0  # whole seconds since the start; advanced by ``second``
        self.leaving = False
        self.turned_away = 0  # connections, for want of descriptors

    def __call__(self) -> Connection:
        return Connection(self)

    def tick(self) -> None:
        """Let late connections catch up. To be called every TICK_S."""
        self.ticks += 1
        for connection in list(self.late):
            connection.catch_up()

    def second(self, epoch_s: float) -> None:
        """Renew the Date field and drop expired connections. To be called once a second."""
        self.now_s += 1
        self.replies.at(epoch_s)
        for connection in list(self.connections):
            connection.expire(self.now_s)

    def drain(self) -> None:
        """Begin to end all connections.

        From now on, the last outstanding answer of a connection has ``Connection: close`` and ends it. An
        idle connection stays open for one more request, because a client may be sending it just now.
        """
        self.leaving = True
        for connection in self.connections:
            connection.leave()

    async def close(self, within_s: float) -> None:
        """Close connections after their outstanding answers. Abort those still open after ``within_s``."""
        for connection in list(self.connections):
            connection.finish()
        await asyncio.sleep(TICK_S / 10)  # what has arrived is read meanwhile
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while any(map(Connection.is_busy, self.connections)):  # noqa: ASYNC110  any of many ends it
                    await asyncio.sleep(TICK_S / 10)
        await asyncio.sleep(TICK_S)
        for connection in list(self.connections):
            connection.abort()
