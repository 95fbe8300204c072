"""Leadership: who may seal and deliver.

All workers of all machines are candidates for one lease in the store. Its holder has an epoch, a number that
rises with every change of leader. Nobody has to trust the lease's clock: the store's scripts refuse an epoch
that has passed, so a leader that was stopped and wakes late can do no harm.

The leader's settings are everyone's, as far as counts hang on them (``Agreed``). A candidate with others
takes a free lease only when nobody else has wanted it for PATIENCE_S: one machine with a wrong setting must
not win it between two leases of the others. It has to have looked all that time: others may have stood still
when it did. And the store gives the lease to it only if nobody has held it since, however late its bid
arrives.

A leader that cannot do its work stands back: it gives the lease away, and then asks for it so seldom that any
other candidate takes it first. If there is none, it leads again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import secrets
from collections.abc import Callable
from typing import NamedTuple, Protocol

from idagg.errors import StoreError
from idagg.store.election import Agreed, Lease, Successor, spread_otherwise
from idagg.store.shards import Regime

log = logging.getLogger("idagg.flush")

# What a leader's sudden death costs at most. Precedents: Kubernetes' leases 15 s, etcd's election 1 s.
LEASE_MS = 5000
# How often the others look: a resignation is noticed within it.
LOOK_S = 0.3
# Many looks of each of the others, and longer than they take to come back to a store that was away.
PATIENCE_S = 3.0
# Two looks further apart than this do not say that the lease was free between them. Above BACK_LOOK_S, with
# some time for the store to answer.
CLOSE_S = 1.5
# How often a process looks that stands back: several looks of each of the others, well within PATIENCE_S.
BACK_LOOK_S = 1.0
# Enough turns that a machine on which no worker can deliver does not go on giving the lead to itself.
STAND_BACK_S = 60.0


class Leases(Protocol):
    async def lead(self, name: str, *, lease_ms: int, may_change_after: Successor) -> Lease: ...

    async def resign(self, name: str) -> None: ...


def next_try_s(lease: Lease, *, chance: float, stands_back: bool = False) -> float:
    """When to ask again: a leader renews with two thirds of its lease in hand, the others look often.

    ``chance`` in [0, 1) spreads those who look.
    """
    if lease.epoch:
        return lease.lasts_ms / 3000
    return (BACK_LOOK_S if stands_back else LOOK_S) * (0.5 + chance / 2)


class Unwanted(NamedTuple):
    """A lease that nobody wants: the epoch in which it was held last, and when it was first and last seen."""

    epoch: int
    since: float
    seen_at: float


def unwanted(before: Unwanted | None, lease: Lease, *, now: float) -> Unwanted | None:
    """Return what is known after one more look; None if somebody holds the lease."""
    if lease.lasts_ms:
        return None
    if before and before.epoch == lease.last_epoch and now - before.seen_at <= CLOSE_S:
        return before._replace(seen_at=now)
    return Unwanted(lease.last_epoch, now, now)


def may_change_after(seen: Unwanted | None, *, patience_s: float) -> Successor:
    """The epoch whose leader may be succeeded by one with other settings."""
    if not patience_s:
        return "any"
    return seen.epoch if seen and seen.seen_at - seen.since >= patience_s else "none"


class Leadership:
    """This process's candidacy. ``epoch`` is 0 while another leads or the store is away; ``patience_s`` may
    be 0 where nobody else can be.

    ``trouble`` says why this process can take no part, in a sentence; None when it can. ``differs``: its
    settings are not the store's; ``notice`` says so where it counts all the same. ``regime`` is what the
    store said last; before its first word, number 0 and the settings' shards. ``on_regime`` hears of each
    change.
    """

    def __init__(
        self,
        leases: Leases,
        agreed: Agreed,
        *,
        patience_s: float = PATIENCE_S,
        on_change: Callable[[int], None] = lambda epoch: None,
        on_regime: Callable[[Regime], None] = lambda regime: None,
    ) -> None:
        self._leases = leases
        self._agreed = agreed
        self._patience_s = patience_s
        self._name = secrets.token_hex(8)
        self._changed = asyncio.Event()
        self._gives_away = asyncio.Event()
        self._back_until = -math.inf  # by the loop's clock
        self._on_change = on_change
        self._on_regime = on_regime
        self.regime = Regime(0, agreed.shards)
        self.epoch = 0
        self.trouble: str | None = None
        self.differs = False
        self.notice: str | None = None
        self.answered = asyncio.Event()  # the store has been asked for the first time, well or not

    def __repr__(self) -> str:
        return f"<Leadership {self._name} epoch={self.epoch}>"

    async def run(self) -> None:
        """Stand for ever."""
        now = asyncio.get_running_loop().time
        seen: Unwanted | None = None
        while True:
            if self._gives_away.is_set():
                self._gives_away.clear()
                await self.resign()
                await asyncio.sleep(BACK_LOOK_S)
            after = may_change_after(seen, patience_s=self._patience_s)
            try:
                lease = await self._leases.lead(self._name, lease_ms=LEASE_MS, may_change_after=after)
            except StoreError as error:
                seen = None
                self.trouble = str(error)
                self._set(0)
                self.answered.set()
                await asyncio.sleep(LOOK_S)
                continue
            if self._gives_away.is_set():
                continue  # this was renewed while it was given away
            seen = unwanted(seen, lease, now=now())
            if lease.regime != self.regime:
                self.regime = lease.regime
                self._on_regime(lease.regime)
            flags = self._agreed.differing_flags(lease.store)
            self.differs = bool(flags)
            counts = self._agreed.counts_like(lease.store)
            is_told = flags and counts and lease.lasts_ms
            self._notice(spread_otherwise(lease.store.shards) if is_told else None)
            if counts:
                self.trouble = None
            elif not lease.lasts_ms:
                self.trouble = (
                    f"the store counts {lease.store}: it will count {self._agreed} where nobody else leads "
                    f"within {self._patience_s:g} s"
                )
            else:
                self.trouble = (
                    f"the store counts {lease.store} for another running instance, and nothing of this one: "
                    f"give it the same {flags}, or a --namespace of its own"
                )
            self._set(lease.epoch)
            self.answered.set()
            # Spreads bids over processes; nothing secret hangs on it.
            chance = random.random()  # noqa: S311  as said above
            pause_s = next_try_s(lease, chance=chance, stands_back=self.stands_back)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._gives_away.wait()

    async def elected(self) -> int:
        """Wait until this process leads; returns the epoch."""
        while not self.epoch:
            self._changed.clear()
            await self._changed.wait()
        return self.epoch

    def lost(self, epoch: int) -> None:
        """The store has refused this epoch."""
        if self.epoch == epoch:
            self._set(0)

    @property
    def stands_back(self) -> bool:
        """Whether this process has lately given the lead away, since it could not do its work."""
        return asyncio.get_running_loop().time() < self._back_until

    def stand_back(self, epoch: int) -> None:
        """Give the lead away, if this is still its epoch, and leave it to others for STAND_BACK_S."""
        if self.epoch == epoch:
            self._back_until = asyncio.get_running_loop().time() + STAND_BACK_S
            self._set(0)
            self._gives_away.set()

    def do_not_stand_back(self) -> None:
        """The work goes well."""
        self._back_until = -math.inf

    async def resign(self) -> None:
        """Let another lead at once. ``run`` must have been ended, or be who asks."""
        self._set(0)
        try:
            await self._leases.resign(self._name)
        except StoreError as error:
            log.warning("leadership was not given up, the lease has to run out: %s", error)

    def _notice(self, notice: str | None) -> None:
        if notice and notice != self.notice:
            log.warning("%s", notice)
        self.notice = notice

    def _set(self, epoch: int) -> None:
        if epoch == self.epoch:
            return
        if epoch:
            log.info("leading: epoch %d", epoch)
        elif self.epoch:
            log.info("not leading any more: epoch %d has ended", self.epoch)
        self.epoch = epoch
        self._changed.set()
        self._on_change(epoch)
