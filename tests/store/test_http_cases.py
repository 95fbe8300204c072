"""The corpus of hostile and odd inputs, on both paths, however the bytes arrive."""

from __future__ import annotations

import asyncio
import email.utils
import random
from collections.abc import Iterator

import pytest

from idagg.store.client import Client
from kit import servers
from kit.faults import store_client
from kit.http_cases import Case, decode, read_all
from kit.listeners import OpenListener, PathName, counted, open_listener_before, stored
from kit.waiting import LIMIT_S
from kit.wire import Answer, Wire

BEFORE, BEHIND, ELSEWHERE = b"771", b"772", b"773"  # no case has these
HANDED_OFF = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"
# Of a long input only so many pieces are sent one by one.
MAX_PIECES = 2000

# How the bytes arrive is nothing to the shards behind.
PIECEMEAL = ["byte by byte", "split at random"]
MANNERS = ["whole", "after another", "after a hand-off", "with one behind"]
paths = pytest.mark.parametrize("path", ["fast", "fallback"])


def get(number: bytes, fields: bytes = b"Host: x\r\n") -> bytes:
    return b"GET /api/verve/accept?id=" + number + b" HTTP/1.1\r\n" + fields + b"\r\n"


def post(body: bytes, fields: bytes = b"") -> bytes:
    head = b"POST /api/verve/accept HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
    return head + b"Content-Length: %d\r\n" % len(body) + fields + b"\r\n" + body


@pytest.fixture(scope="module")
def store_url() -> Iterator[str]:
    with servers.RedisServer() as server:
        yield server.url


async def final(wire: Wire, *, bodiless: bool = False) -> Answer:
    """The next answer that is one: those like 100 (Continue) only precede it (RFC 9110, 15.2)."""
    while True:
        answer = await wire.answer(bodiless=bodiless)
        assert answer is not None, "closed without an answer"
        if answer.status >= 200:
            return answer


async def status(wire: Wire) -> int:
    return (await final(wire)).status


async def deliver(wire: Wire, data: bytes, manner: str, seed: str) -> None:
    if manner == "byte by byte":
        await wire.send(data, step=len(data) // MAX_PIECES + 1)
    elif manner == "split at random":
        chance = random.Random(seed)
        cuts = sorted(chance.choices(range(len(data)), k=chance.randint(1, 8)))
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            await wire.send(data[start:end], step=len(data))
    else:
        await wire.send(data)


def check(answer: Answer, case: Case) -> None:
    """What is the same in every answer."""
    assert answer.version == "HTTP/1.1"
    if not case.bodiless:
        assert answer.body == (b"ok" if answer.status == 200 else b"failed")
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert email.utils.parsedate_tz(answer.headers["Date"]) is not None
    assert answer.headers["Server"] in (None, "idagg")
    if answer.status == 405:
        assert answer.headers["Allow"]
    if case.allow is not None:
        assert answer.headers["Allow"] == case.allow


def test_the_notation_of_the_bytes() -> None:
    """Escapes, and what repeats."""
    assert decode(r"a\r\n\t\\\x00\xff{2*b{3*c}\r}{0*d}") == b"a\r\n\t\\\0\xff" + 2 * b"bccc\r"


@pytest.mark.parametrize(("path", "shards"), [("fast", 1), ("fallback", 1), ("fast", 4)])
@pytest.mark.parametrize("case", list(read_all()), ids=lambda case: case.name)
async def test_each_input_gets_its_answers(store_url: str, case: Case, path: PathName, shards: int) -> None:
    """Statuses, bodies, what is counted, and whether the connection goes on, however the bytes arrive, and
    over how many shards ids are spread. Bytes behind a request that closes its connection are no requests any
    more (RFC 9112, 9.6)."""
    async with (
        store_client(store_url) as store,
        open_listener_before(store_url, path, shards=shards) as listener,
    ):
        elsewhere = await listener.connect()
        for manner in MANNERS if shards > 1 else MANNERS + PIECEMEAL:
            await say(listener, elsewhere, store, case, manner)


async def say(listener: OpenListener, elsewhere: Wire, store: Client, case: Case, manner: str) -> None:
    expected = set(case.counts)
    await store.command("FLUSHALL")
    wire = await listener.connect()
    if manner == "after another":
        await wire.send(get(BEFORE))
        assert await status(wire) == 200
        expected.add(BEFORE)
    elif manner == "after a hand-off":
        await wire.send(HANDED_OFF)
        assert await status(wire) == 404
    more = get(BEHIND) if manner == "with one behind" else b""
    await deliver(wire, case.request + more, manner, case.name)

    answers = []
    for number, statuses in enumerate(case.statuses):
        answer = await final(wire, bodiless=case.bodiless)
        assert answer.status in statuses, (manner, number)
        check(answer, case)
        answers.append(answer)
    closes = [answer.headers.get("Connection", "").lower() == "close" for answer in answers]
    assert not any(closes[:-1]), manner
    if case.then != "either":
        assert closes[-1] == (case.then == "close"), manner
    if closes[-1]:
        assert await wire.closed(), manner
    else:
        if not more:
            await wire.send(get(BEHIND))
        assert await status(wire) == 200, manner
        expected.add(BEHIND)
    wire.close()

    # What was taken by now is stored before this, if it is at all.
    await elsewhere.send(get(ELSEWHERE))
    assert await status(elsewhere) == 200, manner
    assert await stored(store) == expected | {ELSEWHERE}, manner


POISONS = [
    decode(r"GET /api/verve/accept?\r\nX: HTTP/1.1\r\nHost: api.example.com\r\n\r\n"),
    decode(r"GET /api/verve/accept?\r\nConnection: close\r\nX: HTTP/1.1\r\nHost: api.example.com\r\n\r\n"),
    decode(r"GET /api/verve/accept?id=1\r\nUpgrade: x HTTP/1.1\r\nHost: api.example.com\r\n\r\n"),
    decode(r"GET /api/verve/accept?id=1\nConnection:close HTTP/1.1\r\nHost: api.example.com\r\n\r\n"),
    decode(r"GET /api/verve/accept?id=1 HTTP/1.0\r\nX: HTTP/1.1\r\nHost: api.example.com\r\n\r\n"),
]


@paths
@pytest.mark.parametrize("poison", POISONS)
async def test_a_bad_request_changes_nothing_for_others(
    store_url: str, poison: bytes, path: PathName
) -> None:
    """Other connections whose header fields are the same bytes are kept, before and after it."""
    good = get(b"5", b"Host: api.example.com\r\n")
    async with open_listener_before(store_url, path) as listener:
        for _ in range(2):
            bad = await listener.connect()
            await bad.send(poison)
            await final(bad)
            for _ in range(2):
                wire = await listener.connect()
                for _ in range(3):
                    await wire.send(good)
                    answer = await final(wire)
                    assert answer.status == 200
                    assert answer.headers["Connection"] != "close"


@paths
async def test_nothing_is_taken_behind_a_repeat_that_closes(store_url: str, path: PathName) -> None:
    """A repeat needs no store, and closes its connection all the same."""
    async with open_listener_before(store_url, path) as listener:
        wire = await listener.connect()
        await wire.send(get(b"5"))
        assert await status(wire) == 200
        await wire.send(get(b"5", b"Host: x\r\nConnection: close\r\n") + get(BEHIND))
        answer = await final(wire)
        assert (answer.status, answer.headers["Connection"]) == (200, "close")
        assert await wire.closed()
        elsewhere = await listener.connect()
        await elsewhere.send(get(ELSEWHERE))
        assert await status(elsewhere) == 200
        assert await counted(store_url) == {b"5", ELSEWHERE}


@paths
async def test_http_1_0_is_told_that_its_connection_is_kept(store_url: str, path: PathName) -> None:
    """HTTP/1.0 clients that asked for it wait for the field (RFC 9112, C.2.2)."""
    async with open_listener_before(store_url, path) as listener:
        wire = await listener.connect()
        for target in (b"/api/verve/accept?id=1", b"/api/verve/accept?id=x", b"/livez"):
            await wire.send(b"GET " + target + b" HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
            assert (await final(wire)).headers["Connection"] == "keep-alive"


@paths
async def test_a_body_is_asked_for(store_url: str, path: PathName) -> None:
    """Clients such as curl wait a second for 100 (Continue) before they send a larger body."""
    head, body = post(b"5\n6\n", b"Expect: 100-continue\r\n")[:-4], b"5\n6\n"
    async with open_listener_before(store_url, path) as listener:
        wire = await listener.connect()
        await wire.send(head)
        answer = await wire.answer()
        assert answer is not None
        assert answer.status == 100
        await wire.send(body)
        assert await status(wire) == 200
        assert await counted(store_url) == {b"5", b"6"}


@paths
@pytest.mark.parametrize(
    "head",
    [
        post(b"1\n" * 100_000, b"Expect: 100-continue\r\n")[:-200_000],
        get(b"1", b"Host: x\r\nContent-Length: 1\r\nExpect: 100-continue\r\n"),
        get(b"1", b"Host: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n"),
    ],
    ids=["too large", "GET with a body", "GET with chunks"],
)
async def test_a_body_that_would_be_refused_is_not_asked_for(
    store_url: str, head: bytes, path: PathName
) -> None:
    """The client hears at once that it need not send it."""
    async with open_listener_before(store_url, path) as listener:
        wire = await listener.connect()
        await wire.send(head)
        answer = await wire.answer()
        assert answer is not None
        assert (answer.status, answer.headers["Connection"]) == (413, "close")
        assert await wire.closed()


@paths
@pytest.mark.parametrize(
    "request_",
    [
        get(b"x", b"Host: x\r\nConnection: close\r\n"),
        get(b"5", b"Host: x\r\nConnection: close\r\n"),
        get(b"5", b""),
        get(b"5", b"Host: x\r\nX: " + b"y" * 9000 + b"\r\n"),
        get(b"5", b"Host: x\r\nExpect: y\r\n"),
        post(b"1\n" * 100_000),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\0",
    ],
    ids=["bad", "good", "no host", "long field", "expectation", "long body", "HTTP/2", "garbage"],
)
async def test_a_close_is_no_reset(store_url: str, request_: bytes, path: PathName) -> None:
    """To close on unread bytes would be a reset, which can overtake the answer: the server reads on for a
    while (RFC 9112, 9.6)."""
    async with open_listener_before(store_url, path) as listener:
        wire = await listener.connect()
        sending = asyncio.create_task(wire.send(request_ + get(BEHIND) * 3000))
        await final(wire)
        async with asyncio.timeout(LIMIT_S):
            assert await asyncio.get_running_loop().sock_recv(wire.socket, 1) == b""
        sending.cancel()
