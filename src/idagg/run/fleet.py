"""The fleet, as this machine sees it: its own state from memory, the others' from the store."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import datetime
import hashlib
import math
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from idagg.errors import StoreError
from idagg.read import fleet
from idagg.run import stores
from idagg.run.logs import take_recent
from idagg.run.machine import Machine
from idagg.run.messages import Heartbeat, LogLine
from idagg.run.report import Identity, aged, is_predecessor, moment, report, shortened
from idagg.run.usage import age_s, usage
from idagg.settings import Settings
from idagg.store.client import Client
from idagg.store.fleet import FleetStore
from idagg.store.shards import shard_tag
from idagg.tasks import end

# Lines that are kept.
MOST_RECENT = 50
# Processes whose name in the journal is not the one in the status.
_NAMES = {"the callback process": "callbacks", "the combiner": "combiner"}
# The same line within this time, of another process as a rule, is the same event.
_TOGETHER = datetime.timedelta(seconds=10)
# Interval at which the state is published; of the leader, which has the counts, more often.
PUBLISH_S = 3.0
LEADER_PUBLISH_S = 1.0
# A change is published at once, but not sooner than this after the last time.
SOONEST_S = 0.5
# Interval at which a change is looked for.
LOOK_S = 0.25
# Other machines' states are asked for again after this time. Whoever wants them waits no longer than that.
FRESH_S = 0.9
PATIENCE_S = 0.5
# Limit of a command to the store.
_TIMEOUT_S = 2.0
_LEVELS: dict[str, fleet.Level] = {"warning": "warning", "error": "error", "critical": "critical"}


class Watched(Protocol):
    """The supervisor, as the fleet needs it."""

    def trouble(self) -> dict[str, str]: ...

    def machine(self) -> Machine: ...

    @property
    def admin_address(self) -> str: ...


class Fleet:
    """Makes this machine's report and publishes it, and makes the status of all machines.

    The embedded store has no other machines: nothing is published there.
    """

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._identity = identity()
        self._trouble: dict[str, fleet.Trouble] = {}
        self._recent: collections.deque[fleet.Line] = collections.deque(maxlen=MOST_RECENT)
        self._last: fleet.Last | None = None
        self._others = Others(self._identity)
        self._leaves = False

    def heard(self, process: str, heartbeat: Heartbeat) -> None:
        """Take the log's lines out of a heartbeat."""
        if heartbeat.lines:
            self._note(_NAMES.get(process, process), heartbeat.lines)

    async def run(self) -> None:
        """Publish for ever."""
        told: object = None
        told_at = -math.inf
        while True:
            self._look()
            machine, now, state = self._watched.machine(), time.monotonic(), self.essence()
            pause_s = LEADER_PUBLISH_S if machine.leader else PUBLISH_S
            is_due = now - told_at >= pause_s or (state != told and now - told_at >= SOONEST_S)
            if is_due and not self._leaves:
                told, told_at = state, now
                self._others.serve(machine.settings)
                with contextlib.suppress(StoreError):  # the trouble is told by those who count
                    await self._others.publish(shortened(self._report(machine)))
            await asyncio.sleep(LOOK_S)

    async def withdraw(self) -> None:
        """Tell the others that this machine stops, and nothing later. It is no use to wait long for that."""
        self._leaves = True
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await self._others.withdraw()
        await self._others.close()

    async def status(self) -> fleet.Status:
        """The fleet at this moment. A store that is away delays this by PATIENCE_S at most."""
        self._others.serve(self._watched.machine().settings)
        others = await self._others.look()
        self._look()
        machine = self._watched.machine()
        own = self._report(machine)
        now = moment(time.time() - (own.machine.clock_skew_s or 0))
        stale = None
        if others.trouble is not None:
            stale = fleet.Stale(since=now - datetime.timedelta(seconds=others.unseen_s), text=others.trouble)
        return fleet.status(
            own,
            others.reports,
            now=now,
            namespace=machine.settings.namespace,
            window_s=machine.settings.window,
            stale=stale,
            unseen_s=others.unseen_s,
        )

    def essence(self) -> object:
        """What others are told of at once when it changes."""
        machine = self._watched.machine()
        leader = machine.leader
        lead = leader.lead if leader else None
        return (
            [(part, trouble.text) for part, trouble in self._trouble.items()],
            [worker and (worker.pid, worker.epoch) for worker in machine.workers],
            lead and lead.start_s,
        )

    def _look(self) -> None:
        now, before = moment(time.time()), self._trouble
        self._note("supervisor", take_recent())
        self._trouble = {
            part: fleet.Trouble(text=text, since=before[part].since if part in before else now)
            for part, text in self._watched.trouble().items()
        }

    def _report(self, machine: Machine) -> fleet.Report:
        made = report(
            self._identity,
            machine,
            self._trouble,
            list(self._recent),
            admin=self._watched.admin_address,
        )
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


class Look(NamedTuple):
    """What the other machines said last, ``unseen_s`` ago, and why that is old, if it is."""

    reports: list[fleet.Report]
    unseen_s: float
    trouble: str | None


class Others:
    """The other machines, by the states that they have published."""

    def __init__(self, own: Identity) -> None:
        self._own = own
        self._has_place = False  # its predecessor's
        self._settings: Settings | None = None  # those that the client was made for
        self._client: Client | None = None
        self._store: FleetStore | None = None
        self._known: dict[str, tuple[bytes, fleet.Report]] = {}  # by machine: as published, and read
        self._ages_s: dict[str, float] = {}  # at the last look
        self._began_at = time.monotonic()
        self._seen_at = -math.inf  # the last look, by the monotonic clock
        self._trouble: str | None = None  # of the store
        self._asking: asyncio.Task[None] | None = None

    def serve(self, settings: Settings) -> None:
        """Use the store of these settings, which a reload may have changed."""
        if settings is self._settings:
            return
        self._settings, left = settings, self._client
        self._client = self._store = None
        if left is not None:
            self._ending = asyncio.create_task(left.close())
        if settings.redis_url:
            tag = shard_tag(settings.namespace)
            servers = stores.servers(settings.redis_url, settings.in_force())
            self._client = servers.client(tag, timeout_s=_TIMEOUT_S)
            self._store = FleetStore(self._client, tag)

    async def publish(self, own: fleet.Report) -> None:
        """Raises StoreError."""
        if self._store is None:
            return
        await self._store.publish(self._own.id, own.model_dump_json(exclude_defaults=True).encode())
        if not self._has_place:
            await self._take_place(self._store, own.machine)
            self._has_place = True

    async def withdraw(self) -> None:
        if self._store is not None:
            await self._store.withdraw(self._own.id)

    async def _take_place(self, store: FleetStore, own: fleet.Machine) -> None:
        """Remove the instance that has died here before this one was started."""
        for published in await store.all():
            other = _read(published.state)
            running_s = age_s(self._own.started_s)
            if other is not None and is_predecessor(own, running_s, other.machine, published.age_s):
                await store.withdraw(published.id)

    async def close(self) -> None:
        if self._asking is not None:
            await end(self._asking)
        if self._client is not None:
            await self._client.close()

    async def look(self) -> Look:
        """What the others said last, and whether that is old because the store is away."""
        store = self._store
        if store is None:
            return Look([], 0.0, None)
        if time.monotonic() - self._seen_at >= FRESH_S:
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask(store))
            await asyncio.wait([self._asking], timeout=PATIENCE_S)
        since_s = time.monotonic() - self._seen_at
        reports = [
            aged(self._known[machine][1], age_s + since_s)
            for machine, age_s in self._ages_s.items()
            if machine in self._known
        ]
        if since_s < FRESH_S + PATIENCE_S:
            return Look(reports, since_s, None)
        began_s = time.monotonic() - self._began_at
        return Look(reports, min(since_s, began_s), self._trouble or _SILENT)

    async def _ask(self, store: FleetStore) -> None:
        try:
            published = await store.all()
        except StoreError as error:
            self._trouble = str(error)
            return
        known = {}
        for machine in published:
            if machine.id == self._own.id:
                continue
            before = self._known.get(machine.id)
            if before is not None and before[0] == machine.state:
                known[machine.id] = before
            elif (said := _read(machine.state)) is not None:
                known[machine.id] = machine.state, said
        self._known = known
        self._ages_s = {machine.id: machine.age_s for machine in published}
        self._seen_at, self._trouble = time.monotonic(), None


_SILENT = f"the store did not answer within {PATIENCE_S:g} s"


def _read(state: bytes) -> fleet.Report | None:
    """None: it is of a version that says something else by the same names."""
    try:
        return fleet.Report.model_validate_json(state)
    except ValueError:
        return None


def identity() -> Identity:
    """This instance's. A reload executes the next supervisor in the same process, so that this stays."""
    pid, name, own = os.getpid(), socket.gethostname(), Path("/proc/self")
    facts = [name, str(pid)]
    with contextlib.suppress(OSError):
        facts.append((own / "stat").read_text().rpartition(")")[2].split()[19])  # its start, by proc(5)
        facts.append(str((own / "ns/pid").stat().st_ino))
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text())  # the unit hides it
    seen = usage(pid)
    machine_id = ""
    with contextlib.suppress(OSError):
        machine_id = Path("/etc/machine-id").read_text(errors="replace").strip()
    return Identity(
        hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16],
        name,
        machine_id,
        pid,
        seen.started_s if seen else time.time(),
    )
