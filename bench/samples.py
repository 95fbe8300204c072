"""All that a run of the bench found out: one table of samples."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from bench.tools import Unrest, reproducible
from kit.tables import number

# The name of one, or of several that are added.
Figure = str | tuple[str, ...]
# A row, and the table that it is in.
Cell = tuple[str | int, str]


@dataclasses.dataclass(frozen=True)
class Sample:
    """What was measured once: ``figures`` by their names, units in them, as the report shows them. ``row``
    says of whom, or at how many; ``what`` is the table. Whole numbers are counts."""

    what: str
    row: str | int
    figures: Mapping[str, float]
    round: int = 1

    def value(self, figure: Figure) -> float:
        return self.figures[figure] if isinstance(figure, str) else sum(self.figures[name] for name in figure)

    def __str__(self) -> str:
        figures = (f"{name} {number(value)}" for name, value in self.figures.items())
        return f"{self.what} {self.row}: {', '.join(figures)}"


@dataclasses.dataclass
class Findings:
    """``unrest`` is what the machine did before each part; ``troubles`` is what must not be, in sentences."""

    machine: dict[str, str]
    options: dict[str, Any]
    unrest: dict[str, Unrest] = dataclasses.field(default_factory=dict)
    troubles: list[str] = dataclasses.field(default_factory=list)
    samples: list[Sample] = dataclasses.field(default_factory=list)

    def add(self, what: str, row: str | int, figures: Mapping[str, float], number: int = 1) -> Sample:
        self.samples.append(Sample(what, row, figures, number))
        return self.samples[-1]

    def rows(self, what: str) -> list[str | int]:
        """Those of a table, in the order in which they came."""
        return list(dict.fromkeys(sample.row for sample in self.samples if sample.what == what))

    def of(self, cell: Cell) -> list[Sample]:
        """One for each round."""
        return [sample for sample in self.samples if (sample.row, sample.what) == cell]

    def values(self, figure: Figure, cell: Cell) -> list[float]:
        return [sample.value(figure) for sample in self.of(cell)]

    def median(self, figure: Figure, cell: Cell) -> float | None:
        values = self.values(figure, cell)
        return median(values) if values else None

    def ratios(self, figure: Figure, above: Cell, below: Cell) -> list[float]:
        """Each round's own: the machine changes less within a round than between rounds."""
        return self._rounds(figure, above, below, lambda value, base: value / base)

    def differences(self, figure: Figure, above: Cell, below: Cell) -> list[float]:
        return self._rounds(figure, above, below, lambda value, base: value - base)

    def _rounds(
        self, figure: Figure, above: Cell, below: Cell, compare: Callable[[float, float], float]
    ) -> list[float]:
        bases = {sample.round: sample.value(figure) for sample in self.of(below)}
        pairs = ((sample.value(figure), bases.get(sample.round)) for sample in self.of(above))
        return [compare(value, base) for value, base in pairs if base is not None]

    def write(self, file: Path) -> None:
        """The run in the first line, then a line for each sample."""
        head = {
            "machine": self.machine,
            "options": reproducible(self.options),
            "unrest": {part: dataclasses.asdict(unrest) for part, unrest in self.unrest.items()},
            "troubles": self.troubles,
        }
        lines = [head] + [
            dataclasses.asdict(sample)
            | {"figures": {name: _short(value) for name, value in sample.figures.items()}}
            for sample in self.samples
        ]
        text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
        file.write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Findings:
        head, *lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        head["unrest"] = {part: Unrest(**unrest) for part, unrest in head["unrest"].items()}
        return cls(**head, samples=[Sample(**line) for line in lines])


def _short(value: float) -> float:
    """To six digits, more than are true."""
    return value if isinstance(value, int) else float(f"{value:.6g}")
