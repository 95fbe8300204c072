"""The models of a machine's state and of the fleet's."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import orjson
import pytest

from idagg.read import fleet
from idagg.read.fleet import (
    SILENT_S,
    Current,
    Leader,
    Line,
    Report,
    Stale,
    Status,
    Trouble,
    is_heard,
    status,
)
from idagg.run import fleet as run_fleet
from idagg.run.fleet import Fleet, Look, Others
from idagg.run.machine import Machine
from idagg.run.messages import Heartbeat, Lead, Traffic
from idagg.run.report import Identity, aged, is_predecessor, moment, report
from idagg.settings import Settings
from idagg.tasks import end
from kit.waiting import NOON

EXAMPLE = Path(__file__).parents[1] / "examples" / "status.json"


def test_the_example_is_a_whole_status() -> None:
    """Other tests use the example: it has every field, and reads and writes to the same."""
    given = EXAMPLE.read_bytes()
    status = Status.model_validate_json(given)
    assert orjson.loads(status.model_dump_json()) == orjson.loads(given)


def test_another_version_is_understood() -> None:
    """Fields that this version does not know are ignored, and those that it misses have their defaults."""
    document = orjson.loads(EXAMPLE.read_bytes())
    document["machines"][0]["mood"] = "good"
    del document["machines"][1]["shards"]
    status = Status.model_validate_json(orjson.dumps(document))
    assert [machine.shards.count for machine in status.machines] == [1, 1]


SETTINGS = Settings(state_dir=Path("/nonexistent"), log_file=Path("/nonexistent/log"))
IDENTITY = Identity("a1", "web-1", "m1", 7, NOON)
SINCE = moment(NOON)


def machine_of(**heartbeat: Any) -> Machine:
    return Machine(
        SETTINGS, [Heartbeat(pid=8, **heartbeat), None], ages_s=[0.25, None], waiting={"timeout": 3}
    )


def test_the_report_of_a_leading_machine() -> None:
    lead = Lead(NOON - 60, 40, 50, True, 7, 1, 2, 3, 0, estimate=41, length_s=60, open_s=NOON)
    traffic = Traffic({"200": 9.5, "503": 0.5}, 8.0, 4.0, 1.5, 9.9)
    trouble = {part: Trouble(text=f"{part} is away", since=SINCE) for part in ("broker", "shards")}
    made = report(
        IDENTITY,
        machine_of(epoch=5, lead=lead, traffic=traffic, skew_s=-0.00123, late_s=0.5, spread=4, away=[2, 1]),
        trouble,
    )
    machine = made.machine
    assert (machine.id, machine.name, machine.pid, machine.started) == ("a1", "web-1", 7, SINCE)
    assert (machine.ready, machine.is_leader, machine.epoch) == (True, True, 5)
    assert (machine.clock_skew_s, machine.late_s) == (-0.0012, 0.5)
    assert (machine.shards.count, machine.shards.away) == (4, [1, 2])
    running, dead = machine.workers
    assert (running.pid, running.heartbeat_age_s, running.is_leader) == (8, 0.25, True)
    assert (running.requests_per_s, running.by_status["503"]) == (10.0, 0.5)
    assert (running.batch_ids, running.commit_p50_ms, running.commit_p99_ms) == (4.0, 1.5, 9.9)
    assert (dead.pid, dead.heartbeat_age_s) == (None, None)
    assert made.current == Current(window_start=SINCE, unique_ids=7)
    assert made.last is not None
    assert (made.last.window_start, made.last.window_end) == (moment(NOON - 60), SINCE)
    assert (made.last.unique_ids, made.last.estimate, made.last.hits, made.last.exact) == (40, 41, 50, True)
    assert made.pending is not None
    assert (made.pending.deliveries.windows, made.pending.deliveries.reason) == (1, "shards is away")
    assert (made.pending.messages.windows, made.pending.messages.reason) == (2, "broker is away")
    assert (made.pending.callbacks.windows, made.pending.callbacks.endpoints) == (3, {"timeout": 3})


def test_what_nobody_knows_is_null() -> None:
    """On a machine that does not lead, right after a start, or with workers of another version."""
    for machine in (machine_of(), machine_of(epoch=5), machine_of(epoch=5, lead=Lead(NOON, 1, 1, True))):
        made = report(IDENTITY, machine, {})
        assert (made.current, made.last, made.pending) == (None, None, None)
        assert made.machine.workers[0].batch_ids is None
    assert not report(IDENTITY, machine_of(), {"store": Trouble(text="away", since=SINCE)}).machine.ready


def of(name: str, *, epoch: int = 0, last_s: int = 0, unique_ids: int = 0) -> Report:
    lead = Lead(last_s, unique_ids, 1, True, 7, 0, 0, 0, 0, estimate=1, length_s=60, open_s=NOON)
    return report(
        Identity(f"id of {name}", name, f"host of {name}", 7, NOON),
        machine_of(epoch=epoch, lead=lead if epoch else None),
        {},
        [Line(time=moment(NOON + len(name)), level="error", machine=name, process="supervisor", text="x")],
    )


def fleet_of(own: Report, *others: Report) -> Status:
    return status(own, others, now=SINCE, namespace="idagg", window_s=60)


def test_machines_agree() -> None:
    """Whoever answers, the leader is the same; its epoch decides where one that was cut off still says so."""
    first, second, third = of("aa", epoch=4, last_s=NOON), of("b", epoch=5, last_s=60), of("cccc")
    for own, *others in ([first, second, third], [third, first, second], [second, third, first]):
        seen = fleet_of(own, *others)
        assert seen.leader == Leader(machine="id of b", name="b", worker=0, epoch=5)
        assert seen.last is not None
        assert seen.last.window_start == SINCE  # the newest that anybody knows
        assert [line.machine for line in seen.recent] == ["cccc", "aa", "b"]
        assert seen.machines[0].name == own.machine.name
    assert [machine.name for machine in fleet_of(second, third, first).machines] == ["b", "aa", "cccc"]
    assert fleet_of(third).leader is None


def test_a_report_of_another_machine_ages() -> None:
    """And so do its workers' heartbeats. A worker that does not run has none."""
    machine = aged(report(IDENTITY, machine_of(), {}), 2.0).machine
    assert machine.age_s == 2.0
    assert [worker.heartbeat_age_s for worker in machine.workers] == [2.2, None]


def test_a_machine_that_is_silent() -> None:
    """It stays in the list, and does not lead any more. As long as nobody can look, nobody is silent."""
    leader, other = of("a", epoch=7, last_s=NOON), of("b", epoch=6)
    said_s = SILENT_S + 1
    for age_s, unseen_s, since in (
        (SILENT_S, 0.0, None),
        (said_s, 0.0, moment(NOON - said_s)),
        (said_s, 2.0, None),
        (said_s + 60, 60.0, moment(NOON - said_s - 60)),
    ):
        seen = status(
            other, [aged(leader, age_s)], now=SINCE, namespace="idagg", window_s=60, unseen_s=unseen_s
        )
        assert [machine.silent_since for machine in seen.machines] == [None, since]
        assert seen.leader is not None
        assert seen.leader.name == ("b" if since else "a")
        assert seen.last is not None
        assert seen.last.window_start == SINCE  # it is still the newest that anybody knows
        assert [is_heard(machine, seen) for machine in seen.machines] == [True, since is None]


def test_nobody_is_heard_while_the_store_is_away() -> None:
    stale = Stale(since=moment(NOON - 3), text="away")
    seen = status(
        of("a"), [aged(of("b"), 3.5)], now=SINCE, namespace="idagg", window_s=60, stale=stale, unseen_s=3.0
    )
    assert [is_heard(machine, seen) for machine in seen.machines] == [True, False]
    assert seen.machines[1].silent_since is None


def test_whose_place_an_instance_takes() -> None:
    """That of one on the same host, with the same admin listener, that has not spoken since it began."""
    at = "127.0.0.1:8001"

    def instance(identity: Identity, admin: str = at) -> fleet.Machine:
        other = dataclasses.replace(identity, id=f"{identity}{admin}")
        return report(other, machine_of(), {}, admin=admin).machine

    own = report(IDENTITY, machine_of(), {}, admin=at).machine
    assert is_predecessor(own, 5.0, instance(IDENTITY), 5.1)
    assert not is_predecessor(own, 5.0, instance(IDENTITY), 4.9)
    assert not is_predecessor(own, 5.0, own, 5.1)  # a reload keeps the id
    assert not is_predecessor(own, 5.0, instance(IDENTITY, "127.0.0.1:8002"), 5.1)
    elsewhere = (dataclasses.replace(IDENTITY, machine_id="m2"), dataclasses.replace(IDENTITY, name="web-2"))
    for identity in elsewhere:
        assert not is_predecessor(own, 5.0, instance(identity), 5.1)


class Watched:
    """A supervisor with a worker, whose process is another one after each look if ``changes``."""

    admin_address = "127.0.0.1:8001"

    def __init__(self) -> None:
        self.pid = 8
        self.changes = False

    def trouble(self) -> dict[str, str]:
        self.pid += self.changes
        return {}

    def machine(self) -> Machine:
        return Machine(SETTINGS, [Heartbeat(pid=self.pid)], ages_s=[0.25])


async def test_a_status_is_of_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of that before the others were asked for: with a store that is away, this takes PATIENCE_S."""
    watched = Watched()

    async def look(others: Others) -> Look:
        watched.pid = 9
        return Look([], 0.0, None)

    monkeypatch.setattr(Others, "look", look)
    seen = await Fleet(watched).status()
    assert [worker.pid for worker in seen.machines[0].workers] == [9]


async def test_a_change_is_published_at_once_but_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[int | None] = []

    async def publish(others: Others, own: Report) -> None:
        published.append(own.machine.workers[0].pid)

    monkeypatch.setattr(Others, "publish", publish)
    for name, value in (("LOOK_S", 0.0), ("PUBLISH_S", 600.0), ("SOONEST_S", 600.0)):
        monkeypatch.setattr(run_fleet, name, value)
    watched = Watched()
    running = asyncio.create_task(Fleet(watched).run())

    async def looked() -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    await looked()
    watched.changes = True
    await looked()
    assert published == [8]
    monkeypatch.setattr(run_fleet, "SOONEST_S", 0.0)
    await looked()
    assert len(published) > 10
    watched.changes = False
    await looked()
    known = len(published)
    await looked()
    assert len(published) == known
    await end(running)


async def test_nothing_is_published_after_the_withdrawal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last worker's end changes the state of a machine that stops: it would be missed for 10 minutes."""
    did: list[str] = []

    async def publish(others: Others, own: Report) -> None:
        did.append("published")

    async def withdraw(others: Others) -> None:
        did.append("withdrawn")
        watched.changes = True
        for _ in range(20):
            await asyncio.sleep(0)

    monkeypatch.setattr(Others, "publish", publish)
    monkeypatch.setattr(Others, "withdraw", withdraw)
    monkeypatch.setattr(run_fleet, "LOOK_S", 0.0)
    monkeypatch.setattr(run_fleet, "SOONEST_S", 0.0)
    watched = Watched()
    fleet_of_it = Fleet(watched)
    running = asyncio.create_task(fleet_of_it.run())
    await asyncio.sleep(0)
    await fleet_of_it.withdraw()
    await end(running)
    assert did == ["published", "withdrawn"]
