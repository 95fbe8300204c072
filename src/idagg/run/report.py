"""What a machine tells of itself: a `Report`, made of the supervisor's knowledge. Pure."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence

from idagg import __version__
from idagg.read import fleet
from idagg.run.machine import Machine, fingerprint
from idagg.run.messages import READY_WITHOUT, Heartbeat, Lead


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """What stays the same while an instance runs."""

    id: str
    name: str
    pid: int
    started_s: float  # Unix time


def moment(epoch_s: float) -> datetime.datetime:
    """To the millisecond."""
    return datetime.datetime.fromtimestamp(round(epoch_s, 3), datetime.UTC)


def report(
    identity: Identity,
    machine: Machine,
    trouble: Mapping[str, fleet.Trouble],
    recent: Sequence[fleet.Line] = (),
) -> fleet.Report:
    leader = machine.leader
    lead = leader.lead if leader else None
    skews = [worker.skew_s for worker in machine.running if worker.skew_s is not None]
    return fleet.Report(
        machine=fleet.Machine(
            id=identity.id,
            name=identity.name,
            version=__version__,
            settings=fingerprint(machine.settings),
            started=moment(identity.started_s),
            pid=identity.pid,
            ready=not trouble.keys() - READY_WITHOUT,
            is_leader=leader is not None,
            epoch=leader.epoch if leader else 0,
            clock_skew_s=max(skews, key=abs, default=None),
            trouble=dict(trouble),
            workers=[_worker(slot, heartbeat) for slot, heartbeat in enumerate(machine.workers)],
        ),
        recent=list(recent),
        pending=_pending(lead, trouble) if lead else None,
    )


def _worker(slot: int, heartbeat: Heartbeat | None) -> fleet.Worker:
    if heartbeat is None:
        return fleet.Worker(slot=slot)
    return fleet.Worker(
        slot=slot,
        pid=heartbeat.pid,
        is_leader=bool(heartbeat.epoch),
        trouble=heartbeat.store,
        answered=heartbeat.answered,
    )


def _pending(lead: Lead, trouble: Mapping[str, fleet.Trouble]) -> fleet.Pending | None:
    if lead.deliveries is None:
        return None

    def reason(*parts: str) -> str | None:
        return next((trouble[part].text for part in parts if part in trouble), None)

    return fleet.Pending(
        deliveries=fleet.PendingWindows(
            windows=lead.deliveries, reason=reason("delivery", "shards", "store") if lead.deliveries else None
        ),
        messages=fleet.PendingWindows(
            windows=lead.messages or 0, reason=reason("broker") if lead.messages else None
        ),
        callbacks=fleet.PendingCallbacks(
            windows=lead.callbacks or 0, reason=reason("callbacks") if lead.callbacks else None
        ),
        quarantined=lead.quarantined or 0,
    )
