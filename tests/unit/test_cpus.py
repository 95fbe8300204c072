"""The CPUs that a process may use, as the kernel's files tell it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from idagg import cpus

V2 = "30 24 0:26 {shown} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "33 32 0:30 {shown} /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct"
OTHER = "34 32 0:31 / /sys/fs/cgroup/memory rw shared:11 - cgroup cgroup rw,memory"


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def machine(root: Path, *, mount: str, cgroup: str, files: dict[str, str]) -> Path:
    files = {"proc/self/mountinfo": f"{OTHER}\n{mount}\n", "proc/self/cgroup": f"3:memory:/\n{cgroup}\n"} | {
        f"sys/fs/cgroup/{name}": text for name, text in files.items()
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("200000 100000\n", 2),
        ("150000 100000", 2),
        ("10000 100000", 1),
        ("max 100000", 8),
        ("no", 8),
        ("", 8),
    ],
)
def test_unified(limit: str, expected: int, tmp_path: Path) -> None:
    """The quota of version 2 limits the affinity, rounded up; what cannot be read limits nothing."""
    mount = V2.format(shown="/")
    root = machine(tmp_path, mount=mount, cgroup="0::/a.slice/b", files={"a.slice/b/cpu.max": limit})
    assert cpus.usable(root) == expected


def test_the_lowest_of_all_above(tmp_path: Path) -> None:
    """A slice limits what is in it."""
    files = {
        "a.slice/cpu.max": "300000 100000",
        "a.slice/b/cpu.max": "max 100000",
        "cpu.max": "500000 100000",
    }
    root = machine(tmp_path, mount=V2.format(shown="/"), cgroup="0::/a.slice/b", files=files)
    assert cpus.usable(root) == 3


@pytest.mark.parametrize("shown", ["/docker/x", "/"])
@pytest.mark.parametrize(("quota", "expected"), [("200000", 2), ("-1", 8)])
def test_version_1(shown: str, quota: str, expected: int, tmp_path: Path) -> None:
    """The quota of version 1 does, too, in a container that sees its own cgroup as the root."""
    folder = "cpu,cpuacct" if shown != "/" else "cpu,cpuacct/docker/x"
    files = {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000\n"}
    cgroup = "4:cpu,cpuacct:/docker/x"
    root = machine(tmp_path, mount=V1.format(shown=shown), cgroup=cgroup, files=files)
    assert cpus.usable(root) == expected


def test_no_cgroups(tmp_path: Path) -> None:
    """Without them the affinity counts alone."""
    assert cpus.usable(tmp_path) == 8
