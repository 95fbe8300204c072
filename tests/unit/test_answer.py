from __future__ import annotations

import re
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from idagg.deliver.answer import RETRIED, Answer, AnswerError, AnswerReader

LIMIT = 256  # bytes, so that generated answers reach it


def read(chunks: Iterable[bytes], max_bytes: int = LIMIT) -> Answer | str:
    """What is made of an answer that comes in ``chunks`` and then ends: itself, or an error in words."""
    reader = AnswerReader(max_bytes)
    try:
        for chunk in chunks:
            if answer := reader.feed(chunk):
                assert reader.so_far == answer
                return answer
        return reader.eof()
    except AnswerError as error:
        return str(error)


def by_bytes(data: bytes) -> Iterable[bytes]:
    return (data[n : n + 1] for n in range(len(data)))


line_ends = st.sampled_from([b"\r\n", b"\n"])
statuses = st.integers(95, 605) | st.sampled_from([100, 101, 103, 200, 302, 429, 503])
fields = st.sampled_from(
    [
        *(b"Retry-After: 7", b"RETRY-AFTER:\t120 ", b"Location: /a:b", b"location:", b"Content-Length: 1"),
        *(b"X: " + 90 * b"x", b"no field", b": ", b" Location: /folded", b"Location : /spaced", b"\xff\0"),
    ]
)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    end = draw(line_ends)
    status = draw(st.sampled_from([b"HTTP/1.1 %d OK", b"HTTP/1.0 %d", b"HTTP/2 %d OK", b"http/1.1 %d OK"]))
    lines = [status % draw(statuses), *draw(st.lists(fields, max_size=5)), b""]
    return b"".join(line + end for line in lines)


answers = st.lists(heads(), max_size=4).map(b"".join) | st.binary(max_size=80)


@st.composite
def cut(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    data = draw(answers) + draw(st.binary(max_size=2 * LIMIT))
    data = data[: draw(st.integers(0, len(data)))]
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return data, [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def model(data: bytes) -> Answer | str:
    """The same by another way: over the whole of the bytes."""
    seen = data[:LIMIT]
    while True:
        line, ended, rest = seen.partition(b"\n")
        found = re.fullmatch(rb"HTTP/1\.\d ([1-5]\d\d)( .*)?", line.removesuffix(b"\r"), re.DOTALL)
        if not ended:
            if b"HTTP/1." not in (line[:7], (line + b"HTTP/1."[len(line) :])[:7]):
                return "not an HTTP answer"
            return "answer too long" if len(data) >= LIMIT else "connection closed"
        if not found:
            return "not an HTTP answer"
        status = int(found[1])
        head = re.match(rb"(?s)(.*?\n)??\r?\n", rest)
        if status >= 200 or status == 101:
            if not (300 <= status < 400 or status in RETRIED):
                return Answer(status)
            whole = head[0] if head else rest[: rest.rfind(b"\n") + 1]
            values = {
                name: re.search(rb"(?im)^%b:(.*)$" % name, whole.replace(b"\r\n", b"\n"))
                for name in (b"retry-after", b"location")
            }
            told = [value and value[1].strip(b" \t").decode("latin-1") for value in values.values()]
            return Answer(status, *told)
        if not head:
            return "answer too long" if len(data) >= LIMIT else "connection closed"
        seen = rest[head.end() :]


@given(cut())
@example((b"HTTP/1.1 503 a\r\nRetry-After: 7\r\n\r\n", [b"HTTP/1.1 503 a\r\nRetry-After: 7\r", b"\n\r\n"]))
def test_any_split(data: tuple[bytes, list[bytes]]) -> None:
    """However an answer is cut, it means the same: what a reader of the whole makes of it."""
    whole, chunks = data
    assert read([whole]) == read(chunks) == read(by_bytes(whole)) == model(whole)


@pytest.mark.parametrize("status", [101, 200, 204, 226, 299, 400, 401, 404, 410, 499])
def test_at_once(status: int) -> None:
    """A status that ends the callback is the answer as soon as its line is whole."""
    reader = AnswerReader()
    assert reader.feed(b"HTTP/1.1 %d Whatever\r" % status) is None
    assert reader.so_far is None
    assert reader.feed(b"\n") == Answer(status)


@pytest.mark.parametrize("status", [300, 301, 302, 307, 308, 408, 425, 429, 500, 503, 599])
def test_whole_head(status: int) -> None:
    """For a redirect and a retried status, where to and when stand in the head; meanwhile it can be told."""
    reader = AnswerReader()
    assert reader.feed(b"HTTP/1.1 %d Whatever\r\nRetry-After: 7\r\nLocation: /a" % status) is None
    assert reader.so_far == Answer(status, "7")
    assert reader.feed(b"b\r\n") is None
    assert reader.feed(b"\r\nbody") == Answer(status, "7", "/ab")
    assert reader.feed(b"HTTP/1.1 200 OK\r\n") == Answer(status, "7", "/ab")


def test_the_first_counts() -> None:
    """Of a field that stands twice, the first is told."""
    head = b"HTTP/1.1 503 No\r\nRetry-After: 7\r\nretry-after: 9\r\n\r\n"
    assert AnswerReader().feed(head) == Answer(503, "7")


def test_every_head() -> None:
    """A head can be asked for whatever its status is."""
    reader = AnswerReader(whole_head=True)
    assert reader.feed(b"HTTP/1.1 200 Connection established\r\n") is None
    assert reader.feed(b"\r\n") == Answer(200)


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"HTTP/1.1 200 OK\r\nX: " + 100_000 * b"x" + b"\r\n\r\n", 200),
        (b"HTTP/1.1 200 OK\r\n" + 1000 * b"X: x\r\n" + b"\r\n", 200),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", 200),
        (b"HTTP/1.1 200 OK\r\n\0\xff\r\n garbage", 200),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n" + 100_000 * b"a: b\r\n", 200),
        (b"HTTP/1.0 204\n", 204),
        (
            b"HTTP/1.1 100 Continue\r\n\r\n" + b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 201 \n",
            201,
        ),
        (b"HTTP/1.1 503 Busy\r\nX: " + 100_000 * b"x" + b"\r\nRetry-After: 9\r\n\r\n", 503),
        (1000 * b"HTTP/1.1 100 Continue\r\n\r\n", "answer too long"),
        (b"HTTP/1.1 100 Continue\r\n" + 3000 * b"X: x\r\n", "answer too long"),
        (b"HTTP/1.1 200 " + 100_000 * b"O", "answer too long"),
        (b"", "connection closed"),
        (b"HTTP/1.1 20", "connection closed"),
        (b"HTTP/1.1 200 OK", "connection closed"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "connection closed"),
        (b"220 mail.example.com", "not an HTTP answer"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "not an HTTP answer"),
        (b"\r\nHTTP/1.1 200 OK\r\n", "not an HTTP answer"),
        (b"HTTP/1.1 099 OK\r\n", "not an HTTP answer"),
        (b"HTTP/1.1 600 OK\r\n", "not an HTTP answer"),
        (b"HTTP/1.1 2000 OK\r\n", "not an HTTP answer"),
        (b"HTTP/1.1 20\r\n", "not an HTTP answer"),
        (b"HTTP/1.1  200 OK\r\n", "not an HTTP answer"),
        (b"HTTP/3.0 200 OK\r\n", "not an HTTP answer"),
    ],
)
def test_bounds(data: bytes, answer: int | str) -> None:
    """Nothing that follows the status line takes the status back, and nothing goes on without end."""
    expected = answer if isinstance(answer, str) else Answer(answer)
    assert read([data], 16_384) == expected
    assert read([data[:-1], data[-1:]], 16_384) == expected


def test_the_limit_is_exact() -> None:
    """Interim answers count, and a status line that ends with the last byte allowed is still one."""
    data = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"
    assert read([data], len(data)) == Answer(200)
    assert read([data], len(data) - 1) == "answer too long"
    head = b"HTTP/1.1 429 Later\r\nRetry-After: 7\r\nLocation: /"
    assert read([head + b"a\r\n\r\n"], len(head)) == Answer(429, "7")
