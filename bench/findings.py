"""All that one run of the bench found out."""

from __future__ import annotations

import dataclasses
from typing import Any

from bench.closed_loop.results import Results
from bench.flushing.results import Flushing
from bench.growth.results import Growth
from bench.open_loop.results import OpenLoop
from bench.tools import Unrest, reproducible


@dataclasses.dataclass
class Findings:
    """``unrest`` is what the machine did before each part; ``troubles`` is what must not be, a sentence each;
    the parts are None that were not asked for."""

    machine: dict[str, str]
    options: dict[str, Any]
    unrest: dict[str, Unrest] = dataclasses.field(default_factory=dict)
    troubles: list[str] = dataclasses.field(default_factory=list)
    closed: Results | None = None
    open: OpenLoop | None = None
    flushing: Flushing | None = None
    growth: Growth | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "options": reproducible(self.options),
            "unrest": {part: dataclasses.asdict(unrest) for part, unrest in self.unrest.items()},
            "troubles": self.troubles,
            "closed": dataclasses.asdict(self.closed) if self.closed else None,
            "open": self.open.as_json() if self.open else None,
            "flushing": dataclasses.asdict(self.flushing) if self.flushing else None,
            "growth": dataclasses.asdict(self.growth) if self.growth else None,
        }
