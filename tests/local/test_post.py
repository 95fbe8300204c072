from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import os
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from idagg.deliver.answer import Answer, AnswerReader
from idagg.deliver.post import Poster, PostError, Proxy, Target, tls_context
from kit.hostile import (
    CHUNKED,
    GZIP,
    GZIP_BOMB,
    INTERIM,
    Stranger,
    Talk,
    Visit,
    answering,
    dripping,
    pouring,
    talking,
)
from kit.waiting import until

MAX_BYTES = 16_384
# What a stranger may have got rid of when it hears that we have hung up: what we take at most, and buffers at
# both ends.
SENT_AT_MOST = 200_000
BODY = b'{"unique_ids": 4000}'
HEADERS = {"content-type": "application/json", "webhook-id": "idagg:1:2"}


async def posted(
    stranger: Stranger, poster: Poster | None = None, target: Target | None = None, body: bytes = BODY
) -> Answer | str:
    """The answer, or the error in words."""
    poster = poster or Poster(tls=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    try:
        return await poster.post(target or stranger.target(), "127.0.0.1", HEADERS, body)
    except PostError as error:
        return str(error)


# --- what is said


async def test_request() -> None:
    """The request is what it is to the byte, and its connection is not kept."""
    async with talking(answering(b"HTTP/1.1 204 No Content\r\n\r\n")) as stranger:
        assert await posted(stranger) == Answer(204)
        port = b"%d" % stranger.port
    assert stranger.requests == [
        b"POST /x?y HTTP/1.1\r\nHost: a.test:%b\r\n"
        b"content-type: application/json\r\nwebhook-id: idagg:1:2\r\n"
        b"Accept: */*\r\nContent-Length: 20\r\nConnection: close\r\n\r\n%b" % (port, BODY)
    ]


async def test_only_addresses() -> None:
    """Nothing is resolved: what is not an address is not dialled."""
    for address in ("localhost", "127.1", "", None):
        with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6 address"):
            await Poster().post(Target(False, "a.test", 80, b"/"), address, {}, BODY)


async def test_ipv6() -> None:
    """An IPv6 address is dialled as such."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
        listening.setblocking(False)
        target = Target(False, "a.test", listening.getsockname()[1], b"/")
        task = asyncio.create_task(Poster().post(target, "::1", HEADERS, BODY))
        sock, _ = await asyncio.get_running_loop().sock_accept(listening)
        with sock:
            sock.sendall(b"HTTP/1.1 200 OK\r\n")
            assert await task == Answer(200)


# --- what is answered


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", Answer(200)),
        (b"HTTP/1.0 200 OK\r\n\r\nok", Answer(200)),
        (b"HTTP/1.0 503\n\n", Answer(503)),
        (b"HTTP/1.1 401 Who?\r\nWWW-Authenticate: Basic realm=x\r\n\r\n", Answer(401)),
        (b"HTTP/1.1 429 Later\r\nRetry-After: 7\r\n\r\n", Answer(429, "7")),
        (b"HTTP/1.1 429 Later\r\nRetry-After: 7\r\nLoca", Answer(429, "7")),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\n\r\n", Answer(201)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", Answer(200)),
        (b"HTTP/1.1 200 OK\r\n" + 200 * b"X: x\r\n" + b"\r\n", Answer(200)),
        (b"HTTP/1.1 200 OK\r\nX: " + 9000 * b"x" + b"\r\n\r\n", Answer(200)),
        (b"", "connection closed"),
        (b"HTTP/1.1 2", "connection closed"),
        (b"220 mail.example.com ESMTP\r\n", "not an HTTP answer"),
    ],
)
async def test_answer(answer: bytes, expected: Answer | str) -> None:
    """What is answered is told, with or without the rest that HTTP wants to see."""
    async with talking(answering(answer)) as stranger:
        assert await posted(stranger) == expected
        await stranger.left.wait()
    assert stranger.visits == len(stranger.requests) == 1


@pytest.mark.parametrize(
    ("first", "more", "expected"),
    [
        pytest.param(INTERIM, INTERIM, "answer too long", id="interim answers"),
        pytest.param(INTERIM[:-2], b"Link: x\r\n", "answer too long", id="interim head"),
        pytest.param(b"HTTP/1.1 200 ", b"O", "answer too long", id="status line"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"X: x\r\n", Answer(200), id="head"),
        pytest.param(b"HTTP/1.1 503 No\r\nRetry-After: 7\r\nX: ", b"x", Answer(503, "7"), id="head of a 503"),
        pytest.param(b"HTTP/1.1 302 Found\r\n", b"X: x\r\n", Answer(302), id="head of a 302"),
        pytest.param(CHUNKED, b"1\r\nx\r\n", Answer(200), id="chunks"),
        pytest.param(CHUNKED + b"0\r\n", b"X: x\r\n", Answer(200), id="trailers"),
        pytest.param(b"HTTP/1.1 500 No\r\n\r\n", b"x", Answer(500), id="body"),
        pytest.param(GZIP, GZIP_BOMB, Answer(200), id="gzip"),
        pytest.param(b"", b"\0", "not an HTTP answer", id="zeros"),
    ],
)
@pytest.mark.parametrize("is_tls", [False, True])
async def test_endless(
    first: bytes, more: bytes, expected: Answer | str, is_tls: bool, ca: trustme.CA, trusting: Poster
) -> None:
    """An answer without an end costs its sender more than it costs us."""
    async with talking(pouring(first, more), server_tls(ca, "a.test") if is_tls else None) as stranger:
        assert await posted(stranger, trusting, stranger.target(is_tls=is_tls)) == expected
        await stranger.left.wait()
    assert (stranger.visits, len(stranger.requests)) == (1, 1)
    assert stranger.sent < SENT_AT_MOST


async def test_the_connection_has_a_limit_of_its_own() -> None:
    """A status stands, too, where it is the connection that takes no more."""
    async with talking(pouring(b"HTTP/1.1 503 No\r\nRetry-After: 7\r\n", b"X: x\r\n")) as stranger:
        reader = AnswerReader(10**9)
        post = Poster(max_bytes=1).post(stranger.target(), "127.0.0.1", HEADERS, BODY, reader=reader)
        assert await post == Answer(503, "7")
        await stranger.left.wait()


@pytest.mark.parametrize(
    ("first", "known"),
    [(b"HTTP/1.1 2", None), (b"HTTP/1.1 503 No\r\nRetry-After: 7\r\nX: ", Answer(503, "7"))],
)
async def test_byte_by_byte(first: bytes, known: Answer | None) -> None:
    """Who answers a byte now and then is left when the time is up, and what stood by then is known."""
    said = asyncio.Event()
    async with talking(dripping(first, pause_s=0.1, said=said.set)) as stranger:
        reader = AnswerReader()
        post = asyncio.create_task(
            Poster().post(stranger.target(), "127.0.0.1", HEADERS, BODY, reader=reader)
        )
        await said.wait()
        await until(lambda: reader.so_far == known)
        assert not post.done()
        post.cancel()
        with pytest.raises(asyncio.CancelledError):
            await post
        assert reader.so_far == known
        await stranger.left.wait()


async def test_redirects() -> None:
    """A redirect is told and not followed."""
    async with talking(answering(b"HTTP/1.1 307 Go\r\nLocation: /x?y\r\nRetry-After: 0\r\n\r\n")) as stranger:
        assert await posted(stranger) == Answer(307, "0", "/x?y")
        await stranger.left.wait()
    assert stranger.visits == 1


async def test_cookies() -> None:
    """What one answer sets is in no other request."""
    async with talking(
        answering(b"HTTP/1.1 401 No\r\nSet-Cookie: a=b\r\nWWW-Authenticate: Basic\r\n\r\n")
    ) as stranger:
        poster = Poster()
        assert await posted(stranger, poster) == Answer(401)
        assert await posted(stranger, poster) == Answer(401)
    first, second = stranger.requests
    assert first == second


async def test_answer_before_the_request() -> None:
    """Who answers and hangs up before the request has been read has answered."""

    async def talk(visit: Visit) -> None:
        await visit.say(b"HTTP/1.1 413 Too much\r\nConnection: close\r\n\r\n")

    async with talking(talk) as stranger:
        assert await posted(stranger, body=8_000_000 * b"x") == Answer(413)
        assert await posted(stranger) == Answer(413)


async def test_reset() -> None:
    """A connection that is reset is an error, unless the status stood already."""

    def resetting(answer: bytes) -> Talk:
        async def talk(visit: Visit) -> None:
            await visit.request()
            if answer:
                await visit.say(answer)
                await asyncio.sleep(0.05)  # it has been read by then, or else it is read first
            visit.reset()

        return talk

    async with talking(resetting(b"")) as stranger:
        assert await posted(stranger) == "connection reset by peer"
    async with talking(resetting(b"HTTP/1.1 503 No\r\nRetry-After: 7\r\n")) as stranger:
        assert await posted(stranger) == Answer(503, "7")


async def test_nobody_there() -> None:
    """A port that nobody listens on is an error in words."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        target = Target(False, "a.test", taken.getsockname()[1], b"/")
        with pytest.raises(PostError, match=r"^connection refused$"):
            await Poster().post(target, "127.0.0.1", HEADERS, BODY)


# --- how it ends


@pytest.fixture
def deaf() -> Iterator[int]:
    """A port of 127.0.0.1 whose connections are never made: as many wait for it as it has places."""
    with socket.socket() as listening, contextlib.ExitStack() as stack:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


def sockets() -> int:
    """How many this process has open."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += str(entry.readlink()).startswith("socket:")
    return found


@pytest.mark.parametrize("is_tls", [False, True])
@pytest.mark.parametrize("when", ["connecting", "answer"])
async def test_cancelled(when: str, is_tls: bool, deaf: int) -> None:
    """However far it has got, what is cancelled leaves no socket behind."""
    poster = Poster()

    async def silent(visit: Visit) -> None:
        await visit.wait()

    async with talking(silent) as stranger:
        target = Target(is_tls, "a.test", deaf if when == "connecting" else stranger.port, b"/")
        before = sockets()
        posts = [asyncio.create_task(poster.post(target, "127.0.0.1", HEADERS, BODY)) for _ in range(20)]
        await until(lambda: sockets() >= before + 20)
        assert not any(post.done() for post in posts)
        for post in posts:
            post.cancel()
        assert {type(end) for end in await asyncio.gather(*posts, return_exceptions=True)} == {
            asyncio.CancelledError
        }
        await until(lambda: sockets() <= before)  # the stranger's close later


# --- TLS


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def client_tls(ca: trustme.CA) -> ssl.SSLContext:
    """It trusts our CA as well."""
    with ca.cert_pem.tempfile() as path:
        return tls_context(path)


@pytest.fixture
def trusting(client_tls: ssl.SSLContext) -> Poster:
    return Poster(tls=client_tls)


def server_tls(ca: trustme.CA, *names: str, not_after: datetime.datetime | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names, not_after=not_after).configure_cert(context)
    return context


OK = answering(b"HTTP/1.1 200 OK\r\n\r\n")


@pytest.mark.parametrize("host", ["a.test", "a.test.", "b.a.test", "127.0.0.1", "::1"])
async def test_private_ca(host: str, ca: trustme.CA, trusting: Poster) -> None:
    """A server of a private CA is verified by the host's name, which it is told unless it is an address."""
    context = server_tls(ca, "a.test", "*.a.test", "127.0.0.1", "::1")
    told: list[str | None] = []
    context.sni_callback = lambda _, name, __: told.append(name)
    async with talking(OK, context) as stranger:
        assert await posted(stranger, trusting, stranger.target(host, is_tls=True)) == Answer(200)
    assert told == [None if ":" in host or host[0].isdigit() else host.removesuffix(".")]
    assert stranger.requests[0].endswith(BODY)


@pytest.mark.parametrize(
    ("name", "not_after", "words"),
    [
        ("b.test", None, "tls: Hostname mismatch, certificate is not valid for 'a.test'."),
        ("127.0.0.1", None, "tls: Hostname mismatch, certificate is not valid for 'a.test'."),
        ("a.test", datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), "tls: certificate has expired"),
    ],
)
async def test_bad_certificate(
    name: str, not_after: datetime.datetime | None, words: str, ca: trustme.CA, trusting: Poster
) -> None:
    """A certificate that does not fit is an error that says so, and nothing is sent."""
    async with talking(OK, server_tls(ca, name, not_after=not_after)) as stranger:
        assert await posted(stranger, trusting, stranger.target(is_tls=True)) == words
    assert stranger.requests == []


async def test_unknown_ca(ca: trustme.CA) -> None:
    """A private CA that nobody named is not trusted."""
    async with talking(OK, server_tls(ca, "a.test")) as stranger:
        words = await posted(stranger, Poster(), stranger.target(is_tls=True))
    assert str(words).startswith("tls: unable to get local issuer certificate")
    assert stranger.requests == []


async def test_not_tls(trusting: Poster) -> None:
    """A server that does not speak TLS where it should is an error that says so."""

    async def talk(visit: Visit) -> None:
        await visit.say(b"HTTP/1.1 400 This is HTTPS?\r\n\r\n")
        await visit.wait()

    async with talking(talk) as stranger:
        words = await posted(stranger, trusting, stranger.target(is_tls=True))
    assert str(words).startswith("tls: ")  # the words are OpenSSL's and differ between its versions


async def test_handshake_ends(trusting: Poster) -> None:
    """A connection that closes in the handshake is closed, not a fault of TLS."""

    async def talk(visit: Visit) -> None:
        await visit.reader.read(100)

    async with talking(talk) as stranger:
        words = await posted(stranger, trusting, stranger.target(is_tls=True))
    assert words in ("connection closed", "connection reset by peer")


async def test_endless_handshake(trusting: Poster) -> None:
    """A handshake without an end is left, too: here a hello in as many records as the server likes."""

    async def talk(visit: Visit) -> None:
        await visit.reader.read(10)
        length = 100_000
        await visit.say(b"\x16\x03\x03\x00\x04\x02" + length.to_bytes(3, "big"))
        await visit.pour(b"\x16\x03\x03\x00\x01\x03")

    async with talking(talk) as stranger:
        words = await posted(stranger, trusting, stranger.target(is_tls=True))
        await stranger.left.wait()
    assert words == "answer too long" or str(words).startswith("tls: ")
    assert stranger.sent < SENT_AT_MOST


async def test_endless_tickets(ca: trustme.CA, trusting: Poster) -> None:
    """What only TLS sees is bounded, too: here the tickets that a server gives for the next time."""
    context = server_tls(ca, "a.test")
    context.num_tickets = 5000  # more than a megabyte

    async def talk(visit: Visit) -> None:
        await visit.wait()

    async with talking(talk, context) as stranger:
        assert await posted(stranger, trusting, stranger.target(is_tls=True)) == "answer too long"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_ends(version: ssl.TLSVersion, ca: trustme.CA, trusting: Poster) -> None:
    """What was seen counts when TLS ends, with or without a farewell."""
    context = server_tls(ca, "a.test")
    context.maximum_version = version
    for answer, expected in (
        (b"HTTP/1.1 503 No\r\nX: x\r\n", Answer(503)),
        (b"HTTP/1.1 20", "connection closed"),
    ):
        for farewell in (True, False):

            async def talk(visit: Visit, answer: bytes = answer, farewell: bool = farewell) -> None:
                await visit.request()
                await visit.say(answer)
                if farewell:
                    visit.writer.close()
                    await visit.writer.wait_closed()

            async with talking(talk, context) as stranger:
                assert await posted(stranger, trusting, stranger.target(is_tls=True)) == expected


# --- through a proxy


class ProxyServer:
    """A proxy: it takes CONNECT, and POST in absolute form, to whatever name, all of them at 127.0.0.1."""

    def __init__(self, wants: bytes | None = None) -> None:
        self.heads: list[bytes] = []
        self._wants = wants

    async def __call__(self, visit: Visit) -> None:
        head = await visit.reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        if self._wants is not None and b"Basic " + base64.b64encode(self._wants) not in head:
            await visit.say(b"HTTP/1.1 407 Who?\r\nProxy-Authenticate: Basic\r\n\r\n")
            return
        found = re.match(rb"(?:CONNECT |POST http://)[^ /?]*:(\d+)", head)
        assert found
        reader, writer = await asyncio.open_connection("127.0.0.1", int(found[1]))
        if head.startswith(b"CONNECT"):
            await visit.say(b"HTTP/1.1 200 Connected\r\n")
            await asyncio.sleep(0.05)  # it is read before the rest
            await visit.say(b"Via: x\r\n\r\n")
        else:
            writer.write(head)
        to = asyncio.create_task(self._pipe(visit.reader, writer))
        try:
            await self._pipe(reader, visit.writer)
        finally:
            to.cancel()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()


def through(proxy: Stranger, tls: ssl.SSLContext | None = None, user: str = "") -> Poster:
    return Poster(tls=tls, proxy=Proxy.parse(f"http://{user}127.0.0.1:{proxy.port}"))


async def test_proxy(ca: trustme.CA, client_tls: ssl.SSLContext) -> None:
    """Plain HTTP goes to the proxy in absolute form, TLS through it, verified by the endpoint's name."""
    proxying = ProxyServer(wants=b"ida:p@ss")
    async with (
        talking(OK) as plain,
        talking(OK, server_tls(ca, "a.test")) as tls,
        talking(proxying) as proxy,
    ):
        poster = through(proxy, client_tls, "ida:p%40ss@")
        assert await poster.post(plain.target(), None, HEADERS, BODY) == Answer(200)
        assert await poster.post(tls.target(is_tls=True), None, HEADERS, BODY) == Answer(200)
        wrong = tls.target("b.test", is_tls=True)
        with pytest.raises(PostError, match=r"^tls: Hostname mismatch"):
            await poster.post(wrong, None, HEADERS, BODY)
    authority = b"Proxy-Authorization: Basic " + base64.b64encode(b"ida:p@ss") + b"\r\n"
    assert proxying.heads[0].startswith(
        b"POST http://a.test:%d/x?y HTTP/1.1\r\nHost: a.test:%d\r\n" % (2 * (plain.port,))
    )
    assert authority in proxying.heads[0]
    place = b"a.test:%d" % tls.port
    assert proxying.heads[1] == b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (place, place, authority)
    assert b"Proxy" not in tls.requests[0]
    assert len(tls.requests) == 1


async def test_proxy_names_the_port() -> None:
    """CONNECT always says the port, the Host field behind it does not where it goes without saying."""
    heads: list[bytes] = []

    async def talk(visit: Visit) -> None:
        heads.append(await visit.reader.readuntil(b"\r\n\r\n"))
        await visit.say(b"HTTP/1.1 502 No\r\n\r\n")

    async with talking(talk) as proxy:
        poster = through(proxy)
        with pytest.raises(PostError, match=r"^proxy: 502$"):
            await poster.post(Target.parse("https://[::1]/"), None, HEADERS, BODY)
        assert await poster.post(Target.parse("http://a.test"), None, HEADERS, BODY) == Answer(502)
    assert heads[0] == b"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n"
    assert heads[1].startswith(b"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\n")


@pytest.mark.parametrize("is_tls", [False, True])
async def test_proxy_refuses(is_tls: bool, client_tls: ssl.SSLContext) -> None:
    """A proxy that wants other credentials is the proxy's trouble, not the endpoint's."""
    async with talking(ProxyServer(wants=b"ida:p@ss")) as proxy:
        for user in ("", "ida:wrong@"):
            with pytest.raises(PostError, match=r"^proxy: 407$"):
                await through(proxy, client_tls, user).post(proxy.target(is_tls=is_tls), None, HEADERS, BODY)


@pytest.mark.parametrize(
    ("talk", "words"),
    [
        (pouring(b"", INTERIM), "proxy: answer too long"),
        (pouring(b"HTTP/1.1 200 Connected\r\n", b"X: x\r\n"), "tls: .+|answer too long"),
        (answering(b"SSH-2.0-x\r\n"), "proxy: not an HTTP answer"),
        (answering(b""), "proxy: connection closed"),
    ],
)
async def test_proxy_trouble(talk: Talk, words: str, client_tls: ssl.SSLContext) -> None:
    """What a proxy answers is bounded as well."""
    async with talking(talk) as proxy:
        with pytest.raises(PostError) as raised:
            await through(proxy, client_tls).post(proxy.target(is_tls=True), None, HEADERS, BODY)
        await proxy.left.wait()
    assert re.fullmatch(words, str(raised.value))
    assert proxy.sent < SENT_AT_MOST


async def test_no_proxy_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that is not there is said to be the one; its other addresses are tried."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{taken.getsockname()[1]}"
        for is_tls in (False, True):
            with pytest.raises(PostError, match=r"^proxy: connection refused$"):
                await Poster(proxy=Proxy.parse(gone)).post(
                    Target(is_tls, "a.test", 1, b"/"), None, HEADERS, BODY
                )
    with pytest.raises(PostError, match=r"^proxy: name not resolved$"):
        await Poster(proxy=Proxy.parse("http://no.such.name.invalid:1")).post(
            Target(False, "a.test", 1, b"/"), None, HEADERS, BODY
        )


async def test_no_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy named in the environment is not used."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setitem(os.environ, name, "http://127.0.0.1:1")
    async with talking(OK) as stranger:
        assert await posted(stranger) == Answer(200)
