"""The supervisor's side of the combiner: keeps it running where there are many workers."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from idagg.run.child import Child, end
from idagg.run.children import Children
from idagg.run.messages import CombinerStart, Heartbeat
from idagg.run.restart import Restarts
from idagg.settings import Settings
from idagg.tasks import Tasks

log = logging.getLogger("idagg.supervisor")

COMBINER_MODULE = "idagg.run.combiner_process"
# With more workers than this, their batches are combined. Up to 4, the limit of the default, an id costs
# Redis less than twice what it does with 1 worker, and a further process costs more than Redis is spared.
MAX_ALONE = 4
# A combiner that has run this long is considered stable. For one that dies earlier, the restart delay grows,
# up to this value.
CALM_S = 30.0


@dataclasses.dataclass(eq=False)
class _Combining:
    """A combiner for workers with these settings. ``at`` is where the path of its socket begins."""

    settings: Settings
    at: str
    child: Child[Heartbeat] | None = None
    keeping: asyncio.Task[None] | None = None


class CombinerKeeper:
    """Keeps the combiner of the settings in force running; during a reload, that of the next ones, too.

    Each serves only workers with its own settings: with another ``--replicas``, its answers mean something
    else. ``held`` and ``at`` are what the program executed before has left.
    """

    def __init__(
        self,
        children: Children,
        parts: Tasks,
        folder: Path,
        *,
        held: Mapping[str, Any] | None = None,
        at: str | None = None,
    ) -> None:
        self._children = children
        self._parts = parts
        self._folder = folder
        self._all: list[_Combining] = []
        if at is not None:
            self._all.append(_Combining(children.settings, at, children.adopted(held)))

    @property
    def child(self) -> Child[Heartbeat] | None:
        """That of the settings in force; None while none runs."""
        found = self._of(self._children.settings)
        return found.child if found else None

    @property
    def is_missing(self) -> bool:
        found = self._of(self._children.settings)
        return found is not None and not found.child

    def at(self, settings: Settings) -> str | None:
        """Where its socket's path begins, for workers with these settings; None: they have no combiner."""
        found = self._of(settings)
        return found.at if found else None

    def begin(self) -> None:
        """Keep the combiner of the settings in force, if their workers are many."""
        if not self._all:
            self.prepare(self._children.settings)
        for combining in self._all:
            if combining.keeping is None:
                combining.keeping = self._parts.begin(self._keep(combining))

    def prepare(self, settings: Settings) -> None:
        """Keep one for workers with these settings, too, if they are many."""
        if settings.workers > MAX_ALONE:
            combining = _Combining(settings, str(self._folder / f"combiner-{secrets.token_hex(4)}"))
            combining.keeping = self._parts.begin(self._keep(combining))
            self._all.append(combining)

    async def settle(self) -> None:
        """End those that are not for the settings in force. Their workers do without."""
        for combining in [one for one in self._all if one.settings is not self._children.settings]:
            self._all.remove(combining)
            if combining.keeping:
                await self._parts.give_up(combining.keeping)
            if combining.child:
                await end(combining.child)

    def _of(self, settings: Settings) -> _Combining | None:
        return next((one for one in self._all if one.settings is settings), None)

    async def _keep(self, combining: _Combining) -> None:
        """Keep it running until the supervisor stops, without a limit of restarts: workers do without it."""
        children = self._children
        restarts = Restarts(young_s=CALM_S, longest_delay_s=CALM_S, limit=math.inf)
        while not children.stopping.is_set():
            child = combining.child = combining.child or self._start(combining)
            await asyncio.wait([child.life])
            combining.child = None
            if children.stopping.is_set():
                return
            children.deaths["combiner"] += 1
            delay_s = restarts.after(child.served_s) or 0
            log.error(
                "the combiner died (%s), starting it again in %g s: nothing is lost, workers send their "
                "batches to Redis themselves, which costs it more CPU",
                child.died_of,
                delay_s,
            )
            await children.pause(delay_s)

    def _start(self, combining: _Combining) -> Child[Heartbeat]:
        start = CombinerStart(*self._children.common(combining.settings), combining.at)
        return self._children.start("the combiner", COMBINER_MODULE, start)
