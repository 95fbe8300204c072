"""What the log says of shards that are away: one line when they go, one when all are back. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

# A master that dies takes several shards with it. Their batches fail one after the other, each at its
# deadline.
GATHER_S = 1.0


class ShardNews:
    """``look`` is told now and then which shards are away, and says what is to be logged."""

    def __init__(self) -> None:
        self._told: set[int] = set()
        self._new: dict[int, str] = {}
        self._new_at = 0.0

    def look(self, now: float, some: Mapping[int, str], away: Collection[int]) -> tuple[str, bool] | None:
        """A sentence, and whether it is good news.

        ``away`` are the shards that store no ids. ``some`` says why, and is empty if no shard stores any.
        """
        if not self._new:
            self._new_at = now
        # Where none is away, or all are, there is nothing to be told of some.
        self._new = self._new | {s: some[s] for s in some.keys() - self._told} if some else {}
        if self._new and now - self._new_at >= GATHER_S:
            new, self._new = self._new, {}
            self._told |= new.keys()
            return f"{_named(new)} no ids, they are answered 503: {new[min(new)]}", False
        if self._told and self._told.isdisjoint(away):
            back, self._told = self._told, set()
            return f"{_named(back)} ids again", True
        return None


def _named(shards: Collection[int]) -> str:
    if len(shards) == 1:
        return f"shard {min(shards)} stores"
    return f"shards {', '.join(map(str, sorted(shards)))} store"
