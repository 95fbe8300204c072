"""A new user's first weeks: `idagg serve`, some ids, and `idagg counts` a day and more later. The store has a
clock that is moved: no other one counts."""

from __future__ import annotations

import asyncio
import csv
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from idagg.window import DAY_S, iso
from kit.serving import PATIENT, Serving, send
from kit.stepped import SteppedServer
from kit.waiting import eventually, until

IDS = 50
WITHIN_S = 60.0
HOUR_S = 3600
# A day of its clock, so that no test begins just before midnight.
TEN = int(time.time()) // DAY_S * DAY_S + 10 * HOUR_S


class Machine:
    """An idagg with a store, at ten in the morning."""

    def __init__(self, store: SteppedServer) -> None:
        self._store = store
        self._off_s = TEN - int(time.time())
        store.step(self._off_s)
        flags = ("--redis-url", store.url, "--rollups", "hour", "--workers", "1", *PATIENT)
        self.serving = Serving(*flags, window=1)

    async def days_later(self, days: int) -> None:
        """Nobody was there meanwhile. Wait until a window of the new day is delivered, and hours are rolled
        up."""
        self._store.step(self._off_s + days * DAY_S)
        today_s = TEN + days * DAY_S

        async def newest() -> str:
            page = json.loads((await self.serving.ask("/api/v1/windows?limit=1", admin=True)).body)
            return str(page["windows"][0]["window_start"]) if page.get("windows") else ""

        await eventually(newest, lambda start: start >= iso(today_s), within_s=WITHIN_S)
        await until(lambda: len(self.serving.records("rollup")) >= 1, within_s=WITHIN_S)

    async def told(self, *arguments: str, note: str = "") -> str:
        """What the command prints; with no more than this on stderr."""
        url = f"http://127.0.0.1:{self.serving.admin_port}"
        command = [sys.executable, "-m", "idagg", *arguments, "--admin-url", url]
        done = await eventually(  # the store may stand still for a moment
            lambda: asyncio.to_thread(
                subprocess.run, command, capture_output=True, text=True, timeout=60, check=False
            ),
            lambda done: done.returncode == 0,
        )
        assert (done.returncode, done.stderr) == (0, f"idagg: {note}\n" if note else "")
        return done.stdout

    async def some_ids(self) -> str:
        """Counted and delivered; returns the start of the first window."""
        await self.serving.ready()
        await send(self.serving, range(IDS))
        await until(lambda: sum(self.serving.counts().values()) == IDS, within_s=WITHIN_S)
        return self.serving.records("window")[0]["window"]


@pytest.fixture
def machine() -> Iterator[Machine]:
    with SteppedServer() as store:
        machine = Machine(store)
        with machine.serving:
            yield machine


def table(shown: str) -> list[int]:
    """The unique ids."""
    return [int(line.split()[1]) for line in shown.splitlines()[1:]]


def rows(shown: str) -> list[dict[str, Any]]:
    return list(csv.DictReader(shown.splitlines()))


async def test_the_next_day(machine: Machine) -> None:
    """Yesterday's windows are shown without a range, and with one; the hour's ids are told from one sketch,
    as the log file has them."""
    first = await machine.some_ids()
    await machine.days_later(1)
    # By default the last ones are shown: a busy machine may have had more windows meanwhile.
    assert sum(table(await machine.told("counts", "--limit", "10000"))) == IDS
    yesterday = ("--from", iso(TEN)[:10], "--to", iso(TEN + DAY_S)[:10])
    note = f"no record is kept of windows before {first}"
    shown = await machine.told("counts", *yesterday, "--format", "csv", note=note)
    assert sum(int(row["unique_ids"]) for row in rows(shown)) == IDS
    assert {row["window_start"][:10] for row in rows(shown)} == {iso(TEN)[:10]}
    hour = ("--from", iso(TEN), "--to", iso(TEN + HOUR_S))
    estimate = await machine.told("counts", "--estimate", *hour)
    assert f"unique ids  {IDS}, an estimate" in estimate
    assert "covered     all of the range, by sketches of hours" in estimate
    told = {(line["start"], line["unique_ids"]) for line in machine.serving.records("rollup")}
    assert told == {(iso(TEN), str(IDS))}


@pytest.mark.slow
async def test_weeks_later(machine: Machine) -> None:
    """After two days windows are not estimated any more, and hours and days are; after --keep-records their
    records are gone, and it is said."""
    first = await machine.some_ids()
    await machine.days_later(1)
    await machine.days_later(3)
    day = ("--from", iso(TEN - 10 * HOUR_S), "--to", iso(TEN + 14 * HOUR_S))
    hour = ("--from", iso(TEN), "--to", iso(TEN + HOUR_S))
    minute = ("--from", iso(TEN), "--to", iso(TEN + 60))
    for span, kinds in ((day, "days"), (hour, "hours")):
        shown = await machine.told("counts", "--estimate", *span)
        assert f"unique ids  {IDS}, an estimate" in shown
        assert f"covered     all of the range, by sketches of {kinds}" in shown
    assert "covered     nothing: no sketch" in await machine.told("counts", "--estimate", *minute)
    note = f"no record is kept of windows before {first}"
    shown = await machine.told("counts", *minute, "--format", "json", note=note)
    assert sum(row["unique_ids"] for row in json.loads(shown)) == IDS

    await machine.days_later(36)
    gone = "no record is kept of a window in this range"
    assert await machine.told("counts", *hour, note=gone) == ""
    assert json.loads(await machine.told("counts", *hour, "--format", "json", note=gone)) == []
    shown = await machine.told("counts", *hour, "--format", "csv", note=gone)
    assert (shown.count("\n"), shown.startswith("window_start,")) == (1, True)
    one = await machine.serving.ask(f"/api/v1/windows/{first}", admin=True)
    assert (one.status, f"no record of a window that starts at {first}" in one.body.decode()) == (404, True)
    assert f"unique ids  {IDS}, an estimate" in await machine.told("counts", "--estimate", *day)
