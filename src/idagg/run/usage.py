"""What a process uses, by proc(5).

prometheus_client's own collector needs ``/proc/stat``, which the unit hides (``ProcSubset=pid``).
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")
# Once, so that a process's start does not seem to move.
_BOOTED_S = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Usage(NamedTuple):
    cpu_s: float
    resident_bytes: int
    open_files: int
    most_files: float
    started_s: float  # Unix time


def age_s(started_s: float) -> float:
    """Time since ``Usage.started_s``, whatever the clock was set to since."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - (started_s - _BOOTED_S)


def usage(pid: int) -> Usage | None:
    """None if the process has ended."""
    folder = Path("/proc", str(pid))
    try:
        # After the name, which may hold anything; from the third field on.
        fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
        files = sum(1 for _ in (folder / "fd").iterdir())
        limits = (folder / "limits").read_text()
    except OSError:
        return None
    (most,) = (line.split()[3] for line in limits.splitlines() if line.startswith("Max open files"))
    return Usage(
        cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS,
        resident_bytes=int(fields[21]) * _PAGE_BYTES,
        open_files=files,
        most_files=float("inf") if most == "unlimited" else float(most),
        started_s=_BOOTED_S + int(fields[19]) / _TICKS,
    )
