"""The leader's work on a shard: it seals windows into parts, and quarantines what it cannot read."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import NamedTuple

from idagg.errors import DamagedError, WrongTypeError
from idagg.store.client import Client
from idagg.store.parts import Course, Part, Plan, Progress
from idagg.store.shards import Regime

log = logging.getLogger("idagg.store")

# Parts in one look: some 50 us of Redis' time.
PARTS_AT_ONCE = 100
# Of a part's endpoints, of up to 2 KiB each: some 0.3 ms of Redis' time.
READ_AT_ONCE = 500


class Look(NamedTuple):
    """``course`` is what the home shard says; other shards say none. ``heard`` is what a shard knows of
    it."""

    progress: Progress
    course: Course | None
    heard: tuple[Regime, int, Plan | None] | None


class Sealing:
    """Raises StoreAwayError (outcome unknown; all calls are safe to repeat), FencedError (another leads, or
    the shard has not been told who does).

    ``proves``: what is shown is on as many replicas as the client waits for.
    """

    def __init__(self, client: Client, tag: str, *, proves: bool = False) -> None:
        self._client = client
        self._tag = tag
        self._proves = int(proves)

    async def seal(self, epoch: int, through_s: int = 0) -> int:
        """Seal the oldest window that has ended; returns 0, or the ms until the next one ends. What is
        empty and ended takes no more ids, as far as ``through_s``.

        Raises DamagedError where it cannot be read: nothing was done, and nothing will be until it is
        quarantined.
        """
        wait_ms: int
        wait_ms, *damage = await self._client.script("seal", self._tag, epoch, through_s)
        if damage:
            member, what = damage
            raise DamagedError("open", member, what.decode(errors="replace"))
        return wait_ms

    async def look(self, epoch: int) -> Look:
        """How far it has sealed. Raises DamagedError where a part cannot be read."""
        answer = await self._client.script("look", self._tag, epoch, PARTS_AT_ONCE, self._proves)
        if answer[0] == -1:
            _, member, what = answer
            raise DamagedError("parts", member, what.decode(errors="replace"))
        through_s, quarantined, parts, state = answer
        progress = Progress(through_s, frozenset(map(int, quarantined)), tuple(map(_part, parts)))
        return Look(progress, _course(*state), _heard(state[3], state[5]))

    async def follow(self, epoch: int, serial: int, course: Course, *, is_proposed: bool = False) -> bool:
        """Tell a shard that is not the home shard who leads, and what the home shard says; False: too late
        for its plan, which ``is_proposed`` and not confirmed, and the shard goes on without it. ``serial``
        rises with each call within an epoch. Raises FencedError where the shard knows a later epoch."""
        shape = f"{course.regime.number} {course.regime.shards} {course.grid_s}"
        return bool(
            await self._client.script(
                *("follow", self._tag, epoch, serial, course.window_s, course.exact_limit, shape),
                *(course.floor_s, str(course.plan) if course.plan else "", int(is_proposed)),
            )
        )

    async def endpoints(self, start_s: int) -> AsyncIterator[list[bytes]]:
        """The endpoints of a part, in pieces. Raises DamagedError where they cannot be read."""
        cursor = b"0"
        try:
            while True:
                cursor, *endpoints = await self._client.script(
                    "endpoints", self._tag, start_s, cursor, READ_AT_ONCE
                )
                yield endpoints
                if cursor == b"0":
                    return
        except WrongTypeError as error:
            raise DamagedError("parts", b"%d" % start_s, f"its endpoints cannot be read: {error}") from error

    async def drop(self, epoch: int, start_s: int) -> None:
        """Drop a part that has been merged."""
        await self._client.script("drop", self._tag, epoch, start_s)

    @contextlib.asynccontextmanager
    async def quarantining(self, epoch: int) -> AsyncIterator[None]:
        """Take what turns out to be damaged out of its index, so that all else can go on. What the index
        names stays in the store, for a person."""
        try:
            yield
        except DamagedError as damage:
            await self._client.script(
                "quarantine", self._tag, epoch, damage.index, damage.member, str(damage)
            )
            log.error("window %s is quarantined in %s:quarantine: %s", damage.name, self._tag, damage)


def _part(values: list[bytes | int]) -> Part:
    start_s, length_s, unique_ids, estimate, hits, exact, suspect, dropped, endpoints = map(int, values)
    return Part(start_s, length_s, unique_ids, estimate, hits, bool(exact), bool(suspect), dropped, endpoints)


def _heard(regime: bytes, plan: bytes) -> tuple[Regime, int, Plan | None] | None:
    if not regime:
        return None
    number, shards, grid_s = map(int, regime.split())
    return Regime(number, shards), grid_s, Plan.parse(plan) if plan else None


def _course(
    length: bytes,
    exact_limit: bytes,
    shards: bytes,
    regime: bytes,
    begins: bytes,
    plan: bytes,
    span: bytes,
    merged_through: bytes,
    announced: bytes,
) -> Course | None:
    heard = _heard(regime, plan)
    if not shards or heard is None:
        return None
    present, grid_s, planned = heard
    return Course(
        window_s=int(length),
        exact_limit=int(exact_limit),
        shards=int(shards),
        regime=present,
        grid_s=grid_s,
        begins_s=int(begins or 0),
        plan=planned,
        span=int(span or present.shards),
        merged_through_s=int(merged_through or 0),
        is_announced=announced == plan,
    )
