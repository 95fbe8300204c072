"""Pending deliveries, messages and callbacks of sealed windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from idagg.errors import DamagedError, WrongTypeError
from idagg.store.client import Client
from idagg.window import Counts, PendingCallback, Record, Sink

# Of a window's endpoints, of up to 2 KiB each: some 0.3 ms of Redis' time.
READ_AT_ONCE = 500


class PendingWindow(NamedTuple):
    """A sealed window. ``dropped`` counts hits whose endpoint was over the limit."""

    record: Record
    dropped: int


class Pending:
    """Raises StoreAwayError (outcome unknown; all calls are safe to repeat), FencedError (another leads),
    DamagedError (it cannot be read, and has to be quarantined).

    ``proves``: what is shown is on as many replicas as the client waits for.
    """

    def __init__(self, client: Client, tag: str, *, proves: bool = False) -> None:
        self._client = client
        self._tag = tag
        self._proves = int(proves)

    async def counts(self) -> Counts:
        return Counts(*await self._client.script("counts", self._tag))

    async def deliveries(self, *, limit: int = 100) -> list[PendingWindow]:
        """The oldest windows that no sink has, oldest first."""
        return await self._windows("deliveries", limit)

    async def messages(self, *, limit: int = 100) -> list[PendingWindow]:
        """The oldest windows that are in the log file for want of a broker, oldest first."""
        return await self._windows("messages", limit)

    async def with_callbacks(self, *, limit: int = 100) -> list[PendingWindow]:
        """The oldest windows with pending callbacks, oldest first."""
        return await self._windows("callbacks", limit)

    async def callbacks(self, start_s: int) -> list[PendingCallback]:
        """The window's pending callbacks."""
        found: dict[bytes, PendingCallback] = {}
        cursor = b"0"
        try:
            while True:
                cursor, *rest = await self._client.script(
                    "callbacks", self._tag, start_s, cursor, READ_AT_ONCE
                )
                if cursor == b"-1":
                    raise DamagedError("callbacks", b"%d" % start_s, rest[0].decode(errors="replace"))
                for i in range(0, len(rest), 3):
                    endpoint, attempts, due_in_ms = rest[i : i + 3]
                    found[endpoint] = PendingCallback(endpoint.decode(), attempts, due_in_ms / 1000)
                if cursor == b"0":
                    return list(found.values())
        except (WrongTypeError, UnicodeDecodeError) as error:
            what = f"the endpoints of window {start_s} cannot be read: {error}"
            raise DamagedError("callbacks", b"%d" % start_s, what) from error

    async def mark_logged(self, epoch: int, start_s: int) -> None:
        """The window's line is in the log file; its message is pending."""
        await self._client.script("mark", self._tag, epoch, start_s, "logged", "log")

    async def mark_delivered(self, epoch: int, start_s: int, sink: Sink = "broker") -> None:
        """Its message is in the queue; or its line in the log file, and there is no broker."""
        await self._client.script("mark", self._tag, epoch, start_s, "delivered", sink)

    async def count_attempts(
        self, epoch: int, start_s: int, attempts: Sequence[PendingCallback]
    ) -> list[bool]:
        """Count attempts at the window's callbacks before they are made; at most 1000. False: the callback is
        not pending any more."""
        args: list[str | int] = []
        for attempt in attempts:
            args += attempt.endpoint, attempt.attempts, round(attempt.due_in_s * 1000)
        return list(map(bool, await self._client.script("attempts", self._tag, epoch, start_s, *args)))

    async def mark_called(self, epoch: int, start_s: int, endpoints: Sequence[str]) -> None:
        assert endpoints  # without any, it would give up all
        await self._client.script("callbacks_done", self._tag, epoch, start_s, *endpoints)

    async def give_up_callbacks(self, epoch: int, start_s: int) -> None:
        """Drop all of the window's pending callbacks."""
        await self._client.script("callbacks_done", self._tag, epoch, start_s)

    async def _windows(
        self, index: Literal["deliveries", "messages", "callbacks"], limit: int
    ) -> list[PendingWindow]:
        found = await self._client.script("pending", self._tag, index, limit, self._proves)
        return [_window(index, *entry) for entry in found]


def _window(index: str, member: bytes, wrong: bytes, *values: bytes) -> PendingWindow:
    if wrong or not member.isdigit():
        what = wrong.decode(errors="replace") or f"{index} has a member that is no window"
        raise DamagedError(index, member, what)
    length_s, unique_ids, estimate, hits, exact, suspect, dropped, epoch = map(int, values)
    record = Record(
        start_s=int(member),
        length_s=length_s,
        unique_ids=unique_ids,
        estimate=estimate,
        hits=hits,
        exact=bool(exact),
        suspect=bool(suspect),
        epoch=epoch,
    )
    return PendingWindow(record, dropped)
