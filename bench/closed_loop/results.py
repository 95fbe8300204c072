"""What a run of the bench found out, and how figures of it are compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from statistics import median

from bench.cost import Cost
from bench.wrk import Load


@dataclasses.dataclass(frozen=True)
class Run:
    """One server under one kind of traffic in one round, started for it and with an empty store.

    ``cost`` is that of the load alone, without the warm-up; ``stored`` is all ids, at the end.
    """

    round: int
    server: str
    traffic: str
    warm_up: Load
    cost: Cost
    stored: int | None

    @property
    def lost(self) -> int:
        """Ids that were accepted and are not in the store; means something where each request had its own."""
        if self.stored is None:
            return 0
        return max(0, self.warm_up.accepted + self.cost.load.accepted - self.stored)

    def __str__(self) -> str:
        return f"{self.cost}"


@dataclasses.dataclass(frozen=True)
class Upkeep:
    """What a server costs before any load: the time to its first answer, and memory for each connection that
    has had an answer and now is idle."""

    round: int
    server: str
    start_s: float
    idle_kib: float

    def __str__(self) -> str:
        return f"{self.start_s:.2f} s to start, {self.idle_kib:.2f} KiB a connection"


@dataclasses.dataclass
class Results:
    runs: list[Run] = dataclasses.field(default_factory=list)
    upkeep: list[Upkeep] = dataclasses.field(default_factory=list)

    def of(self, server: str, traffic: str) -> list[Run]:
        return [run for run in self.runs if (run.server, run.traffic) == (server, traffic)]

    def figures(self, figure: Callable[[Cost], float], server: str, traffic: str) -> list[float]:
        """One for each round."""
        return [figure(run.cost) for run in self.of(server, traffic)]

    def median(self, figure: Callable[[Cost], float], server: str, traffic: str) -> float | None:
        return middle(self.figures(figure, server, traffic))

    def ratios(
        self, figure: Callable[[Cost], float], above: tuple[str, str], below: tuple[str, str]
    ) -> list[float]:
        """Each round's own: the machine changes less within a round than between rounds."""
        base = {run.round: figure(run.cost) for run in self.of(*below)}
        return [figure(run.cost) / base[run.round] for run in self.of(*above) if run.round in base]

    def start_s(self, server: str) -> list[float]:
        return [upkeep.start_s for upkeep in self.upkeep if upkeep.server == server]

    def idle_kib(self, server: str) -> list[float]:
        return [upkeep.idle_kib for upkeep in self.upkeep if upkeep.server == server]

    def servers(self, traffic: str) -> list[str]:
        """Those that met this traffic, in the order in which they did."""
        return list(dict.fromkeys(run.server for run in self.runs if run.traffic == traffic))


def middle(figures: Sequence[float]) -> float | None:
    """The median, where there is one."""
    return median(figures) if figures else None
