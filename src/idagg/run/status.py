"""The line that ``systemctl status`` shows. Pure."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence

from idagg.run.machine import Machine
from idagg.run.messages import Heartbeat
from idagg.window import iso

# Requests a second are those of so many seconds.
_RATE_S = 5.0
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


class Rate:
    """Requests a second, of all workers together."""

    def __init__(self) -> None:
        self._answered: dict[int, int] = {}  # by worker, as its heartbeat said last
        self._total = 0
        self._seen: collections.deque[tuple[float, int]] = collections.deque()

    def of(self, workers: Sequence[Heartbeat], now: float) -> float:
        answered = {worker.pid: worker.answered for worker in workers}
        self._total += sum(count - self._answered.get(pid, 0) for pid, count in answered.items())
        self._answered = answered
        self._seen.append((now, self._total))
        while now - self._seen[0][0] > _RATE_S:
            self._seen.popleft()
        began, before = self._seen[0]
        return (self._total - before) / (now - began) if now > began else 0.0


def line(machine: Machine, rate: float, lasts_s: Mapping[str, float], notes: Iterable[str] = ()) -> str:
    """``rate``: requests a second; ``lasts_s``: by part, how long it has been in trouble."""
    parts = ["leading" if machine.leader else "not leading"]
    parts.append(f"{len(machine.running)} of {len(machine.workers)} workers")
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
