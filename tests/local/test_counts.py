"""``idagg counts``: pages put together, in each form, and estimates."""

from __future__ import annotations

import csv
import datetime
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

import pytest

from idagg.ask import times
from idagg.ask.client import Client
from idagg.ask.counts import LAST, PAGE, Asked, run
from idagg.errors import NoAnswerError
from kit.canned import Canned, http

BEGIN = datetime.datetime(2026, 11, 22, 10, tzinfo=datetime.UTC)
COLUMNS = (
    "window_start,window_end,unique_ids,estimate,hits,exact,suspect,message_id,delivered_to,delivered_at"
)
SPAN = ("--from", "2026-11-22T10:53:00Z", "--to", "2026-11-24")
ESTIMATE: dict[str, Any] = {
    "unique_ids": 91204,
    "standard_error": 0.0081,
    "from": "2026-11-22T10:00:00Z",
    "to": "2026-11-23T12:30:00Z",
    "clipped": True,
    "covered": [
        {"from": "2026-11-22T10:00:00Z", "to": "2026-11-23T12:00:00Z", "sketch": "hour"},
        {"from": "2026-11-23T12:00:00Z", "to": "2026-11-23T12:29:00Z", "sketch": "window"},
    ],
    "missing": [{"from": "2026-11-23T12:29:00Z", "to": "2026-11-23T12:30:00Z"}],
    "missing_s": 60,
}


def window(number: int) -> dict[str, object]:
    start, end = (times.iso(BEGIN + datetime.timedelta(minutes=at)) for at in (number, number + 1))
    return {
        "window_start": start,
        "window_end": end,
        "unique_ids": 4000 + number,
        "estimate": 3988,
        "hits": 10000,
        "exact": number != 2,
        "suspect": False,
        "message_id": f"idagg:{BEGIN.timestamp() + 60 * number:.0f}",
        "sealed": True,
        "delivered_to": None if number == 3 else "broker",
        "delivered_at": None if number == 3 else end.replace("Z", ".020Z"),
    }


def page(numbers: Sequence[int], cursor: str | None = None, records_begin: str | None = None) -> bytes:
    """As the API gives it as JSON."""
    body = {
        "windows": [window(number) for number in numbers],
        "order": "oldest",
        "to": "2026-11-24T00:00:00Z",
        "clipped": False,
        "next_cursor": cursor,
        "records_begin": records_begin,
    }
    return http(200, json.dumps(body).encode())


def csv_page(numbers: Sequence[int], cursor: str | None = None) -> bytes:
    """As the API gives it as CSV: the cursor is in the head."""
    lines = [COLUMNS]
    for number in numbers:
        values = (window(number)[name] for name in COLUMNS.split(","))
        lines.append(",".join("" if value is None else str(value) for value in values))
    body = "".join(f"{line}\r\n" for line in lines).encode()
    link = [f'Link: </api/v1/windows?order=oldest&limit=1000&cursor={cursor}>; rel="next"'] if cursor else []
    return http(200, body, "text/csv; charset=utf-8", *link)


def counts(server: Canned, *arguments: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("IDAGG_")}
    return subprocess.run(
        [sys.executable, "-m", "idagg", "counts", "--admin-url", server.url, *arguments],
        env=own,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def said(done: subprocess.CompletedProcess[str]) -> str:
    """What it prints, if it is content."""
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def queries(server: Canned) -> list[dict[str, str]]:
    """Of each request, what is asked."""
    targets = [head.split(" ", 2)[1].partition("?") for head in server.asked]
    assert {path for path, _, _ in targets} == {"/api/v1/windows"}
    return [dict(parse_qsl(query, strict_parsing=True)) for _, _, query in targets]


def test_pages_of_a_table() -> None:
    """One head, and a line for each window of all pages."""
    with Canned(page([0, 1], "a-b_1"), page([2, 3])) as server:
        shown = said(counts(server, *SPAN))
    assert shown == (
        "window (UTC)              unique ids            hits  exact     delivered\n"
        "2026-11-22T10:00:00Z           4,000          10,000  yes       broker 10:01:00\n"
        "2026-11-22T10:01:00Z           4,001          10,000  yes       broker 10:02:00\n"
        "2026-11-22T10:02:00Z           4,002          10,000  estimate  broker 10:03:00\n"
        "2026-11-22T10:03:00Z           4,003          10,000  yes       pending\n"
    )
    span = {"from": SPAN[1], "to": "2026-11-24T00:00:00Z", "order": "oldest", "limit": str(PAGE)}
    assert queries(server) == [span, span | {"cursor": "a-b_1"}]


@pytest.mark.parametrize("pages", [[[]], [[0]], [[0, 1], [2]], [[0], [1], [2, 3]]])
def test_pages_of_json(pages: list[list[int]]) -> None:
    """One array, whatever the pages, with a window a line."""
    cursors = [f"c{number}" for number in range(1, len(pages))]
    answers = [page(numbers, cursor) for numbers, cursor in zip(pages, [*cursors, None], strict=True)]
    with Canned(*answers) as server:
        done = counts(server, *SPAN, "--format", "json")
    numbers = [number for numbers in pages for number in numbers]
    assert json.loads(done.stdout) == [window(number) for number in numbers]
    assert len(done.stdout.splitlines()) == len(numbers) + 2
    assert [query.get("cursor") for query in queries(server)] == [None, *cursors]
    assert ("no record is kept of a window in this range" in done.stderr) == (not numbers)


def test_pages_of_csv() -> None:
    """One head; the cursor is that of the field Link."""
    with Canned(csv_page([0, 1], "a-b_1"), csv_page([2, 3], "a-b_2"), csv_page([4])) as server:
        shown = said(counts(server, *SPAN, "--format", "csv"))
        assert "\r\nAccept: text/csv\r\n" in server.asked[0]
    assert shown.startswith(f"{COLUMNS}\n")
    rows = list(csv.DictReader(shown.splitlines()))
    assert [int(row["unique_ids"]) for row in rows] == [4000, 4001, 4002, 4003, 4004]
    assert [query.get("cursor") for query in queries(server)] == [None, "a-b_1", "a-b_2"]


def test_more_than_a_page() -> None:
    """--limit asks for the newest, page by page and no more than are wanted, and prints them oldest first."""
    newest = list(range(1003, -1, -1))
    with Canned(page(newest[:PAGE], "older"), page(newest[PAGE : PAGE + 2], "older still")) as server:
        shown = json.loads(said(counts(server, "--limit", str(PAGE + 2), "--format", "json")))
    assert [one["unique_ids"] for one in shown] == list(range(4002, 5004))
    assert queries(server) == [
        {"order": "newest", "limit": str(PAGE)},
        {"order": "newest", "limit": "2", "cursor": "older"},
    ]


def test_without_a_range() -> None:
    """The newest windows, of which one page is more than enough. That older ones are not there is no news."""
    with Canned(page([1, 0], "older", "2026-11-22T10:00:00Z")) as server:
        shown = said(counts(server, "--limit", "2")).splitlines()
    assert [line.split()[0] for line in shown[1:]] == ["2026-11-22T10:00:00Z", "2026-11-22T10:01:00Z"]
    with Canned(page([1, 0])) as server:
        said(counts(server))
    assert queries(server) == [{"order": "newest", "limit": str(LAST)}]


def test_older_windows_are_not_there() -> None:
    """It says so once, on standard error: the output stays what it is."""
    begin = "2026-11-22T10:00:00Z"
    with Canned(page([0], "c", begin), page([1], None, begin)) as server:
        done = counts(server, *SPAN)
    assert done.stderr == f"idagg: no record is kept of windows before {begin}\n"
    assert len(done.stdout.splitlines()) == 3


def test_csv_says_so_too() -> None:
    """It has no place for it: the command asks once more. Where no window is left it is a head alone."""
    begin = "2026-11-22T10:00:00Z"
    span = ("--from", "2026-11-22 09:00", "--format", "csv")
    for answers, note, rows in (
        ((csv_page([0], "c"), page([0], "c", begin), csv_page([1])), f"windows before {begin}", 2),
        ((csv_page([]), page([])), "a window in this range", 0),
        ((csv_page([0]), page([0])), "", 1),
    ):
        with Canned(*answers) as server:
            done = counts(server, *span)
        assert done.stderr == (f"idagg: no record is kept of {note}\n" if note else "")
        assert done.stdout.splitlines()[0] == COLUMNS
        assert len(done.stdout.splitlines()) == 1 + rows
        assert [query["limit"] for query in queries(server)][:2] == [str(PAGE), "1"]


def test_an_estimate() -> None:
    """As lines, it says how much of the range it is of."""
    with Canned(http(200, json.dumps(ESTIMATE).encode())) as server:
        shown = said(counts(server, "--estimate", "--from", "2026-11-22 10:00"))
    assert shown == (
        "range       2026-11-22T10:00:00Z to 2026-11-23T12:30:00Z\n"
        "unique ids  91,204, an estimate; its standard error is 0.81%\n"
        "covered     all of the range but 1 min, by sketches of hours and windows\n"
        "missing     2026-11-23T12:29:00Z to 2026-11-23T12:30:00Z\n"
    )
    (asked,) = server.asked
    assert asked.startswith("GET /api/v1/estimate?from=2026-11-22T10%3A00%3A00Z HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("covered", "words"),
    [
        ([], "nothing: no sketch of the range is kept"),
        ([("2026-11-22T10:00:00Z", "2026-11-23T12:30:00Z")], "all of the range, by sketches of days"),
    ],
)
def test_what_an_estimate_is_of(covered: list[tuple[str, str]], words: str) -> None:
    parts = [{"from": begin, "to": end, "sketch": "day"} for begin, end in covered]
    told = ESTIMATE | {"covered": parts, "missing": [], "missing_s": 0}
    with Canned(http(200, json.dumps(told).encode())) as server:
        shown = said(counts(server, "--estimate", "--from", "1h"))
    assert shown.splitlines()[-1] == f"covered     {words}"


def test_an_estimate_of_pieces() -> None:
    """The first missing stretches, and how many more there are."""
    told = ESTIMATE | {"missing": ESTIMATE["missing"] * 12, "missing_s": 720}
    with Canned(http(200, json.dumps(told).encode())) as server:
        shown = said(counts(server, "--estimate", "--from", "1h")).splitlines()
    assert shown[2].startswith("covered     all of the range but 12 min, by")
    assert len([line for line in shown if " to 2026-11-23T12:30:00Z" in line]) == 1 + 10
    assert shown[-1] == "missing     2 more: --format json"


def test_an_estimate_for_programs() -> None:
    """As JSON it is the API's answer, as CSV one row."""
    with Canned(http(200, json.dumps(ESTIMATE).encode())) as server:
        arguments = ("--estimate", "--from", "1h", "--format")
        assert json.loads(said(counts(server, *arguments, "json"))) == ESTIMATE
        assert said(counts(server, *arguments, "csv")) == (
            "from,to,unique_ids,standard_error,missing_s\n"
            "2026-11-22T10:00:00Z,2026-11-23T12:30:00Z,91204,0.0081,60\n"
        )


OTHERS = [b"", b"[]", b"7", b"{}", b'{"windows": 7}']


@pytest.mark.parametrize(
    ("form", "body"),
    [
        *(("table", body) for body in [*OTHERS, b'{"windows": [{}], "next_cursor": null}']),
        *(("json", body) for body in OTHERS),
        ("csv", b""),  # any other row is passed on as it came
    ],
)
def test_counts_of_another_version(form: str, body: bytes) -> None:
    """They are no traceback."""
    answer = http(200, body, "text/csv" if form == "csv" else "application/json")
    says = "counts that this version of idagg cannot read"
    with Canned(answer) as server, pytest.raises(NoAnswerError, match=says):
        run(Client(server.url, None), Asked(None, None, None, form, estimate=False), print)


@pytest.mark.parametrize("form", ["table", "csv"])
def test_an_estimate_of_another_version(form: str) -> None:
    says = "an estimate that this version of idagg cannot read"
    with Canned(http(200, b"{}")) as server, pytest.raises(NoAnswerError, match=says):
        run(Client(server.url, None), Asked("1h", None, None, form, estimate=True), print)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--limit", "0"), "--limit is for windows, and is 1 or more"),
        (("--limit", "2", "--estimate", "--from", "1h"), "--limit is for windows"),
        (("--estimate",), "--estimate needs --from"),
        (("--from", "noon"), "--from: 'noon' is no time"),
        (("--to", "-1y"), "argument --to"),
    ],
)
def test_wrong_arguments(arguments: Sequence[str], words: str) -> None:
    """Nothing is asked then."""
    with Canned(page([0])) as server:
        done = counts(server, *arguments)
    assert (done.returncode, done.stdout, server.asked) == (2, "", [])
    assert words in done.stderr


@pytest.mark.parametrize("form", ["table", "json"])
def test_a_reader_that_has_enough(form: str) -> None:
    """A closed pipe ends it without a word, as it ends other programs: `idagg counts | head`."""
    with Canned(page(range(PAGE), "more")) as server:  # as many as it wants
        command = [sys.executable, "-m", "idagg", "counts", "--admin-url", server.url, *SPAN]
        with subprocess.Popen(
            [*command, "--format", form], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert re.match(rb"window|\[", process.stdout.readline())
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(timeout=60) == 141
