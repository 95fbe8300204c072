"""The last windows, as the status page plots them, lists them and reads them out. Pure."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

from idagg.read import fleet
from idagg.read.page import plot
from idagg.read.page.models import Lane, Plot, Scale, Text, Window
from idagg.read.page.words import UNKNOWN, axis, duration, number, several, window_time
from idagg.store.kept import KeptWindow

# A window that is in no sink so long after its end is late. A leader that is killed costs up to 6 s.
LATE_S = 10.0

_SINKS = {"broker": "RabbitMQ", "log": "log file"}


class Windows:
    """The kept windows by their places in the plot, and the open one.

    ``unsealed`` and ``overdue`` are places of windows that ended more than LATE_S ago. The former are not
    sealed, the counts of the latter are in no sink yet.
    """

    def __init__(self, status: fleet.Status, kept: Iterable[KeptWindow]) -> None:
        now_s, self.length_s = status.now.timestamp(), status.window_s
        self.span = span = plot.span(now_s, self.length_s)
        # For a moment after a boundary, what the leader has told is of the window before.
        is_of_now = status.current is not None and status.current.window_start.timestamp() == span.end_s
        self.so_far = status.current.unique_ids if status.current and is_of_now else None
        self.by_place = {
            place: window
            for window in sorted(kept, key=lambda window: window.record.start_s)
            if (place := span.place(window.record.start_s)) is not None
        }
        ends = [window.record.end_s for window in self.by_place.values()]
        if status.last:
            ends.append(int(status.last.window_end.timestamp()))
        unsealed = range(max([span.start_s, *ends]), span.end_s, self.length_s) if ends else range(0)
        self.unsealed = [
            (start_s - span.start_s) // self.length_s
            for start_s in unsealed
            if now_s - start_s - self.length_s > LATE_S
        ]
        self.overdue = [
            place
            for place, window in self.by_place.items()
            if window.delivered_s is None and now_s - window.record.end_s > LATE_S
        ]

    @property
    def newest(self) -> KeptWindow | None:
        return self.by_place[max(self.by_place)] if self.by_place else None

    @property
    def suspect(self) -> int:
        return sum(window.record.suspect for window in self.by_place.values())

    def plot(self) -> Plot:
        so_far = self.so_far or 0
        top = plot.ceiling([so_far, *(window.record.unique_ids for window in self.by_place.values())])
        drawn = _drawn(
            tuple(self.by_place.items()), self.span, tuple(self.unsealed), tuple(self.overdue), top
        )
        count = UNKNOWN if self.so_far is None else number(self.so_far)
        time = window_time(self.span.end_s, self.length_s)
        return dataclasses.replace(
            drawn,
            current_bar=plot.bars([(plot.PLACES, so_far)], top),
            current_readout=f"{time}: {count} unique ids so far; this window is open",
        )


# The same for a whole window's time: made anew for each view, it was most of the cost of an open page.
@functools.lru_cache(maxsize=2)
def _drawn(
    shown: tuple[tuple[int, KeptWindow], ...],
    span: plot.Span,
    unsealed: tuple[int, ...],
    overdue: tuple[int, ...],
    top: float,
) -> Plot:
    """All but what changes while a window is open."""
    records = {place: window.record for place, window in shown}
    counts = {place: record.unique_ids for place, record in records.items()}
    inexact = [place for place, record in records.items() if not record.exact]
    late = {place for place, window in shown if _took_s(window) > LATE_S}.union(unsealed, overdue)
    missing = set(range(min(records, default=0), max(records, default=0))) - records.keys()
    hits_top = plot.ceiling(record.hits for record in records.values())
    rows = {place: _row(window, is_late=place in late) for place, window in shown}
    return Plot(
        label=_label(shown),
        none=not records,
        some=bool(records),
        first=f"The first one ends at {window_time(span.end_s + span.length_s, span.length_s)} UTC.",
        unique=_scale(top),
        exact_bars=plot.bars(
            ((place, count) for place, count in counts.items() if place not in inexact), top
        ),
        inexact_bars=plot.bars(((place, counts[place]) for place in inexact), top),
        current_bar="",
        estimates=plot.ticks(
            ((place, one.estimate) for place, one in records.items() if one.estimate != one.unique_ids), top
        ),
        hits=_scale(hits_top),
        hits_bars=plot.bars(((place, record.hits) for place, record in records.items()), hits_top),
        inexact=_lane(inexact),
        suspect=_lane(place for place, record in records.items() if record.suspect),
        late=_lane(late),
        missing=_lane(missing),
        times=[Text(_time(span, place)) for place in range(0, plot.PLACES, plot.PLACES // 4)],
        readouts=[
            f"{_time(span, place)}: {_readout(rows.get(place), is_unsealed=place in unsealed)}"
            for place in range(plot.PLACES)
        ],
        current_readout="",
        windows=[rows[place] for place in sorted(rows, reverse=True)],
    )


def _time(span: plot.Span, place: int) -> str:
    return window_time(span.start_s + place * span.length_s, span.length_s)


def _readout(row: Window | None, *, is_unsealed: bool) -> str:
    if row is None:
        return "not sealed yet; its ids are safe in the store" if is_unsealed else "no record"
    estimate = f", estimate {row.estimate}" if row.estimate != row.unique_ids else ""
    return f"{row.unique_ids} unique ids, {row.kind}{estimate}; {row.hits} hits; {row.delivered}"


def _took_s(window: KeptWindow) -> float:
    """Time from its end to its delivery, where it is delivered."""
    return 0.0 if window.delivered_s is None else window.delivered_s - window.record.end_s


def _row(window: KeptWindow, *, is_late: bool) -> Window:
    record = window.record
    kind = "exact" if record.exact else "estimate"
    if record.suspect:
        kind = "suspect: the store has lost writes"
    delivered = "not delivered yet"
    if window.sink is not None:
        delivered = f"{_SINKS[window.sink]} after {duration(_took_s(window))}"
        if window.sink == "log" and window.published_s is not None:
            delivered += f", RabbitMQ after {duration(window.published_s - record.end_s)}"
    return Window(
        start=window_time(record.start_s, record.length_s),
        unique_ids=number(record.unique_ids),
        estimate=number(record.estimate),
        hits=number(record.hits),
        kind=kind,
        delivered=f"{delivered}: late" if is_late else delivered,
    )


def _label(shown: tuple[tuple[int, KeptWindow], ...]) -> str:
    if not shown:
        return "Plot of the last windows: none yet"
    counts = [window.record.unique_ids for _, window in shown]
    first, last = (
        window_time(window.record.start_s, window.record.length_s) for _, window in (shown[0], shown[-1])
    )
    return (
        f"Plot of {several(len(counts), 'window')} from {first} to {last} UTC: "
        f"{number(min(counts))} to {number(max(counts))} unique ids. "
        "Left and right arrow keys read one window after another."
    )


def _scale(top: float) -> Scale:
    return Scale(axis(top), axis(top / 2))


def _lane(places: Iterable[int]) -> Lane:
    places = sorted(places)
    return Lane(not places, plot.blocks(places))
