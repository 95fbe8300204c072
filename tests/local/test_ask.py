"""Commands that ask a running idagg: what they say of every answer, and of none."""

from __future__ import annotations

import datetime
import itertools
import json

import pytest

from idagg.ask import times
from idagg.ask.client import MAX_BYTES, Client, base_url
from idagg.errors import Exit, NoAnswerError
from idagg.settings import Settings
from idagg.sources import SettingsError
from kit.canned import Canned, http
from kit.servers import free_port
from kit.waiting import LIMIT_S

NOON = datetime.datetime(2026, 11, 25, 12, 0, 7, 5, tzinfo=datetime.UTC)


def problem(status: int, detail: str) -> bytes:
    return http(status, json.dumps({"detail": detail}).encode(), "application/problem+json")


def fails(url: str, *, token: str | None = None, timeout_s: float = LIMIT_S) -> NoAnswerError:
    with pytest.raises(NoAnswerError) as caught:
        Client(url, token, timeout_s=timeout_s).get("/api/v1/status")
    said = str(caught.value)
    assert said == said.strip().rstrip(".")
    assert "\n" not in said
    return caught.value


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (
            http(404, b"failed", "text/plain"),
            Exit.NO_ANSWER,
            "public listener, an older idagg, or another program",
        ),
        (http(200, b"<html>", "text/html"), Exit.NO_ANSWER, "another program"),
        (http(301, b"", "text/html", "Location: http://example.com/"), Exit.NO_ANSWER, "status 301"),
        (http(404, b"{}"), Exit.NO_ANSWER, "another program"),
        (problem(404, "no resource has this path"), Exit.NO_ANSWER, "status 404: no resource has this path"),
        (problem(500, "idagg failed to make this"), Exit.NO_ANSWER, "status 500: idagg failed to make this"),
        (problem(401, "this needs a token"), Exit.REFUSED, "none is given here: set IDAGG_ADMIN_TOKEN"),
        (problem(403, "this listener has another name"), Exit.REFUSED, "this listener has another name"),
        (problem(503, "Redis is away"), Exit.NOT_NOW, "cannot read the counts now: Redis is away"),
        (problem(400, "from is after to"), Exit.USAGE, "from is after to"),
        (problem(503, "\x1b[2J\n\u202e"), Exit.NOT_NOW, "cannot read the counts now: \ufffd[2J\ufffd\ufffd"),
        (http(503, b"[1]", "application/problem+json"), Exit.NO_ANSWER, "another program"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", Exit.NO_ANSWER, "does not answer as HTTP does"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{}",
            Exit.NO_ANSWER,
            "in the middle of",
        ),
        (b"", Exit.NO_ANSWER, "closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + 70_000 * b"x", Exit.NO_ANSWER, "does not answer as HTTP does"),
    ],
    ids=map(str, itertools.count()),
)
def test_every_failure_is_a_sentence(answer: bytes, code: Exit, said: str) -> None:
    """It says what happened, and its code is the command's."""
    with Canned(answer) as server:
        error = fails(server.url)
    assert error.code == code
    assert said in str(error)


def test_a_wrong_token() -> None:
    """It is not repeated, and is not in the query."""
    with Canned(problem(401, "the token is none of ours")) as server:
        error = fails(server.url, token="hunter2-hunter2-a,hunter2-hunter2-b")
    (asked,) = server.asked
    assert "the one that is given here is wrong" in str(error)
    assert "hunter2" not in str(error)
    assert "\r\nAuthorization: Bearer hunter2-hunter2-a\r\n" in asked
    assert asked.startswith("GET /api/v1/status HTTP/1.1\r\n")


def test_nothing_listens() -> None:
    assert "nothing listens at http://127.0.0.1:" in str(fails(f"http://127.0.0.1:{free_port()}"))


def test_no_such_name() -> None:
    assert "the name of http://no.invalid:1 is not known" in str(fails("http://no.invalid:1"))


def test_no_answer_in_time() -> None:
    with Canned(None) as server:
        assert "gave no answer within 0.05 s" in str(fails(server.url, timeout_s=0.05))


def test_plain_text_where_tls_is_wanted() -> None:
    with Canned(b"HTTP/1.1 400 Bad Request\r\n\r\n") as server:
        error = fails(server.url.replace("http", "https"))
    assert "cannot be reached" in str(error)


def test_an_endless_answer() -> None:
    """It is not read to its end."""
    body = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + (MAX_BYTES + 1) * b" "
    with Canned(body) as server:
        assert "more than 64 MiB" in str(fails(server.url))


def settings(**given: object) -> Settings:
    return Settings.model_validate({"state_dir": "/", **given})


@pytest.mark.parametrize(
    ("given", "host", "url"),
    [
        (None, "127.0.0.1", "http://127.0.0.1:8001"),
        (None, "::1", "http://[::1]:8001"),
        (None, "localhost", "http://localhost:8001"),
        ("http://idagg.example:8001/", "127.0.0.1", "http://idagg.example:8001"),
        ("https://proxy.example/idagg", "127.0.0.1", "https://proxy.example/idagg"),
        ("http://[::1]:80", "127.0.0.1", "http://[::1]:80"),
    ],
)
def test_where_it_asks(given: str | None, host: str, url: str) -> None:
    assert base_url(given, settings(admin_host=host)) == url


@pytest.mark.parametrize(
    "given",
    [
        *(
            "127.0.0.1:8001",
            "ftp://a",
            "http://",
            "http://a:0",
            "http://a:http",
            "http://a:99999",
            "http://[::1",
        ),
        *("http://a:hunter2@b:8001", "http://a?token=hunter2", "http://a\r\nX: y", "http://a b", ""),
    ],
)
def test_no_url(given: str) -> None:
    with pytest.raises(SettingsError, match="--admin-url") as caught:
        base_url(given, settings())
    assert "a token is" not in str(caught.value)


def test_any_free_port() -> None:
    with pytest.raises(SettingsError, match="give the one that idagg printed, as --admin-url"):
        base_url(None, settings(admin_port=0))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2026-11-25T10:53:00Z", "2026-11-25T10:53:00Z"),
        ("2026-11-25T10:53:00+01:00", "2026-11-25T09:53:00Z"),
        ("2026-11-25 10:53", "2026-11-25T10:53:00Z"),
        ("2026-11-25", "2026-11-25T00:00:00Z"),
        ("20261125", "2026-11-25T00:00:00Z"),
        ("1795344780", "2026-11-22T10:53:00Z"),
        ("now", "2026-11-25T12:00:07Z"),
        ("today", "2026-11-25T00:00:00Z"),
        ("yesterday", "2026-11-24T00:00:00Z"),
        ("-1h", "2026-11-25T11:00:07Z"),
        ("90s", "2026-11-25T11:58:37Z"),
        ("2d", "2026-11-23T12:00:07Z"),
    ],
)
def test_times(text: str, meant: str) -> None:
    """Without a zone, a time is in UTC."""
    assert times.iso(times.moment(text, NOON)) == meant


@pytest.mark.parametrize(
    "text",
    [
        "",
        "noon",
        "10:53",
        "1y",
        "999999999d",
        "2026-13-01",
        "1h ago",
        "\u0661h",
        "2026",
        "202611",
        "202611251053",
    ],
)
def test_no_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no time: write 2026-11-25"):
        times.moment(text, NOON)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (-3, "0 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3601, "1 h"),
        (93_000, "1 d 1 h"),
        (400 * 86_400, "400 d"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert times.lasting(seconds) == said
