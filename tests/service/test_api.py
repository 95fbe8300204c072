"""The API of the admin listener, with real processes and a real store."""

from __future__ import annotations

import asyncio
import csv
import json
import re
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance

from idagg.read.counts import Estimated, OpenWindow, Window, Windows
from idagg.store.client import Client
from idagg.store.shards import shard_tag
from idagg.window import iso
from kit.servers import RedisServer
from kit.serving import PATIENT, Serving, send
from kit.staging import keep_records
from kit.waiting import LIMIT_S, eventually, long_window, next_window
from kit.wire import Answer

IDS = 40


@pytest.fixture(scope="module")
def store() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def serving(store: RedisServer) -> Iterator[Serving]:
    """Some windows of it are sealed and delivered, all with ids among them."""
    with Serving("--redis-url", store.url, *PATIENT, window=1) as serving:

        async def count() -> None:
            await serving.ready()
            await next_window(1)
            await send(serving, range(IDS))
            await eventually(
                lambda: told(serving, "windows?limit=10000"), lambda page: len(page["windows"]) >= 4
            )
            await serving.delivered()

        asyncio.run(count())
        yield serving


async def asked(serving: Serving, path: str, **how: Any) -> Answer:
    """The answer, once the store gives one: it may stand still for a moment."""
    return await eventually(lambda: serving.ask(path, admin=True, **how), lambda answer: answer.status != 503)


async def told(serving: Serving, path: str, status: int = 200) -> dict[str, Any]:
    answer = await asked(serving, f"/api/v1/{path}")
    assert answer.status == status, answer.body
    found: dict[str, Any] = json.loads(answer.body)
    return found


async def test_windows(serving: Serving) -> None:
    """Every delivered window can be read back, with the count that was delivered, and page by page."""
    delivered = await serving.delivered()
    end = max(delivered)  # all before it stay as they are
    whole = await told(serving, f"windows?limit=10000&to={end}")
    Windows.model_validate(whole)
    windows = whole["windows"]
    assert sum(window["unique_ids"] for window in windows) == IDS
    assert {window["window_start"]: window["unique_ids"] for window in windows}.items() <= delivered.items()
    assert whole["to"] == end
    for order in ("newest", "oldest"):
        found: list[dict[str, Any]] = []
        link: str | None = (
            f"/api/v1/windows?{urllib.parse.urlencode({'to': end, 'limit': 3, 'order': order})}"
        )
        while link:
            answer = await asked(serving, link)
            found += json.loads(answer.body)["windows"]
            link = (
                answer.headers["Link"].partition("<")[2].partition(">")[0] if answer.headers["Link"] else None
            )
        assert [window["window_start"] for window in found] == sorted(
            (window["window_start"] for window in windows), reverse=order == "newest"
        )
    newest = windows[0]
    assert await told(serving, f"windows/{newest['window_start']}") == newest


async def test_csv(serving: Serving) -> None:
    page = await told(serving, "windows?limit=3&order=oldest")
    answer = await asked(serving, "/api/v1/windows?limit=3&order=oldest", fields={"Accept": "text/csv"})
    assert answer.headers["Content-Type"].startswith("text/csv")
    rows = list(csv.DictReader(answer.body.decode().splitlines()))
    assert [row["unique_ids"] for row in rows] == [str(window["unique_ids"]) for window in page["windows"]]
    assert answer.headers["Vary"] == "Accept"
    assert 'rel="next"' in answer.headers["Link"]


async def test_an_estimate(serving: Serving) -> None:
    """Of all windows that are sealed: an id that is in several counts once. It says what it is of."""
    found = await told(serving, "estimate")
    assert Estimated.model_validate(found).unique_ids == found["unique_ids"]
    assert found["covered"]
    assert abs(found["unique_ids"] - IDS) <= 2
    assert 0.008 < found["standard_error"] < 0.009
    nothing = await told(serving, "estimate?from=2001-01-01T00:00:00Z&to=2002-01-01T00:00:00Z")
    assert (nothing["unique_ids"], nothing["covered"]) == (0, [])
    assert nothing["missing"] == [{"from": "2001-01-01T00:00:00Z", "to": "2002-01-01T00:00:00Z"}]
    assert nothing["missing_s"] == 365 * 86_400
    # Whole: what is covered and what is missing are the range, without an overlap.
    begin = found["covered"][0]["from"]
    part = await told(serving, f"estimate?from={begin}")
    pieces = sorted((one["from"], one["to"]) for one in [*part["covered"], *part["missing"]])
    assert [begin, *(end for _, end in pieces)] == [*(begin for begin, _ in pieces), part["to"]]
    assert part["missing_s"] == sum(
        (datetime.fromisoformat(one["to"]) - datetime.fromisoformat(one["from"])).seconds
        for one in part["missing"]
    )
    assert (await told(serving, "estimate?from=500000000&to=400000000", 400))["parameter"] == "from"
    assert "is no time" in (await told(serving, "estimate?from=2026", 400))["detail"]


async def test_the_open_window(serving: Serving) -> None:
    found = OpenWindow.model_validate(await told(serving, "windows/current"))
    assert not found.sealed
    assert found.window_start <= found.as_of
    assert (found.window_end - found.window_start).total_seconds() == 1


async def test_one_window(serving: Serving) -> None:
    """By either form of its start."""
    page = await told(serving, "windows?limit=1&order=oldest")
    (window,) = page["windows"]
    start_s = int(Window.model_validate(window).window_start.timestamp())
    for name in (iso(start_s), str(start_s), urllib.parse.quote(iso(start_s)[:-1] + "+00:00")):
        assert await told(serving, f"windows/{name}") == window
    assert "no record" in (await told(serving, "windows/500000000", 404))["detail"]
    assert (await told(serving, "windows/yesterday", 400))["parameter"] == "start"


async def test_etags(serving: Serving) -> None:
    """What is sealed and delivered stays as it is, and need not be sent again; nothing else has an ETag."""
    oldest = (await told(serving, "windows?limit=3&order=oldest"))["windows"]
    first, third = oldest[0]["window_start"], oldest[2]["window_start"]
    for path in (f"windows/{first}", f"windows?from={first}&to={third}"):
        answer = await asked(serving, f"/api/v1/{path}")
        assert answer.headers["Cache-Control"] == "private, no-cache"
        tag = answer.headers["ETag"]
        assert tag.startswith('"')
        for known, status in (
            (tag, 304),
            (f'"x", W/{tag}', 304),
            ("*", 304),
            ('"x"', 200),
            ("nonsense", 200),
        ):
            again = await asked(serving, f"/api/v1/{path}", fields={"If-None-Match": known})
            assert (again.status, again.headers["ETag"]) == (status, tag)
            assert (again.body == b"") is (status == 304)
    future = iso(int(time.time()) + 60)
    for path in ("windows", f"windows?from={first}", f"windows?from={first}&to={future}", "windows/current"):
        answer = await asked(serving, f"/api/v1/{path}")
        assert answer.headers["ETag"] is None
        assert answer.headers["Cache-Control"] == "no-store"


async def test_odd_ranges(serving: Serving) -> None:
    """Each has a clear answer."""
    future = iso(int(time.time()) + 3600)
    page = await told(serving, f"windows?to={future}")
    assert page["clipped"]
    assert page["to"] < future
    before = await told(serving, "windows?from=2001-01-01T00:00:00Z&to=2002-01-01T00:00:00Z")
    oldest = (await told(serving, "windows?limit=1&order=oldest"))["windows"][0]["window_start"]
    assert (before["windows"], before["records_begin"]) == ([], oldest)
    year = await told(serving, "windows?from=2001-01-01T00:00:00Z&limit=10000")
    assert sum(window["unique_ids"] for window in year["windows"]) == IDS
    for query, parameter in {
        "from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z": "from",
        f"from={future}": "from",
        "from=2026-01-01T00:00:00": "from",
        "to=tomorrow": "to",
        "from=2026": "from",
        "to=20261125": "to",
        "limit=0": "limit",
        "limit=1000000000": "limit",
        "cursor=AAAA": "cursor",
        "order=oldest&cursor=" + str((await told(serving, "windows?limit=1"))["next_cursor"]): "cursor",
        "since=1": "since",
        "limit=1&limit=2": "limit",
    }.items():
        found = await told(serving, f"windows?{query}", 400)
        assert found["parameter"] == parameter
    assert "Traceback" not in serving.said


async def test_forms_and_methods(serving: Serving) -> None:
    refused = await serving.ask("/api/v1/windows", admin=True, fields={"Accept": "image/png"})
    assert (refused.status, json.loads(refused.body)["status"]) == (406, 406)
    answer = await serving.ask("/api/v1/windows", admin=True, method="DELETE")
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert (await asked(serving, "/api/v1/windows", method="HEAD")).status == 200


def test_the_description(serving: Serving) -> None:
    """It is OpenAPI 3.1, and what the API does is what it says, whatever is asked of it.

    That a text is a time, or a cursor, its schemas cannot say: 400 is right for another one.
    """
    answer = asyncio.run(serving.ask("/openapi.json", admin=True))
    described = json.loads(answer.body)
    validate(described, cls=OpenAPIV31SpecValidator)
    at = f"http://127.0.0.1:{serving.admin_port}"
    schema = schemathesis.openapi.from_dict(described)
    paths = [path for path in described["paths"] if "status" not in path and "events" not in path]

    for result in schema.include(path=paths).get_all_operations():
        assert isinstance(result, Ok)

        @seed(17)
        @settings(max_examples=25, suppress_health_check=list(HealthCheck), database=None)
        @given(case=result.ok().as_strategy())
        def each(case: schemathesis.Case[Any]) -> None:
            give_up_at = time.monotonic() + LIMIT_S
            response = case.call(base_url=at)
            while response.status_code == 503 and time.monotonic() < give_up_at:  # the store stands still
                response = case.call(base_url=at)
            case.validate_response(response, excluded_checks=[positive_data_acceptance])

        each()


async def test_a_store_that_is_away() -> None:
    """503 at once or within the time limit, without its password; and the counts again when it is back."""
    with RedisServer(tcp=True, requirepass="hunter2") as store:
        url = f"redis://:hunter2@127.0.0.1:{store.port}"
        with Serving("--redis-url", url, window=1) as serving:
            await serving.ready()
            await told(serving, "windows")
            store.kill()

            async def windows() -> Answer:
                answer = await serving.ask("/api/v1/windows", admin=True)
                assert b"hunter2" not in answer.body
                return answer

            answer = await eventually(
                windows, lambda answer: answer.status == 503 and b"cannot be reached" in answer.body
            )
            assert answer.headers["Retry-After"] == "5"
            store.start()
            await eventually(windows, lambda answer: answer.status == 200)


async def test_a_store_of_the_version_before(store: RedisServer) -> None:
    """It has no records: an empty list, and no error."""
    with Serving("--redis-url", store.url, "--namespace", "before", window=long_window()) as serving:
        assert await told(serving, "windows") | {"to": ""} == {
            "windows": [],
            "order": "newest",
            "to": "",
            "clipped": False,
            "next_cursor": None,
            "records_begin": None,
        }


def peak_kib(pid: int) -> int:
    (found,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found)


@pytest.mark.slow
async def test_the_records_of_35_days(store: RedisServer) -> None:
    """Each record once, in order: by the API's pages as JSON and as CSV, and by `idagg counts`. A page is all
    that the supervisor has in memory of them."""
    count = 35 * 1440
    first_s = int(time.time()) // 60 * 60 - 60 * count
    starts = [iso(first_s + 60 * number) for number in range(count)]
    client = Client(store.url, timeout_s=30)
    await keep_records(client, shard_tag("month"), first_s, count)
    await client.close()
    with Serving("--redis-url", store.url, "--namespace", "month", window=long_window()) as serving:
        await serving.ready()
        span = f"from={starts[0]}&to={iso(first_s + 60 * count)}&order=oldest&limit=10000"
        await told(serving, f"windows?{span}")
        before_kib = peak_kib(serving.pid)
        for media in ("application/json", "text/csv"):
            found: list[tuple[str, int]] = []
            link = f"/api/v1/windows?{span}"
            pages = 0
            while link:
                answer = await asked(serving, link, fields={"Accept": media})
                assert answer.status == 200
                if media == "text/csv":
                    rows = csv.DictReader(answer.body.decode().splitlines())
                else:
                    rows = json.loads(answer.body)["windows"]
                found += [(row["window_start"], int(row["unique_ids"])) for row in rows]
                link = (answer.headers["Link"] or "").partition("<")[2].partition(">")[0]
                pages += 1
            assert pages == 6
            assert found == list(zip(starts, range(count), strict=True))
        assert peak_kib(serving.pid) - before_kib < 20_000
        url = f"http://127.0.0.1:{serving.admin_port}"
        command = [sys.executable, "-m", "idagg", "counts", "--admin-url", url, "--format", "csv"]
        command += ["--from", starts[0], "--to", iso(first_s + 60 * count)]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=120, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        rows = csv.DictReader(done.stdout.splitlines())
        assert [(row["window_start"], int(row["unique_ids"])) for row in rows] == found


async def test_health_names_no_address_without_the_token() -> None:
    """A load balancer learns the status, and which parts are in trouble; a reader learns why."""
    token = "s3cret-and-long-enough"
    with (
        RedisServer(tcp=True) as store,
        Serving("--redis-url", store.tcp_url, "--admin-token", token) as serving,
    ):

        async def verbose(**fields: str) -> tuple[int, dict[str, str]]:
            answer = await serving.ask("/readyz?verbose", admin=True, fields=fields)
            lines = answer.body.decode().splitlines()
            return answer.status, dict(line.split(": ", 1) for line in lines[1:])

        store.kill()
        reader = {"Authorization": f"Bearer {token}"}
        status, parts = await eventually(lambda: verbose(**reader), lambda seen: "store" in seen[1])
        assert status == 503
        assert str(store.port) in parts["store"]
        hidden = "in trouble: send the token of --admin-token to read why"
        for fields in ({}, {"Authorization": "Bearer wrong"}, reader | {"Host": "evil.example"}):
            status, parts = await verbose(**fields)
            assert status == 503
            assert parts["store"] == hidden
            assert set(parts.values()) == {hidden}
