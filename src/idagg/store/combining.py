"""The combiner: batches of a machine's many workers, carried to the store together.

A batch costs Redis an fsync, a read and a write, whatever its size, and many workers have small batches. So
one process of the machine collects the batches of its workers, and sends those of a shard in one call of
accept_many.lua. It has one call per shard under way. Batches that arrive meanwhile go with the next one.

Linger: workers whose batch was just answered soon have the next one. So the next call waits for all workers
of the last two calls, no longer than LINGER_S. With those of the last one alone, two groups would alternate.

The combiner decides nothing and keeps nothing. Each batch keeps its worker's name and number, so the store
applies it once, however it comes. If the combiner dies, hangs, is slow, or answers anything but success, the
worker sends the same batch to the store itself. There it hears whether it is counted already, or what is
wrong. So trouble with the store is for the worker's own client to handle, as if there were no combiner.

Both speak Redis' protocol over a Unix socket. A worker has a connection for each shard, and one batch under
way on it. What a connection has left behind when it ends is not sent: its worker sends it itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import hiredis

from idagg.errors import StoreError
from idagg.store.address import Address
from idagg.store.client import Client, Script
from idagg.store.connection import Argument, Connection, open_connection
from idagg.store.hits import COMMON, OWN, Scripts

# How long the combiner waits for the next batches of the workers that it has just answered. bench/README.rst
# has what 1, 2 and 8 ms do.
LINGER_S = 0.004
# How long a worker waits for the combiner, at most, before it sends a batch itself. A slow fsync takes less.
PATIENCE_S = 0.25
# For so long it sends all batches itself then.
ALONE_S = 5.0
# The same where no combiner listens: it starts beside its workers, or is being replaced. A look costs little.
ABSENT_S = 0.5
# Ids and endpoints in one call, unless a single batch has more: 4096 ids of 9 digits, as in hits.py.
MAX_BYTES = 49_152

_BACKLOG = 1024  # a connection for each worker and shard
_APPLIED = b"*4\r\n:%d\r\n:%d\r\n:%d\r\n:%d\r\n"
_FAILED = b"-ERR the worker has to ask the store\r\n"


def socket_path(prefix: str) -> str:
    """Where a combiner listens. Workers of a version with other scripts do not find it, and do without."""
    return f"{prefix}-{Script.load('accept').sha[:6]}{Script.load('accept_many').sha[:6]}"


class Combined:
    """Runs a worker's accept.lua on one shard: through the combiner at the path, or else by ``direct``."""

    def __init__(self, direct: Client, path: str, *, deadline_s: float) -> None:
        self._direct = direct
        self._address = Address(path, "", 0, None, None, None, 0)
        # So that half of the deadline is left for the store.
        self._patience_s = min(PATIENCE_S, deadline_s / 2)
        self._connection: Connection | None = None
        self._alone_until = 0.0

    @property
    def address(self) -> str:
        return self._direct.address

    async def script(self, name: str, tag: str, *args: Argument) -> Any:
        if asyncio.get_running_loop().time() >= self._alone_until:
            answer = await self._ask(tag, *args)
            if answer is not None:
                return answer
        return await self._direct.script(name, tag, *args)

    async def _ask(self, *args: Argument) -> Any:
        """The answer; None: the outcome is unknown."""
        answer = None
        alone_s = ALONE_S
        try:
            async with asyncio.timeout(self._patience_s):
                answer = await (await self._connected()).send(args)
        except (FileNotFoundError, ConnectionRefusedError):
            alone_s = ABSENT_S
        except OSError:  # TimeoutError included
            pass
        finally:
            # Cancelled, too: the next batch must not meet this one there.
            if answer is None or isinstance(answer, hiredis.ReplyError):
                answer = None
                self._alone_until = asyncio.get_running_loop().time() + alone_s
                self._drop()
        return answer

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_lost:
            opened = await open_connection(self._address)
            if self._connection is not None and not self._connection.is_lost:
                opened.drop()  # another batch has opened one meanwhile
                return self._connection
            self._connection = opened
        return self._connection

    async def close(self) -> None:
        self._drop()
        await self._direct.close()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.drop()
            self._connection = None


class Combiner:
    """Serves the workers' connections. ``scripts`` is where scripts of a shard run, by its tag."""

    def __init__(self, scripts: Callable[[str], Scripts], *, linger_s: float = LINGER_S) -> None:
        self._scripts = scripts
        self._linger_s = linger_s
        self.lines: set[_Line] = set()
        self._shards: dict[str, _Shard] = {}
        self._group: asyncio.TaskGroup | None = None

    async def run(self, path: str) -> None:
        """Serve until cancelled. An unhandled error in any part ends all."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as self._group:
            server = await loop.create_unix_server(lambda: _Line(self), path, backlog=_BACKLOG)
            try:
                await loop.create_future()
            finally:
                self._group = None
                server.close()
                with contextlib.suppress(OSError):
                    os.unlink(path)  # noqa: PTH108  nothing else is needed of a path
                for line in self.lines:
                    line.abort()

    def take(self, line: _Line, asked: list[bytes]) -> None:
        if self._group is None:
            return  # it ends
        tag = asked[0].decode()
        shard = self._shards.get(tag)
        if shard is None:
            shard = self._shards[tag] = _Shard(self._scripts(tag), tag, self._linger_s)
            self._group.create_task(shard.run())
        common, own = tuple(asked[1 : 1 + COMMON]), asked[1 + COMMON :]
        shard.take(_Waiting(line, common, own, sum(map(len, own))))


class _Waiting(NamedTuple):
    """A batch: its arguments of accept.lua. Those with the same ``common`` may go together."""

    line: _Line
    common: tuple[bytes, ...]
    own: list[bytes]
    size: int

    @property
    def counted(self) -> list[Argument]:
        """As accept_many.lua has its own ones."""
        return [*self.own[:OWN], len(self.own) - OWN, *self.own[OWN:]]


class _Shard:
    """The batches for one shard, and the loop that carries them."""

    def __init__(self, scripts: Scripts, tag: str, linger_s: float) -> None:
        self._scripts = scripts
        self._tag = tag
        self._linger_s = linger_s
        self._waiting: list[_Waiting] = []
        self._expected = 1
        self._wake: asyncio.Future[None] | None = None

    def take(self, waiting: _Waiting) -> None:
        self._waiting.append(waiting)
        if len(self._waiting) >= self._expected:
            self._rouse()

    async def run(self) -> None:
        before: set[_Line] = set()
        while True:
            if not self._waiting:
                await self._wait(1)
            together = self._next()
            if not together:
                continue
            for batch, answer in zip(together, await self._carry(together), strict=True):
                batch.line.answer(answer)
            served = {batch.line for batch in together}
            expected, before = len(served | before), served
            if self._linger_s and len(self._waiting) < expected:
                timer = asyncio.get_running_loop().call_later(self._linger_s, self._rouse)
                await self._wait(expected)
                timer.cancel()

    async def _wait(self, expected: int) -> None:
        self._expected = expected
        self._wake = asyncio.get_running_loop().create_future()
        await self._wake

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _next(self) -> list[_Waiting]:
        """The oldest batch, and the others that may go with it.

        None overtakes another of its line, where answers are told apart by their order alone: when the number
        of shards changes, a worker has batches of both under way.
        """
        waiting = [batch for batch in self._waiting if not batch.line.is_lost]
        together: list[_Waiting] = []
        left, size = [], 0
        held: set[_Line] = set()
        for batch in waiting:
            if together and (
                batch.line in held or batch.common != together[0].common or size + batch.size > MAX_BYTES
            ):
                left.append(batch)
                held.add(batch.line)
            else:
                together.append(batch)
                size += batch.size
        self._waiting = left
        return together

    async def _carry(self, together: list[_Waiting]) -> list[Any]:
        """The answers; None for a batch that was not applied, or may not have been."""
        first = together[0]
        try:
            if len(together) == 1:
                return [await self._scripts.script("accept", self._tag, *first.common, *first.own)]
            many = itertools.chain.from_iterable(batch.counted for batch in together)
            return cast(list[Any], await self._scripts.script("accept_many", self._tag, *first.common, *many))
        except StoreError:
            return [None] * len(together)


class _Line(asyncio.Protocol):
    """A worker's connection."""

    def __init__(self, combiner: Combiner) -> None:
        self._combiner = combiner
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._combiner.lines.add(self)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (asked := self._reader.gets()) is not False:
            self._combiner.take(self, asked)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._combiner.lines.discard(self)

    def abort(self) -> None:
        assert self._transport is not None
        self._transport.abort()

    def answer(self, answer: Any) -> None:
        assert self._transport is not None
        if not self.is_lost and not self._transport.is_closing():
            self._transport.write(_APPLIED % tuple(answer) if isinstance(answer, list) else _FAILED)
