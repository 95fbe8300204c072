"""What the public listener does over time: order, pressure, deadlines, clients that are slow or gone."""

from __future__ import annotations

import asyncio
import collections
import os
import resource
import select
import socket
from collections.abc import AsyncIterator
from unittest.mock import Mock

import pytest

from idagg.accept import connection as connection_module
from idagg.accept import listener as listener_module
from idagg.accept.body import BodyReader
from idagg.accept.connection import (
    BODY_SLICE_BYTES,
    EXCHANGE_S,
    LINGER_S,
    MAX_UNANSWERED,
    REQUEST_S,
    Connection,
)
from idagg.accept.fallback import Fallback
from idagg.accept.fast_path import FastPath
from idagg.accept.listener import RESERVED_FILES
from idagg.accept.request import MAX_BULK_BYTES
from idagg.accept.turns import Turns
from idagg.errors import StoreRefusedError
from kit.fakes import Hits, settle
from kit.listeners import OpenListener, open_listener
from kit.waiting import LIMIT_S, until
from kit.wire import Wire

KEEPALIVE_S = 75  # the default
CLOSE = "Host: x\r\nConnection: close\r\n"


def get(query: str, fields: str = "Host: x\r\n") -> bytes:
    return f"GET /api/verve/accept?{query} HTTP/1.1\r\n{fields}\r\n".encode()


def post(body: bytes) -> bytes:
    return b"POST /api/verve/accept HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


class Stage:
    """The listener before a store that waits for word."""

    def __init__(self, listener: OpenListener, hits: Hits) -> None:
        self.listener = listener
        self.hits = hits

    def __repr__(self) -> str:
        return f"<Stage holds {self.listener.public.unjudged_bytes} tally={dict(self.listener.tally)}>"

    async def connect(self) -> Wire:
        return await self.listener.connect()

    async def sent(self, batches: int) -> None:
        async with asyncio.timeout(LIMIT_S):
            while len(self.hits.sent) < batches:  # noqa: ASYNC110  what it waits for sets no event
                await asyncio.sleep(0.001)

    async def until(self, thing: object, state: str) -> None:
        """Wait for what ``thing`` shows of itself."""
        async with asyncio.timeout(LIMIT_S):
            while state not in repr(thing):  # noqa: ASYNC110  likewise
                await asyncio.sleep(0.001)

    async def catch_up(self) -> None:
        """Let ticks pass until no connection is late any more."""
        async with asyncio.timeout(LIMIT_S):
            while self.listener.public.late:
                self.listener.public.tick()
                await asyncio.sleep(0.001)

    async def lets_go(self) -> None:
        """Wait until the fallback app has no exchange any more."""
        async with asyncio.timeout(LIMIT_S):
            while handlers(self):  # noqa: ASYNC110  likewise
                await asyncio.sleep(0.001)

    async def connections(self, count: int) -> Stage:
        async with asyncio.timeout(LIMIT_S):
            while len(self.listener.public.connections) != count:  # noqa: ASYNC110  likewise
                await asyncio.sleep(0.001)
        return self


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    hits = Hits()
    async with open_listener(hits, max_waiting=20_000) as listener:
        yield Stage(listener, hits)
        hits.reply(*[None] * 1000)


def connection_of(stage: Stage) -> Connection:
    """The server's side of the only connection."""
    (connection,) = stage.listener.public.connections
    return connection


def arrives(connection: Connection) -> None:
    """Wait until the kernel has for it what a client has sent. The event loop does nothing meanwhile."""
    assert connection._transport is not None
    assert select.select([connection._transport.get_extra_info("socket")], [], [], LIMIT_S)[0]


@pytest.fixture
def nobody_is_let_in_unheard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the machine may stand still between a client's connection and its first bytes."""
    monkeypatch.setattr(listener_module, "_DEFER_S", 60)


async def status(wire: Wire) -> int:
    answer = await wire.answer()
    assert answer is not None
    return answer.status


async def test_an_answer_that_needs_no_store_keeps_its_place(stage: Stage) -> None:
    """400 behind a request that waits comes behind its answer."""
    wire = await stage.connect()
    await wire.send(get("id=1") + get("id=x") + get("id=2"))
    await stage.sent(1)
    stage.hits.reply(None, None)
    assert [await status(wire) for _ in range(3)] == [200, 400, 200]


async def test_a_hand_off_waits_for_what_is_owed(stage: Stage) -> None:
    """The fallback app answers in turn, one request; the connection goes on behind it."""
    wire = await stage.connect()
    await wire.send(get("id=1") + b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
    await stage.sent(1)
    await wire.send(get("id=2"))
    stage.hits.reply(None, None)
    assert [await status(wire) for _ in range(3)] == [200, 404, 200]


async def test_a_refusing_store_is_told_as_503_with_retry_after(stage: Stage) -> None:
    """failed comes with a time to come again."""
    wire = await stage.connect()
    await wire.send(get("id=1"))
    stage.hits.reply(StoreRefusedError("full"))
    answer = await wire.answer()
    assert answer is not None
    assert (answer.status, answer.body, answer.headers["Retry-After"]) == (503, b"failed", "1")


async def test_close_is_honoured_behind_the_answer(stage: Stage) -> None:
    """Connection: close closes once its answer is out, and what comes behind it is not read."""
    wire = await stage.connect()
    await wire.send(get("id=1") + get("id=2", "Host: x\r\nConnection: close\r\n") + get("id=3"))
    await stage.sent(1)
    stage.hits.reply(None, None)
    answers = [await wire.answer() for _ in range(2)]
    assert [answer.headers["Connection"] for answer in answers if answer] == [None, "close"]
    assert await wire.closed()
    assert [number for _, ids, _ in stage.hits.sent for number in ids] == [b"1", b"2"]


@pytest.mark.parametrize("path", ["/api/verve/accept", "/api/verve/%61ccept"])
async def test_a_client_that_has_said_all_still_gets_its_answer(stage: Stage, path: str) -> None:
    """A half-closed connection stays until it has its answers; one that waits for none does not."""
    wire, idle = [await stage.connect() for _ in range(2)]
    await idle.send(get("id=x"))
    assert await status(idle) == 400
    await wire.send(get("id=1").replace(b"/api/verve/accept", path.encode()))
    for one in (wire, idle):
        one.socket.shutdown(socket.SHUT_WR)
    assert await idle.closed()
    await stage.sent(1)
    stage.hits.reply(None)
    assert await status(wire) == 200
    assert await wire.closed()


async def test_a_client_that_vanishes_while_its_batch_travels_harms_nobody(stage: Stage) -> None:
    """Its id is counted or not; the others of the batch, and those after, are answered."""
    gone, here = await stage.connect(), await stage.connect()
    await gone.send(get("id=1") * 3)
    await here.send(get("id=2"))
    await stage.sent(1)
    await stage.connections(2)
    gone.reset()
    await stage.connections(1)
    stage.hits.reply(*[None] * 4)
    assert await status(here) == 200
    await here.send(get("id=3"))
    stage.hits.reply(None)
    assert await status(here) == 200


async def test_ten_thousand_requests_in_one_write_are_all_answered(stage: Stage) -> None:
    """A flood on one connection waits in the kernel, not in memory, and nothing of it is lost."""
    wire = await stage.connect()
    count = 10_000
    sending = asyncio.create_task(wire.send(b"".join(get(f"id={n}") for n in range(count))))
    await stage.sent(1)
    connection = next(iter(stage.listener.public.connections))
    stage.hits.reply(*[None] * 10_000)
    for _ in range(count):
        assert await status(wire) == 200
    await sending
    assert b",".join(b",".join(ids) for _, ids, _ in stage.hits.sent) == b",".join(
        b"%d" % n for n in range(count)
    )
    await stage.until(connection, "<Connection open unanswered=0 unjudged=0>")


async def test_a_connection_that_is_owed_much_is_not_read_from(stage: Stage) -> None:
    """Past MAX_UNANSWERED requests the next ones stay with the client until the answers are out."""
    wire = await stage.connect()
    await wire.send(b"".join(get(f"id={n}") for n in range(MAX_UNANSWERED + 1)))
    await stage.sent(1)
    # The kernel may deliver them in pieces, and they are judged in slices: the first batch can leave before.
    await stage.until(connection_of(stage), f"<Connection paused unanswered={MAX_UNANSWERED + 1} unjudged=0>")
    await wire.send(get("id=x"))
    stage.hits.reply(*[None] * 10)
    assert [await status(wire) for _ in range(MAX_UNANSWERED + 2)] == [200] * (MAX_UNANSWERED + 1) + [400]


async def test_nor_is_one_that_says_them_one_by_one(stage: Stage) -> None:
    """Each in a read of its own, so that the fast path takes them all."""
    wire = await stage.connect()
    await wire.send(get("id=1"))
    await stage.sent(1)
    connection = connection_of(stage)
    for number in range(2, MAX_UNANSWERED + 2):
        connection.data_received(get(f"id={number}"))
    assert repr(connection) == f"<Connection paused unanswered={MAX_UNANSWERED + 1} unjudged=0>"
    stage.hits.reply(None, None)
    assert [await status(wire) for _ in range(MAX_UNANSWERED + 1)] == [200] * (MAX_UNANSWERED + 1)
    await stage.until(connection, "<Connection open unanswered=0 unjudged=0>")


async def test_no_room_is_told_at_once_and_in_turn() -> None:
    """Past the bound the answer is 503, behind the answers before it."""
    hits = Hits()
    async with open_listener(hits, max_waiting=2) as listener:
        stage = Stage(listener, hits)
        first, second, third = [await stage.connect() for _ in range(3)]
        await first.send(get("id=1"))
        await stage.sent(1)
        await second.send(get("id=2") + get("id=3"))
        await stage.until(listener.router, "collecting=2")
        listener.router.tick()
        await third.send(get("id=4"))
        assert await status(third) == 503
        await second.send(get("id=5"))
        await stage.until(listener.public.connections, "unanswered=3")
        hits.reply(*[None] * 4)
        assert [await status(second) for _ in range(3)] == [200, 200, 503]
        assert await status(first) == 200
        assert listener.tally == {503: 2}


async def test_a_slow_head_is_given_up(stage: Stage) -> None:
    """A request whose blank line does not come closes its connection after REQUEST_S, drip by drip."""
    wire = await stage.connect()
    await wire.send(get("id=1")[:1])
    connection = connection_of(await stage.connections(1))
    for second in range(REQUEST_S + 1):
        await stage.until(connection, f"unjudged={second + 1}>")
        stage.listener.public.second(second)
        await wire.send(get("id=1")[second + 1 : second + 2])
    assert await status(wire) == 408
    assert await wire.closed()


async def test_a_slow_body_is_given_up(stage: Stage) -> None:
    """It belongs to its request, and has no more time than that."""
    wire = await stage.connect()
    await wire.send(post(b"1\n2")[:-1])
    await stage.until(stage, "holds 3 ")
    for second in range(REQUEST_S + 1):
        stage.listener.public.second(second)
    assert await status(wire) == 408
    assert await wire.closed()
    assert stage.listener.public.unjudged_bytes == 0


async def test_a_stream_of_requests_is_no_slow_head(stage: Stage) -> None:
    """Reads that always end in the midst of a request are no sign of one that does not come."""
    wire = await stage.connect()
    begin, rest = get("id=x")[:10], get("id=x")[10:]
    await wire.send(begin)
    connection = connection_of(await stage.connections(1))
    for second in range(REQUEST_S + 2):
        await stage.until(connection, "open unanswered=0 unjudged=10")
        stage.listener.public.second(second)
        await wire.send(rest + begin)
        assert await status(wire) == 400


async def test_an_idle_connection_is_closed_and_a_used_one_is_not(stage: Stage) -> None:
    """After KEEPALIVE_S without a request."""
    idle, used = await stage.connect(), await stage.connect()
    for wire in (idle, used):
        await wire.send(get("id=x"))
        assert await status(wire) == 400
    for second in range(KEEPALIVE_S + 1):
        if second == KEEPALIVE_S // 2:
            await used.send(get("id=1"))
            stage.hits.reply(None)
            assert await status(used) == 200
        stage.listener.public.second(second)
    assert await idle.closed()
    await used.send(get("id=2"))
    stage.hits.reply(None)
    assert await status(used) == 200


async def test_a_client_that_does_not_read_is_not_read_from(stage: Stage) -> None:
    """Answers pile up to a bound; then no more requests are taken, and in the end the client is dropped."""
    wire = await stage.connect()
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stage.hits.reply(*[None] * 100_000)
    flood = get("id=1") * 1000
    sending = asyncio.create_task(wire.send(flood * 1000))
    await stage.connections(1)
    connection = connection_of(stage)
    await until(lambda: connection._choked and "paused unanswered=0" in repr(connection))
    assert not sending.done()
    for second in range(KEEPALIVE_S + 2):
        stage.listener.public.second(second)
    await stage.connections(0)
    await sending


async def test_a_close_answers_what_is_owed(stage: Stage) -> None:
    """Idle connections close at once, others behind their answers."""
    idle, busy = await stage.connect(), await stage.connect()
    await idle.send(get("id=x"))
    assert await status(idle) == 400
    await busy.send(get("id=1"))
    await stage.sent(1)
    closing = asyncio.create_task(stage.listener.public.close(LIMIT_S))
    assert await idle.closed()
    stage.hits.reply(None)
    assert await status(busy) == 200
    assert await busy.closed()
    await closing


KEEP_10 = b"GET /api/verve/accept?id=1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
HANDED_OFF = get("id=1").replace(b"accept", b"%61ccept")


@pytest.mark.parametrize(
    "last", [get("id=1"), get("id=x"), KEEP_10, HANDED_OFF], ids=["plain", "bad", "HTTP/1.0", "handed off"]
)
async def test_a_drain_leaves_each_connection_one_more_answer(stage: Stage, last: bytes) -> None:
    """The last one says that it is, also to who was idle and who comes only now."""
    stage.hits.reply(*[None] * 20)
    idle, late = await stage.connect(), await stage.connect()
    await idle.send(get("id=x"))
    assert await status(idle) == 400
    stage.listener.public.drain()
    for wire in (idle, late):
        await wire.send(last)
        answer = await wire.answer()
        assert answer is not None
        assert (answer.status in (200, 400), answer.headers["Connection"]) == (True, "close")
        assert await wire.closed()


async def test_a_drain_ends_a_pipeline_with_the_last_answer_of_what_was_taken(stage: Stage) -> None:
    """What comes behind it is not taken, and is no reason for a reset, which could overtake the answers."""
    wire = await stage.connect()
    await wire.send(get("id=1") * 3)
    await stage.sent(1)
    connection = connection_of(stage)
    await stage.until(connection, "unanswered=3")
    stage.listener.public.drain()
    stage.hits.reply(*[None] * 3)
    said = [await wire.answer() for _ in range(3)]
    assert [answer and answer.headers["Connection"] for answer in said] == [None, None, "close"]
    await wire.send(get("id=2") * 1000)
    async with asyncio.timeout(LIMIT_S):
        assert await asyncio.get_running_loop().sock_recv(wire.socket, 1) == b""
    assert b"2" not in [number for _, ids, _ in stage.hits.sent for number in ids]
    wire.socket.shutdown(socket.SHUT_WR)
    await stage.until(connection, "closed")
    assert stage.listener.public.connections == set()


async def test_a_drain_takes_what_is_here_behind_an_answer_without_the_store(stage: Stage) -> None:
    """That answer is not the last, though nothing is unanswered when it is given."""
    wire = await stage.connect()
    await wire.send(get("id=x"))
    assert await status(wire) == 400
    stage.listener.public.drain()
    connection_of(stage).data_received(get("id=x") + get("id=1") + get("id=2"))
    await stage.sent(1)
    stage.hits.reply(None)
    said = [await wire.answer() for _ in range(3)]
    assert [(answer.status, answer.headers["Connection"]) for answer in said if answer] == [
        (400, None),
        (200, None),
        (200, "close"),
    ]


async def test_a_drain_hands_off_what_is_waiting_for_it(stage: Stage) -> None:
    """The answer before it is not the last."""
    wire = await stage.connect()
    await wire.send(get("id=1") + HANDED_OFF)
    await stage.sent(1)
    stage.listener.public.drain()
    stage.hits.reply(None, None)
    said = [await wire.answer() for _ in range(2)]
    assert [answer and answer.headers["Connection"] for answer in said] == [None, "close"]
    assert await wire.closed()


async def test_the_date_moves_with_the_seconds(stage: Stage) -> None:
    """Date is made once a second, and is that second's."""
    wire = await stage.connect()
    for epoch_s, date in ((0, "Thu, 01 Jan 1970 00:00:00 GMT"), (86_399, "Thu, 01 Jan 1970 23:59:59 GMT")):
        stage.listener.public.second(epoch_s)
        await wire.send(get("id=1"))
        stage.hits.reply(None)
        answer = await wire.answer()
        assert answer is not None
        assert answer.headers["Date"] == date


async def test_a_connection_for_one_request_gets_no_transport(
    nobody_is_let_in_unheard: None, stage: Stage
) -> None:
    """Its socket waits for the answer as it is, whatever the answer will be."""
    wires = [await stage.connect() for _ in range(3)]
    for wire, query in zip(wires, ("id=1", "id=x", "id=2"), strict=True):
        await wire.send(get(query, CLOSE))
    assert await status(wires[1]) == 400
    await stage.sent(1)
    assert not stage.listener.public.connections
    stage.hits.reply(StoreRefusedError("no"), StoreRefusedError("no"))
    assert [await status(wires[0]), await status(wires[2])] == [503, 503]
    assert [await wire.closed() for wire in wires] == [True] * 3


async def test_a_connection_for_one_request_ends_without_a_reset(stage: Stage) -> None:
    """A reset could overtake the answer."""
    wire = await stage.connect()
    await wire.send(get("id=x", CLOSE))
    assert await status(wire) == 400
    async with asyncio.timeout(LIMIT_S):
        assert await asyncio.get_running_loop().sock_recv(wire.socket, 1) == b""


async def test_a_client_that_does_not_wait_for_its_one_answer_harms_nobody(stage: Stage) -> None:
    """The others of its batch are answered."""
    gone, stays = await stage.connect(), await stage.connect()
    await gone.send(get("id=1", CLOSE))
    await stage.sent(1)
    await stays.send(get("id=2", CLOSE))
    gone.reset()
    stage.hits.reply(None, None)
    assert await status(stays) == 200


async def test_a_client_that_says_nothing_at_first_is_let_in(stage: Stage) -> None:
    """The kernel keeps it for about a second; then it has a connection like any other."""
    wire = await stage.connect()
    await stage.connections(1)
    await wire.send(get("id=x", CLOSE))
    assert await status(wire) == 400


async def test_running_out_of_descriptors_is_told_and_survived(
    nobody_is_let_in_unheard: None,
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who comes meanwhile waits in the backlog, and is served when there is room again."""
    monkeypatch.setattr(listener_module, "_BREATHER_S", 0.1)
    wire = await stage.connect()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(wire.socket.fileno())
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
    try:
        await wire.send(get("id=x"))
        async with asyncio.timeout(LIMIT_S):
            while "connections are not accepted for 1 s" not in caplog.text:  # noqa: ASYNC110  a log sets no event
                await asyncio.sleep(0.001)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert await status(wire) == 400


async def test_descriptors_are_kept_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The last ones are not for clients: those are told, once a second in the log, and may come again."""
    hits = Hits()
    monkeypatch.setattr(listener_module, "_BREATHER_S", 600)  # it is told once in this time
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2 * RESERVED_FILES, 2 * RESERVED_FILES))
    async with open_listener(hits, max_waiting=1000) as listener:
        stage = Stage(listener, hits)
        kept = await stage.connect()
        await kept.send(get("id=x"))
        assert await status(kept) == 400
        held: list[int] = []
        try:
            while not held or held[-1] < RESERVED_FILES:
                held.append(os.dup(kept.socket.fileno()))
            for _ in range(3):
                late = await stage.connect()
                await late.send(get("id=1"))
                assert await status(late) == 503
                assert await late.closed()
        finally:
            for descriptor in held:
                os.close(descriptor)
        assert listener.tally[503] == 3
        assert caplog.text.count("files are open: new connections are answered 503") == 1
        for wire in (kept, await stage.connect()):
            await wire.send(get("id=x"))
            assert await status(wire) == 400


def handlers(stage: Stage) -> list[object]:
    """The fallback app's, each of one exchange."""
    server = stage.listener.public.fallback._runner.server
    assert server is not None
    return list(server.connections)


ODD = [
    b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
]


@pytest.mark.parametrize("odd", ODD, ids=["path", "body", "chunks"])
async def test_a_connection_is_fast_again_behind_an_odd_request(stage: Stage, odd: bytes) -> None:
    """Only the odd request goes to the fallback app."""
    wire = await stage.connect()
    await wire.send(odd)
    assert await status(wire) == 404
    for _ in range(3):
        await wire.send(get("id=1"))
        stage.hits.reply(None)
        assert await status(wire) == 200
    assert sum(stage.listener.public.fallback.reasons.values()) == 1
    assert handlers(stage) == []
    assert stage.listener.tally == {404: 1}


@pytest.mark.parametrize("odd", [post(b"1\n2"), HANDED_OFF], ids=["bulk", "encoded path"])
async def test_a_client_that_vanishes_from_an_exchange_harms_nobody(stage: Stage, odd: bytes) -> None:
    """The fallback app ends its answer for nobody, and leaves nothing behind."""
    wire, other = await stage.connect(), await stage.connect()
    await other.send(get("id=x"))
    assert await status(other) == 400
    await wire.send(odd)
    await stage.sent(1)
    wire.reset()
    stage.hits.reply(None, None)
    await stage.connections(1)
    await other.send(get("id=3"))
    assert await status(other) == 200
    await stage.lets_go()


BEHIND = [get("id=2"), get("id=2", CLOSE), post(b"2\n3"), HANDED_OFF]


@pytest.mark.parametrize("behind", BEHIND, ids=["plain", "close", "bulk", "handed off"])
async def test_what_waits_behind_a_request_that_has_expired_is_refused_at_once(behind: bytes) -> None:
    """It has been waiting as long; but only until its connection has caught up with its client."""
    hits = Hits()
    async with open_listener(hits, deadline_s=0.5) as listener:
        stage = Stage(listener, hits)
        wire = await stage.connect()
        # One more than may wait, so that what is behind is not taken.
        await wire.send(get("id=1") * (MAX_UNANSWERED + 1) + behind)
        for _ in range(MAX_UNANSWERED + 2):
            answer = await wire.answer()
            assert answer is not None
            assert (answer.status, answer.body) == (503, b"failed")
        assert b"2" not in [number for _, ids, _ in hits.sent for number in ids]  # it has waited for no other
        assert answer is not None
        if answer.headers["Connection"] == "close":
            assert await wire.closed()
            return
        hits.reply(*[None] * 1000)
        async with asyncio.timeout(LIMIT_S):
            while True:  # it may expire, too, if the machine stands still
                await stage.catch_up()
                await wire.send(get("id=4"))
                if await status(wire) == 200:
                    break


async def test_a_client_that_waits_for_its_answers_is_never_late() -> None:
    """Its next request was not waiting: as soon as the store is back it is stored."""
    hits = Hits()
    async with open_listener(hits) as listener:
        stage = Stage(listener, hits)
        wire = await stage.connect()
        hits.reply(StoreRefusedError("no"))  # as if it had expired
        await wire.send(get("id=1"))
        assert await status(wire) == 503
        hits.reply(*[None] * 100)  # it may be asked whether it is back
        await wire.send(get("id=2"))
        assert await status(wire) == 200
        assert not listener.public.late


async def test_a_connection_ends_at_its_age() -> None:
    """Behind its next answer, which says so; an idle one stays for one more request."""
    hits = Hits()
    async with open_listener(hits, max_age_s=100) as listener:
        stage = Stage(listener, hits)
        wire = await stage.connect()
        for second in range(88):
            if second in (0, 50):
                await wire.send(get("id=1"))
                hits.reply(None)
                assert await status(wire) == 200
            listener.public.second(second)
        for second in range(88, 101):
            listener.public.second(second)
        await wire.send(get("id=2"))
        hits.reply(None)
        answer = await wire.answer()
        assert answer is not None
        assert (answer.status, answer.headers["Connection"]) == (200, "close")
        assert await wire.closed()


async def test_connections_do_not_all_end_at_once() -> None:
    """Their ages differ by a tenth."""
    path = FastPath(
        None, Fallback([], collections.Counter()), epoch_s=0, deadline_s=2, keepalive_s=75, max_age_s=100
    )
    ages = [Connection(path)._leaves_at_s for _ in range(1000)]
    assert 90 <= min(ages) < 92
    assert 98 < max(ages) <= 100


async def test_the_idle_limit_is_the_same_behind_a_hand_off(stage: Stage) -> None:
    """A balancer that checks the health on its connections keeps them."""
    wire = await stage.connect()
    await wire.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await status(wire) == 200
    connection = connection_of(stage)
    await stage.until(connection, "open")
    for second in range(KEEPALIVE_S):
        stage.listener.public.second(second)
    await wire.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await status(wire) == 200
    await stage.until(connection, "open")
    for second in range(KEEPALIVE_S + 1):
        stage.listener.public.second(second)
    assert await wire.closed()


async def test_what_all_clients_make_it_hold_is_bounded(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the bound for bodies the next one is refused; those who were there, and all others, are served."""
    monkeypatch.setattr(connection_module, "MAX_UNJUDGED_BYTES", 4 * MAX_BULK_BYTES)
    body = b"[1" + b" " * (MAX_BULK_BYTES - 3) + b"]"
    first, second, third, other = [await stage.connect() for _ in range(4)]
    for number, wire in enumerate((first, second)):
        await wire.send(post(body)[:-1])
        await stage.until(stage, f"holds {(number + 1) * MAX_BULK_BYTES} ")
    await third.send(post(b"1\n2"))
    assert await status(third) == 503
    assert await third.closed()
    await other.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await status(other) == 200
    for number, wire in enumerate((first, second)):
        await wire.send(b"]")
        await stage.sent(number + 1)
        assert stage.listener.public.unjudged_bytes == (2 - number) * MAX_BULK_BYTES
        stage.hits.reply(None)
        assert await status(wire) == 200
        await stage.until(stage, f"holds {(1 - number) * MAX_BULK_BYTES} ")


async def test_a_client_that_does_not_close_is_left(stage: Stage) -> None:
    """Behind its last answer it has LINGER_S; what it sends meanwhile is not looked at."""
    wire = await stage.connect()
    await wire.send(get("id=1", "") + get("id=2"))
    assert await status(wire) == 400
    assert await wire.closed()
    for second in range(LINGER_S):
        stage.listener.public.second(second)
        await wire.send(get("id=3"))
    await stage.connections(1)
    stage.listener.public.second(LINGER_S)
    await stage.connections(0)
    assert stage.hits.sent == []


async def test_one_that_sends_much_takes_turns(stage: Stage) -> None:
    """A client with one request is answered long before another's ten thousand are."""
    single = await stage.connect()
    await single.send(get("id=x"))
    assert await status(single) == 400
    connection = connection_of(stage)
    flood = await stage.connect()
    sending = asyncio.create_task(flood.send(get("id=x") * 10_000))
    async with asyncio.timeout(LIMIT_S):
        while stage.listener.tally[400] < 2:  # noqa: ASYNC110  its first turn, or the one after, not later
            await asyncio.sleep(0)
    connection.data_received(get("id=y", "Host: y\r\n"))
    assert stage.listener.tally[400] < 4_000  # a read has up to 256 KiB, 4,700 of them
    assert await status(single) == 400
    for _ in range(10_000):
        assert await status(flood) == 400
    await sending


@pytest.mark.parametrize("odd", [b"http://a[@1]@", b"http://xn--", b"http://xn--\xff/", b"http://a:b/"])
async def test_a_target_that_a_library_cannot_read_stops_nobody(stage: Stage, odd: bytes) -> None:
    """The authority of a target is judged like a Host, and goes no further."""
    wires = [await stage.connect() for _ in range(5)]
    for number, wire in enumerate(wires):
        target = odd if number == 2 else b"/livez"
        await wire.send(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    statuses = [await status(wire) for wire in wires]
    assert statuses[2] in (200, 400)
    assert statuses[:2] + statuses[3:] == [200] * 4


async def test_an_app_that_fails_stops_nobody(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever its parser makes of a request, the next one is served."""
    wire, other = await stage.connect(), await stage.connect()
    with monkeypatch.context() as patch:
        patch.setattr(Fallback, "begin", Mock(side_effect=IndexError))
        await wire.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await status(wire) == 500
        assert await wire.closed()
    await other.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await status(other) == 200
    assert "could not be handed off" in caplog.text


async def test_a_turn_that_fails_is_its_own_trouble(caplog: pytest.LogCaptureFixture) -> None:
    """Those who wait behind it have their turns."""
    turns, broken, fine = Turns(), Mock(), Mock()
    broken.work.side_effect = IndexError
    fine.work.return_value = False
    for work in (broken, fine):
        turns.join(work)
    await settle()
    broken.abort.assert_called_once_with()
    fine.work.assert_called_once_with()


async def test_an_answer_that_never_comes_ends_its_connection(stage: Stage) -> None:
    """The fallback app has EXCHANGE_S; then the client hears nothing more, and all is let go."""
    wire = await stage.connect()
    await wire.send(HANDED_OFF)
    await stage.sent(1)
    for second in range(EXCHANGE_S + 1):
        stage.listener.public.second(second)
    assert await wire.closed()
    await stage.connections(0)
    stage.hits.reply(None)
    await stage.until(stage.listener.router, "queued=0 collecting=0")
    await stage.lets_go()


async def test_what_is_late_is_let_go_with_its_connection() -> None:
    """Answers of a client that has vanished make nobody late."""
    hits = Hits()
    async with open_listener(hits) as listener:
        stage = Stage(listener, hits)
        wire = await stage.connect()
        await wire.send(get("id=1") * 1200)
        await stage.sent(1)
        wire.reset()
        hits.reply(*[StoreRefusedError("no")] * 10)
        await stage.connections(0)
        await stage.until(listener.router, "queued=0 collecting=0")
        assert not listener.public.late


async def test_a_slow_store_makes_nobody_wait_twice() -> None:
    """What has been read for half of the deadline is refused, though the store is well."""
    hits = Hits()
    async with open_listener(hits) as listener:
        stage = Stage(listener, hits)
        wire = await stage.connect()
        await wire.send(get("id=1") * 3 * MAX_UNANSWERED)
        await stage.sent(1)
        await until(lambda: listener.router.waiting >= MAX_UNANSWERED)  # it is read in turns
        for _ in range(listener.public.patience_ticks + 2):
            listener.public.tick()
        hits.reply(*[None] * 100)
        statuses = [await status(wire) for _ in range(3 * MAX_UNANSWERED)]
        taken = statuses.count(200)
        assert MAX_UNANSWERED <= taken < 2 * MAX_UNANSWERED
        assert statuses == [200] * taken + [503] * (3 * MAX_UNANSWERED - taken)


async def test_a_deep_pipeline_catches_up() -> None:
    """A client that sends as many as were answered is no longer late once the store is back."""
    hits = Hits()
    async with open_listener(hits) as listener:
        stage = Stage(listener, hits)
        wire = await stage.connect()
        hits.reply(StoreRefusedError("no"))
        await wire.send(get("id=1") * 600)
        hits.reply(*[StoreRefusedError("no")] * 3)
        for _ in range(600):
            assert await status(wire) == 503
        hits.reply(*[None] * 1000)
        for _ in range(20):
            await wire.send(get("id=1") * 200)
            last = [await status(wire) for _ in range(200)]
            listener.public.tick()
        assert last == [200] * 200


async def test_a_stop_answers_what_waits_behind_an_answer(stage: Stage) -> None:
    """A request that the fallback app is to have was taken, too."""
    wire = await stage.connect()
    await wire.send(get("id=1") + b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    await stage.sent(1)
    closing = asyncio.create_task(stage.listener.public.close(LIMIT_S))
    await settle()
    stage.hits.reply(None)
    assert [await status(wire) for _ in range(2)] == [200, 200]
    assert await wire.closed()
    await closing


async def test_a_stop_answers_what_has_arrived(stage: Stage) -> None:
    """Although it is not read yet: its client cannot know of the stop."""
    stage.hits.reply(None)
    wire = await stage.connect()
    await wire.send(get("id=x"))
    assert await status(wire) == 400
    wire.socket.send(get("id=1"))
    arrives(connection_of(stage))
    await stage.listener.public.close(LIMIT_S)
    answer = await wire.answer()
    assert answer is not None
    assert (answer.status, answer.headers["Connection"]) == (200, "close")


async def test_a_stop_does_not_wait_for_what_has_not_come(stage: Stage) -> None:
    """Half a head and half a body are no requests yet."""
    half, body = await stage.connect(), await stage.connect()
    await half.send(get("id=1")[:20])
    await body.send(post(b"1\n2")[:-1])
    await stage.connections(2)
    await stage.until(stage, "holds 23 ")
    async with asyncio.timeout(LIMIT_S):
        await stage.listener.public.close(10 * LIMIT_S)
    assert [await wire.closed() for wire in (half, body)] == [True, True]


async def test_a_body_that_ends_with_its_connection_is_no_request(stage: Stage) -> None:
    """The client has said all, and that is not a whole body."""
    wire = await stage.connect()
    await wire.send(post(b"1\n2")[:-1])
    wire.socket.shutdown(socket.SHUT_WR)
    assert await wire.closed()
    await stage.connections(0)
    assert stage.listener.public.unjudged_bytes == 0


@pytest.mark.parametrize(
    ("request_", "second"),
    [(get("id=1"), len(get("id=1")) - 1), (post(b"1\n2"), 0)],
    ids=["head", "body"],
)
async def test_a_slow_client_is_not_late(stage: Stage, request_: bytes, second: int) -> None:
    """What has not come yet has not waited."""
    wire = await stage.connect()
    await wire.send(request_[:20])
    connection = connection_of(await stage.connections(1))
    for more, unjudged in ((request_[20:-1], 20), (request_[-1:], second)):
        await stage.until(connection, f"open unanswered=0 unjudged={unjudged}>")
        for _ in range(stage.listener.public.patience_ticks + 2):
            stage.listener.public.tick()
        await wire.send(more)
    await stage.sent(1)
    stage.hits.reply(None)
    assert await status(wire) == 200


async def test_what_was_not_read_for_long_has_waited() -> None:
    """The kernel held it while a bulk request waited for the store."""
    hits = Hits()
    async with open_listener(hits) as listener:
        stage = Stage(listener, hits)
        wire = await stage.connect()
        await wire.send(post(b"1\n2"))
        await stage.sent(1)
        await wire.send(get("id=3"))
        arrives(connection_of(stage))
        for _ in range(listener.public.patience_ticks + 2):
            listener.public.tick()
        hits.reply(None)
        assert [await status(wire) for _ in range(2)] == [200, 503]
        assert len(hits.sent) == 1


async def test_empty_lines_without_end_are_no_request(stage: Stage) -> None:
    """A few are forgiven; more are refused, and nothing is kept of them."""
    few, many = await stage.connect(), await stage.connect()
    await few.send(b"\r\n" * 8 + get("id=x"))
    assert await status(few) == 400
    await few.send(get("id=x"))
    assert await status(few) == 400
    await many.send(b"\r\n" * 100_000)
    assert await status(many) == 400
    assert await many.closed()
    assert stage.listener.public.unjudged_bytes == 0


async def test_a_body_of_tiny_chunks_takes_turns(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was read of it at once, a turn looks at a slice of it."""
    fed: list[int] = []
    feed = BodyReader.feed

    def note(reader: BodyReader, data: bytes) -> bytes | None:
        fed.append(len(data))
        return feed(reader, data)

    monkeypatch.setattr(BodyReader, "feed", note)
    wire = await stage.connect()
    head = b"POST /api/verve/accept HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    await wire.send(head + b"1\r\n \r\n" * 10_000 + b"1\r\n5\r\n0\r\n\r\n")
    assert await status(wire) == 400  # spaces before an id
    assert sum(fed) > 60_000
    assert max(fed) <= BODY_SLICE_BYTES
