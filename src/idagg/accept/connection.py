"""One client's connection: an asyncio protocol made for the most frequent request, the plain accept request.

If a read is exactly one plain accept request, one regular expression (``head.FAST``) recognizes it, and it is
taken at once. Every other read is buffered and served in fair turns (``turns.py``), request by request:

- A plain accept request is taken, as above.
- A malformed request is refused, and the connection ends.
- Every other request is handed off to the fallback app, one at a time, as an ``Exchange``. Then the
  connection goes on with the next request.

So heads are judged in one place, the fallback app gets only valid ones, and an unusual request does not slow
down those after it.

Order: answers leave in the order of the requests. One group commit answers in the order of arrival, so the
connection itself waits there, for any number of requests. A request that could be answered out of order
queues in the connection's line as a ``Reply``: a refusal behind outstanding answers, an unusual answer, and
with several group commits every request behind an outstanding one. Until the line is empty, all later
requests queue there, too. So the requests for which the connection itself waits are always the oldest ones,
and all in one group commit. An exchange begins once no answer is outstanding.

Limits of a connection: at most MAX_UNANSWERED requests wait; nothing more is read while earlier bytes cannot
be judged; the size of a head is limited. Limit of all connections together: MAX_UNJUDGED_BYTES.

Late connections: a request can wait behind an expired one, or be unjudged for half of the deadline. Then its
connection is late: its requests are refused at once until it has caught up with its client.
"""

from __future__ import annotations

import array
import asyncio
import collections
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
# Limit of a connection's requests that wait for the store.
MAX_UNANSWERED = 512
# One slice of a connection's turns: requests judged, and bytes of a body read.
SLICE = 32
BODY_SLICE_BYTES = 4096
# Time the fallback app may take: above the longest deadline.
EXCHANGE_S = 11
# Bytes read and not judged yet. Above the first number, a connection's reading pauses (a read has at most
# 256 KiB). Above the second, for all connections together, requests are refused. Bodies count, up to half.
READ_AHEAD_BYTES = 65_536
MAX_UNJUDGED_BYTES = 67_108_864
# Time a client may take to close after its last answer. Precedent: nginx's lingering_timeout.
LINGER_S = 5
# Ticks for which a late connection has to keep up before it has caught up.
_CAUGHT_UP_TICKS = 2
# Random part of a connection's maximum age, so that connections do not all end at once.
_AGE_JITTER = 0.1

# A server should ignore some empty lines before a request (RFC 9112 2.2).
_EMPTY_LINES = re.compile(rb"(?:\r\n){0,8}").match
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_KEEP = Style.KEEP  # a look-up through the enum costs about 40 ns, and each answer needs one


class Reply:
    """An answer in a connection's line. As a waiter, it gets its status from the store."""

    __slots__ = ("connection", "expired", "status", "style")

    def __init__(self, connection: Connection, style: Style, status: int | None = None) -> None:
        self.connection = connection
        self.style = style
        self.status = status  # None: not known yet
        self.expired = False

    def answer(self, stored: bool) -> None:
        self.status = OK if stored else UNAVAILABLE
        self.expired = not stored
        self.connection.advance()


class Connection(asyncio.Protocol):
    """The protocol of one client's connection.

    If ``_plain`` is true, nothing is unjudged, held, in line, late or about to end, and the fast path checks
    nothing else. In every other state ``_go_on`` decides the next step. ``_unanswered`` counts outstanding
    answers, those in the line included.
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
        "_line",
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
        self._line: collections.deque[Reply] | None = None  # never empty
        self._rest = b""  # bytes read; judged up to _at
        self._at = 0
        self._read_at = 0  # tick
        self._unjudged = False  # _rest may have a complete request, or more of a body
        self._waiting = False  # queued for its turn
        self._pending: Head | None = None  # to be handed off once nothing is unanswered
        self._body: BodyReader | None = None
        self._reserved = 0  # bytes reserved for the body
        self._exchange: Exchange | None = None
        self._choked = False  # the client does not read its answers
        self._paused = False  # reading is paused
        self._paused_at = 0  # tick
        self._late = 0  # ticks it still has to keep up; until then its requests are refused
        self._kept_up = False  # since the last tick
        self._leaving = path.leaving  # the last outstanding answer closes the connection
        self._over = False  # takes no more requests; ends when all are answered
        self._eof = False  # the client has closed its side
        self._ended = False  # our side is closed
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
            if not self._over:  # requests after the last answer are ignored (RFC 9112 9.6)
                self._collect(data)
            return
        self._seen_s = path.now_s
        match = path.match(data, 0, MAX_LINE_BYTES)
        if match is None or match.end() != len(data):
            self._plain = False
            self._collect(data)
        elif match.lastindex != PLAIN or (self._unanswered and not path.admission.in_order):  # type: ignore[union-attr]  # without one nothing matches
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
            if not stored:
                self._look_back()
            self._send(OK if stored else UNAVAILABLE, _KEEP)
            self.advance()

    def advance(self) -> None:
        """Send the answers at the head of the line that are known, once those before the line are sent."""
        line = self._line
        while line and len(line) == self._unanswered and (status := line[0].status) is not None:
            reply = line.popleft()
            if not line:
                self._line = None
            if reply.expired:
                self._look_back()
            self._send(status, reply.style)

    def _look_back(self) -> None:
        """After an expired request: those behind it have waited, too."""
        if self._paused or self._unjudged or self._pending is not None:
            self._be_late()

    def _send(self, status: int, style: Style) -> None:
        """Answer the oldest outstanding request."""
        self._unanswered -= 1
        if self._leaving and not (self._unanswered or self._pending or self._has_begun()):
            style, self._over = Style.CLOSE, True
        self.write(self._path.replies.by_status[status][style])
        if not self._plain:
            self._go_on()

    # From the clock.

    def expire(self, now_s: int) -> None:
        """Drop a client that is idle, or too slow to send its request or to read its answer."""
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
        """Count one tick of a late connection."""
        self._late = self._late - 1 if self._kept_up else _CAUGHT_UP_TICKS
        self._kept_up = False
        if not self._late:
            self._path.late.discard(self)
        self._go_on()

    def leave(self) -> None:
        self._leaving = True
        self._plain = False

    def finish(self) -> None:
        """Close once every request is answered, even one that has just arrived and is not read yet."""
        idle = self._transport is not None and not self._over and not self.is_busy()
        if idle and _waiting_bytes(cast(asyncio.Transport, self._transport)):
            self.leave()
            return
        self._end_input()
        self._go_on()

    def is_busy(self) -> bool:
        """Whether an answer is outstanding."""
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

    # Internal: the bytes read.

    def _collect(self, data: bytes) -> None:
        """Buffer the bytes for the connection's turn."""
        if not self._unjudged:  # earlier bytes were an incomplete request
            self._read_at = self._path.ticks
        if not self._has_begun() and self._body is None:  # the time limit of a body begins with its head
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
        start = _EMPTY_LINES(data, start).end()  # type: ignore[union-attr]  # it matches no lines, too
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
        self._seen_s = self._path.now_s  # the next head has its own time limit
        self._at = to
        if to == len(self._rest):
            self._set_rest(b"")

    def _take(self, query: bytes, style: Style) -> None:
        """Take a plain accept request, or queue its refusal."""
        admission = self._path.admission
        assert admission is not None
        if style is Style.CLOSE:
            self._end_input()
        if self._late:
            self._reply(admission.refuse(UNAVAILABLE), style)  # it has waited too long
        elif style is _KEEP and (not self._unanswered or (self._line is None and admission.in_order)):
            if status := admission.one(self, query):
                self._reply(status, style)
            else:
                self._unanswered += 1
        else:
            reply = Reply(self, style)
            if status := admission.one(reply, query):
                self._reply(status, style)
            else:
                self._queue(reply)

    def _refuse(self, status: int) -> None:
        """Answer with the status, and end the connection."""
        self._end_input()
        self._path.tally[status] += 1
        self._reply(status, Style.CLOSE)

    def _reply(self, status: int, style: Style) -> None:
        """Give an answer that needs no store, after all outstanding ones."""
        if self._unanswered:
            self._queue(Reply(self, style, status))
        else:
            self._unanswered = 1
            self._send(status, style)

    def _queue(self, reply: Reply) -> None:
        """Let the answer wait in the line."""
        self._plain = False
        self._unanswered += 1
        if self._line is None:
            self._line = collections.deque()
        self._line.append(reply)

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

    # Internal: the fallback app.

    def _hand_off(self, head: Head) -> None:
        """Hand off one request to the fallback app, once its body is complete."""
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
        except Exception:  # the app's parser failed; other connections must go on
            log.exception("a request could not be handed off, it is answered 500")
            self._refuse(500)

    def answered(self, style: Style) -> None:
        """Go on after the end of an exchange."""
        self._exchange = None
        self._drop_body()
        self._seen_s = self._path.now_s
        if style is Style.CLOSE:
            self._end_input()
        self._go_on()

    # Internal: the next step.

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
        """Do the next step, in any state but the plain one."""
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
            self._plain = not (busy or self._line)

    def _end(self, transport: asyncio.Transport) -> None:
        """Close after the client has closed.

        The client may still be sending. To close with unread bytes would reset the connection, and the reset
        could overtake the answers.
        """
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
            except RuntimeError:  # uvloop raises it if the transport has closed in this turn of the loop
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
    """Number of bytes that the client has sent and that are not read yet."""
    count = array.array("i", [0])
    with contextlib.suppress(OSError):  # the socket is closed
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.FIONREAD, count)
    return count[0]
