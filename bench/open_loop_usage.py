"""What processes had of the cores, and what they had to wait for."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

from bench.measure import cpu_seconds


@dataclasses.dataclass(frozen=True)
class Usage:
    """Of a process and its descendants. ``waited_s`` is for how long their main threads were ready to run and
    had no core: where that is much, others kept the machine busy, and latencies are theirs."""

    cpu_s: float
    waited_s: float

    @classmethod
    def of(cls, root: int) -> Usage:
        cpu_s = cpu_seconds(root)
        return cls(sum(cpu_s.values()), sum(map(_waited_s, cpu_s)))

    def __sub__(self, earlier: Usage) -> Usage:
        return Usage(self.cpu_s - earlier.cpu_s, self.waited_s - earlier.waited_s)


def _waited_s(pid: int) -> float:
    with contextlib.suppress(OSError):  # it has ended
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return 0
