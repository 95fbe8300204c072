"""Sketches (HyperLogLogs): of windows, on each shard; rolled up into hours and days, on the home shard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from idagg.errors import StoreRefusedError
from idagg.store.client import Client
from idagg.window import Period, Rollup

# For how long seal.lua keeps a window's sketch.
SKETCH_KEPT_S = 172_800
# Sketches in one step: a dense one takes Redis 7.0.15 up to 66 us (measured).
AT_ONCE = 64
# Windows in one look at which of them have sketches: some 1 ms of Redis' time.
_LISTED_AT_ONCE = 2_000


class Sketched(NamedTuple):
    """A merged window, and the shards that have a sketch of it: none where it has no ids."""

    start_s: int
    end_s: int
    shards: tuple[int, ...]


class Waiting(NamedTuple):
    """A window that is not rolled up yet; ``member`` is the store's name for it."""

    member: bytes
    window: Sketched


class Queue(NamedTuple):
    """What is to be rolled up: the oldest windows. All hours before ``through_s`` are whole."""

    now_s: int
    through_s: int
    windows: list[Waiting]


class Sums(NamedTuple):
    """Of the windows in an hour or a day: seconds, and how many sketches are missing in its own. If
    ``unique_ids``, which is the sum of theirs, is 0, there is no sketch."""

    seconds: int
    gone: int
    hits: int
    unique_ids: int
    suspect: int


class Rolled(NamedTuple):
    """The hours and days by their start; those that end after ``through_s`` are not whole."""

    now_s: int
    through_s: int
    hours: Mapping[int, Sums]
    days: Mapping[int, Sums]


def shard_mask(shards: Iterable[int]) -> str:
    """Shards as the store notes them, a bit for each: {0, 2} is 5."""
    return f"{sum(1 << shard for shard in set(shards)):x}"


def shards_in(mask: bytes) -> tuple[int, ...]:
    bits = int(mask, 16)
    return tuple(shard for shard in range(bits.bit_length()) if bits >> shard & 1)


def of_window(start_s: int) -> str:
    """The name of a window's sketch in its shard."""
    return f"w:{start_s}:hll"


class Sketches:
    """The sketches of one shard. Raises StoreError."""

    def __init__(self, client: Client, tag: str) -> None:
        self._client = client
        self._tag = tag

    async def count(self, names: Sequence[str]) -> tuple[int, list[str]]:
        """How many ids any of these has, at most AT_ONCE, and those that are missing. Writes nothing."""
        count, missing = await self._client.script("sketched", self._tag, *names)
        return count, [name.decode() for name in missing]

    async def union(self, names: Sequence[str], given: Sequence[bytes] = ()) -> tuple[int, bytes, list[str]]:
        """The count and the union of these and of the given ones, and the names that are missing.

        Each step takes at most AT_ONCE of them.
        """
        count, union, missing = 0, b"", list[str]()
        work: list[bytes | str] = [*given, *names]
        for step in _pieces(work, AT_ONCE) or [[]]:
            sketches = [one for one in (union, *step) if isinstance(one, bytes) and one]
            named = [one for one in step if isinstance(one, str)]
            count, union, lacking = await self._client.script(
                "union", self._tag, len(sketches), *sketches, *named
            )
            missing += (name.decode() for name in lacking)
        return count, union, missing


class RollUps:
    """What the home shard has of them. Raises StoreError; FencedError where another leads."""

    def __init__(self, client: Client, tag: str) -> None:
        self._client = client
        self._tag = tag

    async def queue(self) -> Queue:
        """At most AT_ONCE of the windows that are not rolled up."""
        now_s, through_s, flat = await self._client.script("rolling", self._tag, AT_ONCE)
        try:
            windows = [Waiting(member, _sketched(member, end_s)) for member, end_s in _pairs(flat)]
        except (ValueError, TypeError) as error:
            raise self._damaged("rolling", error) from error
        return Queue(now_s, through_s, windows)

    async def roll(
        self, epoch: int, hour_s: int, windows: Sequence[Waiting], unions: Sequence[bytes], gone: int
    ) -> int:
        """Merge windows that begin in the hour into it and its day: the home shard's sketches of them and
        the ``unions`` of the other shards', ``gone`` of which are missing. Returns how many are missing in
        all."""
        members = [one.member for one in windows]
        _, gone = await self._client.script(
            "roll", self._tag, epoch, hour_s, gone, len(unions), *unions, *members
        )
        return gone

    async def finish(self, epoch: int, through_s: int, deliver: Iterable[Period]) -> bool:
        """Note that hours before this are whole, and the deliveries of them. False: they are not."""
        return bool(await self._client.script("finish", self._tag, epoch, through_s, *deliver))

    async def rolled(self) -> Rolled:
        now_s, through_s, hours, days = await self._client.script("rolled", self._tag)
        try:
            return Rolled(now_s, through_s, _sums(hours), _sums(days))
        except (ValueError, TypeError) as error:
            raise self._damaged("hours, or :days,", error) from error

    async def windows(self, from_s: int, to_s: int) -> list[Sketched]:
        """The merged windows that reach into [from_s, to_s), of those whose sketches may still be there."""
        found: list[Sketched] = []
        after_s = from_s
        while True:
            # No window is longer than an hour.
            flat = await self._client.script("sketches", self._tag, after_s, to_s + 3600, _LISTED_AT_ONCE)
            try:
                page = [_sketched(member, end_s) for member, end_s in _pairs(flat)]
            except (ValueError, TypeError) as error:
                raise self._damaged("sketches", error) from error
            found += (window for window in page if window.start_s < to_s)
            if len(page) < _LISTED_AT_ONCE or page[-1].start_s >= to_s:
                return found
            after_s = page[-1].end_s

    async def pending(self, *, late: bool, limit: int) -> list[Rollup]:
        """The oldest roll-ups that no sink has; ``late``: that the log file has and the queue has not."""
        index = "rollups:late" if late else "rollups"
        members = await self._client.script("rollups", self._tag, index, limit)
        try:
            return [Rollup.parse(member.decode()) for member in members]
        except (ValueError, TypeError) as error:
            raise self._damaged(index, error) from error

    async def mark(self, epoch: int, rollup: Rollup, *, delivered: bool) -> None:
        """It is delivered; or else its line is in the log file, and its message is pending."""
        how = "delivered" if delivered else "logged"
        await self._client.script("mark_rollup", self._tag, epoch, str(rollup), how)

    def _damaged(self, key: str, error: Exception) -> StoreRefusedError:
        return StoreRefusedError(
            f"{self._tag}:{key} holds what idagg did not write, and hours and days cannot be rolled up or "
            f"read; counts of windows are not concerned: remove it ({error})"
        )


def _sketched(member: bytes, end_s: bytes) -> Sketched:
    start, mask, *_ = member.split()
    return Sketched(int(start), int(end_s), shards_in(mask))


def _sums(flat: Sequence[bytes]) -> dict[int, Sums]:
    return {int(start): Sums(*map(int, sums.split())) for start, sums in _pairs(flat)}


def _pairs(flat: Sequence[bytes]) -> Iterable[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _pieces(work: Sequence[bytes | str], size: int) -> list[Sequence[bytes | str]]:
    return [work[at : at + size] for at in range(0, len(work), size)]
