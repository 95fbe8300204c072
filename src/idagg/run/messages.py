"""What passes between the supervisor and its processes: messages, each a line of JSON with named fields.

The first comes on the process's standard input, which then stays open and so tells of the supervisor's death.
A worker's heartbeats go the other way, on its standard output. The callback process is told, in further lines
on its standard input, when this machine leads.

During an upgrade the two are of different versions. So a field that is not known here is passed over, and one
that is missing has its default.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import orjson

from idagg.settings import Settings

HEARTBEAT_S = 0.5
# Parts whose trouble keeps nobody from counting, and is told in the log by the process that has it.
SINKS = frozenset({"broker", "delivery", "callbacks"})


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    def line(self) -> bytes:
        return orjson.dumps(self, default=_settings_as_json) + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """Raises ValueError or TypeError for what is no such message."""
        given = orjson.loads(line)
        if not isinstance(given, dict):
            raise TypeError(f"no message: {line[:100]!r}")
        known = {field.name for field in dataclasses.fields(cls)}
        fields = {name: value for name, value in given.items() if name in known}
        if "settings" in fields:
            fields["settings"] = Settings.from_json(orjson.dumps(fields["settings"]))
        return cls(**fields)


@dataclasses.dataclass(frozen=True, slots=True)
class CallbackStart(Message):
    """What the callback process is to know. ``writer`` is no other living process's, and names its metrics.
    ``stdout`` is the supervisor's standard output, an inherited descriptor: its own is for heartbeats."""

    settings: Settings
    redis_url: str
    writer: int
    stdout: int


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerStart(CallbackStart):
    """What a worker is to know. ``slot`` names it among those of this machine, ``listener`` is an inherited
    descriptor; its predecessor may still have both."""

    slot: int
    listener: int


@dataclasses.dataclass(frozen=True, slots=True)
class Heartbeat(Message):
    """The process lives. A worker leads if it has an ``epoch``; ``store``, ``broker`` and ``delivery`` say
    what is wrong with them, if anything."""

    epoch: int = 0
    store: str | None = None
    broker: str | None = None
    delivery: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Leads(Message):
    """The epoch in which this machine leads; 0: another does, or none."""

    epoch: int = 0


def _settings_as_json(value: Any) -> orjson.Fragment:
    assert isinstance(value, Settings)
    return orjson.Fragment(value.to_json())
