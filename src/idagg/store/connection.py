"""One connection to a server: commands go out as they come, and their answers come back in that order.

redis-py's client spends some 60 us of CPU on a command, this 15: at 32 ids a batch, more than a
microsecond an id. And it gives every command the connection that is free, so that the last word of a process
could overtake one that was given up before.

A path that was lost without a word, behind a NAT that forgets, say, is found in three ways: what was sent and
not acknowledged for UNACKNOWLEDGED_MS ends the connection; an idle one is asked for a sign of life; and who
waits for an answer is told that the server is silent.
"""

from __future__ import annotations

import asyncio
import collections
import math
import socket
from collections.abc import Callable, Sequence
from typing import Any, cast

import hiredis
from aiohappyeyeballs import AddrInfoType, start_connection

from idagg.store.address import Address
from idagg.store.replies import away

Argument = bytes | str | int

# What a connection may take to be there, from the first SYN to the answer to AUTH. The kernel sends a second
# SYN after 1 s; half of the default deadline is left for a second try.
DIAL_S = 1.0
# Delay before the next address of a name is tried beside the previous one. RFC 8305 recommends it.
NEXT_ADDRESS_S = 0.25
# How long the kernel tries to bring bytes to the other machine before it ends the connection: so a batch can
# go again, on a new one, within the default deadline of 2 s. A frozen server's machine does acknowledge.
UNACKNOWLEDGED_MS = 1000
# An idle connection is asked for a sign of life so often. NATs and load balancers forget after 30 s or more.
IDLE_S = 5.0
# How often a connection is looked at. A server that owes answers and says nothing for so long is silent.
LOOK_S = 0.25


class Connection(asyncio.Protocol):
    """Opened by ``open_connection``. ``on_silence`` is called every LOOK_S in which the server owes answers
    and says nothing."""

    def __init__(
        self, *, pings: bool = False, on_silence: Callable[[Connection], None] | None = None
    ) -> None:
        self._reader = hiredis.Reader()
        self._asked: collections.deque[asyncio.Future[Any] | _First] = collections.deque()
        self._transport: asyncio.Transport | None = None
        self._refusal: hiredis.ReplyError | None = None
        self._pings = pings
        self._on_silence = on_silence
        self._looking: asyncio.TimerHandle | None = None
        self._is_heard = False  # something came since the last look
        self._silent_looks = 0
        self._ping: asyncio.Future[Any] | None = None

    @property
    def is_lost(self) -> bool:
        return self._transport is None

    def send(self, args: tuple[Argument, ...]) -> asyncio.Future[Any]:
        """The answer to come, an error reply included, or an OSError. A future that is cancelled leaves its
        answer to nobody, and the others' as they are."""
        asked = asyncio.get_running_loop().create_future()
        if self._refusal is not None:
            asked.set_result(self._refusal)
        elif self._transport is None:
            asked.set_exception(_lost())
        else:
            self._asked.append(asked)
            self._transport.write(hiredis.pack_command(args))  # type: ignore[arg-type]  # its types know tuples of one only
        return asked

    async def send_both(
        self, args: tuple[Argument, ...], packed: bytes, between: Callable[[], None] | None = None
    ) -> tuple[Any, Any]:
        """Send a command, and another, packed, in the same write. Returns both answers; otherwise as
        ``send``. ``between`` is called when the first has come."""
        if self._refusal is not None:
            return self._refusal, None
        if self._transport is None:
            raise _lost()
        first = _First(between)
        second = asyncio.get_running_loop().create_future()
        self._asked += first, second
        self._transport.write(hiredis.pack_command(args) + packed)  # type: ignore[arg-type]  # as above
        answer = await second
        return first.answer, answer

    def drop(self) -> None:
        """Close it. The outcome of commands without an answer is unknown."""
        if self._transport is not None:
            self._transport.abort()
            self._end(_lost())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._pings or self._on_silence:
            self._looking = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def data_received(self, data: bytes) -> None:
        self._is_heard = True
        self._reader.feed(data)
        try:
            while (answer := self._reader.gets()) is not False:
                if not self._asked:
                    # A server that takes no more clients, or none from elsewhere, says so unasked.
                    if isinstance(answer, hiredis.ReplyError):
                        self._refusal = answer
                    self.drop()
                    return
                asked = self._asked.popleft()
                if not asked.done():
                    asked.set_result(answer)
        except hiredis.ProtocolError as error:
            if self._transport is not None:
                self._transport.abort()
            self._end(OSError(f"what answers does not speak Redis' protocol ({error})"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc if isinstance(exc, OSError) else _lost())

    def _look(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._looking = asyncio.get_running_loop().call_later(LOOK_S, self._look)
        self._silent_looks = 0 if self._is_heard else self._silent_looks + 1
        self._is_heard = False
        if self._asked and self._silent_looks and self._on_silence:
            self._on_silence(self)
        if self._ping and not self._ping.done():
            if self._silent_looks * LOOK_S >= DIAL_S:
                self.drop()
        elif self._pings and not self._asked and self._silent_looks * LOOK_S >= IDLE_S:
            self._silent_looks = 0
            self._ping = self.send(("PING",))

    def _end(self, error: OSError) -> None:
        self._transport = None
        if self._looking:
            self._looking.cancel()
        if self._ping:
            self._ping.cancel()
        while self._asked:
            asked = self._asked.popleft()
            if not asked.done():
                asked.set_exception(error)


class _First:
    """Takes the answer that comes before the one that is waited for."""

    answer: Any = None

    def __init__(self, between: Callable[[], None] | None) -> None:
        self._between = between

    def done(self) -> bool:
        return False

    def set_result(self, answer: Any) -> None:
        self.answer = answer
        if self._between:
            self._between()

    def set_exception(self, error: OSError) -> None:
        """The other gets it, too."""


async def open_connection(
    address: Address, *, on_silence: Callable[[Connection], None] | None = None
) -> Connection:
    """Connect and log in. Raises OSError, and StoreAwayError where the server refuses the user."""
    loop = asyncio.get_running_loop()

    connection = Connection(pings=address.path is None, on_silence=on_silence)
    found = None if address.path else await _addresses(address.host, address.port)
    limit = asyncio.timeout(DIAL_S)
    try:
        async with limit:
            if found is None:
                await loop.create_unix_connection(lambda: connection, address.path)
            else:
                connected = await _dial(found)
                name = address.host if address.tls else None
                try:
                    await loop.create_connection(
                        lambda: connection, sock=connected, ssl=address.tls, server_hostname=name
                    )
                except BaseException:
                    connected.close()
                    raise
            await _log_in(connection, address)
    except BaseException as error:
        # Where this is cancelled, uvloop closes a transport that it has made and does not tell the protocol.
        connection.drop()
        if isinstance(error, TimeoutError) and limit.expired():
            raise OSError(f"it did not answer within {DIAL_S:g} s") from error
        raise
    return connection


async def _addresses(host: str, port: int) -> Sequence[AddrInfoType]:
    return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)


async def _dial(found: Sequence[AddrInfoType]) -> socket.socket:
    """uvloop's own way waits for the kernel's timeout at each address in turn."""
    return await start_connection(found, happy_eyeballs_delay=NEXT_ADDRESS_S, socket_factory=_tcp_socket)


async def _log_in(connection: Connection, address: Address) -> None:
    if address.username or address.password:
        user = (address.username,) if address.username else ()
        await _agree(connection, address, "AUTH", *user, address.password or "")
    if address.database:
        await _agree(connection, address, "SELECT", address.database)


async def _agree(connection: Connection, address: Address, *args: Argument) -> None:
    answer = await connection.send(args)
    if isinstance(answer, hiredis.ReplyError):
        raise away(address.shown, str(answer))


def _tcp_socket(info: AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = info
    made = socket.socket(family, kind, protocol)
    try:
        made.setblocking(False)
        for level, option, value in (
            (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
            # Probes of an idle connection; each that is not acknowledged counts as what was sent.
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, math.ceil(IDLE_S)),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS),
        ):
            made.setsockopt(level, option, value)
    except BaseException:
        made.close()
        raise
    return made


def _lost() -> ConnectionResetError:
    return ConnectionResetError("the connection was lost")
