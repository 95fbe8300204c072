"""The folder of runtime files: where it is, and what is not taken for one."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

import pytest

from idagg.errors import CannotStartError
from idagg.run import runtime
from idagg.run.runtime import RuntimeFolder


@pytest.fixture(autouse=True)
def nobodys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(runtime, "_LAST_RESORT", str(tmp_path / "shm"))


def test_own(tmp_path: Path) -> None:
    """It is for this user alone, locked against those who sweep, and gone afterwards."""
    folder = RuntimeFolder()
    assert folder.path.parent == tmp_path / "tmp"
    assert [path.stat().st_mode & 0o777 for path in (folder.path, folder.metrics)] == [0o700, 0o700]
    sweeper = os.open(folder.path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(sweeper, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(sweeper)
    folder.remove()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_of_the_service_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What systemd made is used and left to it; what a predecessor left there is gone."""
    given = tmp_path / "run"
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{given}:/run/other")
    (given / "metrics").mkdir(parents=True)
    (given / "metrics" / "counter_0.db").touch()
    folder = RuntimeFolder()
    assert folder.path == given
    assert list(folder.metrics.iterdir()) == []
    folder.remove()
    assert list(given.iterdir()) == []


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that is full or read-only is not used while there is another."""
    full = [tmp_path / "tmp"]

    def try_out(folder: Path) -> None:
        if folder.parent in full:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(runtime, "_try_out", try_out)
    folder = RuntimeFolder()
    assert folder.path.parent == tmp_path / "shm"
    folder.remove()
    full.append(tmp_path / "shm")
    with pytest.raises(CannotStartError, match=r"No space left on device\): set RUNTIME_DIRECTORY to one"):
        RuntimeFolder()
    assert [*(tmp_path / "tmp").iterdir(), *(tmp_path / "shm").iterdir()] == []
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    monkeypatch.setattr(runtime, "_LAST_RESORT", "/proc/nowhere")
    with pytest.raises(CannotStartError, match="there is no folder for runtime files"):
        RuntimeFolder()
