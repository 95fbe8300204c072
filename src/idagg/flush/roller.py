"""Rolling up: the leader merges windows' sketches into those of hours and days before they expire.

Windows are merged in steps of at most AT_ONCE sketches, some 5 ms of Redis' time each, with a pause after
each. So neither a batch nor a flush waits for it, whatever has piled up. A step is one script on the home
shard, and can be repeated: the windows in it leave the queue with it, and to merge a sketch twice is to merge
it once. So the next leader goes on where the last one was killed.

An hour is whole once every window that begins in it is merged. A shard that is away makes it wait, until the
sketches have expired.
"""

from __future__ import annotations

import asyncio
import collections
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from idagg.errors import FencedError, StoreAwayError, StoreError, StoreRefusedError
from idagg.failpoints import reach
from idagg.flush import turns
from idagg.flush.turns import Turns
from idagg.store.sketches import AT_ONCE, SKETCH_KEPT_S, Queue, Waiting, of_window
from idagg.store.windows import WindowStore
from idagg.window import PERIOD_S, Period, iso

log = logging.getLogger("idagg.flush")

HOUR_S = PERIOD_S["hour"]
# Between two steps. A day of windows of 1 s, 1,350 steps, is rolled up in about a minute.
PAUSE_S = 0.05


class _SketchesAwayError(StoreAwayError):
    """A shard cannot be asked for the sketches of windows that are merged."""


class OnLook(Protocol):
    def __call__(self, *, lag_s: float, gone: int) -> None: ...


class Roller:
    """Adds its loop to ``turns``. ``settled`` says up to which second windows are merged; ``deliver`` are the
    periods whose estimates are delivered; ``on_look`` hears of the lag, and of sketches that are missing."""

    def __init__(
        self,
        windows: WindowStore,
        turns: Turns,
        settled: Callable[[], int],
        *,
        deliver: Collection[Period],
        on_look: OnLook,
    ) -> None:
        self._windows = windows
        self._turns = turns
        self._settled = settled
        self._deliver = deliver
        self._on_look = on_look
        self._trouble: str | None = None

    def start(self) -> None:
        self._turns.add("roll", self._roll, self._windows.sealing)

    async def _roll(self, epoch: int) -> None:
        """Do one step, and wait: for a moment, or where there is nothing to do, for more."""
        pause_s = turns.LOOK_S
        try:
            if await self.step(epoch):
                pause_s = PAUSE_S
        except FencedError:
            raise
        except (StoreRefusedError, _SketchesAwayError) as error:
            # Windows do not wait for it, and the others' sentence would say that they do. The shard may be
            # none of the present ones.
            self._tell(str(error))
        else:
            self._tell(None)
        await self._turns.first(timeout_s=pause_s)

    async def step(self, epoch: int) -> bool:
        """Do one step; returns whether there may be more to do at once."""
        settled_s = self._settled() // HOUR_S * HOUR_S
        queue = await self._windows.rollups.queue()
        hour_s, windows = _oldest_hour(queue)
        lag_s = max(0, queue.now_s - hour_s - HOUR_S) if windows else 0
        if windows and (hour_s < settled_s or len(windows) == AT_ONCE):
            gone = await self._roll_up(epoch, hour_s, windows, queue.now_s)
            self._on_look(lag_s=lag_s, gone=gone)
            return True
        self._on_look(lag_s=lag_s, gone=0)
        if queue.through_s < settled_s:
            reach("before-finish")
            await self._windows.rollups.finish(epoch, settled_s, self._deliver)
            reach("after-finish")
        return False

    async def _roll_up(self, epoch: int, hour_s: int, windows: Sequence[Waiting], now_s: int) -> int:
        """Merge windows that begin in this hour into it; returns how many sketches of them are missing."""
        names = collections.defaultdict[int, list[str]](list)
        for _, window in windows:
            for shard in window.shards:
                if shard:
                    names[shard].append(of_window(window.start_s))
        have_expired = max(window.end_s for _, window in windows) + SKETCH_KEPT_S < now_s
        found = await asyncio.gather(
            *(self._union(shard, of_shard, give_up=have_expired) for shard, of_shard in names.items())
        )
        unions = [union for union, _ in found if union]
        reach("before-roll")
        gone = await self._windows.rollups.roll(
            epoch, hour_s, windows, unions, sum(missing for _, missing in found)
        )
        reach("after-roll")
        if gone:
            log.warning(
                "hour %s is left out of estimates: %d sketches of its windows expired or were lost before "
                "they were rolled up; counts of windows are not concerned",
                iso(hour_s),
                gone,
            )
        return gone

    async def _union(self, shard: int, names: Sequence[str], *, give_up: bool) -> tuple[bytes, int]:
        """A shard's sketches of the windows as one, and how many are missing. ``give_up``: if the shard is
        away, all are."""
        try:
            _, union, missing = await self._windows.sketches(shard).union(names)
        except StoreError as error:
            if not give_up:
                raise _SketchesAwayError(str(error)) from error
            return b"", len(names)
        return union, len(missing)

    def _tell(self, trouble: str | None) -> None:
        """Once when it begins or changes, and once when it ends."""
        if trouble and trouble != self._trouble:
            log.error(
                "hours and days are not rolled up, trying again; counts of windows are not concerned: %s",
                trouble,
            )
        elif self._trouble and not trouble:
            log.info("hours and days are rolled up again")
        self._trouble = trouble


def _oldest_hour(queue: Queue) -> tuple[int, list[Waiting]]:
    """The hour in which the oldest window begins, and the windows that do."""
    if not queue.windows:
        return 0, []
    hour_s = queue.windows[0].window.start_s // HOUR_S * HOUR_S
    return hour_s, [one for one in queue.windows if one.window.start_s // HOUR_S * HOUR_S == hour_s]
