"""Records of sealed windows, kept so that they can be read back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import NamedTuple

import orjson

from idagg.errors import StoreRefusedError
from idagg.store.client import Client
from idagg.window import DAY_S, Record, Sink

KEEP_S = 35 * DAY_S
# Windows in a piece: an event loop is busy with their rows for some 1 ms.
PIECE = 200
# Records in one look, beyond which it takes no further hour: some 1 ms of Redis' time.
_READ_AT_ONCE = 1_500
_HOUR_S = 3_600
# No window starts so late; a Lua number holds it exactly.
END_OF_TIME_S = 2**48


class KeptWindow(NamedTuple):
    """A sealed window's record, and what became of it.

    ``sink`` and ``delivered_s`` tell of its first delivery: which sink took the count, and when by the
    store's clock, Unix time. None: it is still pending. ``published_s`` is when RabbitMQ had it, also if the
    log file had it before; None: it has not.
    """

    record: Record
    sink: Sink | None
    delivered_s: float | None
    published_s: float | None = None


class Kept:
    """Reads what the leader keeps on the home shard (``merge.lua``, ``mark.lua``). Raises StoreError.

    A window that was sealed before this version, or by a leader of the version before, is missing.
    """

    def __init__(self, client: Client, tag: str) -> None:
        self._client = client
        self._tag = tag

    async def page(
        self, from_s: int, to_s: int, *, limit: int, newest_first: bool = False
    ) -> list[KeptWindow]:
        """Windows whose start is in [from_s, to_s), at most so many, in order. If there are as many as
        ``limit``, there may be more: then the next page begins after the last one's start, or ends with
        it."""
        found: list[KeptWindow] = []
        async with contextlib.aclosing(
            self.pieces(from_s, to_s, limit=limit, newest_first=newest_first)
        ) as pieces:
            async for piece in pieces:
                found += piece
        return found

    async def pieces(
        self, from_s: int, to_s: int, *, limit: int, newest_first: bool = False
    ) -> AsyncGenerator[list[KeptWindow], None]:
        """The same page in pieces of an hour or less, none of more than PIECE windows."""
        first_s, end_s = max(from_s, 0), min(to_s, END_OF_TIME_S)
        left = limit
        asking = self._ask(first_s, end_s, left, newest_first=newest_first)
        try:
            while asking is not None and (hours := await asking):
                last_s = int(hours[-1][0])
                at_s = (first_s, last_s) if newest_first else (last_s + _HOUR_S, end_s)
                asking = None
                if left > _READ_AT_ONCE:
                    # The server works on these while those that have come are read here.
                    asking = self._ask(*at_s, left - _READ_AT_ONCE, newest_first=newest_first)
                    await asyncio.sleep(0)
                for hour, records in hours:
                    windows = self._windows(hour, records, first_s, end_s, newest_first=newest_first)[:left]
                    left -= len(windows)
                    for at in range(0, len(windows), PIECE):
                        yield windows[at : at + PIECE]
                if asking is None:
                    asking = self._ask(*at_s, left, newest_first=newest_first)
        finally:
            if asking is not None:
                asking.cancel()

    def _ask(
        self, from_s: int, to_s: int, wanted: int, *, newest_first: bool
    ) -> asyncio.Task[list[tuple[bytes, bytes]]] | None:
        """So many records of whole hours, or some more."""
        if from_s >= to_s or wanted <= 0:
            return None
        at_once = min(wanted, _READ_AT_ONCE)
        asking = asyncio.create_task(
            self._client.script("kept", self._tag, from_s, to_s, at_once, int(newest_first))
        )
        asking.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may not be awaited
        return asking

    async def one(self, start_s: int) -> KeptWindow | None:
        """The window with this start; None if no record of it is kept."""
        found = await self.page(start_s, start_s + 1, limit=1)
        return found[0] if found else None

    async def begin_s(self) -> int | None:
        """The start of the oldest window; None if no record is kept."""
        oldest = await self.page(0, END_OF_TIME_S, limit=1)
        return oldest[0].record.start_s if oldest else None

    def _windows(
        self, hour: bytes, records: bytes, from_s: int, to_s: int, *, newest_first: bool
    ) -> list[KeptWindow]:
        """An hour's windows in the range, in order."""
        try:
            each = orjson.loads(records)
            pairs = sorted(zip(each[::2], each[1::2], strict=True), reverse=newest_first)
            return [_window(start_s, row) for start_s, row in pairs if from_s <= start_s < to_s]
        except (ValueError, TypeError) as error:
            raise StoreRefusedError(
                f"{self._tag}:kept:{hour.decode()} holds what idagg did not write, and its windows' records "
                f"cannot be read back; delivered counts are not concerned: remove the key ({error})"
            ) from error


def _window(start_s: int, row: list[int | None]) -> KeptWindow:
    """Without a call more than it needs: there are 50,000 of 35 days."""
    length_s, unique_ids, estimate, hits, exact, suspect, _dropped, epoch, logged_ms, published_ms = row
    record = Record(start_s, length_s, unique_ids, estimate, hits, exact == 1, epoch, suspect == 1)  # type: ignore[arg-type]  # only the last two can be null
    end_s = start_s + length_s  # type: ignore[operator]  # the same
    if logged_ms is None:
        if published_ms is None:
            return KeptWindow(record, None, None)
        published_s = end_s + published_ms / 1000
        return KeptWindow(record, "broker", published_s, published_s)
    logged_s = end_s + logged_ms / 1000
    if published_ms is None:
        return KeptWindow(record, "log", logged_s)
    published_s = end_s + published_ms / 1000
    return KeptWindow(
        record, *(("log", logged_s) if logged_s <= published_s else ("broker", published_s)), published_s
    )
