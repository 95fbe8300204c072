"""Sealing: the leader fixes each window's count when the window ends.

Each shard has a loop of its own, so that one that is away or slow holds up no other: it makes windows late,
not wrong. Another loop merges what all shards have sealed into the window's record. Each step can be
repeated, and the next leader goes on where the last one was killed.

A change of the regime, of how windows and ids are spread, begins with a later window. First all other
shards are told of the plan, then the home shard. Only then, once replicas have it, it is announced to the
workers. So no window has ids that were spread in two ways, and no failover forgets which shards have some.
A shard that knows a plan takes no ids by another regime once it begins. So a proposal that not all shards
can be told of is withdrawn before it begins, and made again later.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import itertools
import logging
import math
from collections.abc import Awaitable, Callable

from idagg.errors import FencedError, StoreAwayError
from idagg.failpoints import reach
from idagg.flush import turns
from idagg.flush.turns import Turns
from idagg.store.hits import MAX_ENDPOINTS
from idagg.store.parts import (
    PLAN_MARGIN_S,
    Course,
    Part,
    Plan,
    Progress,
    complete,
    parts_of,
    sealed_through,
    settled_through,
    total,
)
from idagg.store.windows import WindowStore
from idagg.window import iso

log = logging.getLogger("idagg.flush")

# How long telling all shards of a proposal may take. The rest of the time before it begins is for telling
# them that it is withdrawn.
TELL_S = PLAN_MARGIN_S / 2
PROPOSE_AGAIN_S = 3.0


class _Epoch:
    """What this leader has seen of the shards, and told them, in this epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.course: Course | None = None
        self.proposal: Plan | None = None
        self.is_confirming = False  # it may be the plan already: it is not withdrawn any more
        self.withdraw_at = math.inf  # by the loop's clock
        self.propose_at = -math.inf  # no other one before that
        self.has_warned = False
        self.progress: dict[int, Progress] = {}
        self.told: dict[int, tuple[object, ...]] = {}  # what each shard was told of the course
        self.serial = itertools.count(1)
        self.merged: set[int] = set()  # starts of which parts are left
        self.through_s = 0  # all shards have to seal up to here
        self.nudged: dict[int, int] = {}  # by shard, the through_s that it was nudged for
        self.changed = asyncio.Event()  # for the merge
        self.may_plan = asyncio.Event()
        # To the loop of a shard.
        self.nudges: dict[int, asyncio.Event] = collections.defaultdict(asyncio.Event)

    @property
    def heading(self) -> Course:
        """The course as the other shards are to be told of it."""
        assert self.course is not None
        if self.proposal is None or self.course.plan is not None:
            return self.course
        return self.course._replace(plan=self.proposal)

    @property
    def is_proposed(self) -> bool:
        """Whether the plan of the heading is one that can be withdrawn."""
        return self.heading.plan is not None and self.heading.plan == self.proposal and not self.is_confirming

    def withdraw(self, now: float) -> None:
        self.proposal = None
        self.propose_at = now + PROPOSE_AGAIN_S
        for nudge in self.nudges.values():
            nudge.set()

    @property
    def shards(self) -> range:
        """All but the home shard."""
        course = self.heading
        return range(1, max(course.span, course.plan.shards if course.plan else 0))

    def is_forgotten(self, progress: Progress, course: Course) -> bool:
        """Whether the home shard, which says this of itself, does not know of a merge any more."""
        is_back = self.course is not None and course.merged_through_s < self.course.merged_through_s
        return is_back or any(part.start_s in self.merged for part in progress.parts)

    def next_complete_s(self) -> int | None:
        """The start of the oldest window that can be merged and is not."""
        starts = complete(self.progress, self.course) if self.course else ()
        return next((start_s for start_s in starts if start_s not in self.merged), None)


class Sealer:
    """Adds its loops to ``turns``. ``on_look`` is called after each look at the home shard, ``on_merged``
    when there is something to deliver. ``quarantined`` is how many windows are quarantined in other
    shards."""

    def __init__(
        self,
        windows: WindowStore,
        turns: Turns,
        *,
        on_look: Callable[[int], Awaitable[object]],
        on_merged: Callable[[], None],
        endpoint_limit: int = MAX_ENDPOINTS,
    ) -> None:
        self._windows = windows
        self._turns = turns
        self._on_look = on_look
        self._on_merged = on_merged
        self._endpoint_limit = endpoint_limit
        self._now = _Epoch(0)

    @property
    def quarantined(self) -> int:
        return sum(len(one.quarantined) for shard, one in self._now.progress.items() if shard)

    @property
    def settled_through_s(self) -> int:
        """The second before which every window is merged, as far as this leader has seen."""
        return settled_through(self._now.progress, self._now.course) if self._now.course else 0

    def start(self) -> None:
        for name, turn in (("home", self._seal_home), ("merge", self._merge), ("plan", self._plan)):
            self._turns.add(name, turn, self._windows.sealing)

    def _at(self, epoch: int) -> _Epoch:
        if self._now.epoch != epoch:
            self._now = _Epoch(epoch)
        return self._now

    async def _seal_home(self, epoch: int) -> None:
        """Seal what has ended on the home shard, and wait for the next window to end."""
        now = self._at(epoch)
        now.nudges[0].clear()
        reach("before-seal")
        sealing = self._windows.sealing
        while not (wait_ms := await sealing.seal(epoch, now.through_s)):
            reach("after-part")
            reach("after-seal")
        progress, course, _ = await sealing.look(epoch)
        assert course is not None  # it has one since its first election
        if now.is_forgotten(progress, course):
            # A server with older data took its place: what is delivered again is of a later epoch.
            await self._windows.merging.outbid(epoch, epoch)
            return
        now.progress[0], now.course = progress, course
        if course.plan is not None or not course.needs_plan:
            now.proposal = None
        now.changed.set()
        now.may_plan.set()
        for shard in now.shards:
            turn = functools.partial(self._seal_other, shard)
            self._turns.add(f"shard {shard}", turn, self._windows.shard(shard))
            if now.told.get(shard) != now.heading.said:
                now.nudges[shard].set()
        if (span := course.settled(now.progress)) < course.span:
            await self._windows.merging.settle(epoch, span)
        await self._on_look(epoch)
        await self._turns.first(now.nudges[0].wait(), timeout_s=min(wait_ms / 1000, turns.LOOK_S))

    async def _seal_other(self, shard: int, epoch: int) -> None:
        """The same on another shard, which is first told who leads."""
        now = self._at(epoch)
        nudge = now.nudges[shard]
        nudge.clear()
        if now.course is None or shard not in now.shards:
            now.progress.pop(shard, None)
            await self._turns.first(nudge.wait(), timeout_s=turns.LOOK_S)
            return
        sealing = self._windows.shard(shard)
        if now.told.get(shard) != now.heading.said:
            await self._tell(shard, now)
        try:
            for start_s in self._left(shard, now):
                await sealing.drop(epoch, start_s)
                reach("after-drop")
            while not (wait_ms := await sealing.seal(epoch, now.through_s)):
                reach("after-part")
            look = await sealing.look(epoch)
        except FencedError:  # a later leader told it, or it was emptied: to tell it again says which
            now.told.pop(shard, None)
            return
        if look.heard != now.heading.heard:
            now.told.pop(shard, None)  # it has lost what it was told, or has to be told more
            return
        now.progress[shard] = look.progress
        now.changed.set()
        await self._turns.first(nudge.wait(), timeout_s=min(wait_ms / 1000, turns.LOOK_S))

    async def _tell(self, shard: int, now: _Epoch) -> None:
        heading, is_proposed = now.heading, now.is_proposed
        now.told.pop(shard, None)
        sealing = self._windows.shard(shard)
        try:
            in_time = await sealing.follow(now.epoch, next(now.serial), heading, is_proposed=is_proposed)
        except FencedError as error:
            # If we lead, the home shard has forgotten an epoch; else it says so.
            await self._windows.merging.outbid(now.epoch, error.epoch)
            raise
        if in_time:
            now.told[shard] = heading.said
            now.may_plan.set()
        elif heading.plan == now.proposal:
            self._withdraw(
                now,
                f"shard {shard} has heard of it too late by its own clock; if this lasts, compare the clocks "
                "of the masters",
            )

    def _withdraw(self, now: _Epoch, why: str) -> None:
        now.withdraw(asyncio.get_running_loop().time())
        if not now.has_warned:
            now.has_warned = True
            log.warning("a change of --shards or --window has to wait, and is tried again: %s", why)

    def _left(self, shard: int, now: _Epoch) -> list[int]:
        """The starts of this shard's parts that have been merged."""
        progress = now.progress.get(shard)
        return [part.start_s for part in progress.parts if part.start_s in now.merged] if progress else []

    async def _merge(self, epoch: int) -> None:
        """Merge what all shards have sealed, and wait for more."""
        now = self._at(epoch)
        now.changed.clear()
        if now.course is not None:
            now.merged &= {part.start_s for one in now.progress.values() for part in one.parts}
            while (start_s := now.next_complete_s()) is not None:
                if self._turns.stopping.is_set():
                    return
                await self._merge_window(now, parts_of(start_s, now.progress), now.course.exact_limit)
            now.through_s = max(now.through_s, sealed_through(now.progress), now.course.begins_s)
            for shard, progress in now.progress.items():
                is_behind = progress.through_s < now.through_s != now.nudged.get(shard)
                if is_behind or (shard and self._left(shard, now)):
                    now.nudged[shard] = now.through_s
                    now.nudges[shard].set()
        await self._turns.first(now.changed.wait(), timeout_s=turns.LOOK_S)

    async def _merge_window(self, now: _Epoch, parts: dict[int, Part], exact_limit: int) -> None:
        record = total(parts.values(), exact_limit)
        for shard, part in parts.items():
            if shard and part.endpoints:
                over = await self._gather(now.epoch, shard, part)
                if over is None:
                    now.progress.pop(shard, None)
                    return
                record = record._replace(dropped=record.dropped + over)
        sketched = [shard for shard, part in parts.items() if part.unique_ids]
        await self._windows.merging.merge(now.epoch, record, sketched=sketched)
        reach("after-merge")
        now.merged.add(record.start_s)
        self._on_merged()

    async def _gather(self, epoch: int, shard: int, part: Part) -> int | None:
        """Bring a part's endpoints to the home shard; returns how many were over the limit, None where they
        cannot be read and are quarantined."""
        over, found = 0, set[bytes]()
        sealing = self._windows.shard(shard)
        async with sealing.quarantining(epoch):
            async for endpoints in sealing.endpoints(part.start_s):
                found.update(endpoints)
                over += await self._windows.merging.gather(
                    epoch, part.start_s, endpoints, limit=self._endpoint_limit
                )
            if len(found) < part.endpoints:
                raise StoreAwayError(f"the server of shard {shard} changed while its endpoints were read")
            return over
        return None

    async def _plan(self, epoch: int) -> None:
        """Change the regime where it is not what is agreed on."""
        now = self._at(epoch)
        now.may_plan.clear()
        time = asyncio.get_running_loop().time
        if now.course is not None and now.course.needs_plan and time() >= now.propose_at:
            if now.proposal is None:
                now.proposal = await self._windows.merging.propose(
                    epoch, shards=now.course.shards, window_s=now.course.window_s
                )
                now.is_confirming = False
                now.withdraw_at = time() + TELL_S
                for shard in (0, *now.shards):
                    now.nudges[shard].set()
            said = now.heading.said
            untold = [shard for shard in now.shards if now.told.get(shard) != said]
            if untold and not now.is_confirming and time() >= now.withdraw_at:
                self._withdraw(now, f"shard {untold[0]} cannot be told of it")
            elif not untold:
                plan = now.proposal
                now.is_confirming = True
                reach("before-plan")
                if not await self._windows.merging.confirm(epoch, plan):
                    now.withdraw(time())
                    return
                now.course = now.course._replace(plan=plan, is_announced=False)  # as the next look will say
        if now.course is not None and now.course.plan is not None and not now.course.is_announced:
            plan = now.course.plan
            if await self._windows.merging.announce(epoch, plan):
                log.info(
                    "from window %s on, %d s long, ids are spread over %d shards",
                    *(iso(plan.begins_s), plan.window_s, plan.shards),
                )
        is_telling = now.proposal is not None and not now.is_confirming
        timeout_s = max(0, now.withdraw_at - time()) if is_telling else turns.LOOK_S
        await self._turns.first(now.may_plan.wait(), timeout_s=timeout_s)
