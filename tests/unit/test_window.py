from __future__ import annotations

import orjson

from idagg.window import Record, iso

RECORD = Record(
    start_s=1_795_431_180,
    length_s=60,
    unique_ids=4000,
    estimate=3988,
    hits=10_000,
    exact=True,
    epoch=3,
)


def test_iso_names_a_second_in_utc() -> None:
    """Times are written in UTC, to the second."""
    assert iso(RECORD.start_s) == "2026-11-23T10:53:00Z"


def test_record_as_json() -> None:
    """The body has the promised fields and no others."""
    assert orjson.loads(RECORD.as_json()) == {
        "window_start": "2026-11-23T10:53:00Z",
        "window_end": "2026-11-23T10:54:00Z",
        "unique_ids": 4000,
        "estimate": 3988,
        "hits": 10_000,
        "exact": True,
    }


def test_a_suspect_record_says_so() -> None:
    """Only there is the field named."""
    suspect = RECORD._replace(exact=False, suspect=True)
    exact = orjson.loads(RECORD.as_json())
    assert orjson.loads(suspect.as_json()) == exact | {"exact": False, "suspect": True}


def test_message_id_names_namespace_and_window() -> None:
    """The message id is the namespace and the window's start."""
    assert RECORD.message_id("idagg") == "idagg:1795431180"
