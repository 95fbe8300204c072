"""The two judges of a head, and where a body ends."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from idagg.accept.body import BodyReader
from idagg.accept.head import (
    CLOSING,
    FAST,
    MAX_FIELDS,
    MAX_HEAD_BYTES,
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
from idagg.accept.request import MAX_BULK_BYTES, canonical_id

FIELDS = [
    b"Host: a.example",
    b"Host:a",
    b"host: a:80",
    b"Host: a:99999",
    b"Host: [::1]",
    b"Host: a b",
    b"Host:",
    b"X-Request-Id: 7",
    b"User-Agent: a\tb\xa4",
    b"Cookie: a=b; c=d",
    b"Connection: close",
    b"connection:close",
    b"Connection: Keep-Alive, close",
    b"Connection: closer",
    b"Connection: keep-alive",
    b"Connection: Upgrade, HTTP2-Settings",
    b"Upgrade: h2c",
    b"Content-Length: 0",
    b"content-length:0",
    b"Content-Length: 00",
    b"Content-Length: 5",
    b"Content-Type: text/plain",
    b"Transfer-Encoding: chunked",
    b"Expect: 100-continue",
    b"Expect: x",
    b"Expires: 0",
    b"No colon",
    b"Space : x",
    b" folded",
    b"Nul: \0",
    b"Lf: \n",
    b"Cr: \r",
]
TARGETS = [
    b"/api/verve/accept?id=1",
    b"/api/verve/accept?id=007",
    b"/api/verve/accept?",
    b"/api/verve/accept",
    b"/api/verve/accept?id=1&x=\xff",
    b"/api/verve/accept?id=1\0",
    b"/api/verve/accept?id=1 2",
    b"/api/verve/accept?id=1\r\nX: y",
    b"/nothing?id=1",
    b"*",
]
LINES = st.tuples(
    st.sampled_from([b"GET", b"GET", b"POST", b"get"]),
    st.sampled_from(TARGETS),
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"http/1.1"]),
).map(b" ".join)
BEGIN = b"GET /api/verve/accept?id=1 HTTP/1.1\r\nHost: a\r\n"
HEADS = st.one_of(
    st.tuples(LINES, st.lists(st.sampled_from(FIELDS), max_size=6)).map(
        lambda parts: b"\r\n".join([parts[0], *parts[1], b"", b""])
    ),
    st.binary(max_size=80),
    st.binary(max_size=60).map(lambda some: BEGIN + some + b"\r\n\r\n"),
)


def verdict(head: bytes) -> Head | int:
    try:
        return judge(head)
    except RefusedError as error:
        return error.status


def is_whole(head: bytes) -> bool:
    """Whether it is one head, and nothing behind it."""
    return head.find(b"\r\n\r\n") + 4 == len(head)


@given(HEADS)
@example(BEGIN + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n")
@example(BEGIN.replace(b"Host", b"Content-Length: 0\r\nHost") + b"Content-Length:0\r\n\r\n")
def test_the_fast_judge_never_differs(head: bytes) -> None:
    """What it takes is a plain accept request with the same query and style to the other judge, too."""
    match = FAST(head, 0, MAX_LINE_BYTES)
    if match is not None and is_whole(head):
        assert match.end() == len(head)
        found = judge(head)
        assert (found.query, found.style) == (query_of(match), Style.KEEP)
        if match.lastindex == PLAIN:
            assert canonical_id(match[PLAIN]) == match[PLAIN]
    match = CLOSING(head)
    if match is not None and is_whole(head):
        found = judge(head)
        assert (found.query, found.style) == (query_of(match), Style.CLOSE)


PLAIN_HEAD = b"GET /api/verve/accept?%b HTTP/1.1\r\n%bHost: a.example:64999\r\n%b\r\n"
JAVA = b"Connection: Upgrade, HTTP2-Settings\r\nContent-Length: 0\r\n"


@pytest.mark.parametrize(
    ("query", "before", "behind", "lastindex"),
    [
        (b"id=1", b"", b"", 1),
        (b"id=1", b"x-request-id: 1\r\n", b"Cookie: a=b\r\nConnection: keep-alive\r\n", 1),
        (b"id=1", JAVA, b"Upgrade: h2c\r\n", 1),
        (b"id=1&x", b"", b"Upgrade-Insecure-Requests: 1\r\nContent-Type: x\r\n", 2),
        (b"id=007", b"", b"", 2),
        (b"id=1234567890123456789", b"", b"", 2),
    ],
)
def test_the_fast_judge_takes_what_clients_and_balancers_send(
    query: bytes, before: bytes, behind: bytes, lastindex: int
) -> None:
    """In any order of fields, in any case of letters; Java's client, which offers HTTP/2, included. And so
    it does where the connection is to be closed."""
    head = PLAIN_HEAD % (query, before, behind)
    match = FAST(b"xyz" + head + head, 3, 3 + MAX_LINE_BYTES)
    assert match is not None
    assert (match.end(), match.lastindex, query_of(match)) == (3 + len(head), lastindex, query)
    assert CLOSING(head) is None
    for close in (b"Connection: close\r\n", b"connection:CLOSE\r\n"):
        for closing in (
            PLAIN_HEAD % (query, close + before, behind),
            PLAIN_HEAD % (query, before, behind + close),
        ):
            assert FAST(closing) is None
            match = CLOSING(closing)
            assert match is not None
            assert query_of(match) == query


@pytest.mark.parametrize("count", [1, 30, 126, 127, 128, 190])
@pytest.mark.parametrize("close", [b"", b"Connection: close\r\n"])
def test_the_fast_judge_takes_no_more_fields_than_the_other(close: bytes, count: int) -> None:
    """Wherever they are among those that decide something."""
    lines = [b"a:\r\n"] * count
    for behind_host in range(0, count + 1, 5):
        for at in range(behind_host, count + 1, 5):
            parts = [*lines[:behind_host], b"Host: a\r\n", *lines[behind_host:at], close, *lines[at:]]
            head = b"GET /api/verve/accept?id=1 HTTP/1.1\r\n" + b"".join(parts) + b"\r\n"
            if FAST(head) or CLOSING(head):
                assert isinstance(verdict(head), Head)


PIECES = [
    b"a",
    b"a:",
    b"a: b\r\n",
    b"Host: a\r\n",
    b"Connection: close",
    b"Content-Length: 0\r\n",
    b"\r\n",
    b"=&",
    b" ",
]


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize(
    "begin", [BEGIN, b"GET /api/verve/accept?", b"GET /x HTTP/1.1\r\nContent-Length: 0\r\n"]
)
def test_no_head_takes_long_to_judge(begin: bytes, piece: bytes) -> None:
    """Nothing in it takes the square of its length: that would be a hundred times this bound."""
    head = (begin + piece * MAX_HEAD_BYTES)[:MAX_HEAD_BYTES]
    began_s = time.thread_time()
    for _ in range(10):
        FAST(head)
        CLOSING(head)
        verdict(head + b"\r\n\r\n")
        with contextlib.suppress(RefusedError):
            check_begun(head)
    assert time.thread_time() - began_s < 10  # a host may charge the thread for what it took itself


@given(HEADS)
def test_no_beginning_of_a_good_head_is_refused(head: bytes) -> None:
    """However it is cut."""
    if isinstance(verdict(head), Head) and is_whole(head):
        for cut in range(len(head)):
            check_begun(head[:cut])


@pytest.mark.parametrize(
    ("begun", "status"),
    [
        (b"GET /" + b"x" * MAX_LINE_BYTES, 414),
        (b"GET /x HTTP/1.1\r\nX: " + b"y" * MAX_LINE_BYTES, 431),
        (b"GET /x HTTP/1.1\r\n" + b"X: y\r\n" * 6000, 431),
        (b"GET /x HTTP/1.1\nHost: a\n\n", 400),
        (b"GET /x HTTP/1.1\r\nHost: a\n", 400),
        (b"\x16\x03\x01", 400),
        (b"PRI * HTTP/2.0\r\n", 505),
        (b"GET /x\r\n", 400),
    ],
)
def test_what_can_become_no_request_is_refused_before_its_end(begun: bytes, status: int) -> None:
    """The client need not wait, and idagg need not keep it."""
    with pytest.raises(RefusedError) as caught:
        check_begun(begun)
    assert caught.value.status == status


def test_a_head_has_a_largest_number_of_fields() -> None:
    """MAX_FIELDS, Host included."""
    for count, expected in ((MAX_FIELDS - 1, True), (MAX_FIELDS, False)):
        head = b"GET /x HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * count + b"\r\n"
        assert isinstance(verdict(head), Head) == expected


def test_the_fallback_app_hears_of_the_request_alone() -> None:
    """Fields, forms and versions are not its affair; raw bytes in the target are encoded."""
    found = judge(
        b"POST /\xa4?\xff HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: x\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\nTE: trailers\r\n"
        b"Expect: 100-continue\r\nX: y\r\n\r\n"
    )
    assert (found.length, found.expects, found.style) == (Body.CHUNKED, True, Style.CLOSE)
    assert found.message(b"5") == b"POST /%A4?%FF HTTP/1.1\r\nHost: idagg\r\nContent-Length: 1\r\n\r\n5"
    assert judge(b"get http://a:80?x HTTP/1.0\r\n\r\n").message(b"").startswith(b"PATCH /?x HTTP/1.1\r\n")


def head_of(length: int, method: bytes = b"POST") -> Head:
    return Head(method, b"/", Style.KEEP, length, expects=False)


@given(
    st.lists(st.binary(min_size=1, max_size=20), max_size=8),
    st.lists(st.sampled_from([b"", b";a=b", b" ; a", b";\xff"]), min_size=9, max_size=9),
    st.lists(st.sampled_from([b"X: y\r\n", b"Z:\r\n"]), max_size=2),
    st.binary(max_size=10),
    st.integers(1, 30),
)
def test_a_body_ends_where_it_ends(
    parts: list[bytes], extensions: list[bytes], trailers: list[bytes], behind: bytes, step: int
) -> None:
    """In chunks or by its length, in whatever pieces it arrives: its content, and what comes behind."""
    content = b"".join(parts)
    chunked = b"".join(
        b"%X%b\r\n%b\r\n" % (len(part), extension, part)
        for part, extension in zip(parts, extensions, strict=False)
    )
    chunked += b"0%b\r\n%b\r\n" % (extensions[-1], b"".join(trailers))
    for length, sent in ((Body.CHUNKED, chunked), (len(content), content)):
        if not length:
            continue
        reader = BodyReader(head_of(length))
        for start in range(0, len(sent), step):
            piece = sent[start : start + step]
            last = start + step >= len(sent)
            assert reader.feed(piece + behind if last else piece) == (behind if last else None)
        assert reader.content == content


@given(st.binary(max_size=60))
def test_any_bytes_of_a_body_get_a_verdict(data: bytes) -> None:
    """Also in pieces, with the same result."""

    def read(step: int) -> tuple[bytes, bytes | None] | int:
        reader = BodyReader(head_of(Body.CHUNKED))
        for start in range(0, len(data), step):
            try:
                behind = reader.feed(data[start : start + step])
            except RefusedError as error:
                return error.status
            if behind is not None:
                return bytes(reader.content), behind + data[start + step :]
        return bytes(reader.content), None

    assert read(len(data) or 1) == read(1)


def test_a_body_has_a_largest_size() -> None:
    """Said or sent; and a request that has none may not send one."""
    BodyReader(head_of(MAX_BULK_BYTES))
    for head in (head_of(MAX_BULK_BYTES + 1), head_of(1, b"GET"), head_of(1, b"PUT")):
        with pytest.raises(RefusedError):
            BodyReader(head)
    for size, method in ((MAX_BULK_BYTES + 1, b"POST"), (1, b"GET")):
        with pytest.raises(RefusedError) as caught:
            BodyReader(head_of(Body.CHUNKED, method)).feed(b"%x\r\n" % size)
        assert caught.value.status == 413
