"""One connection to a server: commands go out as they come, and their answers come back in that order.

The library's client spends some 60 us of CPU on a command, this 15: at 32 ids a batch, more than a
microsecond an id. And it gives every command the connection that is free, so that the last word of a process
could overtake one that was given up before.
"""

from __future__ import annotations

import asyncio
import collections
from typing import Any, cast

import hiredis

from idagg.store.address import Address

Argument = bytes | str | int


class Connection(asyncio.Protocol):
    """Opened by ``open_connection``."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._asked: collections.deque[asyncio.Future[Any]] = collections.deque()
        self._transport: asyncio.Transport | None = None

    @property
    def is_lost(self) -> bool:
        return self._transport is None

    def send(self, args: tuple[Argument, ...]) -> asyncio.Future[Any]:
        """The answer to come, an error reply included, or an OSError. A future that is cancelled leaves its
        answer to nobody, and the others' as they are."""
        asked = asyncio.get_running_loop().create_future()
        if self._transport is None:
            asked.set_exception(_lost())
        else:
            self._asked.append(asked)
            self._transport.write(hiredis.pack_command(args))  # type: ignore[arg-type]  # its types know tuples of one only
        return asked

    def drop(self) -> None:
        """Close it. The outcome of commands without an answer is unknown."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
            self._fail(_lost())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while self._asked and (answer := self._reader.gets()) is not False:
                asked = self._asked.popleft()
                if not asked.done():
                    asked.set_result(answer)
        except hiredis.ProtocolError as error:
            self._fail(OSError(f"what answers does not speak Redis' protocol ({error})"))
            self.drop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail(exc if isinstance(exc, OSError) else _lost())

    def _fail(self, error: OSError) -> None:
        while self._asked:
            asked = self._asked.popleft()
            if not asked.done():
                asked.set_exception(error)


async def open_connection(address: Address) -> Connection:
    """Raises OSError."""
    loop = asyncio.get_running_loop()
    if address.path is not None:
        _, connection = await loop.create_unix_connection(Connection, address.path)
    else:
        _, connection = await loop.create_connection(Connection, address.host, address.port, ssl=address.tls)
    return connection


def _lost() -> ConnectionResetError:
    return ConnectionResetError("the connection was lost")
