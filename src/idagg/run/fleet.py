"""The fleet, as this machine sees it: its own state from memory, the others' from the store."""

from __future__ import annotations

import collections
import contextlib
import datetime
import hashlib
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from idagg.read import fleet
from idagg.run.logs import take_recent
from idagg.run.machine import Machine
from idagg.run.messages import Heartbeat, LogLine
from idagg.run.report import Identity, moment, report
from idagg.run.usage import usage

# Lines that are kept.
MOST_RECENT = 50
_TOGETHER = datetime.timedelta(seconds=10)
_LEVELS: dict[str, fleet.Level] = {"warning": "warning", "error": "error", "critical": "critical"}


class Watched(Protocol):
    """The supervisor, as the fleet needs it."""

    def trouble(self) -> dict[str, str]: ...

    def machine(self) -> Machine: ...


class Fleet:
    """Makes this machine's report, and the status of all machines."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._identity = identity()
        self._trouble: dict[str, fleet.Trouble] = {}
        self._recent: collections.deque[fleet.Line] = collections.deque(maxlen=MOST_RECENT)
        self._last: fleet.Last | None = None

    def heard(self, process: str, heartbeat: Heartbeat) -> None:
        """Take the log's lines out of a heartbeat."""
        if heartbeat.lines:
            self._note(process if process.startswith("worker-") else "callbacks", heartbeat.lines)

    def status(self) -> fleet.Status:
        machine = self._watched.machine()
        settings = machine.settings
        own = self._report(machine)
        return fleet.status(
            own,
            now=moment(time.time() - (own.machine.clock_skew_s or 0)),
            namespace=settings.namespace,
            window_s=settings.window,
        )

    def _report(self, machine: Machine) -> fleet.Report:
        now, before = moment(time.time()), self._trouble
        self._note("supervisor", take_recent())
        self._trouble = {
            part: fleet.Trouble(text=text, since=before[part].since if part in before else now)
            for part, text in self._watched.trouble().items()
        }
        made = report(self._identity, machine, self._trouble, list(self._recent))
        # A machine that has ceased to lead knows the last window of its time; the next leader none yet.
        self._last = made.last or self._last
        return made.model_copy(update={"last": self._last})

    def _note(self, process: str, lines: Iterable[LogLine]) -> None:
        """Keep the lines. One that several processes log at a time is kept once."""
        for line in lines:
            at = moment(line.at_s)
            if any(line.text == known.text and abs(at - known.time) < _TOGETHER for known in self._recent):
                continue
            self._recent.append(
                fleet.Line(
                    time=at,
                    level=_LEVELS.get(line.level, "error"),
                    machine=self._identity.name,
                    process=process,
                    text=line.text,
                )
            )


def identity() -> Identity:
    """This instance's. A reload executes the next supervisor in the same process, so that this stays."""
    pid, name, own = os.getpid(), socket.gethostname(), Path("/proc/self")
    facts = [name, str(pid)]
    with contextlib.suppress(OSError):
        facts.append((own / "stat").read_text().rpartition(")")[2].split()[19])  # its start, by proc(5)
        facts.append(str((own / "ns/pid").stat().st_ino))
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text())  # the unit hides it
    seen = usage(pid)
    return Identity(
        hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16],
        name,
        pid,
        seen.started_s if seen else time.time(),
    )
