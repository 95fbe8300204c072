"""Private processes, and what the kernel says that they cost."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(
    name: str, command: Sequence[str], folder: Path, **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in ``folder``, its output in ``NAME.out`` there; it ends with the block.

    A session of its own keeps Ctrl-C from it: servers end in order, after what uses them.
    """
    with (folder / f"{name}.out").open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def cpu_seconds(root: int) -> dict[int, float]:
    """User and system time of a process and each of its descendants, all threads included.

    A child that has ended is in its parent's figure, so sums of two calls can be subtracted although Redis
    forks for its log rewrites in between.
    """
    ticks, children = {}, dict[int, list[int]]()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            # The second field is the program's name in parentheses and may hold anything.
            fields = entry.read_text().rpartition(")")[2].split()
            pid = int(entry.parent.name)
            ticks[pid] = sum(map(int, fields[11:15]))
            children.setdefault(int(fields[1]), []).append(pid)
    tree = [root]
    for pid in tree:  # grows while it is walked
        tree += children.get(pid, [])
    return {pid: ticks[pid] / _TICKS for pid in tree}


def memory(root: int) -> int:
    """Bytes of a process and its descendants; shared pages are divided among those who share them."""
    return sum(_proportional_set(pid) for pid in cpu_seconds(root))


def _proportional_set(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


@dataclasses.dataclass(frozen=True)
class Usage:
    """Of a process and its descendants. ``waited_s`` is for how long their main threads were ready to run and
    had no core: where that is much, others kept the machine busy, and latencies are theirs."""

    cpu_s: float
    waited_s: float

    @classmethod
    def of(cls, root: int) -> Usage:
        cpu_s = cpu_seconds(root)
        return cls(sum(cpu_s.values()), sum(map(waited_s, cpu_s)))

    def __sub__(self, earlier: Usage) -> Usage:
        return Usage(self.cpu_s - earlier.cpu_s, self.waited_s - earlier.waited_s)


def waited_s(pid: int) -> float:
    """For how long its main thread was ready to run and had no core."""
    with contextlib.suppress(OSError):  # it has ended
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return 0
