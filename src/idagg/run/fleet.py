"""The fleet, as this machine sees it: its own state from memory, the others' from the store."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import time
from pathlib import Path
from typing import Protocol

from idagg.read import fleet
from idagg.run.machine import Machine
from idagg.run.report import Identity, moment, report
from idagg.run.usage import usage


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

    def status(self) -> fleet.Status:
        machine = self._watched.machine()
        settings = machine.settings
        return fleet.status(
            self._report(machine),
            now=moment(time.time()),
            namespace=settings.namespace,
            window_s=settings.window,
        )

    def _report(self, machine: Machine) -> fleet.Report:
        now, before = moment(time.time()), self._trouble
        self._trouble = {
            part: fleet.Trouble(text=text, since=before[part].since if part in before else now)
            for part, text in self._watched.trouble().items()
        }
        return report(self._identity, machine, self._trouble)


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
