"""What the API is asked, and what of it is refused; pages; media types."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import AsyncGenerator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idagg.errors import UnfitError
from idagg.read import listing
from idagg.read.counts import Window
from idagg.read.query import (
    BadParameterError,
    NoQuery,
    Order,
    Place,
    Query,
    RangeQuery,
    WindowsQuery,
    clip,
    moment,
    read,
)
from idagg.run.operations import CSV, JSON, chosen
from idagg.store.kept import KeptWindow
from idagg.window import Record, iso
from kit.waiting import NOON


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2027-01-15T08:00:00Z", NOON),
        ("2027-01-15T08:00:00+00:00", NOON),
        ("2027-01-15T09:00:00+01:00", NOON),
        ("2027-01-15T09:00:00 01:00", NOON),  # a + that was not encoded
        ("2027-01-15T08:00Z", NOON),
        ("20270115T080000Z", NOON),
        ("2027-01-15T07:59:59.001Z", NOON),
        (str(NOON), NOON),
        ("100000000", 100_000_000),
        ("9999999999", 9_999_999_999),
    ],
)
def test_moments(text: str, seconds: int) -> None:
    assert moment(text) == seconds


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2027-01-15T08:00:00", "the time has no zone"),
        ("2027-01-15", "the time has no zone"),
        *(
            (text, "this is no time")
            for text in ("", "yesterday", "-1", "1e9", "1.5", "٣", "2027-13-01T00:00Z")
        ),
        *(
            (text, "this is no time")  # a year, a month, a day, a minute, milliseconds
            for text in ("0", "2026", "202611", "20261125", "202611251053", "1800000000000", "9" * 5000)
        ),
        ("0001-01-01T00:00:00Z", "this is before 1970"),
        ("1969-12-31T23:59:58Z", "this is before 1970"),
    ],
)
def test_no_moments(text: str, why: str) -> None:
    """A time that could be meant in two ways is refused, with how to write it."""
    with pytest.raises(UnfitError) as caught:
        moment(text)
    assert str(caught.value).startswith(why)
    assert str(caught.value).endswith("as 2026-11-22T10:53:00Z, or as Unix seconds, of 9 or 10 digits")


@given(
    st.datetimes(
        datetime.datetime(1974, 1, 1), datetime.datetime(2286, 1, 1), timezones=st.just(datetime.UTC)
    )
)
def test_any_moment(when: datetime.datetime) -> None:
    text = when.replace(microsecond=0).isoformat()
    assert moment(text) == moment(str(moment(text)))


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(UnfitError):
        assert 0 <= moment(text) < 2**40
    with contextlib.suppress(UnfitError):
        assert str(Place.parse(text)) == text


@given(st.sampled_from(["newest", "oldest"]), st.integers(0, 10**12 - 1))
def test_cursors(order: Order, start_s: int) -> None:
    assert Place.parse(str(Place(order, start_s))) == Place(order, start_s)


@pytest.mark.parametrize(
    ("model", "given_", "parameter", "why"),
    [
        (WindowsQuery, {"from": ["x"]}, "from", "from cannot be read: this is no time: "),
        (
            RangeQuery,
            {"from": ["2026"]},
            "from",
            "from cannot be read: this is no time: write it with a zone",
        ),
        (WindowsQuery, {"to": ["2027-01-15T08:00:00"]}, "to", "to cannot be read: the time has no zone: "),
        (WindowsQuery, {"limit": ["0"]}, "limit", "limit cannot be read: it is a number from 1 to 10000"),
        (
            WindowsQuery,
            {"limit": ["1000000000"]},
            "limit",
            "limit cannot be read: it is a number from 1 to 10000",
        ),
        (WindowsQuery, {"limit": ["1_0"]}, "limit", "limit cannot be read: it is a number from 1 to 10000"),
        (
            WindowsQuery,
            {"limit": ["9" * 5000]},
            "limit",
            "limit cannot be read: it is a number from 1 to 10000",
        ),
        (
            WindowsQuery,
            {"order": ["up"]},
            "order",
            "order cannot be read: input should be 'newest' or 'oldest'",
        ),
        (WindowsQuery, {"cursor": [str(Place("newest", 7)) + "="]}, "cursor", "cursor cannot be read: "),
        (WindowsQuery, {"cursor": ["MSBuZXdlc3QgMDA3"]}, "cursor", "cursor cannot be read: "),  # of 007
        (WindowsQuery, {"cursor": ["eHh4"]}, "cursor", "cursor cannot be read: this is no cursor: "),
        (WindowsQuery, {"cursor": ["ü"]}, "cursor", "cursor cannot be read: this is no cursor: "),
        (WindowsQuery, {"limit": ["1", "2"]}, "limit", "limit is given 2 times: give it once"),
        (
            WindowsQuery,
            {"fro": ["1"]},
            "fro",
            "fro is no parameter: there are from, to, limit, order, cursor",
        ),
        (WindowsQuery, {"from_": ["1"]}, "from_", "from_ is no parameter: "),
        (NoQuery, {"a": ["1"]}, "a", "a is no parameter: this path has none"),
    ],
)
def test_bad_parameters(model: type[Query], given_: dict[str, list[str]], parameter: str, why: str) -> None:
    """Each is refused by name, in a sentence."""
    with pytest.raises(BadParameterError) as caught:
        read(model, given_)
    assert caught.value.parameter == parameter
    assert str(caught.value).startswith(why)


def query(**given_: str) -> RangeQuery:
    found = read(RangeQuery, {name.strip("_"): [value] for name, value in given_.items()})
    assert isinstance(found, RangeQuery)
    return found


def test_ranges() -> None:
    """What lies in the future is clipped, and said; a range without a past is refused."""
    assert clip(query(), NOON) == (0, NOON, False)
    before = NOON - 60
    assert clip(query(from_=str(before), to=str(before + 2)), NOON) == (before, before + 2, False)
    assert clip(query(from_=str(before), to=str(NOON + 1)), NOON) == (before, NOON, True)
    for bad in (
        query(from_=str(before), to=str(before - 2)),
        query(from_=str(before), to=str(before)),
        query(from_=str(NOON)),
        query(to="1970-01-01T00:00:00Z"),
    ):
        with pytest.raises(BadParameterError):
            clip(bad, NOON)
    with pytest.raises(BadParameterError, match="from is in the future"):
        clip(query(from_=str(NOON + 60), to=str(NOON + 120)), NOON)


class Shelf:
    """Keeps records in memory."""

    def __init__(self, windows: Sequence[KeptWindow]) -> None:
        self.windows = windows

    async def pieces(
        self, from_s: int, to_s: int, *, limit: int, newest_first: bool = False
    ) -> AsyncGenerator[list[KeptWindow], None]:
        found = [kept for kept in self.windows if from_s <= kept.record.start_s < to_s]
        found = sorted(found, key=lambda kept: kept.record.start_s, reverse=newest_first)[:limit]
        for at in range(0, len(found), 200):
            yield found[at : at + 200]


def kept(start_s: int, *, delivered: bool = True) -> KeptWindow:
    record = Record(start_s, 60, start_s % 97, start_s % 97 + 1, start_s % 97 + 5, exact=True, epoch=3)
    return KeptWindow(record, "log" if delivered else None, start_s + 60.0126 if delivered else None)


@pytest.mark.parametrize("order", ["newest", "oldest"])
@pytest.mark.parametrize("limit", [1, 199, 200, 201, 399, 450, 1000])
async def test_pages_add_up(order: Order, limit: int) -> None:
    """Page after page has every window of the range once, in order."""
    shelf = Shelf([kept(60 * number) for number in range(450)])
    begin_s, end_s = 60 * 10, 60 * 440
    found: list[str] = []
    place = None
    while True:
        from_s, to_s = listing.beginning(place, begin_s, end_s) if place else (begin_s, end_s)
        page = await listing.read(shelf, from_s, to_s, limit=limit, order=order, namespace="n")
        assert 0 < len(page.rows) <= limit
        found += (json.loads(row)["window_start"] for row in page.rows)
        if page.next_s is None:
            break
        place = Place(order, page.next_s)
    expected = [iso(60 * number) for number in range(10, 440)]
    assert found == (expected[::-1] if order == "newest" else expected)


async def test_a_window_that_is_pending() -> None:
    shelf = Shelf([kept(0), kept(60, delivered=False)])
    for limit, is_final in ((1, True), (2, False)):
        page = await listing.read(shelf, 0, 999, limit=limit, order="oldest", namespace="n")
        assert page.is_final is is_final


async def test_rows_are_what_the_model_says() -> None:
    """The rows are written without the model, which OpenAPI shows."""
    lost = kept(NOON)._replace(record=kept(NOON).record._replace(exact=False, suspect=True))
    for one in (kept(NOON), kept(NOON, delivered=False), lost):
        row = listing.row(one, "n")
        assert row.keys() == Window.model_fields.keys()
        told = Window.model_validate(row).model_dump(mode="json")
        told["delivered_at"] = told["delivered_at"] and told["delivered_at"].replace("000Z", "Z")
        assert told == row
        assert (row["exact"], row["suspect"]) == (one.record.exact, one.record.suspect)
    page = await listing.read(
        Shelf([kept(NOON), kept(NOON + 60, delivered=False)]),
        0,
        2**40,
        limit=9,
        order="oldest",
        namespace="n",
        as_csv_=True,
    )
    assert (listing.csv_head() + b"".join(page.rows)).decode() == (
        "window_start,window_end,unique_ids,estimate,hits,exact,suspect,message_id,delivered_to,delivered_at\r\n"
        "2027-01-15T08:00:00Z,2027-01-15T08:01:00Z,3,4,8,true,false,n:1800000000,log,2027-01-15T08:01:00.013Z\r\n"
        "2027-01-15T08:01:00Z,2027-01-15T08:02:00Z,63,64,68,true,false,n:1800000060,,\r\n"
    )


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ([], JSON),
        ([""], JSON),
        (["*/*"], JSON),
        (["text/csv"], CSV),
        (["TEXT/CSV; charset=utf-8"], CSV),
        (["text/*"], CSV),
        (["application/json;q=0.1, text/csv"], CSV),
        (["application/json;q=0, */*"], CSV),
        (["text/csv;q=0.5", "application/json;q=0.4"], CSV),
        (["text/html,application/xhtml+xml,*/*;q=0.8"], JSON),
        (["text/html"], None),
        (["*/*;q=0"], None),
        (["text/csv;q=2, x"], CSV),
        (["nonsense, ;;, /"], None),
    ],
)
def test_media_types(accept: list[str], media: str | None) -> None:
    assert chosen(accept, [JSON, CSV]) == media
