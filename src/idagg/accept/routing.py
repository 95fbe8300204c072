"""Routing: which group commit takes an id.

With one shard, there is one group commit, and requests go to it directly. With several shards, each has a
group commit of its own, and an id goes to that of its shard. So each shard has one batch at the store, and a
shard that is away fails its own ids and no others.

The number of shards can change while idagg runs. All processes have to route a window's ids alike, so only
the home shard says which regime holds: how many shards, and the number that batches carry. With another
regime, new requests go to new group commits at once. The former ones answer what they have, as failed where
the store refuses their batches for the regime, and end.

A bulk request's ids can belong to several shards. It is answered once all parts are, ``ok`` only if all are
stored. If it is answered ``failed``, some of its ids may be counted, each at most once.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence

from idagg.accept.commit import LINGER_S, MAX_WAITING, Crowd, GroupCommit, Hits, Observer, Waiter
from idagg.accept.repeats import MAX_IDS
from idagg.accept.replies import OK, UNAVAILABLE
from idagg.errors import OtherRegimeError
from idagg.store.hits import Stored
from idagg.store.shards import Regime, shard_of

log = logging.getLogger("idagg.accept")


class _Joint:
    """A bulk request in several parts, answered once all are."""

    __slots__ = ("_stored", "_tally", "_waiter", "parts")

    def __init__(self, waiter: Waiter, tally: collections.Counter[int]) -> None:
        self._waiter = waiter
        self._tally = tally
        self._stored = True
        self.parts = 0  # not answered yet

    def refuse(self) -> None:
        """Note a part that was not taken."""
        self._stored = False

    def answer(self, stored: bool) -> None:
        self._stored = self._stored and stored
        self.parts -= 1
        if not self.parts:
            self._tally[OK if self._stored else UNAVAILABLE] += 1
            self._waiter.answer(self._stored)


class _Divided:
    """The group commits of several shards, by their index."""

    def __init__(self, commits: Sequence[GroupCommit], crowd: Crowd, tally: collections.Counter[int]) -> None:
        self._commits = commits
        self._crowd = crowd
        self._shards = len(commits)
        self._tally = tally

    def add(self, waiter: Waiter, canonical_id: bytes, endpoint: bytes | None, /) -> bool:
        # As ``shard_of``, whose call would cost as much again.
        taken = self._commits[zlib.crc32(canonical_id) % self._shards].add(waiter, canonical_id, endpoint)
        if self._crowd.missing:
            self._crowd.back()
        return taken

    def add_many(self, waiter: Waiter, ids: Sequence[bytes], endpoint: bytes | None, /) -> bool:
        parts: dict[int, list[bytes]] = {}
        for canonical_id in ids:
            parts.setdefault(shard_of(canonical_id, self._shards), []).append(canonical_id)
        if len(parts) == 1:
            (shard,) = parts
            taken = self._commits[shard].add_many(waiter, ids, endpoint)
        else:
            taken = self._add_parts(_Joint(waiter, self._tally), parts, endpoint)
        self._crowd.back()
        return taken

    def _add_parts(self, joint: _Joint, parts: Mapping[int, Sequence[bytes]], endpoint: bytes | None) -> bool:
        for shard, part in parts.items():
            # The endpoint goes with every part: each may be counted in another window.
            if not self._commits[shard].add_many(joint, part, endpoint, is_part=True):
                joint.refuse()
                break
            joint.parts += 1
        return joint.parts > 0


class _Home:
    """The home shard's store. Passes on which regime it names."""

    def __init__(self, hits: Hits, named: Callable[[Regime], None]) -> None:
        self._hits = hits
        self._named = named

    async def add(
        self, seq: int, ids: Sequence[bytes], endpoints: Collection[bytes] = (), repeats: int = 0
    ) -> Stored:
        try:
            return await self._hits.add(seq, ids, endpoints, repeats)
        except OtherRegimeError as error:
            self._named(Regime(error.number, error.shards))
            raise


class Router:
    """The queue of requests for the store: the group commits of the present regime, and former ones.

    ``hits`` is the store as batches of a shard need it, by the shard's index and the regime. ``tally`` counts
    answers to requests that no group commit reports, by status. ``add`` and ``add_many`` are those of
    ``GroupCommit``.
    """

    add: Callable[[Waiter, bytes, bytes | None], bool]
    add_many: Callable[[Waiter, Sequence[bytes], bytes | None], bool]

    def __init__(
        self,
        hits: Callable[[int, Regime], Hits],
        regime: Regime,
        observer: Observer,
        tally: collections.Counter[int],
        *,
        deadline_s: float,
        max_batch: int,
        max_waiting: int = MAX_WAITING,
        now: Callable[[], float],
        linger_s: float = LINGER_S,
    ) -> None:
        self._hits = hits
        self._observer = observer
        self._tally = tally
        self._deadline_s = deadline_s
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._now = now
        self._linger_s = linger_s
        self._group: asyncio.TaskGroup | None = None
        self._stopped = asyncio.Event()
        self._live: list[GroupCommit] = []  # of the present regime, and former ones that have not ended
        self.regime = regime
        self._open()

    def __repr__(self) -> str:
        return f"<Router {self.regime} {self._live}>"

    def _open(self) -> None:
        shards = self.regime.shards
        crowd = Crowd(self._linger_s) if shards > 1 else None
        self.commits = [self._commit(shard, crowd) for shard in range(shards)]
        self._live += self.commits
        route = self.commits[0] if crowd is None else _Divided(self.commits, crowd, self._tally)
        self.add, self.add_many = route.add, route.add_many
        self._ended()

    def _commit(self, shard: int, crowd: Crowd | None) -> GroupCommit:
        regime = self.regime
        hits = self._hits(shard, regime)
        if shard == 0:

            def named(other: Regime) -> None:
                if self.regime == regime:  # else this is a former home, and knows no better
                    self.follow(other)

            hits = _Home(hits, named)
        return GroupCommit(
            hits,
            self._observer,
            deadline_s=self._deadline_s,
            max_batch=self._max_batch,
            # Memory is bounded for all shards together.
            max_waiting=self._max_waiting // regime.shards,
            max_repeats=MAX_IDS // regime.shards,
            now=self._now,
            linger_s=self._linger_s,
            crowd=crowd,
        )

    def _ended(self) -> None:
        self.in_order = len(self._live) == 1

    async def run(self) -> None:
        """Send batches until ``stop`` has been called and no request waits."""
        async with asyncio.TaskGroup() as self._group:
            for commit in self._live:
                self._group.create_task(self._run(commit))
            await self._stopped.wait()

    async def _run(self, commit: GroupCommit) -> None:
        await commit.run()
        self._live.remove(commit)
        self._ended()

    def stop(self) -> None:
        """Let ``run`` return once every waiter is answered."""
        self._stopped.set()
        for commit in self._live:
            commit.stop()

    def tick(self) -> None:
        """Tick all group commits. To be called as often."""
        for commit in self._live:
            commit.tick()

    def follow(self, regime: Regime) -> None:
        """Route requests by this regime, which the home shard has named.

        It can be older than the present one, if the store has lost its state.
        """
        if regime == self.regime or self._stopped.is_set():
            return
        if regime.shards != self.regime.shards:
            log.info("ids are spread over %d shards from now on, not %d", regime.shards, self.regime.shards)
        former, self.regime = self.commits, regime
        self._open()
        for commit in former:
            commit.stop()
        if self._group is not None:
            for commit in self.commits:
                self._group.create_task(self._run(commit))

    @property
    def waiting(self) -> int:
        """Number of ids not answered yet."""
        return sum(commit.waiting for commit in self._live)

    def trouble(self) -> dict[int, str]:
        """Why shards have not stored their last batch, by their index."""
        return {shard: commit.trouble for shard, commit in enumerate(self.commits) if commit.trouble}
