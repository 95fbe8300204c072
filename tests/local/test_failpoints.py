"""Failpoints: named places that end or stall the process, where and when they are told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from idagg import failpoints

REACHES = "from idagg.failpoints import reach; reach('after-seal'); print('passed')"


def run(value: str | None) -> tuple[int, str]:
    environment = {name: text for name, text in os.environ.items() if name != failpoints.VARIABLE}
    if value is not None:
        environment[failpoints.VARIABLE] = value
    done = subprocess.run(
        [sys.executable, "-c", REACHES], env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("value", [None, "before-seal=kill", "after-seal=kill@/no/such/file"])
def test_passed(value: str | None) -> None:
    """Nothing happens where nothing was set, at another place, and without the file."""
    assert run(value) == (0, "passed\n")


def test_reached(tmp_path: Path) -> None:
    """It happens at its place; where a file is named, once a file."""
    assert run("after-seal=kill") == (-signal.SIGKILL, "")
    armed = tmp_path / "armed"
    for _ in range(2):
        armed.touch()
        assert run(f"after-seal=kill@{armed}") == (-signal.SIGKILL, "")
        assert run(f"after-seal=kill@{armed}") == (0, "passed\n")


def test_reached_later(tmp_path: Path) -> None:
    """A number in the file says at which pass."""
    armed = tmp_path / "armed"
    armed.write_text("3")
    for _ in range(2):
        assert run(f"after-seal=kill@{armed}") == (0, "passed\n")
    assert run(f"after-seal=kill@{armed}") == (-signal.SIGKILL, "")
    assert not armed.exists()


def test_stall() -> None:
    """A stalled process goes on where it was when it is told to."""
    environment = os.environ | {failpoints.VARIABLE: "after-seal=stall"}
    with subprocess.Popen(
        [sys.executable, "-c", REACHES], env=environment, stdout=subprocess.PIPE
    ) as process:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        process.send_signal(signal.SIGCONT)
        assert process.communicate()[0] == b"passed\n"
    assert process.returncode == 0
