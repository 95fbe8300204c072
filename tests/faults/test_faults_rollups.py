"""Hours and days that are delivered: the leader dies at each step of them, and RabbitMQ is away."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from idagg import failpoints, records
from idagg.window import DAY_S, iso
from kit.faults import beside, lease_runs_out, tells
from kit.oracle import Consumer
from kit.proxy import Proxy
from kit.servers import RabbitServer
from kit.serving import Serving, send
from kit.stepped import SteppedServer
from kit.waiting import eventually, until

pytestmark = pytest.mark.slow

WITHIN_S = 30.0
HOUR_S = 3600
FLAGS = ("--rollups", "hour,day")
IDS, HITS = 150, 200


@pytest.fixture
def stepped() -> Iterator[SteppedServer]:
    """A store at ten in the morning."""
    with SteppedServer() as server:
        server.step(10 * HOUR_S - int(time.time()) % DAY_S)
        yield server


class Days:
    """A store's clock, days from its first one."""

    def __init__(self, server: SteppedServer) -> None:
        self._server = server
        self._off_s = server.clock.off_s
        self.start_s = (int(time.time()) + self._off_s) // DAY_S * DAY_S

    def later(self, days: int) -> None:
        self._server.step(self._off_s + days * DAY_S)

    def names(self, day: int) -> set[str]:
        """Message ids of what is rolled up of a day."""
        start_s = self.start_s + day * DAY_S
        return {f"idagg:hour:{start_s + 10 * HOUR_S}", f"idagg:day:{start_s}"}


async def some_ids(serving: Serving) -> int:
    """In two windows; returns how many they are, as their sketches tell."""
    for ids in (range(100), range(50, 150)):
        known = sum(int(line["hits"]) for line in await windows(serving))
        await send(serving, ids)

        async def hits() -> int:
            return sum(int(line["hits"]) for line in await windows(serving))

        await eventually(hits, lambda found, known=known: found == known + 100, within_s=WITHIN_S)  # type: ignore[misc]  # mypy does not infer it
    found = await told(serving, "estimate")
    assert {part["sketch"] for part in found["covered"]} == {"window"}
    return int(found["unique_ids"])


async def windows(serving: Serving) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await told(serving, "windows?limit=1000"))["windows"]
    return found


async def told(serving: Serving, path: str) -> dict[str, Any]:
    answer = await serving.ask(f"/api/v1/{path}", admin=True)
    assert answer.status == 200
    found: dict[str, Any] = json.loads(answer.body)
    return found


async def rollups(consumer: Consumer) -> list[records.Rollup]:
    """All that has come, by type, repeats included. What else has come is a window's."""
    found = []
    for message in await consumer.take():
        properties = message.header.properties
        assert properties.message_id
        assert (properties.app_id, properties.delivery_mode) == ("idagg", 2)
        if properties.message_type in records.ROLLUPS:
            found.append(records.parse_rollup(message.body, properties.message_id, properties.message_type))
        else:
            records.parse_message(message.body, properties.message_id)
    return found


async def arrived(consumer: Consumer, names: set[str]) -> list[records.Rollup]:
    """Wait until these have."""
    return await eventually(
        lambda: rollups(consumer),
        lambda found: names <= {one.message_id for one in found},
        within_s=WITHIN_S,
    )


def counts(found: Sequence[records.Rollup | records.RollupLine]) -> dict[str, tuple[int, int, bool]]:
    """By message id; each has one."""
    by_id: dict[str, tuple[int, int, bool]] = {}
    for one in found:
        count = (one.unique_ids, one.hits, one.suspect)
        assert by_id.setdefault(one.message_id, count) == count
    return by_id


@pytest.mark.parametrize(
    ("place", "shards"),
    [
        *(
            ("after-merge", 1),
            ("before-roll", 1),
            ("after-roll", 1),
            ("before-finish", 1),
            ("after-finish", 1),
        ),
        *(("before-mark-rollup", 1), ("after-mark-rollup", 1), ("before-roll", 4), ("after-roll", 4)),
    ],
)
async def test_leader_killed_between_two_steps(
    stepped: SteppedServer, rabbit: RabbitServer, rabbit_queue: str, tmp_path: Path, place: str, shards: int
) -> None:
    """The next leader goes on: the hour and the day are those of their windows, are delivered at least once,
    under one message id each, with one count."""
    armed = tmp_path / "armed"
    flags = ("--redis-url", stepped.url, "--amqp-url", rabbit.url, "--amqp-queue", rabbit_queue)
    consumer, days = Consumer(rabbit, rabbit_queue), Days(stepped)
    environment = {failpoints.VARIABLE: f"{place}=kill@{armed}"}
    with Serving(*flags, *FLAGS, "--shards", str(shards), window=2, environment=environment) as serving:
        await serving.ready()
        unique_ids = await some_ids(serving)
        armed.touch()
        days.later(1)
        await until(lambda: "died (SIGKILL)" in serving.said, within_s=WITHIN_S)
        await lease_runs_out(stepped.url)
        found = await arrived(consumer, days.names(0))
        await serving.ready(within_s=WITHIN_S)
        assert counts(found) == dict.fromkeys(days.names(0), (unique_ids, HITS, False))
        start_s = days.start_s
        for from_s, length_s, kind in ((start_s + 10 * HOUR_S, HOUR_S, "hour"), (start_s, DAY_S, "day")):
            answer = await told(serving, f"estimate?from={from_s}&to={from_s + length_s}")
            part = {"from": iso(from_s), "to": iso(from_s + length_s), "sketch": kind}
            assert (answer["unique_ids"], answer["covered"]) == (unique_ids, [part])
        again = await rollups(consumer)  # by now, whatever would come twice has
        assert (len(again) > 2) == (place == "before-mark-rollup")
        assert counts(again) == counts(found)
        serving.stop()


async def test_rabbitmq_is_away(stepped: SteppedServer, rabbit: RabbitServer, rabbit_queue: str) -> None:
    """Hours and days go to the log file, and once it is back to the queue, with the same id and count; those
    of another day go to the queue at once."""
    consumer, days = Consumer(rabbit, rabbit_queue), Days(stepped)
    async with Proxy(rabbit.port) as proxy:
        flags = ("--redis-url", stepped.url, "--amqp-url", proxy.amqp_url, "--amqp-queue", rabbit_queue)
        async with beside(Serving(*flags, *FLAGS, window=2)) as serving:
            await serving.ready()
            unique_ids = await some_ids(serving)
            proxy.refuse = True
            days.later(1)
            await until(lambda: len(serving.records("rollup")) == 2, within_s=WITHIN_S)
            lines = [records.parse_line(line) for line in serving.log_file.read_text().splitlines()]
            rolled_up = [line for line in lines if isinstance(line, records.RollupLine)]
            assert all(line.reason for line in rolled_up)
            assert counts(rolled_up) == dict.fromkeys(days.names(0), (unique_ids, HITS, False))
            assert await rollups(consumer) == []
            proxy.refuse = False
            found = await arrived(consumer, days.names(0))
            assert counts(found) == counts(rolled_up)
            assert {(one.period, one.message_id) for one in found} == {
                (name.split(":")[1], name) for name in days.names(0)
            }
            days.later(2)
            await arrived(consumer, days.names(0) | days.names(1))
            assert len(serving.records("rollup")) == 2
            await tells(serving, "INFO leading", times=3)
            await asyncio.to_thread(serving.stop)
