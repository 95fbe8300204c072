"""Servers whose clock steps, by libfaketime. Not for Python: its time.sleep() then fails now and then."""

from __future__ import annotations

import signal
from pathlib import Path

from kit.servers import RedisServer, libfaketime

SHARED = Path("/dev/shm")  # noqa: S108  it is libfaketime's place


class SteppedServer(RedisServer):
    """A Valkey on a host whose clock is off, and steps. (Debian's Redis does not start under libfaketime.)

    It is off by ``off_s``. The server's monotonic clock goes on as it does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.step(0)

    def step(self, off_s: int) -> None:
        self.off_s = off_s
        new = self.folder / "clock.new"
        new.write_text(f"{off_s:+d}s\n")
        new.rename(self.folder / "clock")

    def _environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(libfaketime()),
            "FAKETIME_TIMESTAMP_FILE": str(self.folder / "clock"),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def _end(self, number: signal.Signals) -> None:
        pid = self.pid
        super()._end(number)
        for name in ("faketime_shm_", "sem.faketime_sem_"):  # one that is killed leaves them
            (SHARED / f"{name}{pid}").unlink(missing_ok=True)
