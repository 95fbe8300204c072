"""What a machine tells of itself: a `Report`, made of the supervisor's knowledge. Pure."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import itertools
from collections.abc import Mapping, Sequence

from idagg import __version__
from idagg.read import fleet
from idagg.run.machine import Machine, fingerprint
from idagg.run.messages import READY_WITHOUT, Heartbeat, Lead, Traffic

# What other machines are told: so many lines and troubles, and so many characters of each sentence.
MOST_PUBLISHED = 5
MOST_TROUBLES = 20
MAX_TEXT = 200


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """What stays the same while an instance runs."""

    id: str
    name: str
    machine_id: str  # of the host, machine-id(5); empty where it has none
    pid: int
    started_s: float  # Unix time


def moment(epoch_s: float) -> datetime.datetime:
    """To the millisecond."""
    return datetime.datetime.fromtimestamp(round(epoch_s, 3), datetime.UTC)


def place(identity: Identity, admin: str) -> str:
    """What an instance has in common with the one that is started in its stead after its death.

    Only one instance at a time can listen at an address of a host. Two on one host have two addresses.
    """
    return hashlib.sha256(f"{identity.machine_id}\n{identity.name}\n{admin}".encode()).hexdigest()[:12]


def is_predecessor(own: fleet.Machine, age_s: float, other: fleet.Machine, silent_s: float) -> bool:
    """Whether the other one has died in this one's place: it has said nothing since this one began.

    ``age_s`` is for how long this one runs. Hosts that were cloned may share a place:
    a live one is then missing until its next word, for 3 s at most.
    """
    return other.id != own.id and other.place == own.place and silent_s > age_s


def report(
    identity: Identity,
    machine: Machine,
    trouble: Mapping[str, fleet.Trouble],
    recent: Sequence[fleet.Line] = (),
    *,
    admin: str = "",
) -> fleet.Report:
    """``admin`` is the address of the admin listener."""
    leader = machine.leader
    lead = (leader.lead if leader else None) or Lead()
    spread = max(machine.running, key=lambda worker: worker.spread, default=Heartbeat())
    late = [worker.late_s for worker in machine.running if worker.late_s is not None]
    skew = max(
        (worker.skew_s for worker in machine.running if worker.skew_s is not None), key=abs, default=None
    )
    return fleet.Report(
        machine=fleet.Machine(
            id=identity.id,
            name=identity.name,
            place=place(identity, admin),
            version=__version__,
            settings=fingerprint(machine.settings),
            started=moment(identity.started_s),
            pid=identity.pid,
            ready=not trouble.keys() - READY_WITHOUT,
            is_leader=leader is not None,
            epoch=leader.epoch if leader else 0,
            clock_skew_s=None if skew is None else round(skew, 4),
            late_s=max(late, default=None),
            trouble=dict(trouble),
            workers=[
                _worker(slot, heartbeat, age_s)
                for slot, (heartbeat, age_s) in enumerate(
                    itertools.zip_longest(machine.workers, machine.ages_s)
                )
            ],
            shards=fleet.Shards(
                count=spread.spread,
                away=sorted({shard for worker in machine.running for shard in worker.away}),
            ),
        ),
        recent=list(recent),
        current=fleet.Current(window_start=moment(lead.open_s), unique_ids=lead.so_far)
        if lead.open_s
        else None,
        last=_last(lead),
        pending=_pending(lead, trouble, machine.waiting),
    )


def _last(lead: Lead) -> fleet.Last | None:
    """The worker may be of a version that does not tell all of it."""
    if lead.start_s is None or lead.length_s is None:
        return None
    return fleet.Last(
        window_start=moment(lead.start_s),
        window_end=moment(lead.start_s + lead.length_s),
        unique_ids=lead.unique_ids or 0,
        estimate=lead.estimate or 0,
        hits=lead.hits or 0,
        exact=bool(lead.exact),
    )


def _worker(slot: int, heartbeat: Heartbeat | None, age_s: float | None) -> fleet.Worker:
    if heartbeat is None:
        return fleet.Worker(slot=slot)
    traffic = heartbeat.traffic or Traffic()
    return fleet.Worker(
        slot=slot,
        pid=heartbeat.pid,
        heartbeat_age_s=None if age_s is None else round(age_s, 2),
        is_leader=bool(heartbeat.epoch),
        trouble=heartbeat.store,
        answered=heartbeat.answered,
        requests_per_s=traffic.requests_per_s,
        by_status=traffic.by_status,
        ids_per_s=traffic.ids_per_s,
        batch_ids=traffic.batch_ids,
        commit_p50_ms=traffic.commit_p50_ms,
        commit_p99_ms=traffic.commit_p99_ms,
    )


def _pending(
    lead: Lead, trouble: Mapping[str, fleet.Trouble], waiting: Mapping[str, int]
) -> fleet.Pending | None:
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
            windows=lead.callbacks or 0,
            reason=reason("callbacks") if lead.callbacks else None,
            endpoints=dict(waiting) if lead.callbacks else {},
        ),
        quarantined=lead.quarantined or 0,
    )


def shortened(own: fleet.Report) -> fleet.Report:
    """What is published: the newest lines only, and the beginnings of long sentences."""

    def cut(text: str | None) -> str | None:
        return None if text is None else text[:MAX_TEXT]

    machine = own.machine
    return own.model_copy(
        update={
            "recent": [
                line.model_copy(update={"text": cut(line.text)}) for line in own.recent[-MOST_PUBLISHED:]
            ],
            "machine": machine.model_copy(
                update={
                    "trouble": {
                        part: trouble.model_copy(update={"text": cut(trouble.text)})
                        for part, trouble in list(machine.trouble.items())[:MOST_TROUBLES]
                    },
                    "workers": [
                        worker.model_copy(update={"trouble": cut(worker.trouble)})
                        for worker in machine.workers
                    ],
                }
            ),
            "pending": own.pending and _cut_reasons(own.pending),
        }
    )


def _cut_reasons(pending: fleet.Pending) -> fleet.Pending:
    parts = {
        name: part.model_copy(update={"reason": part.reason and part.reason[:MAX_TEXT]})
        for name in ("deliveries", "messages", "callbacks")
        if (part := getattr(pending, name))
    }
    return pending.model_copy(update=parts)


def aged(other: fleet.Report, age_s: float) -> fleet.Report:
    """A report that is so old."""
    machine = other.machine
    return other.model_copy(
        update={
            "machine": machine.model_copy(
                update={
                    "age_s": round(age_s, 1),
                    "workers": [
                        worker.model_copy(
                            update={"heartbeat_age_s": round(worker.heartbeat_age_s + age_s, 1)}
                        )
                        if worker.heartbeat_age_s is not None
                        else worker
                        for worker in machine.workers
                    ],
                }
            )
        }
    )
