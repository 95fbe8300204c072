"""The machine that figures come from."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median


def host(folder: Path) -> dict[str, str]:
    """What a reader of figures wants to know of it; ``folder`` is on the disk that counts."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": model[1] if model else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.1f} GiB",
        "system": platform.freedesktop_os_release()["PRETTY_NAME"],
        "kernel": platform.release(),
        "fsync": f"{_fsync_us(folder):.0f} µs",
        "commit": _commit(),
        "redis": program_version("redis-server", "--version"),
        "python": platform.python_version(),
    }


def _commit() -> str:
    if not shutil.which("git"):
        return "an unknown commit"
    return _output("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty").strip()


def _fsync_us(folder: Path) -> float:
    """What it costs to have a line of a log on disk, where the servers keep theirs."""
    took = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(200):
            file.write(bytes(1000))
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    return median(took) * 1e6


def program_version(*command: str) -> str:
    """The first number with a dot in it that a program says when asked for its version."""
    found = re.search(r"\d+\.[\w.+-]+", _output(*command))
    return found[0] if found else "unknown"


def _output(*command: str) -> str:
    # wrk prints its version and calls that a failure; nginx prints it as an error.
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    ).stdout
