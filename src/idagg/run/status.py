"""The line that ``systemctl status`` shows. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from idagg.run.machine import Machine
from idagg.window import iso

# Of the parts whose trouble the line names. A worker's is in the number of workers.
_WORDS = {
    "store": "no ids stored",
    "broker": "RabbitMQ away",
    "delivery": "no window delivered",
    "callbacks": "no endpoint called",
    "combiner": "batches not combined",
    "shards": "ids of some shards not stored",
    "risk": "counts at risk in Redis",
}


def line(machine: Machine, lasts_s: Mapping[str, float], notes: Iterable[str] = ()) -> str:
    """``lasts_s``: by part, how long it has been in trouble."""
    parts = ["leading" if machine.leader else "not leading"]
    parts.append(f"{len(machine.running)} of {len(machine.workers)} workers")
    rate = sum(worker.traffic.requests_per_s for worker in machine.running if worker.traffic)
    parts.append(f"{rate:,.0f} requests/s")
    lead = machine.leader.lead if machine.leader else None
    if lead and lead.start_s is not None:
        clock = iso(lead.start_s)[11:19].removesuffix(":00")
        parts.append(f"last window {clock} {lead.unique_ids:,} ids")
    troubles = [
        f"{_WORDS.get(part, part)} for {seconds:,.0f} s"
        for part, seconds in sorted(lasts_s.items())
        if part != "drain" and not part.startswith("worker-")
    ]
    pending = (lead.deliveries or 0) + (lead.messages or 0) if lead else 0
    # A window is pending for a moment after each boundary: no trouble.
    if pending and troubles:
        troubles.append(f"{pending} window{'s' * (pending > 1)} pending")
    if troubles:
        parts.append(", ".join(troubles))
    return " · ".join([*parts, *notes])
