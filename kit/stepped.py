"""Clocks that step, by libfaketime."""

from __future__ import annotations

import contextlib
from pathlib import Path

from kit.servers import RedisServer, libfaketime


class Clock:
    """The clock of all processes that have its ``environment``: off by as much as ``step`` said last. Their
    monotonic clocks go on as they do."""

    def __init__(self, folder: Path) -> None:
        _sweep()
        self._file = folder / "clock"
        self.off_s = 0
        self.step(0)

    def step(self, off_s: int) -> None:
        self.off_s = off_s
        new = self._file.with_suffix(".new")
        new.write_text(f"{off_s:+d}s\n")
        new.rename(self._file)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(libfaketime()),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


def _sweep() -> None:
    """Remove what libfaketime has left of killed processes: the next one with such a pid
    would not start."""
    for file in Path("/dev/shm").glob("*faketime_*"):  # noqa: S108  its place
        with contextlib.suppress(OSError):  # another's sweep was sooner
            if not Path(f"/proc/{file.name.rpartition('_')[2]}").exists():
                file.unlink()


class SteppedServer(RedisServer):
    """A Valkey on a host whose clock is off, and steps. (Debian's Redis does not start under libfaketime.)"""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock(self.folder)

    def step(self, off_s: int) -> None:
        self.clock.step(off_s)

    def _environment(self) -> dict[str, str]:
        return self.clock.environment
