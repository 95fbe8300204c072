"""Reads pages of sealed windows in steps, so that no step keeps an event loop busy for more than 2 ms."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import NamedTuple, Protocol

import orjson

from idagg.read.query import Order, Place
from idagg.store.kept import KeptWindow
from idagg.window import iso

COLUMNS = (
    "window_start",
    "window_end",
    "unique_ids",
    "estimate",
    "hits",
    "exact",
    "suspect",
    "message_id",
    "delivered_to",
    "delivered_at",
)


class Kept(Protocol):
    """Where records are kept; see ``store.kept``."""

    def pieces(
        self, from_s: int, to_s: int, *, limit: int, newest_first: bool = False
    ) -> AsyncGenerator[list[KeptWindow], None]: ...


class Page(NamedTuple):
    """Rows of windows by the names of their model's fields. ``next_s`` is the start of the next page's first
    window. ``is_final``: every window of it is delivered, so that it stays as it is."""

    rows: list[bytes]
    next_s: int | None
    is_final: bool


def row(kept: KeptWindow, namespace: str) -> dict[str, object]:
    """A window as its model has it. The model itself would take ten times as long."""
    record = kept.record
    return {
        "window_start": iso(record.start_s),
        "window_end": iso(record.end_s),
        "unique_ids": record.unique_ids,
        "estimate": record.estimate,
        "hits": record.hits,
        "exact": record.exact,
        "suspect": record.suspect,
        "message_id": record.message_id(namespace),
        "sealed": True,
        "delivered_to": kept.sink,
        "delivered_at": None if kept.delivered_s is None else iso_ms(kept.delivered_s),
    }


def as_json(rows: Iterable[dict[str, object]]) -> list[bytes]:
    return [orjson.dumps(one) for one in rows]


def as_csv(rows: Iterable[dict[str, object]]) -> list[bytes]:
    """Without the head. Booleans are true and false, what is not known is empty (RFC 4180)."""
    text = io.StringIO()
    writer = csv.writer(text)
    for one in rows:
        values = (one[name] for name in COLUMNS)
        writer.writerow([str(value).lower() if isinstance(value, bool) else value for value in values])
    return [text.getvalue().encode()]


def csv_head() -> bytes:
    return ",".join(COLUMNS).encode() + b"\r\n"


def iso_ms(epoch_s: float) -> str:
    """To the millisecond."""
    whole, ms = divmod(round(epoch_s * 1000), 1000)
    return f"{iso(whole)[:-1]}.{ms:03}Z"


async def read(
    kept: Kept, from_s: int, to_s: int, *, limit: int, order: Order, namespace: str, as_csv_: bool = False
) -> Page:
    """One page, and where the next begins. Raises StoreError."""
    encode = as_csv if as_csv_ else as_json
    rows: list[bytes] = []
    count, next_s, is_final = 0, None, True
    # One more tells whether there is a next page.
    pieces = kept.pieces(from_s, to_s, limit=limit + 1, newest_first=order == "newest")
    async with contextlib.aclosing(pieces):
        async for found in pieces:
            shown: Sequence[KeptWindow] = found[: limit - count]
            rows += encode(row(one, namespace) for one in shown)
            is_final = is_final and all(one.sink is not None for one in shown)
            count += len(shown)
            if len(shown) < len(found):
                next_s = found[len(shown)].record.start_s
            await asyncio.sleep(0)  # others have their turn
    return Page(rows, next_s, is_final)


def beginning(place: Place, from_s: int, to_s: int) -> tuple[int, int]:
    """What of the range is left from the place on."""
    if place.order == "newest":
        return from_s, min(to_s, place.start_s + 1)
    return max(from_s, place.start_s), to_s
