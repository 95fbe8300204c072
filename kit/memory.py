"""A cgroup in which memory runs out, so that the kernel kills one process there. It needs root."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Self

from kit.waiting import LIMIT_S

# Allocates until the process has ended: its memory is free then, though its parent may not know yet. One more
# would be killed in its place.
_EXHAUST = """
import sys
kept = []
try:
    while True:
        with open(f"/proc/{sys.argv[1]}/stat") as stat:
            if stat.read().rpartition(")")[2].split()[0] in "ZX":
                break
        kept.append(b"x" * 1_000_000)
except (FileNotFoundError, ProcessLookupError):
    pass
"""
# Above what the processes need for themselves meanwhile.
_ROOM_BYTES = 30_000_000


class MemoryGroup:
    """``prefix`` begins the command of what is to run in it."""

    def __init__(self) -> None:
        first = Path("/sys/fs/cgroup/memory")  # version 1 of cgroups has a tree for each resource
        is_first = (first / "cgroup.procs").exists()
        root = first if is_first else Path("/sys/fs/cgroup")
        if not is_first:
            (root / "cgroup.subtree_control").write_text("+memory")
        self._folder = root / f"idagg-{uuid.uuid4()}"
        self._used = self._folder / ("memory.usage_in_bytes" if is_first else "memory.current")
        self._limit = self._folder / ("memory.limit_in_bytes" if is_first else "memory.max")
        self._no_limit = "-1" if is_first else "max"
        self.prefix = ("sh", "-ec", f'echo $$ >{self._folder}/cgroup.procs; exec "$@"', "sh")

    def __enter__(self) -> Self:
        self._folder.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        """All that ran in it has ended. A process that ends leaves it last of all."""
        give_up_at = time.monotonic() + LIMIT_S
        while (self._folder / "cgroup.procs").read_text() and time.monotonic() < give_up_at:
            time.sleep(0.01)
        self._folder.rmdir()

    def kill(self, victim: int) -> None:
        """Let memory run out, and the kernel prefer this process."""
        Path(f"/proc/{victim}/oom_score_adj").write_text("1000")
        self._limit.write_text(str(int(self._used.read_text()) + _ROOM_BYTES))
        try:
            subprocess.run(
                [*self.prefix, sys.executable, "-c", _EXHAUST, str(victim)], timeout=LIMIT_S, check=True
            )
        finally:
            self._limit.write_text(self._no_limit)
