"""Records of sealed windows, kept so that they can be read back."""

from __future__ import annotations

from typing import NamedTuple

import orjson

from idagg.errors import StoreRefusedError
from idagg.store.client import Client
from idagg.window import DAY_S, Record, Sink

KEEP_S = 35 * DAY_S
# Records in one look, beyond which it takes no further hour: some 1 ms of Redis' time.
_READ_AT_ONCE = 1_500
_HOUR_S = 3_600
# No window starts so late; a Lua number holds it exactly.
_END_OF_TIME_S = 2**48


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
        from_s, to_s = max(from_s, 0), min(to_s, _END_OF_TIME_S)
        found: list[KeptWindow] = []
        while from_s < to_s and len(found) < limit:
            wanted = min(limit - len(found), _READ_AT_ONCE)
            hours = await self._client.script("kept", self._tag, from_s, to_s, wanted, int(newest_first))
            if not hours:
                break
            for hour, records in hours:
                found += self._windows(hour, records, from_s, to_s, newest_first=newest_first)
            last_s = int(hours[-1][0])
            if newest_first:
                to_s = last_s
            else:
                from_s = last_s + _HOUR_S
        return found[:limit]

    async def one(self, start_s: int) -> KeptWindow | None:
        """The window with this start; None if no record of it is kept."""
        found = await self.page(start_s, start_s + 1, limit=1)
        return found[0] if found else None

    async def span(self) -> tuple[int, int] | None:
        """The starts of the oldest and the newest window; None if no record is kept."""
        oldest = await self.page(0, _END_OF_TIME_S, limit=1)
        newest = await self.page(0, _END_OF_TIME_S, limit=1, newest_first=True)
        return (oldest[0].record.start_s, newest[0].record.start_s) if oldest and newest else None

    def _windows(
        self, hour: bytes, records: bytes, from_s: int, to_s: int, *, newest_first: bool
    ) -> list[KeptWindow]:
        """An hour's windows in the range, in order."""
        try:
            each = orjson.loads(records)
            pairs = sorted(zip(each[::2], each[1::2], strict=True), reverse=newest_first)
            return [_window(start_s, *row) for start_s, row in pairs if from_s <= start_s < to_s]
        except (ValueError, TypeError) as error:
            raise StoreRefusedError(
                f"{self._tag}:kept:{hour.decode()} holds what idagg did not write, and its windows' records "
                f"cannot be read back; delivered counts are not concerned: remove the key ({error})"
            ) from error


def _window(
    start_s: int,
    length_s: int,
    unique_ids: int,
    estimate: int,
    hits: int,
    exact: int,
    suspect: int,
    _dropped: int,
    epoch: int,
    logged_ms: int | None,
    published_ms: int | None,
) -> KeptWindow:
    record = Record(start_s, length_s, unique_ids, estimate, hits, exact == 1, epoch, suspect == 1)
    end_s = start_s + length_s
    published_s = None if published_ms is None else end_s + published_ms / 1000
    if logged_ms is None:
        return KeptWindow(record, None if published_s is None else "broker", published_s, published_s)
    logged_s = end_s + logged_ms / 1000
    if published_s is None or logged_s <= published_s:
        return KeptWindow(record, "log", logged_s, published_s)
    return KeptWindow(record, "broker", published_s, published_s)
