"""Messages between the supervisor and its processes, each a line of JSON with named fields.

The supervisor writes a process's first message to its standard input and keeps that open: it closes when the
supervisor dies. Each process writes heartbeats to its standard output. To a worker the supervisor also writes
an `Assignment` whenever that changes, to the callback process whenever this machine begins or ceases to lead.

During an upgrade the two sides may have different versions. So an unknown field is ignored, and a missing one
has its default.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Self

import orjson

from idagg.in_force import InForce

HEARTBEAT_S = 0.5
# Parts whose trouble does not stop the counting. The process that has it logs it itself.
READY_WITHOUT = frozenset({"broker", "delivery", "callbacks", "combiner", "risk", "shards"})


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """Base of all messages: reads and writes one line."""

    def line(self) -> bytes:
        return orjson.dumps(self, default=_as_json) + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """Read a line. Raises ValueError or TypeError if it is no such message."""
        given = orjson.loads(line)
        if not isinstance(given, dict):
            raise TypeError(f"no message: {line[:100]!r}")
        known = {field.name for field in dataclasses.fields(cls)}
        fields = {name: value for name, value in given.items() if name in known}
        if "settings" in fields:
            fields["settings"] = cls.settings_from(orjson.dumps(fields["settings"]))
        for name, kind in _nested().items():
            if fields.get(name) is not None:
                fields[name] = kind.parse(orjson.dumps(fields[name]))
        if "lines" in fields:
            fields["lines"] = [LogLine.parse(orjson.dumps(line)) for line in fields["lines"]]
        return cls(**fields)

    @staticmethod
    def settings_from(data: bytes) -> object:
        return InForce.from_json(data)


@dataclasses.dataclass(frozen=True, slots=True)
class CallbackStart(Message):
    """The first message to the callback process.

    ``writer`` is the number of its metrics files, unique among running processes. ``stdout`` is an inherited
    descriptor of the supervisor's standard output, since the process's own carries heartbeats.
    """

    settings: InForce
    redis_url: str
    writer: int
    stdout: int


@dataclasses.dataclass(frozen=True, slots=True)
class CombinerStart(CallbackStart):
    """The first message to the combiner process. ``combiner`` is where its socket's path begins."""

    combiner: str


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerStart(CallbackStart):
    """The first message to a worker.

    ``slot`` is its number among this machine's workers. ``listener`` is the inherited descriptor that it
    serves first, ``listeners`` are all inherited ones. During a replacement the old worker of this slot has
    the same. ``combiner`` is as in ``CombinerStart``; None: there is none.
    """

    slot: int
    listener: int
    listeners: list[int] = dataclasses.field(default_factory=list)
    combiner: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Assignment(Message):
    """What a worker has to do from now on.

    ``listeners`` are the inherited descriptors whose connections it accepts; None: its first one.
    ``drain_s``: the listeners close in so many seconds; None: this machine does not stop. ``idle_s``: once it
    stops, it keeps idle connections for so long; None: for its own time.
    """

    listeners: list[int] | None = None
    drain_s: float | None = None
    idle_s: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Lead(Message):
    """What the leader alone knows, None where it has not seen it yet.

    Start, count, hits, exactness, estimate and length of the newest window that was sealed; the ids so far of
    the open one, and its start; numbers of windows with something pending, and of those that are quarantined.
    """

    start_s: int | None = None
    unique_ids: int | None = None
    hits: int | None = None
    exact: bool | None = None
    so_far: int | None = None
    deliveries: int | None = None
    messages: int | None = None
    callbacks: int | None = None
    quarantined: int | None = None
    estimate: int | None = None
    length_s: int | None = None
    open_s: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Traffic(Message):
    """What a worker did in the last seconds, None where there was nothing.

    Requests a second by status of the answer; ids a second that were sent to the store; ids in a batch on
    average; the time from sending a batch to the store's answer, median and 99th percentile.
    """

    by_status: dict[str, float] = dataclasses.field(default_factory=dict)
    ids_per_s: float = 0.0
    batch_ids: float | None = None
    commit_p50_ms: float | None = None
    commit_p99_ms: float | None = None

    @property
    def requests_per_s(self) -> float:
        return round(sum(self.by_status.values()), 1)


@dataclasses.dataclass(frozen=True, slots=True)
class LogLine(Message):
    """A warning or an error that the process has logged; ``at_s`` is Unix time."""

    at_s: float
    level: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Heartbeat(Message):
    """Sign of life of a process. A worker with an ``epoch`` is the leader.

    ``store``, ``broker``, ``delivery`` and ``shards`` are one sentence each about the trouble with that part,
    or None; ``risk`` is one about how the store's servers can lose what they have acknowledged.
    ``answered`` is the number of requests since the process's start. ``skew_s`` is this machine's clock minus
    the store's. ``late_s``: for so long a window that has ended is not sealed. Both are None where unknown.
    ``spread`` is the number of shards that ids are spread over, ``away`` are those that store none.
    ``waiting`` are numbers of endpoints that the callback process has still to call, by their last attempt.
    ``lines`` are those that were logged since the last heartbeat.
    """

    epoch: int = 0
    store: str | None = None
    broker: str | None = None
    delivery: str | None = None
    risk: str | None = None
    shards: str | None = None
    pid: int = 0
    answered: int = 0
    skew_s: float | None = None
    late_s: float | None = None
    lead: Lead | None = None
    traffic: Traffic | None = None
    spread: int = 1
    away: list[int] = dataclasses.field(default_factory=list)
    waiting: dict[str, int] = dataclasses.field(default_factory=dict)
    lines: list[LogLine] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Leads(Message):
    """The epoch in which this machine leads; 0: it does not lead."""

    epoch: int = 0


def _nested() -> dict[str, type[Message]]:
    """Fields that are messages themselves."""
    return {"lead": Lead, "traffic": Traffic}


def _as_json(value: Any) -> object:
    return str(value) if isinstance(value, Path) else orjson.Fragment(value.to_json())
