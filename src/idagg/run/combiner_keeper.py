"""The supervisor's side of the combiner: keeps it running where there are many workers."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from idagg.run.child import Child
from idagg.run.children import Children
from idagg.run.keeper import Keeper
from idagg.run.messages import CombinerStart, Heartbeat
from idagg.settings import Settings
from idagg.tasks import Tasks

COMBINER_MODULE = "idagg.run.combiner_process"
# With more workers than this, their batches are combined. Up to 4, the limit of the default, an id costs
# Redis less than twice what it does with 1 worker, and a further process costs more than Redis is spared.
MAX_ALONE = 4


class _Combining(NamedTuple):
    """A combiner for workers with these settings. ``at`` is where the path of its socket begins."""

    settings: Settings
    at: str
    keeper: Keeper


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
            self._add(children.settings, at, children.adopted(held))

    @property
    def child(self) -> Child[Heartbeat] | None:
        """That of the settings in force; None while none runs."""
        found = self._of(self._children.settings)
        return found.keeper.child if found else None

    @property
    def is_missing(self) -> bool:
        found = self._of(self._children.settings)
        return found is not None and not found.keeper.child

    def at(self, settings: Settings) -> str | None:
        """Where its socket's path begins, for workers with these settings; None: they have no combiner."""
        found = self._of(settings)
        return found.at if found else None

    def begin(self) -> None:
        """Keep the combiner of the settings in force, if their workers are many."""
        if not self._all:
            self.prepare(self._children.settings)
        for combining in self._all:
            combining.keeper.begin()

    def prepare(self, settings: Settings) -> None:
        """Keep one for workers with these settings, too, if they are many."""
        if settings.workers > MAX_ALONE:
            self._add(settings, str(self._folder / f"combiner-{secrets.token_hex(4)}")).begin()

    async def settle(self) -> None:
        """End those that are not for the settings in force. Their workers do without."""
        for combining in [one for one in self._all if one.settings is not self._children.settings]:
            self._all.remove(combining)
            await combining.keeper.end()

    def _of(self, settings: Settings) -> _Combining | None:
        return next((one for one in self._all if one.settings is settings), None)

    def _add(self, settings: Settings, at: str, child: Child[Heartbeat] | None = None) -> Keeper:
        keeper = Keeper(
            self._children,
            self._parts,
            functools.partial(self._start, settings, at),
            kind="combiner",
            loss="nothing is lost, workers send their batches to Redis themselves, which costs it more CPU",
            child=child,
        )
        self._all.append(_Combining(settings, at, keeper))
        return keeper

    def _start(self, settings: Settings, at: str) -> Child[Heartbeat]:
        start = CombinerStart(*self._children.common(settings), at)
        return self._children.start("the combiner", COMBINER_MODULE, start)
