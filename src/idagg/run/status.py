"""What passes between supervisor and worker: the order at the start, and a worker's beats.

Both are JSON, a line each: the order on the worker's standard input, which then stays open and so tells of
the supervisor's death; the beats on its standard output.
"""

from __future__ import annotations

import base64
import dataclasses

import orjson

from idagg.settings import Settings

BEAT_S = 0.5
# Parts whose trouble keeps nobody from counting, and is told in the log by the worker that has it.
SINKS = frozenset({"broker", "delivery"})


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
