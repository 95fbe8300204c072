"""What the hot door does over time: order, pressure, deadlines, clients that are slow or gone."""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import socket
from collections.abc import AsyncIterator
from unittest.mock import Mock

import pytest

from doors import Doors, Wire, open_doors
from fakes import Hits
from idagg.accept import entrance
from idagg.accept.commit import GroupCommit
from idagg.accept.entrance import RESERVED_FILES
from idagg.accept.front import HEADER_S, IDLE_S, MAX_OWED, MAX_VERDICTS, Connection, FrontDoor
from idagg.accept.head import USUAL_TAIL, Style, judge
from idagg.accept.known import Known
from idagg.errors import StoreRefusedError
from idagg.store.hits import Stored

CLOSE = "Host: x\r\nConnection: close\r\n"


def get(query: str, fields: str = "Host: x\r\n") -> bytes:
    return f"GET /api/verve/accept?{query} HTTP/1.1\r\n{fields}\r\n".encode()


class Stage:
    """The doors before a store that waits for word."""

    def __init__(self, doors: Doors, hits: Hits) -> None:
        self.doors = doors
        self.hits = hits

    async def connect(self) -> Wire:
        return await self.doors.connect("front")

    async def sent(self, batches: int) -> None:
        async with asyncio.timeout(5):
            while len(self.hits.sent) < batches:  # noqa: ASYNC110  what it waits for sets no event
                await asyncio.sleep(0.001)

    async def until(self, thing: object, state: str) -> None:
        """Wait for what ``thing`` shows of itself."""
        async with asyncio.timeout(20):
            while state not in repr(thing):  # noqa: ASYNC110  likewise
                await asyncio.sleep(0.001)

    async def connections(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.doors.front.connections) != count:  # noqa: ASYNC110  likewise
                await asyncio.sleep(0.001)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    hits = Hits()
    async with open_doors(hits, max_waiting=20_000) as doors:
        yield Stage(doors, hits)
        hits.reply(*[None] * 1000)


def connection_of(stage: Stage) -> Connection:
    """The door's side of the only connection."""
    (connection,) = stage.doors.front.connections
    return connection


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


async def test_a_repeat_in_the_open_window_needs_no_store(stage: Stage) -> None:
    """It is answered at once, though behind those before it."""
    wire = await stage.connect()
    stage.hits.reply(Stored(60, 0, 30))
    for _ in range(3):
        await wire.send(get("id=7"))
        assert await status(wire) == 200
    await wire.send(get("id=8"))
    await stage.sent(2)
    await wire.send(get("id=7"))
    await stage.until(connection_of(stage), "owed=2")
    stage.hits.reply(StoreRefusedError("full"))
    assert [await status(wire) for _ in range(2)] == [503, 200]
    assert [ids for _, ids, _ in stage.hits.sent] == [[b"7"], [b"8"]]
    assert stage.hits.repeats == [0, 2]


@pytest.mark.parametrize("fields", ["Host: y\r\n", "Host: x\r\n"], ids=["as before", "as once"])
async def test_a_target_that_is_too_long_is_so_on_any_connection(stage: Stage, fields: str) -> None:
    """Also behind requests whose tail is known."""
    wire = await stage.connect()
    stage.hits.reply(None, None)
    for before in ("Host: x\r\n", "Host: y\r\n"):
        await wire.send(get("id=1", before))
        assert await status(wire) == 200
    await wire.send(get("id=3&x=" + "y" * 9000, fields))
    assert await status(wire) == 414


@pytest.mark.parametrize(
    ("door", "fields"), [("front", CLOSE), ("front", "Host: y\r\n"), ("app", "Host: x\r\n")]
)
async def test_a_repeat_needs_no_store_wherever_it_comes_in(stage: Stage, door: str, fields: str) -> None:
    """On a connection for itself, in a pipeline, at the second door."""
    first = await stage.connect()
    stage.hits.reply(Stored(60, 0, 30))
    await first.send(get("id=7"))
    assert await status(first) == 200
    wire = await stage.doors.connect(door)
    times = 1 if fields == CLOSE else 3
    await wire.send(get("id=7", fields) * times)
    assert [await status(wire) for _ in range(times)] == [200] * times
    assert [ids for _, ids, _ in stage.hits.sent if ids] == [[b"7"]]
    assert stage.doors.commit.known.hits + sum(stage.hits.repeats) == times


@pytest.mark.parametrize(("query", "left_s"), [("id=7&endpoint=http%3A%2F%2Fa%2F", 30), ("id=7", 0)])
async def test_a_repeat_that_needs_the_store(stage: Stage, query: str, left_s: int) -> None:
    """Its endpoint may be new; at the end of the window it may belong to the next."""
    wire = await stage.connect()
    stage.hits.reply(Stored(60, 0, left_s), StoreRefusedError("full"))
    await wire.send(get("id=7"))
    assert await status(wire) == 200
    await wire.send(get(query))
    assert await status(wire) == 503
    assert [ids for _, ids, _ in stage.hits.sent] == [[b"7"], [b"7"]]


async def test_a_client_that_does_not_read_is_handed_over_as_such(stage: Stage) -> None:
    """aiohttp hears that the transport is full, or its answers would pile up there without end."""
    successor = Mock(asyncio.Protocol)
    door = FrontDoor(stage.doors.front.commit, lambda: successor, epoch_s=0)
    for full in (False, True):
        connection = door()
        transport = Mock(asyncio.Transport)
        transport.is_closing.return_value = False
        connection.connection_made(transport)
        if full:
            connection.pause_writing()
        connection.data_received(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        successor.data_received.assert_called()
        assert successor.pause_writing.called == full


async def test_a_hand_over_waits_for_what_is_owed(stage: Stage) -> None:
    """aiohttp answers behind the hot door, on the same connection, and keeps it."""
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
    assert [ids for _, ids, _ in stage.hits.sent] == [[b"1", b"2"]]


@pytest.mark.parametrize("door", ["front", "app"])
async def test_a_client_that_has_said_all_still_gets_its_answer(stage: Stage, door: str) -> None:
    """A half-closed connection stays until it has what it is owed; one that is owed nothing does not."""
    wire, idle = [await stage.doors.connect(door) for _ in range(2)]
    await idle.send(get("id=x"))
    assert await status(idle) == 400
    await wire.send(get("id=1"))
    for one in (wire, idle):
        one.socket.shutdown(socket.SHUT_WR)
    assert await idle.closed()
    await stage.sent(1)
    stage.hits.reply(None)
    assert await status(wire) == 200
    assert await wire.closed()


async def test_no_request_at_the_second_door_waits_longer_than_its_deadline() -> None:
    """aiohttp takes them one by one: where one waited in vain, those behind it do not wait, too."""
    async with open_doors(Hits(), deadline_s=0.3) as doors:
        wire = await doors.connect("app")
        await wire.send(get("id=1") * 5)
        answer = await wire.answer()
        assert answer is not None
        assert (answer.status, answer.headers["Connection"]) == (503, "close")
        assert await wire.closed()


async def test_a_client_that_does_not_read_is_dropped_by_the_second_door_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """aiohttp waits for it without end; the kernel does not."""
    monkeypatch.setattr(entrance, "IDLE_S", 1)
    async with open_doors(Hits()) as doors:
        wire = await doors.connect("front")
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sending = asyncio.create_task(wire.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 1_000_000))
        async with asyncio.timeout(30):
            while not doors.app.connections:  # noqa: ASYNC110  what it waits for sets no event
                await asyncio.sleep(0.01)
            while doors.app.connections:  # noqa: ASYNC110  likewise
                await asyncio.sleep(0.01)
        await sending


async def test_a_client_that_vanishes_while_its_batch_travels_harms_nobody(stage: Stage) -> None:
    """Its id is counted or not; the others of the batch, and those after, are answered."""
    gone, here = await stage.connect(), await stage.connect()
    await gone.send(get("id=1") * 3)
    await here.send(get("id=2"))
    await stage.sent(1)
    gone.reset()
    await stage.connections(1)
    stage.hits.reply(None, None)
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
    connection = next(iter(stage.doors.front.connections))
    stage.hits.reply(*[None] * 10_000)
    for _ in range(count):
        assert await status(wire) == 200
    await sending
    assert b",".join(b",".join(ids) for _, ids, _ in stage.hits.sent) == b",".join(
        b"%d" % n for n in range(count)
    )
    assert repr(connection) == "<Connection open owed=0 partial=0>"


async def test_a_connection_that_is_owed_much_is_not_read_from(stage: Stage) -> None:
    """Past MAX_OWED requests the next ones stay with the client until the answers are out."""
    wire = await stage.connect()
    await wire.send(b"".join(get(f"id={n}") for n in range(MAX_OWED + 1)))
    await stage.sent(1)
    connection = connection_of(stage)
    assert repr(connection) == f"<Connection paused owed={MAX_OWED + 1} partial=0>"
    await wire.send(get("id=x"))
    stage.hits.reply(*[None] * 10)
    assert [await status(wire) for _ in range(MAX_OWED + 2)] == [200] * (MAX_OWED + 1) + [400]


@pytest.mark.parametrize("room", [True, False])
def test_nor_is_one_that_says_them_one_by_one(room: bool) -> None:
    """Whether its requests are taken, or wait for their turn to be told that there is no room."""
    commit = Mock(GroupCommit, known=Known())
    commit.add.side_effect = itertools.chain([True], itertools.repeat(room))
    door = FrontDoor(commit, Mock(), epoch_s=0)
    connection, transport = door(), Mock(asyncio.Transport)
    connection.connection_made(transport)
    for number in range(MAX_OWED + 1):
        transport.pause_reading.assert_not_called()
        connection.data_received(get(f"id={number}"))
    transport.pause_reading.assert_called_once_with()


async def test_no_room_is_told_at_once_and_in_turn() -> None:
    """Past the bound the answer is 503, behind the answers before it."""
    hits = Hits()
    async with open_doors(hits, max_waiting=2) as doors:
        stage = Stage(doors, hits)
        first, second, third = [await stage.connect() for _ in range(3)]
        await first.send(get("id=1"))
        await stage.sent(1)
        await second.send(get("id=2") + get("id=3"))
        await stage.until(doors.commit, "collecting=2")
        doors.commit.tick()
        await third.send(get("id=4"))
        assert await status(third) == 503
        await second.send(get("id=5"))
        hits.reply(*[None] * 4)
        assert [await status(second) for _ in range(3)] == [200, 200, 503]
        assert await status(first) == 200
        assert dict(doors.front.take_refused()) == {400: 0, 503: 2}
        assert dict(doors.front.take_refused()) == {400: 0, 503: 0}


async def test_a_slow_head_is_given_up(stage: Stage) -> None:
    """A request whose blank line does not come closes its connection after HEADER_S, drip by drip."""
    wire = await stage.connect()
    await stage.connections(1)
    connection = connection_of(stage)
    for second in range(HEADER_S + 1):
        await wire.send(get("id=1")[second : second + 1])
        await stage.until(connection, f"partial={second + 1}")
        stage.doors.front.second(second)
    assert await wire.closed()


async def test_a_stream_of_requests_is_no_slow_head(stage: Stage) -> None:
    """Reads that always end in the midst of a request are no sign of one that does not come."""
    wire = await stage.connect()
    await stage.connections(1)
    connection = connection_of(stage)
    begin, rest = get("id=x")[:10], get("id=x")[10:]
    await wire.send(begin)
    for second in range(HEADER_S + 2):
        await stage.until(connection, "open owed=0 partial=10")
        stage.doors.front.second(second)
        await wire.send(rest + begin)
        assert await status(wire) == 400


async def test_an_idle_connection_is_closed_and_a_used_one_is_not(stage: Stage) -> None:
    """After IDLE_S without a request."""
    idle, used = await stage.connect(), await stage.connect()
    await stage.connections(2)
    for second in range(IDLE_S + 1):
        if second == IDLE_S // 2:
            await used.send(get("id=1"))
            stage.hits.reply(None)
            assert await status(used) == 200
        stage.doors.front.second(second)
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
    await stage.until(connection, "paused owed=0")
    assert not sending.done()
    for second in range(IDLE_S + 2):
        stage.doors.front.second(second)
    await stage.connections(0)
    await sending


async def test_a_close_answers_what_is_owed(stage: Stage) -> None:
    """Idle connections close at once, others behind their answers."""
    idle, busy = await stage.connect(), await stage.connect()
    await idle.send(get("id=x"))
    assert await status(idle) == 400
    await busy.send(get("id=1"))
    await stage.sent(1)
    stage.doors.front.close()
    assert await idle.closed()
    stage.hits.reply(None)
    assert await status(busy) == 200
    assert await busy.closed()


KEEP_10 = b"GET /api/verve/accept?id=1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
HANDED_OVER = get("id=1", "Host: x\r\nUpgrade: h2c\r\n")


@pytest.mark.parametrize(
    "last", [get("id=1"), get("id=x"), KEEP_10, HANDED_OVER], ids=["plain", "bad", "HTTP/1.0", "handed over"]
)
async def test_a_drain_leaves_each_connection_one_more_answer(stage: Stage, last: bytes) -> None:
    """The last one says that it is, also to who was idle and who comes only now."""
    stage.hits.reply(*[None] * 20)
    idle, late = await stage.connect(), await stage.connect()
    await idle.send(get("id=x"))
    assert await status(idle) == 400
    stage.doors.front.drain()
    stage.doors.app.drain()
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
    stage.doors.front.drain()
    stage.hits.reply(None)
    said = [await wire.answer() for _ in range(3)]
    assert [answer and answer.headers["Connection"] for answer in said] == [None, None, "close"]
    connection = connection_of(stage)
    await wire.send(get("id=2") * 1000)
    assert await asyncio.get_running_loop().sock_recv(wire.socket, 1) == b""
    assert len(stage.hits.sent) == 1
    wire.socket.shutdown(socket.SHUT_WR)
    await stage.until(connection, "closed")
    assert stage.doors.front.connections == set()


async def test_a_drain_takes_what_is_here_behind_an_answer_without_the_store(stage: Stage) -> None:
    """That answer is not the last, though nothing is owed when it is given."""
    stage.doors.front.drain()
    wire = await stage.connect()
    await wire.send(get("id=x") + get("id=1") + get("id=2"))
    await stage.sent(1)
    stage.hits.reply(None)
    said = [await wire.answer() for _ in range(3)]
    assert [(answer.status, answer.headers["Connection"]) for answer in said if answer] == [
        (400, None),
        (200, None),
        (200, "close"),
    ]


async def test_a_drain_hands_over_what_is_waiting_for_it(stage: Stage) -> None:
    """The answer before it is not the last."""
    wire = await stage.connect()
    await wire.send(get("id=1") + HANDED_OVER)
    await stage.sent(1)
    stage.doors.front.drain()
    stage.doors.app.drain()
    stage.hits.reply(None, None)
    said = [await wire.answer() for _ in range(2)]
    assert [answer and answer.headers["Connection"] for answer in said] == [None, "close"]
    assert await wire.closed()


async def test_the_date_moves_with_the_seconds(stage: Stage) -> None:
    """Date is made once a second, and is that second's."""
    wire = await stage.connect()
    for epoch_s, date in ((0, "Thu, 01 Jan 1970 00:00:00 GMT"), (86_399, "Thu, 01 Jan 1970 23:59:59 GMT")):
        stage.doors.front.second(epoch_s)
        await wire.send(get("id=1"))
        stage.hits.reply(None)
        answer = await wire.answer()
        assert answer is not None
        assert answer.headers["Date"] == date


async def test_a_connection_for_one_request_gets_no_transport(stage: Stage) -> None:
    """Its socket waits for the answer as it is, whatever the answer will be."""
    wires = [await stage.connect() for _ in range(3)]
    for wire, query in zip(wires, ("id=1", "id=x", "id=2"), strict=True):
        await wire.send(get(query, CLOSE))
    assert await status(wires[1]) == 400
    await stage.sent(1)
    assert not stage.doors.front.connections
    stage.hits.reply(StoreRefusedError("no"), StoreRefusedError("no"))
    assert [await status(wires[0]), await status(wires[2])] == [503, 503]
    assert [await wire.closed() for wire in wires] == [True] * 3


async def test_a_connection_for_one_request_ends_without_a_reset(stage: Stage) -> None:
    """A reset could overtake the answer."""
    wire = await stage.connect()
    await wire.send(get("id=x", CLOSE))
    assert await status(wire) == 400
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
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """Who comes meanwhile waits in the backlog, and is served when there is room again."""
    wire = await stage.connect()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(wire.socket.fileno())
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
    try:
        await wire.send(get("id=x"))
        async with asyncio.timeout(5):
            while "no connection can be taken" not in caplog.text:  # noqa: ASYNC110  a log sets no event
                await asyncio.sleep(0.001)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert await status(wire) == 400


async def test_descriptors_are_kept_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The last ones are not for clients: those are told, once a second in the log, and may come again."""
    hits = Hits()
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2 * RESERVED_FILES, 2 * RESERVED_FILES))
    async with open_doors(hits, max_waiting=1000) as doors:
        stage = Stage(doors, hits)
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
        assert dict(doors.front.take_refused())[503] == 3
        assert caplog.text.count("files are open: new connections are turned away") == 1
        for wire in (kept, await stage.connect()):
            await wire.send(get("id=x"))
            assert await status(wire) == 400


async def test_what_is_known_of_header_fields_is_bounded(stage: Stage) -> None:
    """Clients that vary their header fields do not fill the memory."""
    wire = await stage.connect()
    stage.hits.reply(*[None] * (MAX_VERDICTS + 10))
    for n in range(MAX_VERDICTS + 10):
        await wire.send(get("id=1", f"Host: x\r\nX-Request-Id: {n}\r\n"))
        assert await status(wire) == 200
    assert len(stage.doors.front.verdicts) <= MAX_VERDICTS


def test_a_connection_expects_a_plain_tail_at_first() -> None:
    """What its first request is compared with would be judged plain itself."""
    assert judge(b"GET /api/verve/accept?id=1" + USUAL_TAIL, USUAL_TAIL) is Style.KEEP


def test_only_plain_heads_are_judged() -> None:
    """A body, an upgrade, an expectation: aiohttp has to look."""
    head = get("id=1")
    assert judge(head, head[head.index(b" HTTP") :]) is not None
    for field in ("Content-Length: 3", "Upgrade: h2c", "Expect: 100-continue", "Host: y"):
        head = get("id=1", f"Host: x\r\n{field}\r\n")
        assert judge(head, head[head.index(b" HTTP") :]) is None
