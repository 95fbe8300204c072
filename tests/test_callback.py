from __future__ import annotations

import asyncio
import base64
import collections
import contextlib
import dataclasses
import hashlib
import hmac
import itertools
import json
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any

import aiohttp.test_utils
import pytest
from aiohttp import web

from idagg import __version__
from idagg.deliver.callback import Callbacks, signature, signing_key
from idagg.deliver.guard import Guard
from idagg.errors import FencedError, LogFileError
from idagg.window import Record

RECORD = Record(
    start_s=1763808780, length_s=60, unique_ids=4000, estimate=3988, hits=10000, exact=True, epoch=7
)
LATER = dataclasses.replace(RECORD, start_s=RECORD.end_s)
LOOPBACK = Guard(["127.0.0.0/8"])
LIMIT_S = 30.0  # no test waits this long unless it fails


@dataclasses.dataclass
class Line:
    window_s: int
    url: str
    status: int | None
    attempts: int
    ms: int
    error: str | None


class Log:
    """A `CallbackLog` that keeps its lines, or fails."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.error: Exception | None = None

    async def callback(
        self, *, window_s: int, url: str, status: int | None, attempts: int, ms: int, error: str | None
    ) -> None:
        if self.error:
            raise self.error
        self.lines.append(Line(window_s, url, status, attempts, ms, error))

    def outcomes(self) -> dict[str, tuple[int | None, str | None, int]]:
        assert len({(line.window_s, line.url) for line in self.lines}) == len(self.lines)
        return {line.url: (line.status, line.error, line.attempts) for line in self.lines}


@dataclasses.dataclass
class Received:
    target: str
    headers: dict[str, str]
    body: bytes


class Endpoint:
    """A server that keeps what it receives and answers with the ``statuses``, the last one for ever."""

    def __init__(self, *statuses: int, headers: dict[str, str] | None = None) -> None:
        self.received: list[Received] = []
        self._statuses = list(statuses or (200,))
        self._headers = headers

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.received.append(Received(request.raw_path, headers, await request.read()))
        status = self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]
        return web.Response(status=status, headers=self._headers)


class Tarpit:
    """A server that takes requests and never answers; ``reached`` when it holds as many as ``wanted``."""

    def __init__(self, wanted: int = 1) -> None:
        self._wanted = wanted
        self.held = 0
        self.most = 0
        self.total = 0
        self.reached = asyncio.Event()
        self.left = asyncio.Event()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self.total += 1
        self.held += 1
        self.most = max(self.most, self.held)
        if self.held == self._wanted:
            self.reached.set()
        try:
            await asyncio.Event().wait()
            raise AssertionError
        finally:
            self.held -= 1
            if not self.held:
                self.left.set()


Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def serving(handler: Handler, host: str = "127.0.0.1") -> AsyncIterator[str]:
    """``handler`` behind a URL without a path."""
    async with aiohttp.test_utils.RawTestServer(handler, host=host, handler_cancellation=True) as server:
        yield f"http://{host}:{server.port}"


@contextlib.asynccontextmanager
async def talking(answer: bytes) -> AsyncIterator[str]:
    """A server that says ``answer`` to whoever comes, and hangs up."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@contextlib.asynccontextmanager
async def calling(log: Log | None = None, **options: Any) -> AsyncIterator[Callbacks]:
    defaults: dict[str, Any] = {"guard": LOOPBACK, "backoff_s": 0.001, "timeout_s": LIMIT_S}
    callbacks = Callbacks(log=log or Log(), namespace="idagg", **defaults | options)
    try:
        async with asyncio.timeout(LIMIT_S):
            yield callbacks
    finally:
        await callbacks.close()


async def deliver(
    callbacks: Callbacks,
    endpoints: Iterable[str],
    *,
    record: Record = RECORD,
    patience_s: float = 600,
    done: Callable[[Sequence[str]], Awaitable[None]] | None = None,
) -> list[str]:
    """What was marked done, in order."""
    marked: list[str] = []

    async def mark(endpoints: Sequence[str]) -> None:
        marked.extend(endpoints)

    deadline = asyncio.get_running_loop().time() + patience_s
    await callbacks.deliver(record, endpoints, done or mark, deadline=deadline)
    return marked


async def outcome(url: str, **options: Any) -> tuple[int | None, str | None, int]:
    """Status, error and attempts of one callback."""
    log = Log()
    async with calling(log, **options) as callbacks:
        assert await deliver(callbacks, [url]) == [url]
    [line] = log.lines
    return line.status, line.error, line.attempts


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


# --- what is sent


@pytest.mark.parametrize(
    ("endpoint", "target"),
    [
        ("", "/?count=4000"),
        ("/", "/?count=4000"),
        ("?", "/?count=4000"),
        ("/p", "/p?count=4000"),
        ("/p?", "/p?count=4000"),
        ("/p?a=1&b=2", "/p?a=1&b=2&count=4000"),
        ("/p?a=1&", "/p?a=1&&count=4000"),
        ("?a", "/?a&count=4000"),
        ("/p?count=1", "/p?count=1&count=4000"),
        ("/p#top", "/p?count=4000"),
        ("/p?a=1#top?", "/p?a=1&count=4000"),
        (
            "/%7e/%2F/a%20b/%e2%82%ac?x=%7E&y=%2b+%26&z=%3d",
            "/%7e/%2F/a%20b/%e2%82%ac?x=%7E&y=%2b+%26&z=%3d&count=4000",
        ),
        ("/a/../b/./c;d=1?q=a/b?c:@!$'()*,;", "/a/../b/./c;d=1?q=a/b?c:@!$'()*,;&count=4000"),
    ],
)
async def test_target(endpoint: str, target: str) -> None:
    """The count comes last in the query, the fragment stays here, the rest is the endpoint's to the byte."""
    handler = Endpoint()
    async with serving(handler) as url:
        assert await outcome(url + endpoint) == (200, None, 1)
    assert [request.target for request in handler.received] == [target]


async def test_request() -> None:
    """A callback carries the window's record, says what it is and who sent it, and has a name."""
    handler = Endpoint()
    async with serving(handler) as url:
        await outcome(url)
    [request] = handler.received
    assert json.loads(request.body) == {
        "window_start": "2025-11-22T10:53:00Z",
        "window_end": "2025-11-22T10:54:00Z",
        "unique_ids": 4000,
        "estimate": 3988,
        "hits": 10000,
        "exact": True,
    }
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"] == f"idagg/{__version__}"
    assert request.headers["webhook-id"].startswith("idagg:1763808780:")
    assert request.headers["webhook-timestamp"].isdecimal()
    assert "webhook-signature" not in request.headers


@pytest.mark.parametrize(
    ("secret", "key"),
    [("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), ("geheim", "Z2VoZWlt")],
)
async def test_signature(secret: str, key: str) -> None:
    """With a secret, each callback is signed as Standard Webhooks has it."""
    handler = Endpoint()
    async with serving(handler) as url:
        await outcome(url, secret=secret)
    [request] = handler.received
    signed = (
        f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode() + request.body
    )
    digest = hmac.new(base64.b64decode(key), signed, hashlib.sha256).digest()
    assert request.headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()


def test_signature_vector() -> None:
    """The signature is that of Standard Webhooks' own libraries."""
    key = signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == expected


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_no base64", "whsec_abc"])
def test_bad_secret(secret: str) -> None:
    """A secret without a key in it is refused."""
    with pytest.raises(ValueError, match="the callback secret is empty or not base64"):
        signing_key(secret)


async def test_webhook_id() -> None:
    """The webhook-id is the same over retries and deliveries, another for each endpoint and window."""
    handler = Endpoint(503, 503, 200)
    async with serving(handler) as url, calling() as callbacks:
        await deliver(callbacks, [url + "/a"])
        await deliver(callbacks, [url + "/a"])
        await deliver(callbacks, [url + "/b"])
        await deliver(callbacks, [url + "/a"], record=LATER)
    ids = [request.headers["webhook-id"] for request in handler.received]
    assert len(ids) == 6
    assert len(set(ids[:4])) == 1
    assert len(set(ids[3:])) == 3


async def test_no_cookies() -> None:
    """What one answer sets is in no other request."""
    handler = Endpoint(headers={"set-cookie": "a=b"})
    async with serving(handler) as url, calling() as callbacks:
        await deliver(callbacks, [url])
        await deliver(callbacks, [url])
    assert ["cookie" in request.headers for request in handler.received] == [False, False]


async def test_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy named in the environment is not used: the guard would judge the proxy's address."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
    async with serving(Endpoint()) as url:
        assert await outcome(url) == (200, None, 1)


# --- what is made of the answer


@pytest.mark.parametrize("status", [200, 204, 299, 301, 302, 307, 308, 400, 401, 404, 410])
async def test_final(status: int) -> None:
    """A status that asks for nothing more is final and logged."""
    handler = Endpoint(status, headers={"location": "/elsewhere"})
    async with serving(handler) as url:
        assert await outcome(url) == (status, None, 1)
    assert [request.target for request in handler.received] == ["/?count=4000"]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
async def test_retried(status: int) -> None:
    """A status that may pass is tried again, up to the limit; what the last attempt came to is logged."""
    async with serving(Endpoint(status, 200)) as url:
        assert await outcome(url) == (200, None, 2)
    async with serving(Endpoint(status)) as url:
        assert await outcome(url) == (status, None, 3)
        assert await outcome(url, attempts=5) == (status, None, 5)


async def test_refused_then_there() -> None:
    """An endpoint that comes up between attempts is called."""
    port = closed_port()
    handler = Endpoint()
    log = Log()
    async with calling(log, backoff_s=0.05, attempts=1000) as callbacks:
        delivery = asyncio.create_task(deliver(callbacks, [f"http://127.0.0.1:{port}"]))
        async with aiohttp.test_utils.RawTestServer(handler, host="127.0.0.1", port=port):
            await delivery
    assert log.lines[0].status == 200


async def test_errors() -> None:
    """An error is logged in words, after as many attempts as it is worth."""
    too_long = b"HTTP/1.1 200 OK\r\nX: " + 100_000 * b"x" + b"\r\n\r\n"
    async with (
        talking(b"") as closing,
        talking(b"220 mail.example.com ESMTP\r\n") as other,
        talking(too_long) as endless,
    ):
        expected = {
            f"http://127.0.0.1:{closed_port()}": (None, "connection refused", 3),
            f"http://{'a' * 64}.example": (None, "invalid URL", 1),
            "http://127.0.0.1:99999": (None, "invalid URL", 1),
            closing: (None, "connection closed", 3),
            other: (None, "not an HTTP answer", 3),
            endless: (None, "not an HTTP answer", 3),
        }
        log = Log()
        async with calling(log) as callbacks:
            await deliver(callbacks, expected)
    assert log.outcomes() == expected


async def test_timeout() -> None:
    """An endpoint that takes the request and does not answer is a time-out, and tried again."""
    async with serving(Tarpit()) as url:
        assert await outcome(url, timeout_s=0.05) == (None, "timeout", 3)


async def test_no_such_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that does not resolve may do so at the next attempt."""

    def getaddrinfo(*_: object, **__: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert await outcome("http://hooks.test") == (None, "name not resolved", 3)


async def test_dead_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time-out covers the resolution of the name, and lookups that hang let no others pile up."""
    looked_up: list[str] = []
    answered = threading.Event()

    def getaddrinfo(host: str, *_: object, **__: object) -> list[Any]:
        looked_up.append(host)
        answered.wait(LIMIT_S)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    names = [f"http://{n}.test" for n in range(8)]
    log = Log()
    async with calling(log, timeout_s=0.2, attempts=1, concurrency=4) as callbacks:
        try:
            await deliver(callbacks, names)
        finally:
            answered.set()
        assert log.outcomes() == dict.fromkeys(names, (None, "timeout", 1))
        await deliver(callbacks, ["http://last.test"])
    assert sorted(looked_up) == ["0.test", "1.test", "2.test", "3.test", "last.test"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("?"), "RuntimeError"),
        (OSError("?"), "connection failed"),
        (asyncio.CancelledError(), "cancelled"),
    ],
)
async def test_library_trouble(error: BaseException, words: str) -> None:
    """Whatever an attempt raises is what came of that call, and ends no other."""

    class Troubled(Guard):
        def open_socket(self, addr_info: aiohttp.AddrInfoType) -> socket.socket:
            if addr_info[4][0] == "127.0.0.2":
                raise error
            return super().open_socket(addr_info)

    log = Log()
    async with (
        serving(Endpoint()) as url,
        calling(log, guard=Troubled(["127.0.0.0/8"]), attempts=1) as callbacks,
    ):
        await deliver(callbacks, ["http://127.0.0.2", url])
    assert log.outcomes() == {"http://127.0.0.2": (None, words, 1), url: (200, None, 1)}


async def test_tls() -> None:
    """A server that does not speak TLS where it should is an error that says so."""
    async with serving(Endpoint()) as url:
        status, error, attempts = await outcome(url.replace("http:", "https:"))
    assert (status, attempts) == (None, 3)
    assert str(error).startswith("tls: ")  # the words are OpenSSL's and differ between its versions


async def test_endless_body() -> None:
    """The answer's body is not read, so one without an end holds nothing."""
    hung_up = asyncio.Event()

    async def pour(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(65536 * b"x")
        finally:
            hung_up.set()

    async with serving(pour) as url:
        assert await outcome(url) == (200, None, 1)
        async with asyncio.timeout(LIMIT_S):
            await hung_up.wait()


async def test_results() -> None:
    """Each endpoint is counted once, under what it came to."""
    results: list[str] = []
    async with calling(on_result=results.append) as callbacks:
        async with serving(Endpoint(204)) as good, serving(Endpoint(503)) as bad:
            await deliver(callbacks, [good, bad, f"http://127.0.0.1:{closed_port()}", "http://10.0.0.1"])
        await deliver(callbacks, [good], patience_s=-1)
    assert sorted(results) == ["blocked", "error", "expired", "ok", "refused"]


# --- where it may go


@pytest.fixture
def localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name resolves, also where a bare machine's resolver does not know it."""
    resolve = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **options: Any) -> Any:
        return resolve("127.0.0.1" if host.lower() == "localhost" else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.usefixtures("localhost")
@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "localhost",
        "LOCALHOST",
        "0x7f000001",
        "0x7f.1",
    ],
)
async def test_blocked(host: str) -> None:
    """Whatever it is called, this machine is not: no connection is made, and none tried again."""
    touched: list[object] = []
    server = await asyncio.start_server(lambda *streams: touched.append(streams), None, 0)
    async with server:
        for listening in server.sockets:
            url = f"http://{host}:{listening.getsockname()[1]}"
            assert await outcome(url, guard=Guard()) == (None, "blocked", 1)
    assert touched == []


@pytest.mark.parametrize("host", ["2130706433", "017700000001", "127.1", "127.0.0.1."])
async def test_numeric_hosts(host: str) -> None:
    """An address in a form that only resolvers of old understand is no host."""
    assert await outcome(f"http://{host}", guard=Guard()) == (None, "invalid URL", 1)


@pytest.mark.usefixtures("localhost")
@pytest.mark.parametrize("host", ["localhost", "LOCALHOST"])
async def test_allowed_host(host: str) -> None:
    """A host allowed by name is called at its private address, and only under that name."""
    async with serving(Endpoint()) as url:
        guard = Guard(["localhost"])
        assert await outcome(url.replace("127.0.0.1", host), guard=guard) == (200, None, 1)
        assert await outcome(url, guard=guard) == (None, "blocked", 1)


async def test_one_of_several_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a name's addresses those that are refused are left out; where all are, the call is blocked."""
    addresses = {
        "mixed.test": ["127.0.0.2", "127.0.0.1", "::1"],
        "inward.test": ["127.0.0.2", "::1"],
        "down.test": ["127.0.0.2", "127.0.0.1", "::1"],
    }

    def getaddrinfo(host: str, port: int, *_: object, **__: object) -> list[Any]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses[host]
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    dialled: list[str] = []

    class Watched(Guard):
        def open_socket(self, addr_info: aiohttp.AddrInfoType) -> socket.socket:
            dialled.append(addr_info[4][0])
            return super().open_socket(addr_info)

    guard = Watched(["127.0.0.1"])
    async with serving(Endpoint()) as url:
        assert await outcome(url.replace("127.0.0.1", "mixed.test"), guard=guard) == (200, None, 1)
        assert await outcome(url.replace("127.0.0.1", "inward.test"), guard=guard) == (None, "blocked", 1)
    down = f"http://down.test:{closed_port()}"
    assert await outcome(down, guard=guard) == (None, "connection refused", 3)
    assert set(dialled) == {"127.0.0.1"}


async def test_addresses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with any number of addresses costs a few connections."""
    dialled: list[object] = []

    class Watched(Guard):
        def open_socket(self, addr_info: aiohttp.AddrInfoType) -> socket.socket:
            dialled.append(addr_info)
            return super().open_socket(addr_info)

    port = closed_port()
    infos = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.1.{n}", port)) for n in range(250)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: infos)
    guard = Watched(["127.0.0.0/8"])
    assert await outcome("http://many.test", guard=guard, attempts=1) == (None, "connection refused", 1)
    assert len(dialled) <= 36


# --- who waits for whom


async def test_tarpit() -> None:
    """A host that holds what it gets, of thousands of endpoints, does not hold up the others."""
    tarpit = Tarpit()
    async with (
        serving(tarpit) as slow,
        serving(Endpoint()) as quick,
        calling(concurrency=6, per_host=4) as callbacks,
    ):
        good = {f"{quick}/{n}" for n in range(50)}
        marked: set[str] = set()
        all_good = asyncio.Event()

        async def done(endpoints: Sequence[str]) -> None:
            marked.update(endpoints)
            if marked == good:
                all_good.set()

        endpoints = [f"{slow}/{n}" for n in range(3000)] + sorted(good)
        delivery = asyncio.create_task(deliver(callbacks, endpoints, done=done))
        await all_good.wait()
        assert tarpit.held == tarpit.total == 4
        # Another window's delivery shares the slots, and is not held up either.
        assert await deliver(callbacks, [quick], record=LATER) == [quick]
        assert tarpit.held == tarpit.total == 4
        delivery.cancel()
        with pytest.raises(asyncio.CancelledError):
            await delivery
        await tarpit.left.wait()
    assert marked == good


async def test_bounds() -> None:
    """Over all deliveries no more run than there are slots, and of one host no more than its share."""
    now = most = 0
    by_host: collections.Counter[str] = collections.Counter()
    most_by_host = 0

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal now, most, most_by_host
        now += 1
        by_host[request.host] += 1
        most, most_by_host = max(most, now), max(most_by_host, by_host[request.host])
        await asyncio.sleep(0.001)
        now -= 1
        by_host[request.host] -= 1
        return web.Response()

    async with contextlib.AsyncExitStack() as stack:
        hosts = [await stack.enter_async_context(serving(answer)) for _ in range(4)]
        callbacks = await stack.enter_async_context(calling(concurrency=5, per_host=2))
        endpoints = [f"{host}/{n}" for host in hosts for n in range(20)]
        deliveries = await asyncio.gather(
            deliver(callbacks, endpoints), deliver(callbacks, endpoints, record=LATER)
        )
    assert [sorted(marked) for marked in deliveries] == [sorted(endpoints)] * 2
    assert (most, most_by_host) == (5, 2)


async def test_tarpits_of_their_own() -> None:
    """Hosts that hold what they get, each another one, delay the others by a moment, and are bounded."""
    tarpit = Tarpit(7)
    async with contextlib.AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(serving(tarpit)) for _ in range(8)]
        quick = await stack.enter_async_context(serving(Endpoint()))
        callbacks = await stack.enter_async_context(calling(concurrency=7, fresh=2, fresh_s=0.05))
        first = asyncio.create_task(deliver(callbacks, slow[:6]))
        await asyncio.sleep(0)  # it stands in front
        good = [f"{quick}/{n}" for n in range(20)]
        assert sorted(await deliver(callbacks, good, record=LATER)) == sorted(good)
        assert tarpit.held == tarpit.total == 6
        second = asyncio.create_task(deliver(callbacks, [*slow[6:], quick]))
        await tarpit.reached.wait()
        await asyncio.sleep(0.2)  # several times as long as a call is fresh
        assert tarpit.held == tarpit.total == 7
        for delivery in (first, second):
            delivery.cancel()
            await asyncio.wait([delivery])
        await tarpit.left.wait()


async def test_names_that_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that nobody resolves delay the other calls no more than hosts that do not answer."""
    answered = threading.Event()

    def getaddrinfo(host: str, port: int, *_: object, **__: object) -> list[Any]:
        if host != "quick.test":
            answered.wait(LIMIT_S)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    async with (
        serving(Endpoint()) as url,
        calling(concurrency=7, fresh=2, fresh_s=0.05) as callbacks,
    ):
        slow = asyncio.create_task(deliver(callbacks, [f"http://{n}.test" for n in range(6)]))
        await asyncio.sleep(0)  # it stands in front
        quick = url.replace("127.0.0.1", "quick.test")
        try:
            assert await deliver(callbacks, [quick], record=LATER) == [quick]
            assert not slow.done()
        finally:
            slow.cancel()
            await asyncio.wait([slow])
            answered.set()


async def test_retries_hold_no_slot() -> None:
    """While a call waits for its retry, its slot is another's."""
    async with (
        serving(Endpoint(503)) as failing,
        serving(Endpoint()) as quick,
        calling(concurrency=1, backoff_s=1e6) as callbacks,
    ):
        waiting = asyncio.create_task(deliver(callbacks, [failing], patience_s=1e9))
        assert await deliver(callbacks, [f"{quick}/{n}" for n in range(10)], patience_s=1e9)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait([waiting])


# --- how it ends


async def test_deadline() -> None:
    """At the deadline all that is left is given up, whether it was under way or waited."""
    log = Log()
    async with serving(Tarpit()) as url, calling(log, per_host=2) as callbacks:
        endpoints = [f"{url}/{n}" for n in range(50)]
        assert sorted(await deliver(callbacks, endpoints, patience_s=0.1)) == sorted(endpoints)
    assert collections.Counter(log.outcomes().values()) == {
        (None, "gave up: deadline", 1): 2,
        (None, "gave up: deadline", 0): 48,
    }


async def test_last_outcome() -> None:
    """Where there is no time for another attempt, the last one counts."""
    async with serving(Endpoint(503)) as failing, serving(Tarpit()) as silent:
        assert await outcome(failing, backoff_s=1e6) == (503, None, 1)
        log = Log()
        async with calling(log, concurrency=1) as callbacks:
            await deliver(callbacks, [failing, silent], patience_s=1)
        assert log.outcomes() == {failing: (503, None, 1), silent: (None, "gave up: deadline", 1)}


async def test_past_deadline() -> None:
    """Past the deadline nothing is called, and everything logged and marked done."""
    log = Log()
    handler = Endpoint()
    async with serving(handler) as url, calling(log) as callbacks:
        assert await deliver(callbacks, [url], patience_s=-1) == [url]
    assert log.outcomes() == {url: (None, "gave up: deadline", 0)}
    assert handler.received == []


async def test_no_endpoints() -> None:
    """A window without endpoints is delivered at once."""
    async with calling() as callbacks:
        assert await deliver(callbacks, []) == []


async def test_logged_then_done() -> None:
    """An endpoint is logged before it is marked done, so that none is done without a line."""
    log = Log()
    async with serving(Endpoint()) as url, calling(log) as callbacks:

        async def done(endpoints: Sequence[str]) -> None:
            assert [line.url for line in log.lines] == endpoints

        await deliver(callbacks, [url], done=done)


async def test_marked_together() -> None:
    """Endpoints that have ended are marked together, but so few that a crash does not repeat all of them."""
    endpoints = [f"http://127.0.0.1/{n}" for n in range(250)]
    marks: list[Sequence[str]] = []

    async def done(some: Sequence[str]) -> None:
        marks.append(some)

    async with calling() as callbacks:
        await deliver(callbacks, endpoints, patience_s=-1, done=done)
    assert [len(some) for some in marks] == [100, 100, 50]
    assert sorted(itertools.chain(*marks)) == sorted(endpoints)


async def test_cancelled() -> None:
    """A cancelled delivery leaves no task, no connection and no slot taken behind."""
    tarpit = Tarpit(2)
    log = Log()
    async with (
        serving(tarpit) as slow,
        serving(Endpoint()) as quick,
        calling(log, concurrency=2) as callbacks,
    ):
        delivery = asyncio.create_task(deliver(callbacks, [f"{slow}/{n}" for n in range(10)]))
        await tarpit.reached.wait()
        delivery.cancel()
        with pytest.raises(asyncio.CancelledError):
            await delivery
        assert [task for task in asyncio.all_tasks() if "Callbacks._attempt" in repr(task)] == []
        assert log.lines == []
        await tarpit.left.wait()
        assert await deliver(callbacks, [f"{quick}/{n}" for n in range(5)])
        assert tarpit.total == 2


async def test_cancelled_at_once() -> None:
    """A delivery that is cancelled before its attempts take their first step gives their slots back."""
    async with serving(Endpoint()) as url, calling(concurrency=1) as callbacks:
        delivery = asyncio.create_task(deliver(callbacks, [url]))
        await asyncio.sleep(0)
        delivery.cancel()
        with pytest.raises(asyncio.CancelledError):
            await delivery
        assert await deliver(callbacks, [url]) == [url]


@pytest.mark.parametrize("error", [FencedError("another leads"), LogFileError("disk full"), TimeoutError()])
@pytest.mark.parametrize("where", ["log", "done"])
async def test_interrupted(where: str, error: Exception) -> None:
    """An error of the log or of the marking comes out as it is; other deliveries go on."""
    tarpit = Tarpit()
    log = Log()

    async def fail(endpoints: Sequence[str]) -> None:
        raise error

    async with serving(tarpit) as slow, serving(Endpoint()) as quick, calling(log) as callbacks:
        other = asyncio.create_task(deliver(callbacks, [slow], record=LATER))
        await tarpit.reached.wait()
        log.error = error if where == "log" else None
        with pytest.raises(type(error)) as raised:
            await deliver(callbacks, [f"{slow}/1", quick], done=fail if where == "done" else None)
        assert raised.value is error
        assert len([task for task in asyncio.all_tasks() if "Callbacks._attempt" in repr(task)]) == 1
        log.error = None
        assert not other.done()
        assert tarpit.total <= 2
        assert await deliver(callbacks, [quick]) == [quick]
        other.cancel()
        await asyncio.wait([other])
        await tarpit.left.wait()
