"""What passes between the supervisor and its processes: the order at the start, and heartbeats.

Both are JSON, a line each: the order on the process's standard input, which then stays open and so tells of
the supervisor's death; the heartbeats on its standard output. The callback process is told, in further lines
on its standard input, when this machine leads.
"""

from __future__ import annotations

import base64
import dataclasses

import orjson

from idagg.settings import Settings

BEAT_S = 0.5
# Parts whose trouble keeps nobody from counting, and is told in the log by the worker that has it.
SINKS = frozenset({"broker", "delivery", "callbacks"})


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """``slot`` names the worker among those of this VM, ``listener`` is an inherited descriptor; its
    predecessor may still have both. ``writer`` is no other living process's, and names its metrics.
    ``stdout`` is the supervisor's standard output, inherited too: the worker's own is for its beats."""

    settings: Settings
    redis_url: str
    slot: int
    listener: int
    writer: int
    stdout: int

    def line(self) -> bytes:
        settings = base64.b64encode(self.settings.to_json()).decode()
        return (
            orjson.dumps([settings, self.redis_url, self.slot, self.listener, self.writer, self.stdout])
            + b"\n"
        )

    @classmethod
    def parse(cls, line: bytes) -> Order:
        settings, *others = orjson.loads(line)
        return cls(Settings.from_json(base64.b64decode(settings)), *others)


@dataclasses.dataclass(frozen=True, slots=True)
class Beat:
    """A worker lives and listens. ``store``, ``broker`` and ``delivery`` say what is wrong with them, if
    anything."""

    epoch: int
    store: str | None
    broker: str | None
    delivery: str | None

    def line(self) -> bytes:
        return orjson.dumps(dataclasses.astuple(self)) + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Beat:
        return cls(*orjson.loads(line))


@dataclasses.dataclass(frozen=True, slots=True)
class CallbackOrder:
    """What the callback process is to know at its start; ``writer`` and ``stdout`` as in Order."""

    settings: Settings
    redis_url: str
    writer: int
    stdout: int

    def line(self) -> bytes:
        settings = base64.b64encode(self.settings.to_json()).decode()
        order = {
            "settings": settings,
            "redis_url": self.redis_url,
            "writer": self.writer,
            "stdout": self.stdout,
        }
        return orjson.dumps(order) + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> CallbackOrder:
        order = orjson.loads(line)
        settings = Settings.from_json(base64.b64decode(order["settings"]))
        return cls(settings, order["redis_url"], order["writer"], order["stdout"])


def epoch_line(epoch: int) -> bytes:
    """Tells the callback process the epoch in which this machine leads; 0: another does, or none."""
    return orjson.dumps({"epoch": epoch}) + b"\n"


def read_epoch(line: bytes) -> int:
    return int(orjson.loads(line)["epoch"])
