"""The hot door: a protocol of its own for the one request that comes by the hundred thousand.

It answers ``GET /api/verve/accept?…`` in plain form and knows nothing else. The first request on a
connection that is anything else, by its method, path, body or an odd header, hands the whole connection over
to aiohttp for the rest of its life, its bytes replayed, once the answers already owed are out. So every rule
of HTTP that the hot request does not need is written once, by aiohttp; and aiohttp alone judges what is
malformed.

A request is taken apart in two: the query, and what follows the target (version and header fields, as far as
the blank line), the tail. Clients send the same header fields again and again, so what was found out about
tails is kept by their bytes in ``FrontDoor.verdicts``; only one not seen before goes through the parser. Most
requests end as the one before on their connection did, and need one comparison.

Answers leave in the order of the requests: those that wait for the store through the group commit's queue,
and those that do not behind them in the same queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from idagg.accept.commit import GroupCommit
from idagg.accept.head import MAX_HEAD_BYTES, USUAL_TAIL, Style, judge
from idagg.accept.replies import Replies
from idagg.accept.request import PATH, is_canonical, parse

# Precedents: nginx's keepalive_timeout, 75 s, above the 60 s after which load balancers drop idle upstreams.
IDLE_S = 75
# From the first byte of a request to its blank line. Precedents: haproxy's timeout http-request is commonly
# set to 10 s; nginx allows 60.
HEADER_S = 10
# Requests a connection may have waiting before it is not read from.
MAX_OWED = 512
MAX_VERDICTS = 1024

_HOT = f"GET {PATH}?".encode()
_QUERY = len(_HOT)
_HOT_ID = _HOT + b"id="
_ID = len(_HOT_ID)
_KEEP = Style.KEEP  # a look-up through the enum costs some 40 ns, and each answer needs it


class FrontDoor:
    """What all connections of a worker share. Call it to make the protocol of a new connection."""

    def __init__(
        self,
        commit: GroupCommit,
        hand_over: Callable[[], asyncio.Protocol],
        *,
        epoch_s: float,
    ) -> None:
        self.commit = commit
        self.hand_over = hand_over
        self.replies = Replies(epoch_s)
        self.verdicts: dict[bytes, Style] = {}
        self.connections: set[Connection] = set()
        self.now_s = 0  # whole seconds since the door opened; advanced by ``second``
        self.bad = 0  # requests answered 400 since take_refused
        self.turned_away = 0  # requests answered 503 for want of room, likewise
        self.draining = False

    def __call__(self) -> Connection:
        return Connection(self)

    def closing_query(self, said: bytes) -> bytes | None:
        """The query of a plain request that is all that was said, and asks to close; else None."""
        if not said.startswith(_HOT) or said.find(b"\r\n\r\n") + 4 != len(said):
            return None
        space = said.find(b" ", _QUERY)
        return said[_QUERY:space] if self.verdict(said, said[space:]) is Style.CLOSE else None

    def verdict(self, head: bytes, tail: bytes) -> Style | None:
        if len(head) > MAX_HEAD_BYTES:
            return None
        style = self.verdicts.get(tail)
        if style is None:
            style = judge(head, tail)
            if style is not None:
                if len(self.verdicts) >= MAX_VERDICTS:
                    self.verdicts.clear()
                self.verdicts[tail] = style
        return style

    def second(self, epoch_s: float) -> None:
        """To be called once a second."""
        self.now_s += 1
        self.replies = Replies(epoch_s)
        for connection in list(self.connections):
            connection.expire(self.now_s)

    def take_refused(self) -> tuple[tuple[int, int], ...]:
        """(status, requests) of those answered without asking the store, since the last call."""
        taken = (400, self.bad), (503, self.turned_away)
        self.bad = self.turned_away = 0
        return taken

    def drain(self) -> None:
        """From now on an answer with nothing owed behind it is its connection's last, and says so. An idle
        connection stays for one more request: a client that is just sending it must not find it closed."""
        self.draining = True

    def close(self) -> None:
        """Close each connection once what it is owed is out."""
        for connection in list(self.connections):
            connection.finish()


class Reply:
    """A waiter for an answer that is not the plain one."""

    __slots__ = ("connection", "otherwise", "stored", "style")

    def __init__(
        self, connection: Connection, stored: list[bytes], otherwise: list[bytes], style: Style
    ) -> None:
        self.connection = connection
        self.stored = stored
        self.otherwise = otherwise
        self.style = style

    def answer(self, stored: bool) -> None:
        self.connection.send(self.stored if stored else self.otherwise, self.style)


class Connection(asyncio.Protocol):
    """One client. Where it stands: ``_owed`` answers are to come; then ``_then``, if set, happens, once;
    ``_partial`` are the first bytes of a request whose blank line has not come."""

    __slots__ = (
        "_choked",
        "_door",
        "_more",
        "_owed",
        "_partial",
        "_paused",
        "_seen_s",
        "_tail",
        "_then",
        "_transport",
    )

    def __init__(self, door: FrontDoor) -> None:
        self._door = door
        self._transport: asyncio.Transport | None = None
        self._owed = 0
        self._more = False  # requests behind this one are here already
        self._partial = b""
        self._paused = False  # not read from
        self._choked = False  # does not take its answers
        self._seen_s = door.now_s
        self._tail = USUAL_TAIL  # of the last plain request that keeps the connection
        self._then: Callable[[], None] | None = None

    def __repr__(self) -> str:
        state = "closed" if self._transport is None else "paused" if self._paused else "open"
        return f"<Connection {state} owed={self._owed} partial={len(self._partial)}>"

    # From the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._door.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = self._then = None
        self._door.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        if self._then is not None:
            return
        if self._partial:
            data = self._partial + data
            self._partial = b""
        else:
            self._seen_s = self._door.now_s
        tail = self._tail
        if data.endswith(tail) and data.startswith(_HOT_ID):
            # A valid query has no space in it, so the tail, and nothing else, is what follows it.
            value, endpoint = data[_ID : -len(tail)], None
            if not is_canonical(value):
                hit = parse(data[_QUERY : -len(tail)])
                if hit is None or len(data) > MAX_HEAD_BYTES:
                    self._walk(data)
                    return
                value, endpoint = hit
            commit = self._door.commit
            # Looked up here too, since the call costs more than that, and most are no repeats.
            if value in commit.known.ids and commit.known.repeat(value, endpoint):
                self._reply(self._door.replies.ok, _KEEP)
            elif commit.add(self, value, endpoint):
                self._owed += 1
            else:
                self._turn_away(_KEEP)
            if self._owed > MAX_OWED:
                self._pause()
        else:
            self._walk(data)

    def eof_received(self) -> bool:
        """The client has said all; it may still be listening."""
        if self._owed and self._then is None:
            self._then = self._close
        return self._owed > 0

    def pause_writing(self) -> None:
        self._choked = True
        self._pause()

    def resume_writing(self) -> None:
        self._choked = False
        self._resume()

    # From the group commit.

    def answer(self, stored: bool) -> None:
        replies = self._door.replies
        self.send(replies.ok if stored else replies.unavailable, _KEEP)

    def send(self, reply: list[bytes], style: Style) -> None:
        self._owed -= 1
        last = self._door.draining and not self._owed and not self._more and self._then is None
        if self._transport is not None:
            try:
                self._transport.write(reply[Style.CLOSE if last else style])
            except RuntimeError:  # uvloop's, of a transport that closed in this very turn of the loop
                self._transport = None
        if not self._owed:
            if self._then is not None:
                then, self._then = self._then, None
                then()
            elif last:
                self._leave()
            elif self._paused:
                self._resume()

    # From the door.

    def expire(self, now_s: int) -> None:
        """Drop the client that is idle, or too slow to say or to take what it wants."""
        limit_s = HEADER_S if self._partial else IDLE_S
        if self._transport is not None and not self._owed and now_s - self._seen_s > limit_s:
            self._transport.abort()

    def finish(self) -> None:
        """Close once nothing is owed; a hand-over that waits is given up with it."""
        if self._owed:
            self._then = self._close
        else:
            self._close()

    # Its own.

    def _walk(self, data: bytes) -> None:
        """Take requests one by one; hand over at the first that is not plain."""
        start = 0
        while start < len(data) and self._then is None and self._transport is not None:
            end = data.find(b"\r\n\r\n", start) + 4
            if end < 4:
                if start:
                    self._seen_s = self._door.now_s  # the head that begins here has its own time
                self._keep(data[start:])
                break
            head = data[start:end]
            space = head.find(b" ", _QUERY)
            style = self._door.verdict(head, head[space:]) if head.startswith(_HOT) else None
            if style is None:
                self._hand_over(data[start:])
                return
            self._more = end < len(data)
            self._take(head[_QUERY:space], style)
            self._more = False
            if style is Style.KEEP:
                self._tail = head[space:]
            start = end
        if self._owed > MAX_OWED:
            self._pause()

    def _take(self, query: bytes, style: Style) -> None:
        """Answer one plain request, at once or in its turn."""
        door = self._door
        replies = door.replies
        hit = parse(query)
        if hit is None:
            door.bad += 1
            self._reply(replies.bad, style)
        elif door.commit.known.repeat(*hit):
            self._reply(replies.ok, style)
        else:
            plain = style is Style.KEEP
            waiter = self if plain else Reply(self, replies.ok, replies.unavailable, style)
            if door.commit.add(waiter, *hit):
                self._owed += 1
            else:
                self._turn_away(style)
        if style is Style.CLOSE:
            self.finish()

    def _turn_away(self, style: Style) -> None:
        self._door.turned_away += 1
        self._reply(self._door.replies.unavailable, style)

    def _reply(self, reply: list[bytes], style: Style) -> None:
        """An answer that does not wait for the store, but for those before it."""
        self._owed += 1
        if self._owed == 1:
            self.send(reply, style)
        else:
            self._door.commit.in_turn(Reply(self, reply, reply, style))

    def _keep(self, rest: bytes) -> None:
        """Wait for the rest of a head, as long as it can still become a plain request."""
        plausible = rest.startswith(_HOT) or _HOT.startswith(rest)
        if plausible and len(rest) <= MAX_HEAD_BYTES and rest.count(b"\n") == rest.count(b"\r\n"):
            self._partial = rest
        else:
            self._hand_over(rest)

    def _hand_over(self, rest: bytes) -> None:
        def now() -> None:
            transport = self._transport
            if transport is None or transport.is_closing():
                return
            self._transport = None
            self._door.connections.discard(self)
            successor = self._door.hand_over()
            successor.connection_made(transport)
            transport.set_protocol(successor)
            if self._choked:  # the transport has said so, and will not say it again
                successor.pause_writing()
            if self._paused:
                transport.resume_reading()
            successor.data_received(rest)

        if self._owed:
            self._pause()
            self._then = now
        else:
            now()

    def _pause(self) -> None:
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        held = self._choked or self._then is not None or self._owed > MAX_OWED
        if self._paused and not held and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def _leave(self) -> None:
        """Close when the client does. It may go on sending until then, and to close on unread bytes would be
        a reset, which could overtake the answers."""
        if self._transport is not None:
            self._resume()
            self._then = self._close
            self._transport.write_eof()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()
