"""Two doors, one behaviour: one list of cases, sent to both, whole, in pieces and with more behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

import servers
from doors import counted, open_doors_before
from idagg.accept.head import USUAL_TAIL

HOST = b"Host: x\r\n"
AFTER = b"GET /api/verve/accept?id=777 HTTP/1.1\r\nHost: after\r\n\r\n"


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    request: bytes
    status: int | None  # None: the connection is closed without an answer
    counts: bytes | None = None  # the id that is in the store afterwards
    keeps: bool = True  # the connection


def get(query: bytes, fields: bytes = HOST, version: bytes = b"1.1") -> bytes:
    return b"GET /api/verve/accept" + query + b" HTTP/" + version + b"\r\n" + fields + b"\r\n"


UPGRADE = get(b"?id=9", HOST + b"Connection: upgrade\r\nUpgrade: h2c\r\n")
# aiohttp waits for the other protocol's bytes behind it, and so must a client (RFC 9110, 7.8).
NOTHING_BEHIND = {UPGRADE}

CASES = [
    Case("plain", get(b"?id=123"), 200, b"123"),
    Case("lower-case host", get(b"?id=123", b"host: x\r\n"), 200, b"123"),
    Case("leading zeros", get(b"?id=007"), 200, b"7"),
    Case("negative", get(b"?id=-5"), 200, b"-5"),
    Case("largest", get(b"?id=9223372036854775807"), 200, b"9223372036854775807"),
    Case("with endpoint", get(b"?id=1&endpoint=http%3A%2F%2Fa.example%2F"), 200, b"1"),
    Case("other parameters", get(b"?a=b&id=4&c"), 200, b"4"),
    Case("encoded path", b"GET /api/verve/%61ccept?id=3 HTTP/1.1\r\nHost: x\r\n\r\n", 200, b"3"),
    Case("absolute form", b"GET http://x/api/verve/accept?id=3 HTTP/1.1\r\nHost: x\r\n\r\n", 200, b"3"),
    Case("content-length 0", get(b"?id=6", HOST + b"Content-Length: 0\r\n"), 200, b"6"),
    Case("many fields", get(b"?id=6", HOST + b"".join(b"X-%d: y\r\n" % n for n in range(100))), 200, b"6"),
    Case("close", get(b"?id=8", HOST + b"Connection: close\r\n"), 200, b"8", keeps=False),
    Case("HTTP/1.0", get(b"?id=9", b"", b"1.0"), 200, b"9", keeps=False),
    Case("HTTP/1.0 keep-alive", get(b"?id=9", b"Connection: keep-alive\r\n", b"1.0"), 200, b"9"),
    Case("upgrade that is not taken", UPGRADE, 200, b"9"),
    Case("empty line before", b"\r\n" + get(b"?id=9"), 200, b"9"),
    Case("a field that ends as a request line does", get(b"?id=9", b"X: y" + USUAL_TAIL[:-2]), 200, b"9"),
    Case("so does one behind a host", get(b"?id=9&x=1", HOST + b"X: y" + USUAL_TAIL[:-2]), 400, keeps=False),
    Case("no query", get(b""), 400),
    Case("empty query", get(b"?"), 400),
    Case("no id", get(b"?endpoint=http://a.example/"), 400),
    Case("empty id", get(b"?id="), 400),
    Case("repeated id", get(b"?id=1&id=1"), 400),
    Case("word", get(b"?id=abc"), 400),
    Case("percent-encoded id", get(b"?id=%31"), 400),
    Case("Unicode digit", get(b"?id=%D9%A1"), 400),
    Case("raw Unicode digit", get(b"?id=\xd9\xa1"), 400, keeps=False),
    Case("too large", get(b"?id=9223372036854775808"), 400),
    Case("plus sign", get(b"?id=+1"), 400),
    Case("fragment", get(b"?id=1#x"), 400),
    Case("endpoint with CR LF", get(b"?id=1&endpoint=http://a/%0d%0aX:y"), 400),
    Case("endpoint of another scheme", get(b"?id=1&endpoint=ftp://a/"), 400),
    Case("endpoint without host", get(b"?id=1&endpoint=http:///x"), 400),
    Case("endpoint with userinfo", get(b"?id=1&endpoint=http://u:p@a/"), 400),
    Case("long endpoint", get(b"?id=1&endpoint=http://a/" + b"x" * 3000), 400),
    Case("bad id, close", get(b"?id=x", HOST + b"Connection: close\r\n"), 400, keeps=False),
    Case("bad id, HTTP/1.0", get(b"?id=x", b"", b"1.0"), 400, keeps=False),
    Case("no host", get(b"?id=1", b"X: y\r\n"), 400, keeps=False),
    Case("two hosts", get(b"?id=1", HOST + HOST), 400, keeps=False),
    Case("bad field name", get(b"?id=1", HOST + b"a b: c\r\n"), 400, keeps=False),
    Case("NUL in a field", get(b"?id=1", HOST + b"a: \x00\r\n"), 400, keeps=False),
    Case("bare CR in a field", get(b"?id=1", HOST + b"a: b\rc: d\r\n"), 400, keeps=False),
    Case("folded field", get(b"?id=1", HOST + b"a: b\r\n c\r\n"), 400, keeps=False),
    Case("space before the colon", get(b"?id=1", HOST + b"a : b\r\n"), 400, keeps=False),
    Case("control byte in the target", get(b"?id=1&x=\x01"), 400, keeps=False),
    Case("space in the target", get(b"?id=1 2"), 400, keeps=False),
    Case("bare LF", b"GET /api/verve/accept?id=1 HTTP/1.1\nHost: x\n\n", 400, keeps=False),
    Case("HTTP/0.9", b"GET /api/verve/accept?id=1\r\n\r\n", 200, b"1", keeps=False),
    Case("HTTP/3.7", get(b"?id=1", HOST, b"3.7"), 400, keeps=False),
    Case(
        "two lengths", get(b"?id=1", HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n"), 400, keeps=False
    ),
    Case(
        "length and chunks",
        get(b"?id=1", HOST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"),
        400,
        keeps=False,
    ),
    Case("body", get(b"?id=1", HOST + b"Content-Length: 5\r\n") + b"hello", 413, keeps=False),
    Case(
        "chunked body",
        get(b"?id=1", HOST + b"Transfer-Encoding: chunked\r\n") + b"5\r\nhello\r\n0\r\n\r\n",
        413,
        keeps=False,
    ),
    Case("long target", get(b"?id=1&x=" + b"y" * 9000), 414, keeps=False),
    Case("long field", get(b"?id=1", HOST + b"a: " + b"b" * 9000 + b"\r\n"), 431, keeps=False),
    Case("many more fields", get(b"?id=1", HOST + b"a: b\r\n" * 200), 431, keeps=False),
    Case("other path", b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    Case("path below", b"GET /api/verve/accept/?id=1 HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    Case("POST", b"POST /api/verve/accept?id=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405),
    Case("DELETE", b"DELETE /api/verve/accept?id=1 HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    Case("OPTIONS *", b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    Case("lower-case method", b"get /api/verve/accept?id=1 HTTP/1.1\r\nHost: x\r\n\r\n", 400, keeps=False),
    Case("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, keeps=False),
    Case("TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)), 400, keeps=False),
    Case("garbage", bytes(range(128, 256)) + b"\r\n\r\n", 400, keeps=False),
    Case("health", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    Case("readiness", b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n", 200),
]


@pytest.fixture(scope="module")
def store_url() -> Iterator[str]:
    with servers.RedisServer() as server:
        yield server.url


@pytest.mark.parametrize("door", ["front", "app"])
@pytest.mark.parametrize("step", [None, 1, 7], ids=["whole", "by byte", "by seven"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_both_doors_say_the_same(store_url: str, case: Case, step: int | None, door: str) -> None:
    """Status, body, what is counted, and whether the connection goes on."""
    async with open_doors_before(store_url) as doors:
        wire = await doors.connect(door)
        await wire.send(case.request, step=step)
        answer = await wire.answer()
        assert answer is not None
        assert answer.status == case.status
        assert answer.body == (b"ok" if case.status == 200 else b"failed")
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert answer.headers["Date"]
        assert answer.headers["Server"] in (None, "idagg")
        if case.keeps:
            await wire.send(AFTER)
            after = await wire.answer()
            assert after is not None
            assert after.status == 200
        else:
            assert await wire.closed()
        expected = {number for number in (case.counts, b"777" if case.keeps else None) if number}
        assert await counted(store_url) == expected


@pytest.mark.parametrize("door", ["front", "app"])
@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.keeps and case.request not in NOTHING_BEHIND],
    ids=lambda case: case.name,
)
async def test_what_comes_behind_is_answered_behind(store_url: str, case: Case, door: str) -> None:
    """Requests in one write are answered in their order, whichever door they go through."""
    async with open_doors_before(store_url) as doors:
        wire = await doors.connect(door)
        await wire.send(AFTER + case.request + AFTER + case.request + AFTER)
        statuses = []
        for _ in range(5):
            answer = await wire.answer()
            assert answer is not None
            statuses.append(answer.status)
        assert statuses == [200, case.status, 200, case.status, 200]


@pytest.mark.parametrize("door", ["front", "app"])
async def test_refusals_say_what_to_do(store_url: str, door: str) -> None:
    """405 names the method that is allowed."""
    async with open_doors_before(store_url) as doors:
        wire = await doors.connect(door)
        await wire.send(b"PUT /api/verve/accept?id=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        answer = await wire.answer()
        assert answer is not None
        assert answer.headers["Allow"] == "GET"
