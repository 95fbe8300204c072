"""One client's connection: a protocol of its own for the one request that comes by the hundred thousand.

A read that is one plain accept request, whole, is recognized by one expression (``head.FAST``) and taken at
once. Every other read is kept, and worked off in fair turns (``turns.py``), request by request: plain ones
are taken as above; malformed ones are refused, and the connection ends; all others are handed off one at a
time to the fallback app, as an ``Exchange``, and the connection goes on where it was. So a head is judged in
one place, the fallback app never meets one that was not, an odd request costs only itself, and nothing
behind it is lost.

Answers leave in the order of the requests: those that wait for the store through the group commit's queue,
those that do not wait behind them in the same queue, and an exchange begins once nothing is unanswered.

Bounds. Of each connection: at most MAX_UNANSWERED requests wait, bytes are read only while all earlier ones
could be judged, and a head has an end. Of all: MAX_UNJUDGED_BYTES. What waits behind a request that has
expired, or has been read for half of a deadline without being judged, has been waiting, too: the connection
is late, and its requests are refused at once, until it has caught up with its client.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import logging
import random
import re
import termios
from typing import TYPE_CHECKING, cast

from idagg.accept.body import BodyReader
from idagg.accept.fallback import Exchange
from idagg.accept.head import (
    MAX_LINE_BYTES,
    PLAIN,
    Body,
    Head,
    RefusedError,
    Style,
    check_begun,
    judge,
    query_of,
)
from idagg.accept.replies import OK, UNAVAILABLE
from idagg.accept.request import MAX_BULK_BYTES

if TYPE_CHECKING:
    from idagg.accept.fast_path import FastPath

log = logging.getLogger("idagg.accept")

# From the first byte of a request to its last. Precedents: HAProxy's timeout http-request is commonly 10 s;
# nginx allows 60.
REQUEST_S = 10
# Requests of a connection that may wait for the store.
MAX_UNANSWERED = 512
# Requests of a connection that are judged in a row, and bytes of a body that are.
SLICE = 32
BODY_SLICE_BYTES = 4096
# How long the fallback app may take: above the longest deadline.
EXCHANGE_S = 11
# Bytes read and not judged yet: of a connection, where it is read from no further (a read has 256 KiB at
# most), and of all connections, where more are refused. Bodies are in it, and may take half of it.
READ_AHEAD_BYTES = 65_536
MAX_UNJUDGED_BYTES = 67_108_864
# How long a client may take to close behind its last answer. Precedent: nginx's lingering_timeout.
LINGER_S = 5
# For how many ticks a connection that was late has to keep up before it counts as having caught up.
_CAUGHT_UP_TICKS = 2
# By how much connections differ in their greatest age, so that they do not all end at once.
_AGE_JITTER = 0.1

# Before a request servers forgive some (RFC 9112 2.2).
_EMPTY_LINES = re.compile(rb"(?:\r\n){0,8}").match
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_KEEP = Style.KEEP  # a look-up through the enum costs some 40 ns, and each answer needs it


class Reply:
    """A waiter for an answer that is not the plain one."""

    __slots__ = ("connection", "status", "style")

    def __init__(self, connection: Connection, style: Style, status: int | None = None) -> None:
        self.connection = connection
        self.style = style
        self.status = status  # None: as the store says

    def answer(self, stored: bool) -> None:
        if self.status is None:
            self.connection.settle(stored, self.style)
        else:
            self.connection.send(self.status, self.style)


class Connection(asyncio.Protocol):
    """One client.

    In the plain state nothing is unjudged, held, late or about to end; the fast path looks at ``_plain``
    alone, and ``_go_on`` decides in every other state what comes next. ``_unanswered`` answers are to come.
    """

    __slots__ = (
        "_at",
        "_body",
        "_choked",
        "_ended",
        "_eof",
        "_exchange",
        "_kept_up",
        "_late",
        "_leaves_at_s",
        "_leaving",
        "_over",
        "_path",
        "_paused",
        "_paused_at",
        "_pending",
        "_plain",
        "_read_at",
        "_reserved",
        "_rest",
        "_seen_s",
        "_transport",
        "_unanswered",
        "_unjudged",
        "_waiting",
    )

    def __init__(self, path: FastPath) -> None:
        self._path = path
        self._transport: asyncio.Transport | None = None
        self._plain = not path.leaving
        self._unanswered = 0
        self._rest = b""  # what was read; judged as far as _at
        self._at = 0
        self._read_at = 0  # tick
        self._unjudged = False  # there may be a whole request in it, or more of a body
        self._waiting = False  # for its turn
        self._pending: Head | None = None  # to be handed off once nothing is unanswered
        self._body: BodyReader | None = None
        self._reserved = 0  # bytes set aside for it
        self._exchange: Exchange | None = None
        self._choked = False  # does not take its answers
        self._paused = False  # not read from
        self._paused_at = 0  # tick
        self._late = 0  # ticks for which it has to keep up; until then its requests are refused
        self._kept_up = False  # since the last tick
        self._leaving = path.leaving  # the next answer with nothing behind it is the last
        self._over = False  # no request is taken any more; it ends when nothing is unanswered
        self._eof = False  # the client has said all
        self._ended = False  # so have we
        self._seen_s = path.now_s
        self._leaves_at_s = path.now_s + path.max_age_s * random.uniform(1 - _AGE_JITTER, 1)  # noqa: S311  no secret

    def __repr__(self) -> str:
        state = "closed" if self._transport is None else "paused" if self._paused else "open"
        return f"<Connection {state} unanswered={self._unanswered} unjudged={len(self._rest) - self._at}>"

    # From the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._path.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = self._pending = None
        self._plain = self._paused = False
        self._set_rest(b"")
        self._path.connections.discard(self)
        self._path.late.discard(self)
        self._drop_body()
        if self._exchange is not None:
            self._exchange.lost()
            self._exchange = None

    def data_received(self, data: bytes) -> None:
        path = self._path
        if not self._plain:
            if not self._over:  # behind the last answer nothing is processed (RFC 9112 9.6)
                self._collect(data)
            return
        self._seen_s = path.now_s
        match = path.match(data, 0, MAX_LINE_BYTES)
        if match is None or match.end() != len(data):
            self._plain = False
            self._collect(data)
        elif match.lastindex != PLAIN:
            self._take(query_of(match), _KEEP)
        elif status := path.admission.hit(self, match[PLAIN]):  # type: ignore[union-attr]  # without one nothing matches
            self._reply(status, _KEEP)
        else:
            self._unanswered += 1
            if self._unanswered > MAX_UNANSWERED:
                self._hold()

    def eof_received(self) -> bool:
        self._eof = True
        self._plain = False
        return bool(self._unanswered or self._unjudged or self._exchange)

    def pause_writing(self) -> None:
        self._choked = True
        self._hold()

    def resume_writing(self) -> None:
        self._choked = False
        self._go_on()

    # From the group commit.

    def answer(self, stored: bool) -> None:
        if stored and self._plain:
            self._unanswered -= 1
            self.write(self._path.replies.ok)
        else:
            self.settle(stored, _KEEP)

    def settle(self, stored: bool, style: Style) -> None:
        """Answer as the store says."""
        if not stored and (self._paused or self._unjudged or self._pending is not None):
            self._be_late()
        self.send(OK if stored else UNAVAILABLE, style)

    def send(self, status: int, style: Style) -> None:
        """Answer the oldest request that is unanswered."""
        self._unanswered -= 1
        if self._leaving and not (self._unanswered or self._pending or self._has_begun()):
            style, self._over = Style.CLOSE, True
        self.write(self._path.replies.by_status[status][style])
        if not self._plain:
            self._go_on()

    # From the clock.

    def expire(self, now_s: int) -> None:
        """Drop the client that is idle, or too slow to say or to take what it wants."""
        if now_s >= self._leaves_at_s:
            self.leave()
        silent_s = now_s - self._seen_s
        if self._ended:
            if silent_s > (self._path.keepalive_s if self._is_sending() else LINGER_S):
                self.abort()
        elif self._exchange is not None:
            if silent_s > EXCHANGE_S:
                self.abort()
        elif self._unanswered:
            pass
        elif self._choked or not (self._body or self._has_begun()):
            if silent_s > self._path.keepalive_s:
                self.abort()
        elif silent_s > REQUEST_S:
            self._refuse(408)

    def catch_up(self) -> None:
        """A tick has passed since it was late, or since it last kept up."""
        self._late = self._late - 1 if self._kept_up else _CAUGHT_UP_TICKS
        self._kept_up = False
        if not self._late:
            self._path.late.discard(self)
        self._go_on()

    def leave(self) -> None:
        self._leaving = True
        self._plain = False

    def finish(self) -> None:
        """Close once nothing is unanswered."""
        self._end_input()
        self._go_on()

    def is_busy(self) -> bool:
        """Whether an answer is to come."""
        return bool(self._unanswered or self._pending or self._exchange)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # From the fair turns.

    def work(self) -> bool:
        if self._has_waited(self._read_at):
            self._be_late()
        for _ in range(SLICE):
            if self._is_held() or not self._unjudged:
                break
            self._judge_next()
        self._waiting = self._unjudged and not self._is_held()
        if not self._waiting:
            self._go_on()
        return self._waiting

    # Its own: what was read.

    def _collect(self, data: bytes) -> None:
        """Keep what was read for its turn."""
        if not self._unjudged:  # what is here already is not whole, and waits for this
            self._read_at = self._path.ticks
        if not self._has_begun() and self._body is None:  # a body has its head's time
            self._seen_s = self._path.now_s
        self._set_rest(self._rest[self._at :] + data)
        self._unjudged = True
        if self._path.unjudged_bytes > MAX_UNJUDGED_BYTES:
            self._refuse(UNAVAILABLE)
            return
        if len(self._rest) > READ_AHEAD_BYTES:
            self._pause()
        self._go_on()

    def _judge_next(self) -> None:
        if self._body is not None:
            self._read_body(self._body)
            return
        data, start = self._rest, self._at
        match = self._path.match(data, start, start + MAX_LINE_BYTES)
        if match is not None:
            self._advance(match.end())
            self._take(query_of(match), _KEEP)
            return
        start = _EMPTY_LINES(data, start).end()  # type: ignore[union-attr]  # it matches none, too
        end = data.find(b"\r\n\r\n", start) + 4
        try:
            if end < 4:
                self._set_rest(data[start:])
                self._unjudged = False
                check_begun(self._rest)
                return
            head = judge(data[start:end])
        except RefusedError as error:
            self._refuse(error.status)
            return
        self._advance(end)
        query = head.query if self._path.admission else None
        if query is None:
            self._pending = head
        else:
            self._take(query, head.style)

    def _advance(self, to: int) -> None:
        self._seen_s = self._path.now_s  # the head that begins there has its own time
        self._at = to
        if to == len(self._rest):
            self._set_rest(b"")

    def _take(self, query: bytes, style: Style) -> None:
        """A plain accept request is taken, or answered in its turn."""
        admission = self._path.admission
        assert admission is not None
        if style is Style.CLOSE:
            self._end_input()
        if self._late:
            status = admission.refuse(UNAVAILABLE)  # it has been waiting behind one that has expired
        else:
            status = admission.one(self if style is _KEEP else Reply(self, style), query)
        if status:
            self._reply(status, style)
        else:
            self._unanswered += 1

    def _refuse(self, status: int) -> None:
        """The connection ends with this answer."""
        self._end_input()
        self._path.tally[status] += 1
        self._reply(status, Style.CLOSE)

    def _reply(self, status: int, style: Style) -> None:
        """An answer that does not wait for the store, but for those before it."""
        self._unanswered += 1
        if self._unanswered == 1:
            self.send(status, style)
        else:
            assert self._path.admission is not None, "nothing else is unanswered"
            self._path.admission.commit.in_turn(Reply(self, style, status))

    def _end_input(self) -> None:
        self._over, self._plain = True, False
        self._set_rest(b"")
        self._drop_body()

    def _set_rest(self, rest: bytes) -> None:
        self._path.unjudged_bytes += len(rest) - len(self._rest)
        self._rest, self._at = rest, 0
        self._unjudged = self._unjudged and bool(rest)

    def _has_begun(self) -> bool:
        return self._at < len(self._rest)

    # Its own: the fallback app.

    def _hand_off(self, head: Head) -> None:
        """Let the fallback app answer one request, once its body is here."""
        if head.length == 0:
            self._begin_exchange(head, b"")
            return
        reserved = MAX_BULK_BYTES if head.length == Body.CHUNKED else min(head.length, MAX_BULK_BYTES)
        others = self._path.unjudged_bytes - len(self._rest)
        if self._late or others + reserved > MAX_UNJUDGED_BYTES // 2:
            self._refuse(UNAVAILABLE)
            return
        try:
            self._body = BodyReader(head)
        except RefusedError as error:
            self._refuse(error.status)
            return
        self._reserved = reserved
        self._path.unjudged_bytes += reserved
        if head.expects:
            self.write(_CONTINUE)
        self._unjudged = self._has_begun()
        self._go_on()

    def _read_body(self, body: BodyReader) -> None:
        end = min(self._at + BODY_SLICE_BYTES, len(self._rest))
        try:
            behind = body.feed(self._rest[self._at : end])
        except RefusedError as error:
            self._refuse(error.status)
            return
        self._at = end - len(behind or b"")
        if not self._has_begun():
            self._set_rest(b"")
        if behind is not None:
            self._body = None
            self._begin_exchange(body.head, bytes(body.content))

    def _drop_body(self) -> None:
        self._body = None
        self._path.unjudged_bytes -= self._reserved
        self._reserved = 0

    def _begin_exchange(self, head: Head, body: bytes) -> None:
        style = Style.CLOSE if self._leaving and not self._has_begun() else head.style
        self._pause()
        try:
            self._exchange = self._path.fallback.begin(head, body, style, self, is_late=self._late > 0)
        except Exception:  # of the app's parser, for what was judged good here; nobody else may suffer for it
            log.exception("a request could not be handed off")
            self._refuse(500)

    def answered(self, style: Style) -> None:
        """Hear from the exchange that it has ended."""
        self._exchange = None
        self._drop_body()
        self._seen_s = self._path.now_s
        if style is Style.CLOSE:
            self._end_input()
        self._go_on()

    # Its own: what comes next.

    def _is_held(self) -> bool:
        return (
            self._over
            or self._choked
            or self._unanswered > MAX_UNANSWERED
            or self._pending is not None
            or self._exchange is not None
        )

    def _is_sending(self) -> bool:
        return self._transport is not None and self._transport.get_write_buffer_size() > 0

    def _has_waited(self, since: int) -> bool:
        return self._path.ticks - since > self._path.patience_ticks

    def _be_late(self) -> None:
        if self._transport is not None:
            self._plain = self._kept_up = False
            self._late = _CAUGHT_UP_TICKS
            self._path.late.add(self)

    def _hold(self) -> None:
        self._plain = False
        self._pause()

    def _go_on(self) -> None:
        """Do what can be done now, in any state but the plain one."""
        if self._transport is None:
            return
        if not self._unanswered and self._exchange is None:
            if self._pending is not None:
                head, self._pending = self._pending, None
                self._hand_off(head)
                return
            if self._over or (self._eof and not self._unjudged):
                self._end(self._transport)
                return
        if self._is_held():
            if not self._over:
                self._pause()
        elif self._unjudged:
            if not self._waiting:
                self._waiting = True
                self._path.turns.join(self)
        else:
            if self._late and not _waiting_bytes(self._transport):
                self._kept_up = True
            self._resume()
            busy = self._has_begun() or self._body or self._late or self._leaving or self._eof
            self._plain = not busy

    def _end(self, transport: asyncio.Transport) -> None:
        """Close when the client does. It may go on sending until then, and to close on unread bytes would be
        a reset, which could overtake the answers."""
        if self._ended:
            return
        self._ended = True
        self._end_input()
        self._seen_s = self._path.now_s
        if self._eof:
            transport.close()
        else:
            self._resume()
            transport.write_eof()

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            try:
                self._transport.write(data)
            except RuntimeError:  # uvloop's, of a transport that closed in this very turn of the loop
                self._over, self._plain, self._transport = True, False, None

    def _pause(self) -> None:
        if not self._paused and self._transport is not None:
            self._paused = True
            self._paused_at = self._path.ticks
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            if self._has_waited(self._paused_at) and _waiting_bytes(self._transport):
                self._be_late()
            self._transport.resume_reading()


def _waiting_bytes(transport: asyncio.Transport) -> int:
    """What the client has sent and nobody has read."""
    count = array.array("i", [0])
    with contextlib.suppress(OSError):  # it has gone
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.FIONREAD, count)
    return count[0]
