"""The number of CPUs that this process may use: its affinity, and the CPU quota of its cgroup.

A container that is limited to two CPUs still sees all of its host's. Precedents: Go 1.25, the JVM.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def usable(root: Path = Path("/")) -> int:
    """At least 1. A quota that is no whole number is rounded up. ``root`` is another one in tests."""
    return max(1, math.ceil(min([len(os.sched_getaffinity(0)), *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """Quotas of this process's cgroups and of all cgroups above them, in CPUs, by cgroups(7)."""
    for mount, type_, options, shown in _mounts(root):
        for controllers, cgroup in _cgroups(root):
            # Version 2 names no controllers.
            if controllers if type_ == "cgroup2" else "cpu" not in controllers & options:
                continue
            # A container sees a part of the hierarchy, ``shown``, as the whole.
            inside = cgroup.relative_to(shown) if cgroup.is_relative_to(shown) else PurePosixPath()
            for folder in (inside, *inside.parents):
                quota = _quota(mount / folder)
                if quota is not None:
                    yield quota


def _cgroups(root: Path) -> Iterator[tuple[set[str], PurePosixPath]]:
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        yield set(filter(None, controllers.split(","))), PurePosixPath(path)


def _mounts(root: Path) -> Iterator[tuple[Path, str, set[str], PurePosixPath]]:
    """Mounts of cgroup hierarchies: folder, type, options, and which part of the hierarchy is there."""
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, source = line.partition(" - ")
        type_, _, options = source.split(" ", 2)
        if type_ in ("cgroup", "cgroup2"):
            shown, folder = mount.split(" ")[3:5]
            yield root / folder.lstrip("/"), type_, set(options.split(",")), PurePosixPath(shown)


def _quota(folder: Path) -> float | None:
    """The quota of one cgroup; None if it has none."""
    texts = _lines(folder / "cpu.max") or [
        " ".join(text for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us") for text in _lines(folder / name))
    ]
    try:
        quota, period = map(int, texts[0].split())
    except ValueError:  # "max", or no such files
        return None
    return quota / period if quota > 0 and period > 0 else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
