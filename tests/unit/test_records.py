"""What idagg writes, read by the library for its consumers."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import email.message
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idagg import records
from idagg.deliver import logfile
from idagg.signing import Signer
from idagg.window import PERIOD_S, Period, Record, Rollup

NEW, OLD, OTHER = (f"whsec_{base64.b64encode(24 * letter).decode()}" for letter in (b"n", b"o", b"x"))
NOW_S = 1795344840
RECORD = Record(
    start_s=NOW_S - 60, length_s=60, unique_ids=4000, estimate=3988, hits=10000, exact=True, epoch=7
)
WEBHOOK_ID = f"{RECORD.message_id('idagg')}:0b0962010370112d"
LINE = logfile.window_line(RECORD, time_s=NOW_S)
HOUR = Rollup(period="hour", start_s=1795341600, unique_ids=91204, hits=600_000, suspect=False, epoch=7)
HOUR_LINE = logfile.rollup_line(HOUR, time_s=NOW_S)

sizes = st.integers(0, 2**63)
moments = st.integers(0, 250_000_000_000)
# Surrogates and control characters, too; two surrogates that meet are one character to a JSON parser.
texts = st.text(st.characters()).map(
    lambda text: text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
)
written = st.builds(
    Record,
    start_s=moments,
    length_s=st.integers(1, 3600),
    unique_ids=sizes,
    estimate=sizes,
    hits=sizes,
    exact=st.booleans(),
    epoch=sizes,
    suspect=st.booleans(),
)


def starting(period: Period) -> st.SearchStrategy[Rollup]:
    return st.builds(
        Rollup,
        period=st.just(period),
        start_s=moments.map(lambda start_s: start_s - start_s % PERIOD_S[period]),
        unique_ids=sizes,
        hits=sizes,
        suspect=st.booleans(),
        epoch=sizes,
    )


rolled_up = starting("hour") | starting("day")


def utc(epoch_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(epoch_s, datetime.UTC)


def signed(*secrets: str, body: bytes | None = None, at_s: int = NOW_S) -> dict[str, str]:
    return Signer(secrets).headers(WEBHOOK_ID, at_s, RECORD.as_json() if body is None else body)


def matches(found: records.Window | records.WindowLine, record: Record, namespace: str) -> bool:
    return (
        found.message_id == record.message_id(namespace)
        and found.window_start == utc(record.start_s)
        and all(
            getattr(found, name) == getattr(record, name)
            for name in ("unique_ids", "estimate", "hits", "exact", "suspect")
        )
    )


@given(written, st.from_regex(r"\A[A-Za-z0-9._-]{1,64}\Z"))
def test_messages(record: Record, namespace: str) -> None:
    """A message's body and id are read as they were written, and can be made again."""
    found = records.parse_message(record.as_json(), record.message_id(namespace), "idagg.window")
    assert matches(found, record, namespace)
    assert found.window_end == utc(record.end_s)
    assert [*json.loads(found.body()).items()] == [*json.loads(record.as_json()).items()]


@given(written, st.integers(0, 10**15), st.none() | texts)
def test_lines_of_windows(record: Record, time_ms: int, reason: str | None) -> None:
    """A window's line is read as it was written, whatever the reason in it."""
    time_ms %= 250_000_000_000_000
    line = logfile.window_line(record, time_s=time_ms / 1000, reason=reason)
    found = records.parse_line(f"{line}\n", "a.b")
    assert isinstance(found, records.WindowLine)
    assert matches(found, record, "a.b")
    assert (found.level, found.reason) == ("INFO", reason)
    assert abs((found.time - utc(time_ms / 1000)).total_seconds()) <= 0.001


@given(rolled_up, st.from_regex(r"\A[A-Za-z0-9._-]{1,64}\Z"))
def test_messages_of_hours_and_days(rollup: Rollup, namespace: str) -> None:
    """A roll-up's message is read as it was written, and can be made again. It is not taken for a window."""
    message = rollup.as_json(), rollup.message_id(namespace), rollup.message_type
    found = records.parse_rollup(*message)
    assert dataclasses.asdict(found) == {
        "message_id": rollup.message_id(namespace),
        "period": rollup.period,
        "start": utc(rollup.start_s),
        "end": utc(rollup.end_s),
        "unique_ids": rollup.unique_ids,
        "hits": rollup.hits,
        "suspect": rollup.suspect,
    }
    assert [*json.loads(found.body()).items()] == [*json.loads(rollup.as_json()).items()]
    with pytest.raises(records.ParseError, match="parse_rollup reads it"):
        records.parse_message(*message)
    with pytest.raises(records.ParseError, match="its id"):
        records.parse_message(*message[:2])


@given(rolled_up, st.none() | texts)
def test_lines_of_hours_and_days(rollup: Rollup, reason: str | None) -> None:
    """A roll-up's line is read as it was written, and has the id of its message."""
    line = logfile.rollup_line(rollup, time_s=NOW_S + 0.047, reason=reason)
    assert records.parse_line(f"{line}\n", "a.b") == records.RollupLine(
        time=utc(NOW_S) + datetime.timedelta(milliseconds=47),
        level="INFO",
        message_id=rollup.message_id("a.b"),
        period=rollup.period,
        start=utc(rollup.start_s),
        unique_ids=rollup.unique_ids,
        hits=rollup.hits,
        suspect=rollup.suspect,
        reason=reason,
    )


def test_every_type_of_message_is_known() -> None:
    """Each that idagg sends for a period."""
    assert tuple(HOUR._replace(period=period).message_type for period in PERIOD_S) == records.ROLLUPS


@given(
    st.builds(
        logfile.CallbackLine,
        window_s=moments,
        url=st.none() | texts,
        status=st.none() | st.integers(100, 999),
        error=st.none() | texts,
        attempts=st.integers(0, 5),
        ms=sizes,
        location=st.none() | texts,
        address=st.none() | texts,
        endpoints=st.none() | sizes,
        silenced_s=st.none() | sizes,
    )
)
def test_lines_of_callbacks(line: logfile.CallbackLine) -> None:
    """A callback's line is read as it was written, whatever a caller has put into it."""
    found = records.parse_line(line.text(NOW_S + 0.047))
    assert isinstance(found, records.CallbackLine)
    fields = dataclasses.asdict(line)
    assert found.window_start == utc(fields.pop("window_s"))
    assert {name: getattr(found, name) for name in fields} == fields
    assert found.time == utc(NOW_S) + datetime.timedelta(milliseconds=47)
    assert found.level == ("INFO" if line.status in range(200, 300) else "WARNING")


def test_a_later_version() -> None:
    """Fields that it adds are ignored."""
    body = json.dumps(json.loads(RECORD.as_json()) | {"shards": 4}).encode()
    assert records.parse_message(body, "idagg:1795344780").unique_ids == 4000
    body = json.dumps(json.loads(HOUR.as_json()) | {"shards": 4}).encode()
    assert records.parse_rollup(body, "idagg:hour:1795341600", "idagg.hour").unique_ids == 91204
    line = records.parse_line(LINE.replace(" sink=log", ' shards=4 mood="well" sink=log'))
    assert line == records.parse_line(LINE)


@pytest.mark.parametrize(
    ("body", "message_id", "message_type"),
    [
        (RECORD.as_json(), "idagg:1795344780", "idagg.quarter"),
        (RECORD.as_json(), "idagg:1795344780", None),
        (RECORD.as_json(), None, "idagg.window"),
        (RECORD.as_json(), "1795344780", "idagg.window"),
        (RECORD.as_json(), "idagg:1795344840", "idagg.window"),
        (b"4000", "idagg:1795344780", "idagg.window"),
        (b"", "idagg:1795344780", "idagg.window"),
        (b"\xff", "idagg:1795344780", "idagg.window"),
        (b"[" * 100_000, "idagg:1795344780", "idagg.window"),
        *(
            (
                json.dumps(json.loads(RECORD.as_json()) | {name: value}).encode(),
                "idagg:1795344780",
                "idagg.window",
            )
            for name, value in {
                "unique_ids": True,
                "estimate": "3988",
                "hits": -1,
                "exact": 1,
                "suspect": None,
                "window_start": 1795344780,
                "window_end": "2026-13-22T10:53:00Z",
            }.items()
        ),
    ],
)
def test_no_message(body: bytes, message_id: str | None, message_type: str | None) -> None:
    with pytest.raises(records.ParseError, match="no record of idagg"):
        records.parse_message(body, message_id, message_type)


@pytest.mark.parametrize(
    ("body", "message_id", "message_type"),
    [
        (RECORD.as_json(), "idagg:1795344780", "idagg.window"),
        (HOUR.as_json(), "idagg:hour:1795341600", None),
        (HOUR.as_json(), "idagg:hour:1795341600", "idagg.day"),
        (HOUR.as_json(), "idagg:week:1795341600", "idagg.week"),
        (HOUR.as_json(), "idagg:1795341600", "idagg.hour"),
        (HOUR.as_json(), None, "idagg.hour"),
        (HOUR.as_json(), "idagg:hour:1795345200", "idagg.hour"),
        (b"91204", "idagg:hour:1795341600", "idagg.hour"),
        (HOUR.as_json().replace(b"91204", b"-1"), "idagg:hour:1795341600", "idagg.hour"),
    ],
)
def test_no_hour(body: bytes, message_id: str | None, message_type: str | None) -> None:
    with pytest.raises(records.ParseError, match="no record of idagg"):
        records.parse_rollup(body, message_id, message_type)


@pytest.mark.parametrize(
    "line",
    [
        "",
        HOUR_LINE.replace("period=hour", "period=week"),
        HOUR_LINE.replace("period=hour ", ""),
        HOUR_LINE.replace("hits=600000", "hits=-1"),
        HOUR_LINE.replace("start=", "window="),
        "Listening on port 8000",
        LINE.replace("event=window", "event=hour"),
        LINE.replace(" event=window", ""),
        LINE.replace("hits=10000", "hits=ten"),
        LINE.replace("hits=10000", 'hits="10000"'),
        LINE.replace("hits=10000", "hits=010000"),
        LINE.replace("exact=true", "exact=yes"),
        LINE.replace("exact=true", "exact=true exact=true"),
        LINE.replace("window=2026-11-22T10:53:00Z", "window=2026-11-22"),
        LINE.replace("  ", " ").replace(" level", "  level"),
        f"{LINE}\n{LINE}",
        f'{LINE} reason="\\x"',
    ],
)
def test_no_line(line: str) -> None:
    with pytest.raises(records.ParseError, match="no record of idagg"):
        records.parse_line(line)


@given(st.sampled_from([LINE, HOUR_LINE]), st.data())
def test_a_line_cut_short(line: str, data: st.DataObject) -> None:
    """A power failure can leave the beginning of a count's line: it is not read as a smaller count."""
    with pytest.raises(records.ParseError):
        records.parse_line(line[: data.draw(st.integers(1, len(line) - 1))])


@pytest.mark.parametrize("secret", [NEW, OLD, f"{NEW},{OLD}", [OTHER, OLD], f"{OTHER}, {NEW}\n"])
def test_verified(secret: str | list[str]) -> None:
    """Either of idagg's secrets proves a callback, and so does one of several of the receiver's."""
    found = records.verify_callback(RECORD.as_json(), signed(NEW, OLD), secret, now_s=NOW_S)
    assert (found.webhook_id, found.attempted) == (WEBHOOK_ID, utc(NOW_S))
    assert matches(found.record, RECORD, "idagg")


def test_headers_of_a_web_framework() -> None:
    """Names of fields are in any case, and the fields in no dict."""
    message = email.message.Message()
    for name, value in signed(NEW).items():
        message[name.title()] = value
    assert records.verify_callback(RECORD.as_json(), message, NEW, now_s=NOW_S).record.hits == 10000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"webhook-signature": signed(OTHER)["webhook-signature"]}, "another secret"),
        ({"webhook-signature": signed(NEW, body=b"{}")["webhook-signature"]}, "another body"),
        ({"webhook-signature": signed(NEW)["webhook-signature"].replace("v1", "v2")}, "another secret"),
        ({"webhook-signature": "v1,\udcff"}, "another secret"),
        ({"webhook-signature": ""}, "another secret"),
        ({"webhook-id": "idagg:1795344840:0b0962010370112d"}, "another secret"),
        ({"webhook-id": "\udcff"}, "its webhook-id"),
        ({"webhook-id": ""}, "its webhook-id"),
        ({"webhook-timestamp": str(NOW_S + 1)}, "another secret"),
        ({"webhook-timestamp": "soon"}, "its webhook-timestamp"),
        ({"webhook-timestamp": "\u0661"}, "its webhook-timestamp"),
        ({"Webhook-Id": WEBHOOK_ID}, "webhook-id comes twice"),
    ],
)
def test_not_verified(change: dict[str, str], said: str) -> None:
    with pytest.raises(records.VerificationError, match=said):
        records.verify_callback(RECORD.as_json(), signed(NEW) | change, NEW, now_s=NOW_S)


@pytest.mark.parametrize("name", ["webhook-signature", "webhook-id", "webhook-timestamp"])
def test_a_field_is_missing(name: str) -> None:
    headers = signed(NEW)
    del headers[name]
    with pytest.raises(records.VerificationError, match=name):
        records.verify_callback(RECORD.as_json(), headers, NEW, now_s=NOW_S)


@pytest.mark.parametrize(("away_s", "said"), [(-301, "301 s before now"), (301, "301 s after now")])
def test_out_of_time(away_s: int, said: str) -> None:
    """An old callback that is sent again is refused. So is one from the future."""
    headers = signed(NEW, at_s=NOW_S + away_s)
    with pytest.raises(records.VerificationError, match=said):
        records.verify_callback(RECORD.as_json(), headers, NEW, now_s=NOW_S)
    wider = records.verify_callback(RECORD.as_json(), headers, NEW, now_s=NOW_S, tolerance_s=301)
    assert wider.attempted == utc(NOW_S + away_s)


def test_the_time_is_now() -> None:
    headers = signed(NEW, at_s=int(time.time()))
    assert records.verify_callback(RECORD.as_json(), headers, NEW).record.hits == 10000
    with pytest.raises(records.VerificationError, match="before now"):
        records.verify_callback(RECORD.as_json(), signed(NEW, at_s=1), NEW)


@pytest.mark.parametrize("secret", ["", "whsec_", "hunter2", [], f"{NEW},"])
def test_no_secret(secret: str | list[str]) -> None:
    """An empty variable verifies nothing, and passes nothing."""
    with pytest.raises(ValueError, match="secret") as caught:
        records.verify_callback(RECORD.as_json(), signed(NEW), secret, now_s=NOW_S)
    assert type(caught.value) is ValueError
    assert "hunter2" not in str(caught.value)


def test_signed_by_idagg_and_no_record() -> None:
    """The proof is about the sender. The body is looked at after that."""
    with pytest.raises(records.ParseError, match="not an object"):
        records.verify_callback(b"[]", signed(NEW, body=b"[]"), NEW, now_s=NOW_S)


def test_not_signed() -> None:
    """Without a secret, a callback is read all the same."""
    found = records.parse_callback(RECORD.as_json(), signed())
    assert (found.webhook_id, found.record.unique_ids) == (WEBHOOK_ID, 4000)
    for headers in ({}, signed() | {"webhook-id": "msg_1"}):
        with pytest.raises(records.ParseError, match="no record of idagg"):
            records.parse_callback(RECORD.as_json(), headers)


def test_the_test_of_a_receiver() -> None:
    """What it sends is as good as what idagg sends."""
    record = records.parse_message(RECORD.as_json(), RECORD.message_id("idagg"))
    headers = records.callback_headers(record, "https://a.example/x?y=1", f"{NEW},{OLD}", now_s=NOW_S)
    found = records.verify_callback(record.body(), headers, OLD, now_s=NOW_S)
    assert (found.webhook_id, found.record) == (WEBHOOK_ID, record)
    assert headers["webhook-signature"].count("v1,") == 2


def test_it_needs_the_standard_library_alone() -> None:
    """A consumer that imports it gets none of the service."""
    folder = str(Path(records.__file__).parents[1])
    script = (
        f"import sys; sys.path.append({folder!r}); import idagg.records; "
        "tops = {name.split('.')[0] for name in sys.modules} - sys.stdlib_module_names; "
        "print(sorted(tops - {'__main__'})); "
        "print(sorted(name for name in sys.modules if name.startswith('idagg.')))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['idagg']", "['idagg.records', 'idagg.signing']"]
