"""The state of a machine and of the fleet: all machines of a namespace. Pure.

Each supervisor makes a `Report` of its machine and publishes it. Any machine answers with a `Status`, made of
its own report and the others' last ones. The models are the JSON documents themselves: `/api/v1/status`
answers with a `Status`, and OpenAPI is generated from it. Between versions a field may be added: what reads
them ignores unknown ones, and takes the default of a missing one.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

Moment = AwareDatetime

Level = Literal["warning", "error", "critical"]

# A machine that has said nothing for so long is not taken for one that counts. They do so every 3 s.
SILENT_S = 7.0


class Model(BaseModel):
    """Base of all models. The text below a field is its description in OpenAPI."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class Trouble(Model):
    """Trouble with one part, in the words of the log."""

    text: str
    """One sentence"""
    since: Moment
    """When this machine noticed it first"""


class Line(Model):
    """A warning or an error of idagg's own log."""

    time: Moment
    level: Level
    machine: str
    """The name of the machine"""
    process: str
    """The process that logged it: `supervisor`, `worker-0`…, `callbacks`"""
    text: str


class Worker(Model):
    """A worker process. Rates, batches and latencies are those of the last 5 seconds."""

    slot: int
    """Its number among the machine's workers"""
    pid: int | None = None
    """null: it is not running"""
    heartbeat_age_s: float | None = None
    """Time since its last sign of life; heartbeats come twice a second. In a status, the `age_s` of another
    machine is part of it"""
    is_leader: bool = False
    trouble: str | None = None
    """Why it stores no ids, in a sentence; null: it does"""
    answered: int = 0
    """Requests answered since the process started, health checks included"""
    requests_per_s: float = 0.0
    by_status: dict[str, float] = {}
    """Requests per second by status of the answer"""
    ids_per_s: float = 0.0
    """Ids sent to the store per second: repeats that this worker knows are not sent"""
    batch_ids: float | None = None
    """Mean number of ids in a batch; null: there was no batch"""
    commit_p50_ms: float | None = None
    """Median time from sending a batch to the store's answer; null: there was no batch"""
    commit_p99_ms: float | None = None
    """The time that 99 of 100 batches stayed within; null: there was no batch"""


class Shards(Model):
    """The shards that ids are spread over, as this machine sees them."""

    count: int = 1
    away: list[int] = []
    """Those that store no ids; theirs are answered 503"""


class Machine(Model):
    """One instance of idagg. Two instances on one VM are two machines here."""

    id: str
    """Unique; another one after each restart, the same after a reload"""
    name: str
    """The host's name"""
    place: str = ""
    """A fingerprint of the host and the admin listener's address. An instance that is started in a dead one's
    stead has the same, and takes its place in the list"""
    version: str
    settings: str
    """A fingerprint of the settings that all machines of a namespace should have alike"""
    started: Moment
    pid: int
    """The supervisor's process id"""
    age_s: float = 0.0
    """Time since the machine said this; 0 for the machine that answers"""
    silent_since: Moment | None = None
    """When the machine said something last, by the store's clock, if that was more than 7 s ago: it has died,
    or cannot reach the store. What else is here was true then. It stays in the list for 10 minutes. null: it
    is heard"""
    ready: bool = False
    """Whether it answers `/readyz` with 200: ids are counted"""
    is_leader: bool = False
    epoch: int = 0
    """Of the leader, if it is a worker of this machine; else 0"""
    clock_skew_s: float | None = None
    """This machine's clock minus the store's, which alone decides about windows"""
    late_s: float | None = None
    """Time for which the oldest window that has ended is not sealed; null: unknown"""
    trouble: dict[str, Trouble] = {}
    """Present trouble by part: store, broker, delivery, callbacks, shards, risk, drain, worker-0…"""
    workers: list[Worker] = []
    shards: Shards = Shards()


class Leader(Model):
    """The worker that seals and delivers windows."""

    machine: str
    """The id of its machine"""
    name: str
    """The name of its machine"""
    worker: int
    """Its slot there"""
    epoch: int
    """Rises with each new leader"""


class Current(Model):
    """The open window. It is not sealed: ids are added to it."""

    window_start: Moment
    unique_ids: int | None
    """So far; null: a shard cannot be asked"""


class Last(Model):
    """The newest window that was sealed, as it is delivered."""

    window_start: Moment
    window_end: Moment
    unique_ids: int
    estimate: int
    hits: int
    exact: bool


class PendingWindows(Model):
    """Windows of which something is still to be sent."""

    windows: int = 0
    reason: str | None = None
    """The trouble that holds them up, in a sentence; null: they are being sent"""


class PendingCallbacks(PendingWindows):
    """Windows with endpoints that are still to be called."""

    endpoints: dict[str, int] = {}
    """Numbers of these endpoints by their last attempt, e.g. `not tried yet`, `timeout`, `status 503`"""


class Pending(Model):
    """What is still to be sent. A window is pending for a moment after its end: that is no trouble."""

    deliveries: PendingWindows = PendingWindows()
    """Sealed windows whose counts are in no sink yet"""
    messages: PendingWindows = PendingWindows()
    """Windows whose counts are in the log file and not yet in RabbitMQ"""
    callbacks: PendingCallbacks = PendingCallbacks()
    quarantined: int = 0
    """Windows whose keys in the store are damaged: an operator has to repair them"""


class Stale(Model):
    """The store cannot be asked for the other machines: what they said last is shown."""

    since: Moment
    """When the other machines were seen last; if they were not seen yet, when this one began to look"""
    text: str
    """Why, in a sentence"""


class Report(Model):
    """What a machine tells of itself. The last three are known to the leading machine alone."""

    machine: Machine
    recent: list[Line] = []
    current: Current | None = None
    last: Last | None = None
    pending: Pending | None = None


class Status(Model):
    """The fleet, as the machine that answers sees it. Each part that nobody knows is null."""

    now: Moment
    """By the store's clock, as far as the machine that answers knows it"""
    namespace: str
    window_s: int
    """The window length of the settings of the machine that answers"""
    machine: str
    """The id of the machine that answers"""
    ready: bool
    """Whether the machine that answers counts ids"""
    trouble: dict[str, Trouble] = {}
    """Present trouble of the machine that answers, by part"""
    stale: Stale | None = None
    """null: the other machines' states are at most some seconds old"""
    leader: Leader | None = None
    """null: no machine leads, or none that leads is known"""
    current: Current | None = None
    last: Last | None = None
    pending: Pending | None = None
    late_s: float | None = None
    """Time for which the oldest window that has ended is not sealed, as the leader sees it: 0 or some
    milliseconds, if nothing is late"""
    machines: list[Machine]
    """The machine that answers comes first, then the others by name"""
    recent: list[Line] = []
    """Warnings and errors of the logs, newest first: up to 50 of the machine that answers, 5 of each other"""


def status(
    own: Report,
    others: Sequence[Report] = (),
    *,
    now: datetime.datetime,
    namespace: str,
    window_s: int,
    stale: Stale | None = None,
    unseen_s: float = 0.0,
) -> Status:
    """The fleet, of the machine's own report and the others' last ones, which were seen so long ago."""
    judged = [_judged(report, now, unseen_s) for report in others]
    reports = [own, *sorted(judged, key=lambda report: (report.machine.name, report.machine.id))]
    leading = max(
        (report for report in reports if report.machine.is_leader and report.machine.silent_since is None),
        key=lambda report: report.machine.epoch,
        default=None,
    )
    lines = [line for report in reports for line in report.recent]
    sealed = [report.last for report in reports if report.last]
    return Status(
        now=now,
        namespace=namespace,
        window_s=window_s,
        machine=own.machine.id,
        ready=own.machine.ready,
        trouble=own.machine.trouble,
        stale=stale,
        leader=_leader(leading.machine) if leading else None,
        current=leading.current if leading else None,
        last=max(sealed, key=lambda last: last.window_start, default=None),
        pending=leading.pending if leading else None,
        late_s=(leading or own).machine.late_s,
        machines=[report.machine for report in reports],
        recent=sorted(lines, key=lambda line: line.time, reverse=True),
    )


def is_heard(machine: Machine, status: Status) -> bool:
    """Whether what it said last is of the present. It is not while the store, by which machines hear of each
    other, is away."""
    return machine.id == status.machine or (machine.silent_since is None and status.stale is None)


def _judged(other: Report, now: datetime.datetime, unseen_s: float) -> Report:
    """With its silence, if it was silent when it was looked for last. While nobody can look, it is not."""
    age_s = other.machine.age_s
    if age_s - unseen_s <= SILENT_S:
        return other
    since = now - datetime.timedelta(seconds=age_s)
    return other.model_copy(update={"machine": other.machine.model_copy(update={"silent_since": since})})


def _leader(machine: Machine) -> Leader:
    slot = next((worker.slot for worker in machine.workers if worker.is_leader), 0)
    return Leader(machine=machine.id, name=machine.name, worker=slot, epoch=machine.epoch)
