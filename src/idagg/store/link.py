"""A connection to Redis of its own for the batches: one command at a time, and nothing around it.

The library's client spends some 60 us of CPU on a command, this 15: at 32 ids a batch, more than a
microsecond an id. Addresses, credentials and TLS are still the library's to work out.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import hiredis
from redis.asyncio.connection import (
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
)

from idagg.errors import StoreAwayError
from idagg.store.client import NO_REDIS, Script, address, explained, refusal, unreachable


class Link:
    """Connects when it is used. A command whose answer nobody waits for any more costs the connection, since
    the next answer would be taken for its own."""

    def __init__(self, url: str) -> None:
        self.address = address(url)
        self._pool = ConnectionPool.from_url(url)
        self._connected: _Protocol | None = None

    async def script(self, name: str, tag: str, *args: bytes | str | int) -> Any:
        """Run ``store/lua/NAME.lua`` on the shard TAG; raises as ``Client.script`` does."""
        script = Script.load(name)
        answer = await self._command(b"EVALSHA", script.sha, 1, tag, *args)
        if isinstance(answer, hiredis.ReplyError) and str(answer).startswith("NOSCRIPT"):
            answer = await self._command(b"EVAL", script.text, 1, tag, *args)
        if isinstance(answer, hiredis.ReplyError):
            error = refusal(self.address, str(answer))
            if isinstance(error, StoreAwayError):  # as a replica says, for good: another may be there by now
                await self.close()
            raise await explained(error, self, name, tag)
        return answer

    async def close(self) -> None:
        if self._connected is not None:
            self._connected.drop()
            self._connected = None

    async def _command(self, *args: bytes | str | int) -> Any:
        link = self._connected
        if link is None or link.lost:
            link = self._connected = await self._connect()
        try:
            return await link.send(args)
        except OSError as error:
            raise unreachable(self.address, str(error)) from error
        finally:
            if not link.idle:
                link.drop()

    async def _connect(self) -> _Protocol:
        loop = asyncio.get_running_loop()
        # What the library would connect to, and how; it is not opened.
        plan: Connection | UnixDomainSocketConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]  # untyped there
        try:
            if isinstance(plan, UnixDomainSocketConnection):
                _, link = await loop.create_unix_connection(_Protocol, plan.path)
            else:
                tls = plan.ssl_context.get() if isinstance(plan, SSLConnection) else None
                _, link = await loop.create_connection(_Protocol, plan.host, plan.port, ssl=tls)
        except OSError as error:
            raise unreachable(self.address, str(error)) from error
        try:
            if plan.password:
                user = (plan.username,) if plan.username else ()
                await self._agree(link, "AUTH", *user, plan.password)
            if plan.db:
                await self._agree(link, "SELECT", plan.db)
        except BaseException:
            link.drop()
            raise
        return link

    async def _agree(self, link: _Protocol, *args: str | int) -> None:
        try:
            answer = await link.send(args)
        except OSError as error:
            raise unreachable(self.address, str(error)) from error
        if isinstance(answer, hiredis.ReplyError):
            error_words = refusal(self.address, str(answer))
            raise error_words if isinstance(error_words, StoreAwayError) else StoreAwayError(str(error_words))


class _Protocol(asyncio.Protocol):
    """One answer at a time, whole."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._answer: asyncio.Future[Any] | None = None
        self._transport: asyncio.Transport | None = None

    @property
    def lost(self) -> bool:
        return self._transport is None

    @property
    def idle(self) -> bool:
        return self._answer is None

    async def send(self, args: tuple[bytes | str | int, ...]) -> Any:
        """The answer, an error reply included. Raises ConnectionError."""
        if self._transport is None:
            raise _lost()
        self._answer = asyncio.get_running_loop().create_future()
        packed = hiredis.pack_command(args)  # type: ignore[arg-type]  # its types know tuples of one only
        self._transport.write(packed)
        return await self._answer

    def drop(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            answer = self._reader.gets()
        except hiredis.ProtocolError as error:
            self._fail(OSError(NO_REDIS.format(error)))
            self.drop()
            return
        if answer is False or self._answer is None:
            return
        waiting, self._answer = self._answer, None
        if not waiting.done():
            waiting.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail(exc if isinstance(exc, OSError) else _lost())

    def _fail(self, error: OSError) -> None:
        waiting, self._answer = self._answer, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)


def _lost() -> ConnectionResetError:
    return ConnectionResetError("the connection was lost")
