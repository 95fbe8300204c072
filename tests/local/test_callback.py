"""Callbacks as a whole: real connections to real servers, a ledger and a log in memory."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import json
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import aiohttp.test_utils
import pytest
from aiohttp import web

from idagg import __version__
from idagg.deliver.answer import Answer, AnswerReader
from idagg.deliver.callback import Callbacks
from idagg.deliver.guard import Guard
from idagg.deliver.logfile import CallbackLine
from idagg.deliver.post import Poster, Proxy, Target
from idagg.deliver.resolve import Resolver
from idagg.deliver.retry import ATTEMPTS
from idagg.deliver.route import Router
from idagg.deliver.silence import FAILING_S, FAILING_WINDOWS, GONE_S
from idagg.errors import FencedError, LogFileError
from idagg.signing import Signer
from idagg.window import PendingCallback, Record
from kit.servers import free_port

RECORD = Record(
    start_s=1763808780, length_s=60, unique_ids=4000, estimate=3988, hits=10000, exact=True, epoch=7
)
LATER = RECORD._replace(start_s=RECORD.end_s)
LOOPBACK = ["127.0.0.0/8"]
LIMIT_S = 30.0  # no test waits this long unless it fails
FOR_EVER = 1e9
EARLY_S = 0.01  # and more than timers are early

Outcome = tuple[int | None, str | None, int]


class Log:
    """A `CallbackLog` that keeps its lines, or fails."""

    def __init__(self) -> None:
        self.lines: list[CallbackLine] = []
        self.error: Exception | None = None

    async def callbacks(self, lines: Sequence[CallbackLine]) -> None:
        if self.error:
            raise self.error
        self.lines += lines

    def outcomes(self) -> dict[str, Outcome]:
        assert len({(line.window_s, line.url) for line in self.lines}) == len(self.lines)
        return {line.url or "": (line.status, line.error, line.attempts) for line in self.lines}


class Ledger:
    """What the store would keep of one window."""

    def __init__(self, gone: Iterable[str] = ()) -> None:
        self.spent: list[PendingCallback] = []
        self.marked: list[str] = []
        self.gone = set(gone)
        self.error: Exception | None = None  # of `spend`
        self.error_of_done: Exception | None = None
        self.may_spend = asyncio.Event()
        self.may_spend.set()
        self.on_done: Callable[[Sequence[str]], None] = lambda endpoints: None

    async def spend(self, attempts: Sequence[PendingCallback]) -> Sequence[bool]:
        await self.may_spend.wait()
        if self.error:
            raise self.error
        self.spent += attempts
        return [attempt.endpoint not in self.gone for attempt in attempts]

    async def done(self, endpoints: Sequence[str]) -> None:
        if self.error_of_done:
            raise self.error_of_done
        self.marked += endpoints
        self.on_done(endpoints)


@dataclasses.dataclass
class Received:
    target: str
    headers: dict[str, str]
    body: bytes


class Endpoint:
    """A server that keeps what it receives and answers with the ``statuses``, the last one for ever."""

    def __init__(self, *statuses: int, headers: dict[str, str] | None = None) -> None:
        self.received: list[Received] = []
        self.at: list[float] = []
        self._statuses = list(statuses or (200,))
        self._headers = headers

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.received.append(Received(request.raw_path, headers, await request.read()))
        self.at.append(asyncio.get_running_loop().time())
        status = self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]
        return web.Response(status=status, headers=self._headers)


class Tarpit:
    """A server that takes requests and never answers; ``reached`` when it holds as many as ``wanted``."""

    def __init__(self, wanted: int = 1) -> None:
        self._wanted = wanted
        self.held = 0
        self.total = 0
        self.reached = asyncio.Event()
        self.left = asyncio.Event()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self.total += 1
        self.held += 1
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


def soon(attempts: int, *, chance: float, retry_after: str | None = None, unix_s: float = 0) -> float:
    return float(retry_after or 0.001)


def never(attempts: int, *, chance: float, retry_after: str | None = None, unix_s: float = 0) -> float:
    return 1e6


@contextlib.asynccontextmanager
async def calling(
    log: Log | None = None,
    *,
    allow: Sequence[str] = LOOPBACK,
    only_allowed: bool = False,
    secrets: Sequence[str] = (),
    poster: Poster | None = None,
    threads: int = 8,
    **options: Any,
) -> AsyncIterator[Callbacks]:
    resolver = Resolver(threads)
    defaults: dict[str, Any] = {"pause_s": soon, "timeout_s": LIMIT_S}
    callbacks = Callbacks(
        router=Router(Guard(allow, only_allowed=only_allowed), resolver, has_proxy=False),
        poster=poster or Poster(),
        log=log or Log(),
        namespace="idagg",
        signer=Signer(secrets),
        **defaults | options,
    )
    running = asyncio.create_task(callbacks.run())
    try:
        async with asyncio.timeout(LIMIT_S):
            yield callbacks
    finally:
        assert not running.done()
        running.cancel()
        await asyncio.wait([running])
        resolver.close()


async def deliver(
    callbacks: Callbacks,
    endpoints: Iterable[str | PendingCallback],
    *,
    record: Record = RECORD,
    patience_s: float = 600,
    ledger: Ledger | None = None,
) -> list[str]:
    """What was marked done, in order."""
    ledger = ledger or Ledger()
    pending = [PendingCallback(one, 0, 0) if isinstance(one, str) else one for one in endpoints]
    deadline = asyncio.get_running_loop().time() + patience_s
    await callbacks.deliver(record, pending, ledger, deadline=deadline)
    return ledger.marked


async def outcome(url: str, **options: Any) -> Outcome:
    """Status, error and attempts of one callback."""
    log = Log()
    async with calling(log, **options) as callbacks:
        assert await deliver(callbacks, [url]) == [url]
    [line] = log.lines
    return line.status, line.error, line.attempts


def resolving(monkeypatch: pytest.MonkeyPatch, addresses: Mapping[str, Sequence[str]]) -> list[str]:
    """Names with these addresses, and no others; returns what is looked up."""
    looked_up: list[str] = []

    def getaddrinfo(host: str, *_: object, **options: Any) -> list[Any]:
        if host not in addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        looked_up.append(host)
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))
            for address in addresses[host]
        ]

    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *args, **options: (
            real(host, *args, **options)
            if host.replace(".", "").isdecimal()
            else getaddrinfo(host, *args, **options)
        ),
    )
    return looked_up


# What is sent


async def test_request() -> None:
    """A callback carries the window's record, says what it is and who sent it, and has a name."""
    handler = Endpoint()
    async with serving(handler) as url:
        await outcome(f"{url}/p?a=1#top")
    [request] = handler.received
    assert request.target == "/p?a=1&count=4000"
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


async def test_signature() -> None:
    """With secrets, each callback is signed with all of them."""
    secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_" + "bmV3" * 8]
    handler = Endpoint()
    async with serving(handler) as url:
        await outcome(url, secrets=secrets)
    [request] = handler.received
    fields = Signer(secrets).headers(
        request.headers["webhook-id"], int(request.headers["webhook-timestamp"]), request.body
    )
    assert request.headers["webhook-signature"] == fields["webhook-signature"]
    assert len(fields["webhook-signature"].split()) == 2


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


async def test_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy named in the environment is not used: the guard would judge the proxy's address."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    async with serving(Endpoint()) as url:
        assert await outcome(url) == (200, None, 1)


# What is made of the answer


@pytest.mark.parametrize("status", [200, 204, 299, 400, 401, 404, 410])
async def test_final(status: int) -> None:
    """A status that asks for nothing more is final and logged."""
    handler = Endpoint(status)
    async with serving(handler) as url:
        assert await outcome(url) == (status, None, 1)
    assert len(handler.received) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_redirect(status: int) -> None:
    """A redirect is not followed; the log says where it leads."""
    handler = Endpoint(status, headers={"location": "/elsewhere"})
    log = Log()
    async with serving(handler) as url, calling(log) as callbacks:
        await deliver(callbacks, [url])
    assert [(line.status, line.location) for line in log.lines] == [(status, "/elsewhere")]
    assert [request.target for request in handler.received] == ["/?count=4000"]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503, 599])
async def test_retried(status: int) -> None:
    """A status that may pass is tried again, up to the limit; what the last attempt came to is logged."""
    async with serving(Endpoint(status, 200)) as url:
        assert await outcome(url) == (200, None, 2)
    handler = Endpoint(status)
    async with serving(handler) as url:
        assert await outcome(url) == (status, None, ATTEMPTS)
    assert len(handler.received) == ATTEMPTS


async def test_retry_after() -> None:
    """A receiver that asks for time gets it, and the ledger is told, so that the next leader gives it,
    too."""
    handler = Endpoint(503, 200, headers={"retry-after": "0.3"})
    ledger = Ledger()
    async with serving(handler) as url, calling() as callbacks:
        await deliver(callbacks, [url], ledger=ledger)
    first, second = handler.at
    assert second - first >= 0.3 - EARLY_S
    assert PendingCallback(url, 1, 0.3) in ledger.spent


async def test_refused_then_there() -> None:
    """An endpoint that comes up between attempts is called."""
    port = free_port()
    log = Log()
    ledger = Ledger()
    refused = asyncio.Event()

    def pause_s(attempts: int, *, chance: float, **_: object) -> float:
        if chance < 1:
            refused.set()
            ledger.may_spend.clear()  # the next attempt waits until the endpoint is there
        return 0.001

    async with calling(log, pause_s=pause_s) as callbacks:
        url = f"http://127.0.0.1:{port}"
        delivery = asyncio.create_task(deliver(callbacks, [url], patience_s=FOR_EVER, ledger=ledger))
        await refused.wait()
        async with aiohttp.test_utils.RawTestServer(Endpoint(), host="127.0.0.1", port=port):
            ledger.may_spend.set()
            await delivery
    assert [(line.status, line.attempts) for line in log.lines] == [(200, 2)]


async def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error is logged in words, after as many attempts as it is worth."""
    resolving(monkeypatch, {})
    async with serving(Endpoint()) as plain, serving(Tarpit()) as silent:
        expected: dict[str, Outcome] = {
            f"http://127.0.0.1:{free_port()}": (None, "connection refused", ATTEMPTS),
            "http://no.such.name": (None, "name not resolved", ATTEMPTS),
            f"http://{'a' * 64}.example": (None, "invalid URL", 0),
            "http://127.0.0.1:99999": (None, "invalid URL", 0),
            silent: (None, "timeout", ATTEMPTS),
        }
        log = Log()
        tls = plain.replace("http:", "https:")
        async with calling(log, timeout_s=0.1) as callbacks:
            await deliver(callbacks, [silent])
        async with calling(log) as callbacks:  # with time for all that is no time-out
            await deliver(callbacks, [*(url for url in expected if url != silent), tls])
        outcomes = log.outcomes()
        _, error, attempts = outcomes.pop(tls)
    assert outcomes == expected
    assert (str(error)[:5], attempts) == ("tls: ", ATTEMPTS)  # OpenSSL's words differ between its versions


async def test_a_status_stands_though_its_head_does_not_end() -> None:
    """What was answered when the time is over counts."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: /x\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        status, error, _ = await outcome(
            url, timeout_s=0.3
        )  # again where the machine stood still for so long
        assert (status, error) == (302, None)


async def test_trouble_of_our_own(caplog: pytest.LogCaptureFixture) -> None:
    """What nobody foresaw is what came of that call, is told with its traceback, and ends no other."""

    class Troubled(Poster):
        async def post(
            self,
            target: Target,
            address: str | None,
            headers: Mapping[str, str],
            body: bytes,
            *,
            reader: AnswerReader | None = None,
        ) -> Answer:
            if address == "127.0.0.2":
                raise RuntimeError("?")
            return await super().post(target, address, headers, body, reader=reader)

    log = Log()
    async with serving(Endpoint()) as url, calling(log, poster=Troubled()) as callbacks:
        await deliver(callbacks, ["http://127.0.0.2", url])
    assert log.outcomes() == {"http://127.0.0.2": (None, "RuntimeError", ATTEMPTS), url: (200, None, 1)}
    assert caplog.text.count("Traceback") == ATTEMPTS


async def test_results() -> None:
    """Each endpoint is counted once, under what it came to."""
    results: list[str] = []
    async with calling(on_result=results.append, rate=10_000, limit=1) as callbacks:
        async with (
            serving(Endpoint(204)) as good,
            serving(Endpoint(503)) as bad,
            serving(Endpoint(410)) as gone,
        ):
            refused = f"http://127.0.0.1:{free_port()}"
            public = ["http://192.0.2.1", "http://192.0.2.1/b"]  # nowhere, but it is not dialled
            await deliver(callbacks, [good, bad, gone, refused, "http://10.0.0.1", *public])
            await deliver(callbacks, [gone], record=LATER)
        await deliver(callbacks, [good], patience_s=-1)
    assert collections.Counter(results) == {
        "ok": 1,
        "refused": 2,
        "error": 1,
        "blocked": 3,
        "silenced": 1,
        "expired": 1,
    }


# An attempt is spent before it is made


async def test_counted_first() -> None:
    """Nothing is dialled before the attempt is in the store, with when the next may follow."""
    handler = Endpoint(503, 200)
    ledger = Ledger()
    ledger.may_spend.clear()
    async with serving(handler) as url, calling() as callbacks:
        delivery = asyncio.create_task(deliver(callbacks, [url], ledger=ledger))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(delivery), 0.2)
        assert handler.received == []
        ledger.may_spend.set()
        await delivery
    assert ledger.spent == [PendingCallback(url, 1, 0.001), PendingCallback(url, 2, 0.001)]


async def test_names_that_do_not_resolve_spend_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads nowhere is not looked up without end."""
    resolving(monkeypatch, {})
    ledger = Ledger()
    async with calling() as callbacks:
        await deliver(callbacks, ["http://no.such.name"], ledger=ledger)
    assert [spent.attempts for spent in ledger.spent] == list(range(1, ATTEMPTS + 1))


async def test_another_leader_goes_on() -> None:
    """Attempts of an earlier leader count; one that is to follow later does; one cut off in its last has
    ended."""
    handler = Endpoint(503)
    log = Log()
    async with serving(handler) as url, calling(log) as callbacks:
        begun = asyncio.get_running_loop().time()
        pending = [
            PendingCallback(f"{url}/last", ATTEMPTS - 1, -5),
            PendingCallback(f"{url}/later", ATTEMPTS - 1, 0.3),
            PendingCallback(f"{url}/over", ATTEMPTS, 10),
        ]
        await deliver(callbacks, pending)
    assert log.outcomes() == {
        f"{url}/last": (503, None, ATTEMPTS),
        f"{url}/later": (503, None, ATTEMPTS),
        f"{url}/over": (None, "interrupted", ATTEMPTS),
    }
    targets = [request.target.split("?")[0] for request in handler.received]
    assert sorted(targets) == ["/last", "/later"]
    assert handler.at[targets.index("/later")] - begun >= 0.3 - EARLY_S


async def test_not_pending_any_more() -> None:
    """A callback that the store does not know is not made, nor logged."""
    handler = Endpoint()
    log = Log()
    async with serving(handler) as url, calling(log) as callbacks:
        ledger = Ledger(gone=[f"{url}/gone"])
        assert await deliver(callbacks, [f"{url}/gone", f"{url}/here"], ledger=ledger) == [f"{url}/here"]
    assert [request.target for request in handler.received] == ["/here?count=4000"]
    assert list(log.outcomes()) == [f"{url}/here"]


async def test_attempts_that_cannot_be_counted_are_not_made() -> None:
    """The store's trouble ends the delivery, and no call goes out; other deliveries go on."""
    handler = Endpoint()
    ledger = Ledger()
    ledger.error = FencedError("another leads")
    async with serving(handler) as url, calling(concurrency=1) as callbacks:
        with pytest.raises(FencedError):
            await deliver(callbacks, [f"{url}/{n}" for n in range(10)], ledger=ledger)
        assert handler.received == []
        assert await deliver(callbacks, [url]) == [url]


# Where it may go


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "inward.test", "0x7f000001", "0x7f.1"],
)
async def test_blocked(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is called, this machine is not: no connection is made, and none tried again."""
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **options: Any) -> Any:
        return real("127.0.0.1" if host == "inward.test" else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    touched: list[object] = []
    server = await asyncio.start_server(lambda *streams: touched.append(streams), None, 0)
    async with server:
        for listening in server.sockets:
            url = f"http://{host}:{listening.getsockname()[1]}"
            assert await outcome(url, allow=()) == (None, "blocked", 0)
    assert touched == []


@pytest.mark.parametrize("port", [22, 25, 6379])
async def test_ports_of_other_services(port: int) -> None:
    """Ports that no browser calls are not called either, whatever is allowed."""
    assert await outcome(f"http://127.0.0.1:{port}") == (None, "blocked", 0)


async def test_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --callbacks listed only what is allowed by name or address is called."""
    resolving(monkeypatch, {"listed.test": ["127.0.0.1"], "public.test": ["192.0.2.1"]})
    async with serving(Endpoint()) as url:
        port = url.rpartition(":")[2]
        allow = {"allow": ["listed.test"], "only_allowed": True}
        assert await outcome(f"http://listed.test:{port}", **allow) == (200, None, 1)
        assert await outcome(f"http://public.test:{port}", **allow) == (None, "blocked", 0)
        assert await outcome(url, **allow) == (None, "blocked", 0)


async def test_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy resolves names; literals are judged here all the same, and lists hold for names."""
    resolving(monkeypatch, {})
    handler = Endpoint()
    log = Log()
    async with serving(handler) as proxy:
        poster = Poster(proxy=Proxy.parse(proxy))
        for guard, names in (
            (Guard(), ["http://a.test/x", "http://10.0.0.1/x"]),
            (Guard(["b.test"], only_allowed=True), ["http://a.test/y", "http://b.test/y"]),
        ):
            async with calling(log, poster=poster) as callbacks:
                callbacks._router = Router(guard, Resolver(1), has_proxy=True)
                await deliver(callbacks, names)
    assert log.outcomes() == {
        "http://a.test/x": (200, None, 1),
        "http://10.0.0.1/x": (None, "blocked", 0),
        "http://a.test/y": (None, "blocked", 0),
        "http://b.test/y": (200, None, 1),
    }
    assert [request.headers["host"] for request in handler.received] == ["a.test", "b.test"]


async def test_addresses_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt dials one address; if it is dead, the next attempt dials the next."""
    resolving(monkeypatch, {"two.test": ["127.0.0.9", "127.0.0.1"]})
    async with serving(Endpoint()) as url:
        assert await outcome(url.replace("127.0.0.1", "two.test")) == (200, None, 2)


async def test_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host of many endpoints is looked up once for all of them."""
    looked_up = resolving(monkeypatch, {"many.test": ["127.0.0.1"]})
    async with serving(Endpoint()) as url, calling() as callbacks:
        endpoints = [f"{url.replace('127.0.0.1', 'many.test')}/{n}" for n in range(50)]
        assert sorted(await deliver(callbacks, endpoints)) == sorted(endpoints)
    assert looked_up == ["many.test"]


# Who waits for whom


async def test_tarpit() -> None:
    """A host that holds what it gets, of thousands of endpoints, does not hold up the others."""
    tarpit = Tarpit(4)
    async with (
        serving(tarpit) as slow,
        serving(Endpoint(), "127.0.0.2") as quick,
        calling(concurrency=6) as callbacks,
    ):
        good = {f"{quick}/{n}" for n in range(50)}
        ledger = Ledger()
        all_good = asyncio.Event()
        ledger.on_done = lambda _: all_good.set() if set(ledger.marked) == good else None
        endpoints = [f"{slow}/{n}" for n in range(3000)] + sorted(good)
        delivery = asyncio.create_task(deliver(callbacks, endpoints, ledger=ledger))
        await all_good.wait()
        await tarpit.reached.wait()
        assert tarpit.held == tarpit.total == 4
        # Another window's delivery shares the slots, and is not held up either.
        assert await deliver(callbacks, [quick], record=LATER) == [quick]
        assert tarpit.held == tarpit.total == 4
        delivery.cancel()
        with pytest.raises(asyncio.CancelledError):
            await delivery
        await tarpit.left.wait()


async def test_four_by_address_however_it_is_spelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, ports and forms of one address share its four slots."""
    resolving(monkeypatch, {f"{n}.test": ["127.0.0.1"] for n in range(30)} | {"0x7f000001": ["127.0.0.1"]})
    tarpit = Tarpit(4)
    async with serving(tarpit) as one, serving(tarpit) as two, calling() as callbacks:
        ports = [url.rpartition(":")[2] for url in (one, two)]
        endpoints = [
            f"http://{host}:{zeros}{port}"
            for host in ("127.0.0.1", "0x7f000001", *(f"{n}.test" for n in range(30)))
            for port in ports
            for zeros in ("", "0")
            if len(zeros + port) <= 5
        ]
        delivery = asyncio.create_task(deliver(callbacks, endpoints))
        await tarpit.reached.wait()
        await asyncio.sleep(0.2)  # more would come by then
        assert tarpit.total == 4
        delivery.cancel()
        await asyncio.wait([delivery])
        await tarpit.left.wait()


async def test_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of one address begin apart, whatever its names are; those of an allowed host do not."""
    monkeypatch.setattr(Guard, "refusal", lambda self, address: None)
    names = {f"{n}.test": ["127.0.0.1"] for n in range(10)}
    resolving(monkeypatch, names)
    handler = Endpoint()
    async with serving(handler) as url:
        port = url.rpartition(":")[2]
        endpoints = [f"http://{name}:{port}" for name in names]
        async with calling(allow=(), rate=20) as callbacks:
            begun = asyncio.get_running_loop().time()
            assert len(await deliver(callbacks, endpoints)) == 10
            assert handler.at[-1] - begun >= 9 * 0.05 - EARLY_S
        async with calling(allow=list(names), rate=0.01) as callbacks:
            assert len(await deliver(callbacks, endpoints)) == 10


async def test_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a window's callbacks to one address so many are made; the others share a line, and are done."""
    monkeypatch.setattr(Guard, "refusal", lambda self, address: None)
    resolving(monkeypatch, {f"{n}.test": ["127.0.0.1"] for n in range(5)} | {"other.test": ["127.0.0.2"]})
    handler = Endpoint(503, 503, 200)  # retries are within the limit
    log = Log()
    results: list[str] = []
    async with (
        serving(handler) as url,
        calling(log, allow=(), rate=10_000, limit=2, on_result=results.append) as callbacks,
    ):
        port = url.rpartition(":")[2]
        endpoints = [f"http://{n}.test:{port}/{m}" for n in range(5) for m in range(3)]
        marked = await deliver(callbacks, [*endpoints, f"http://other.test:{port}"])
        assert sorted(marked) == sorted([*endpoints, f"http://other.test:{port}"])
    over = [line for line in log.lines if line.error == "limit"]
    assert [(line.url, line.address, line.endpoints, line.attempts) for line in over] == [
        (None, "127.0.0.1", 13, 0)
    ]
    assert [line.status for line in log.lines if line.error is None] == [200, 200]
    assert collections.Counter(results) == {"limit": 13, "ok": 2, "error": 1}


async def test_bounds() -> None:
    """Over all deliveries no more run than there are slots, and of one address no more than its share."""
    now = most = 0
    by_host: collections.Counter[str] = collections.Counter()
    most_by_host = 0

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal now, most, most_by_host
        now += 1
        by_host[request.host] += 1
        most, most_by_host = max(most, now), max(most_by_host, by_host[request.host])
        await asyncio.sleep(0.005)
        now -= 1
        by_host[request.host] -= 1
        return web.Response()

    async with contextlib.AsyncExitStack() as stack:
        hosts = [await stack.enter_async_context(serving(answer, f"127.0.0.{n}")) for n in (1, 2, 3, 4)]
        callbacks = await stack.enter_async_context(calling(concurrency=5))
        endpoints = [f"{host}/{n}" for host in hosts for n in range(20)]
        deliveries = await asyncio.gather(
            deliver(callbacks, endpoints), deliver(callbacks, endpoints, record=LATER)
        )
    assert [sorted(marked) for marked in deliveries] == [sorted(endpoints)] * 2
    assert most <= 5
    assert most_by_host <= 4


async def test_names_that_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that nobody resolves do not hold up the others, while there are threads."""
    answered = threading.Event()

    def getaddrinfo(host: str, port: int, *_: object, **__: object) -> list[Any]:
        if host != "quick.test":
            answered.wait(LIMIT_S)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    async with serving(Endpoint()) as url, calling() as callbacks:
        real = socket.getaddrinfo
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda host, *args, **options: (
                real(host, *args, **options) if host == "127.0.0.1" else getaddrinfo(host, *args, **options)
            ),
        )
        slow = asyncio.create_task(deliver(callbacks, [f"http://{n}.test" for n in range(6)]))
        quick = url.replace("127.0.0.1", "quick.test")
        try:
            assert await deliver(callbacks, [quick], record=LATER) == [quick]
            assert not slow.done()
        finally:
            slow.cancel()
            await asyncio.wait([slow])
            answered.set()


async def test_dead_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lookup that hangs is a time-out of the attempt."""
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(LIMIT_S))
    try:
        assert await outcome("http://a.test", timeout_s=0.1) == (None, "timeout", ATTEMPTS)
    finally:
        answered.set()


async def test_retries_hold_no_slot() -> None:
    """While a call waits for its retry, its slot is another's."""
    async with (
        serving(Endpoint(503)) as failing,
        serving(Endpoint()) as quick,
        calling(concurrency=1, pause_s=never) as callbacks,
    ):
        waiting = asyncio.create_task(deliver(callbacks, [failing], patience_s=FOR_EVER))
        assert await deliver(callbacks, [f"{quick}/{n}" for n in range(10)], patience_s=FOR_EVER)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait([waiting])


# Who is left alone


async def test_gone() -> None:
    """An endpoint that says 410 is silenced for a day, which the log says; the next window's is not made."""
    handler = Endpoint(410)
    log = Log()
    async with serving(handler) as url, calling(log) as callbacks:
        await deliver(callbacks, [url])
        assert await deliver(callbacks, [url], record=LATER) == [url]
    assert [(line.status, line.error, line.attempts, line.silenced_s) for line in log.lines] == [
        (410, None, 1, GONE_S),
        (None, "silenced", 0, None),
    ]
    assert len(handler.received) == 1


async def test_failing_over_windows() -> None:
    """An endpoint whose windows fail in a row is silenced for an hour; one that works in between is not."""
    failing = Endpoint(500)
    mended = Endpoint(*[404] * (FAILING_WINDOWS - 1), 200, 404)
    log = Log()
    async with serving(failing) as one, serving(mended) as other, calling(log) as callbacks:
        for n in range(FAILING_WINDOWS + 2):
            record = RECORD._replace(start_s=RECORD.start_s + 60 * n)
            await deliver(callbacks, [one, other], record=record)
    assert len(failing.received) == FAILING_WINDOWS * ATTEMPTS
    assert len(mended.received) == FAILING_WINDOWS + 2
    assert [line.silenced_s for line in log.lines if line.silenced_s] == [FAILING_S]
    assert [line.error for line in log.lines if line.error] == ["silenced"] * 2


# How it ends


async def test_deadline() -> None:
    """At the deadline all that waits is given up; what is on its way has its own time-out."""
    for patience_s in (0.5, 3, 15):  # more, where the machine stood still until the deadline
        log, tarpit = Log(), Tarpit()
        async with serving(tarpit) as url, calling(log, timeout_s=1.5 * patience_s) as callbacks:
            endpoints = [f"{url}/{n}" for n in range(50)]
            assert sorted(await deliver(callbacks, endpoints, patience_s=patience_s)) == sorted(endpoints)
        if tarpit.total >= 4:
            break
    assert collections.Counter(log.outcomes().values()) == {
        (None, "timeout", 1): 4,
        (None, "gave up: deadline", 0): 46,
    }


async def test_last_outcome() -> None:
    """Where there is no time for another attempt, the last one counts."""
    async with serving(Endpoint(503)) as failing:
        assert await outcome(failing, pause_s=never) == (503, None, 1)


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
    ledger = Ledger()

    def check(endpoints: Sequence[str]) -> None:
        assert [line.url for line in log.lines] == endpoints

    ledger.on_done = check
    async with serving(Endpoint()) as url, calling(log) as callbacks:
        await deliver(callbacks, [url], ledger=ledger)
    assert ledger.marked == [url]


async def test_written_together() -> None:
    """Attempts that begin at a time are counted in one write, and those that end marked in another."""

    class Counting(Ledger):
        writes = 0

        async def spend(self, attempts: Sequence[PendingCallback]) -> Sequence[bool]:
            self.writes += 1
            return await super().spend(attempts)

    ledger = Counting()
    marks: list[int] = []
    ledger.on_done = lambda endpoints: marks.append(len(endpoints))
    asked, all_asked = 0, asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        """All at once."""
        nonlocal asked
        asked += 1
        if asked == 40:
            all_asked.set()
        await all_asked.wait()
        return web.Response()

    async with contextlib.AsyncExitStack() as stack:
        hosts = [await stack.enter_async_context(serving(answer, f"127.0.0.{n}")) for n in range(1, 11)]
        callbacks = await stack.enter_async_context(calling())
        endpoints = [f"{host}/{n}" for host in hosts for n in range(4)]
        assert sorted(await deliver(callbacks, endpoints, ledger=ledger)) == sorted(endpoints)
    assert ledger.writes <= len(hosts)  # addresses are looked up one by one
    assert len(marks) < 20


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


@pytest.mark.parametrize("steps", range(12))
async def test_cancelled_at_any_step(steps: int) -> None:
    """A delivery that is cancelled early gives its slots back, whatever stage it is in."""
    async with serving(Endpoint()) as url, calling(concurrency=1) as callbacks:
        delivery = asyncio.create_task(deliver(callbacks, [url]))
        for _ in range(steps):
            await asyncio.sleep(0.0005)
        delivery.cancel()
        await asyncio.wait([delivery])
        assert await deliver(callbacks, [url]) == [url]


@pytest.mark.parametrize("error", [FencedError("another leads"), LogFileError("disk full"), TimeoutError()])
@pytest.mark.parametrize("where", ["log", "done"])
async def test_interrupted(where: str, error: Exception) -> None:
    """An error of the log or of the marking comes out as it is; other deliveries go on."""
    tarpit = Tarpit()
    log = Log()
    ledger = Ledger()
    ledger.error_of_done = error if where == "done" else None
    async with serving(tarpit) as slow, serving(Endpoint()) as quick, calling(log) as callbacks:
        other = asyncio.create_task(deliver(callbacks, [slow], record=LATER))
        await tarpit.reached.wait()
        log.error = error if where == "log" else None
        with pytest.raises(type(error)) as raised:
            await deliver(callbacks, [f"{slow}/1", quick], ledger=ledger)
        assert raised.value is error
        assert len([task for task in asyncio.all_tasks() if "Callbacks._attempt" in repr(task)]) == 1
        log.error = None
        assert not other.done()
        assert await deliver(callbacks, [quick]) == [quick]
        other.cancel()
        await asyncio.wait([other])
        await tarpit.left.wait()
