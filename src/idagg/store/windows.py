"""The leader's side of the store: the lock, sealing, and the outbox of what is owed."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

from idagg.errors import DamagedError, WrongTypeError
from idagg.store.client import Client
from idagg.store.hits import shard_tag
from idagg.window import PendingCallback, Record

log = logging.getLogger("idagg.store")

# Of a window's endpoints, of up to 2 KiB each: some 0.2 ms of Redis' time.
SCANNED_AT_ONCE = 500


@dataclasses.dataclass(frozen=True, slots=True)
class Term:
    """The answer to a bid for leadership.

    ``epoch`` is 0 where the bidder does not lead; ``lasts_ms`` is what is left of the present lease, whoever
    holds it, 0 where nobody does; ``window_s`` is the length of the store's windows.
    """

    epoch: int
    lasts_ms: int
    window_s: int


@dataclasses.dataclass(frozen=True, slots=True)
class Owed:
    """An outbox entry: a sealed window. ``dropped`` counts hits whose endpoint was over the limit."""

    record: Record
    dropped: int


class WindowStore:
    """Errors: StoreAwayError (outcome unknown; all calls are safe to repeat); FencedError (another leads);
    DamagedError: it cannot be read, nothing was done, and nothing will be until it is set aside.
    """

    def __init__(self, client: Client, *, namespace: str, window_s: int, exact_limit: int) -> None:
        self._client = client
        self._tag = shard_tag(namespace)
        self._window_s = window_s
        self._exact_limit = exact_limit

    async def lead(self, name: str, *, lease_ms: int, may_change_length: bool = False) -> Term:
        """Take or keep the lock as ``name``; with windows of our length, if we may."""
        epoch, lasts_ms, window_s = await self._client.script(
            "lead", self._tag, name, lease_ms, self._window_s, int(may_change_length)
        )
        return Term(epoch, lasts_ms, window_s)

    async def resign(self, name: str) -> None:
        await self._client.script("resign", self._tag, name)

    async def seal(self, epoch: int) -> int:
        """Seal the oldest window that has ended; returns 0, or the ms until the next one ends."""
        wait_ms: int
        wait_ms, *damage = await self._client.script("seal", self._tag, epoch, self._exact_limit)
        if damage:
            member, what = damage
            raise DamagedError("open", member, what.decode(errors="replace"))
        return wait_ms

    @contextlib.asynccontextmanager
    async def setting_aside(self, epoch: int) -> AsyncIterator[None]:
        """What turns out to be damaged within is taken out of its index, so that all else can go on; what it
        names stays in the store, for a person."""
        try:
            yield
        except DamagedError as damage:
            await self._client.script("aside", self._tag, epoch, damage.index, damage.member, str(damage))
            log.error("window %s is set aside in %s:aside: %s", damage.name, self._tag, damage)

    async def undelivered(self, *, limit: int = 100) -> list[Owed]:
        """The oldest windows that no sink has, oldest first."""
        return await self._owed("outbox", limit)

    async def unsent(self, *, limit: int = 100) -> list[Owed]:
        """The oldest windows that are in the log file for want of a broker, oldest first."""
        return await self._owed("unsent", limit)

    async def uncalled(self, *, limit: int = 100) -> list[Owed]:
        """The oldest windows with endpoints to be called, oldest first."""
        return await self._owed("callbacks", limit)

    async def depth(self, index: Literal["outbox", "unsent", "callbacks"]) -> int:
        """How many windows ``undelivered``, ``unsent`` or ``uncalled`` would give without a limit."""
        count: int = await self._client.command("ZCARD", f"{self._tag}:{index}")
        return count

    async def aside(self) -> int:
        """How many windows wait for a person to mend them."""
        count: int = await self._client.command("HLEN", f"{self._tag}:aside")
        return count

    async def damage(self) -> list[str]:
        """What is wrong in the store, or was and is set aside, in sentences."""
        return await self._client.damage(self._tag)

    async def mark_logged(self, epoch: int, start_s: int) -> None:
        await self._client.script("mark", self._tag, epoch, start_s, "logged")

    async def mark_delivered(self, epoch: int, start_s: int) -> None:
        await self._client.script("mark", self._tag, epoch, start_s, "delivered")

    async def pending_callbacks(self, start_s: int) -> list[PendingCallback]:
        """The window's endpoints still to be called. Read in pieces: hits wait behind each of them."""
        name = f"{self._tag}:o:{start_s}"
        try:
            endpoints = {
                piece async for pieces in self._scan("SSCAN", f"{name}:endpoints") for piece in pieces
            }
            begun: dict[bytes, bytes] = {}
            async for pieces in self._scan("HSCAN", f"{name}:attempts"):
                begun.update(zip(pieces[::2], pieces[1::2], strict=True))
            seconds, microseconds = map(int, await self._client.command("TIME"))
            now_ms = seconds * 1000 + microseconds // 1000
            return [_pending(endpoint, begun.get(endpoint), now_ms) for endpoint in endpoints]
        except (WrongTypeError, ValueError) as error:
            what = f"{name}:endpoints or {name}:attempts is not what idagg wrote: {error}"
            raise DamagedError("callbacks", b"%d" % start_s, what) from error

    async def count_attempts(
        self, epoch: int, start_s: int, attempts: Sequence[PendingCallback]
    ) -> list[bool]:
        """Count attempts at the window's callbacks before they are made; at most 1000. False: the callback is
        not pending any more."""
        args: list[str | int] = []
        for attempt in attempts:
            args += attempt.endpoint, attempt.attempts, round(attempt.due_in_s * 1000)
        return list(map(bool, await self._client.script("attempts", self._tag, epoch, start_s, *args)))

    async def mark_called(self, epoch: int, start_s: int, endpoints: Sequence[str]) -> None:
        await self._client.script("called", self._tag, epoch, start_s, *endpoints)

    async def give_up_calls(self, epoch: int, start_s: int) -> None:
        """Drop all of the window's endpoints that are still to be called."""
        await self._client.script("called", self._tag, epoch, start_s)

    async def _scan(self, command: str, name: str) -> AsyncIterator[Any]:
        cursor = b"0"
        while True:
            cursor, piece = await self._client.command(command, name, cursor, "COUNT", SCANNED_AT_ONCE)
            yield piece
            if cursor == b"0":
                return

    async def _owed(self, index: str, limit: int) -> list[Owed]:
        members = await self._client.command("ZRANGE", f"{self._tag}:{index}", 0, limit - 1)
        entries = [await self._entry(index, member) for member in members]
        return [entry for entry in entries if entry is not None]

    async def _entry(self, index: str, member: bytes) -> Owed | None:
        """None where the last that was owed of it has been done since the index was read."""
        name = f"{self._tag}:o:{member.decode(errors='replace')}"
        try:
            pairs = await self._client.command("HGETALL", name)
        except WrongTypeError as error:
            raise DamagedError(index, member, f"{name} is no hash") from error
        if not pairs and await self._client.command("ZSCORE", f"{self._tag}:{index}", member) is None:
            return None
        try:
            field = {key.decode(): int(value) for key, value in zip(pairs[::2], pairs[1::2], strict=True)}
            record = Record(
                start_s=int(member),
                length_s=field["length"],
                unique_ids=field["unique"],
                estimate=field["estimate"],
                hits=field["hits"],
                exact=bool(field["exact"]),
                epoch=field["epoch"],
            )
            return Owed(record, dropped=field["dropped"])
        except (KeyError, ValueError) as error:
            what = f"{name}, which {self._tag}:{index} names, is no record: {error}"
            raise DamagedError(index, member, what) from error


def _pending(endpoint: bytes, begun: bytes | None, now_ms: int) -> PendingCallback:
    if begun is None:
        return PendingCallback(endpoint.decode(), 0, 0)
    attempts, due_ms = map(int, begun.split())
    return PendingCallback(endpoint.decode(), attempts, (due_ms - now_ms) / 1000)
