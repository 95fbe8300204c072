"""The leader's work on the home shard: it merges parts into records, and changes the regime."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from idagg.errors import DamagedError
from idagg.store.client import Client
from idagg.store.kept import KEEP_S
from idagg.store.parts import PLAN_MARGIN_S, Part, Plan
from idagg.store.sketches import shard_mask


class Merging:
    """Raises StoreAwayError (outcome unknown; all calls are safe to repeat), FencedError (another leads)."""

    def __init__(self, client: Client, tag: str, *, keep_s: int = KEEP_S) -> None:
        """``keep_s``: for how long records can be read back; 0: not at all."""
        self._client = client
        self._tag = tag
        self._keep_s = keep_s

    async def gather(self, epoch: int, start_s: int, endpoints: Sequence[bytes], *, limit: int) -> int:
        """Add another shard's endpoints to the window; returns how many were over the limit."""
        over: int = await self._client.script("gather", self._tag, epoch, start_s, limit, *endpoints)
        return over

    async def merge(self, epoch: int, total: Part, *, sketched: Iterable[int] = (0,)) -> bool:
        """Make the window's record, and a pending delivery; False: it was made before. ``sketched`` are the
        shards that have a sketch of it.

        Raises DamagedError where another program's value is in the record's place.
        """
        fields = (total.length_s, total.unique_ids, total.estimate, total.hits)
        flags = (int(total.exact), int(total.suspect), total.dropped)
        answer = await self._client.script(
            "merge", self._tag, epoch, total.start_s, *fields, *flags, self._keep_s, shard_mask(sketched)
        )
        if answer[0] == -1:
            raise DamagedError("parts", answer[1], answer[2].decode(errors="replace"))
        return bool(answer[0])

    async def propose(self, epoch: int, *, shards: int, window_s: int) -> Plan:
        """A plan for the next regime, to be told to all other shards. If one is confirmed already, that."""
        plan = await self._client.script("propose", self._tag, epoch, shards, window_s, PLAN_MARGIN_S)
        return Plan.parse(plan)

    async def confirm(self, epoch: int, plan: Plan) -> bool:
        """Make it the plan. False: there is a later proposal, or its time has come too soon."""
        return bool(await self._client.script("confirm", self._tag, epoch, str(plan)))

    async def announce(self, epoch: int, plan: Plan) -> bool:
        """Let workers be told of the plan, which replicas have. False: it was announced before, or is not the
        plan any more."""
        return bool(await self._client.script("announce", self._tag, epoch, str(plan)))

    async def settle(self, epoch: int, span: int) -> None:
        """Note that no more than ``span`` shards hold what is not merged."""
        await self._client.script("settle", self._tag, epoch, span)

    async def outbid(self, epoch: int, other: int) -> None:
        """Begin an epoch above the one that another shard has heard of."""
        await self._client.script("outbid", self._tag, epoch, other)
