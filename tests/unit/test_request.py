from __future__ import annotations

from urllib.parse import quote_from_bytes, unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idagg.accept.request import (
    MAX_BULK_IDS,
    MAX_ENDPOINT_BYTES,
    TooManyError,
    _decoded,
    canonical_id,
    parse,
    parse_bulk,
)

INT64 = st.integers(-(2**63), 2**63 - 1)


@given(INT64, st.integers(0, 30))
def test_every_int64_is_taken_in_its_shortest_form(number: int, zeros: int) -> None:
    """Leading zeros and minus zero do not make another id."""
    sign = b"-" if number < 0 else b""
    assert canonical_id(sign + b"0" * zeros + b"%d" % abs(number)) == b"%d" % number


@given(st.one_of(st.integers(max_value=-(2**63) - 1), st.integers(min_value=2**63)))
def test_what_does_not_fit_64_bits_is_refused(number: int) -> None:
    """An id has 64 bits with its sign."""
    assert canonical_id(b"%d" % number) is None


@given(st.binary(max_size=30))
def test_only_decimal_digits_make_an_id(value: bytes) -> None:
    """No sign but minus, no space, underscore, or digit of another script."""
    digits = value[1:] if value.startswith(b"-") else value
    plain = bool(digits) and set(digits) <= set(b"0123456789")
    assert (canonical_id(value) is not None) == (plain and -(2**63) <= int(value) < 2**63)


def test_minus_zero_is_zero() -> None:
    """There is one zero."""
    assert canonical_id(b"-0") == b"0"


@given(INT64)
def test_an_id_alone_takes_the_short_way_and_comes_to_the_same(number: int) -> None:
    """The short way for plain ids and the long way agree."""
    raw = b"%d" % number
    assert parse(b"id=" + raw) == parse(b"x=&id=" + raw) == (raw, None)


@pytest.mark.parametrize(
    "query",
    [
        b"",
        b"id",
        b"id=",
        b"ID=1",
        b"id=1&id=1",
        b"id=1&id=2",
        b"id=1&%69d=2",
        b"id=1&i%64=1",
        b"id=1%00",
        b"id=+1",
        b"id=%2B1",
        b"id=%2531",
        b"id=%201",
        b"id=1&endpoint=&endpoint=http://a.example/",
        b"id=1&endpoint=http://a.example/?q=1+2",
        b"id= 1",
        b"id=1_000",
        b"id=1.0",
        b"id=0x1",
        b"id=1e3",
        b"id=--1",
        b"id=-",
        b"id=\xd9\xa1",
        b"id=\xc2\xb2",
        b"id=%D9%A1",
        b"id=" + b"9" * 5000,
        b"id=9223372036854775808",
        b"id=-9223372036854775809",
        b"id=1;id=2",
        b"id=1#",
        b"endpoint=http://a.example/",
        b"id=1&endpoint=http://a.example/&endpoint=http://a.example/",
        b"id=1&endpoint=http://a.example/&end%70oint=http://b.example/",
    ],
)
def test_a_bad_query_is_refused(query: bytes) -> None:
    """Missing, empty, repeated, encoded, foreign and huge ids; repeated and empty endpoints."""
    assert parse(query) is None


@pytest.mark.parametrize(
    ("query", "hit"),
    [
        (b"id=007", (b"7", None)),
        (b"id=%31", (b"1", None)),
        (b"i%64=1", (b"1", None)),
        (b"id=1&x=\xff", (b"1", None)),
        (b"id=1&endpoint=", (b"1", None)),
        (b"id=1&endpoint", (b"1", None)),
        (b"id=1&endpoint=http://a.example/?q=1%2B2", (b"1", b"http://a.example/?q=1+2")),
        (b"id=-5", (b"-5", None)),
        (b"id=0", (b"0", None)),
        (b"id=9223372036854775807", (b"9223372036854775807", None)),
        (b"id=-9223372036854775808", (b"-9223372036854775808", None)),
        (b"a=b&id=1&c", (b"1", None)),
        (b"id=1&", (b"1", None)),
        (b"id=1&%C3%A4=%ff", (b"1", None)),
        (b"endpoint=http://a.example/&id=1", (b"1", b"http://a.example/")),
        (b"id=1&endpoint=http%3A%2F%2Fa.example%2Fx%3Fy%3D1", (b"1", b"http://a.example/x?y=1")),
        (b"id=1&endpoint=http://a.example/x%2520y", (b"1", b"http://a.example/x%20y")),
    ],
)
def test_a_good_query_is_taken(query: bytes, hit: tuple[bytes, bytes | None]) -> None:
    """Ids in canonical form; the endpoint decoded once; unknown parameters ignored."""
    assert parse(query) == hit


@pytest.mark.parametrize(
    "url",
    [
        b"http://a.example",
        b"https://a.example:8443/path;p?q=%41&r=1+2#f",
        b"HTTP://A.example/",
        b"http://localhost/",
        b"http://a_b.example./",
        b"http://192.0.2.1:80/",
        b"http://[2001:db8::1]:8080/x",
        b"http://a.example/" + b"x" * (MAX_ENDPOINT_BYTES - 17),
    ],
)
def test_a_good_endpoint_is_taken(url: bytes) -> None:
    """Absolute http and https URLs, as they are."""
    assert parse(b"id=1&endpoint=" + quote_from_bytes(url).encode()) == (b"1", url)


@pytest.mark.parametrize(
    "url",
    [
        b"a.example",
        b"/path",
        b"//a.example/",
        b"ftp://a.example/",
        b"file:///etc/passwd",
        b"javascript:alert(1)",
        b"gopher://a.example/",
        b"http:",
        b"http://",
        b"http:///path",
        b"http://:80/",
        b"http://user@a.example/",
        b"http://user:password@a.example/",
        b"http://@a.example/",
        b"http://a.example:0/",
        b"http://a.example:65536/",
        b"http://a.example:x/",
        b"http://a.example:-1/",
        b"http://a..example/",
        b"http://.a.example/",
        b"http://a b.example/",
        b"http://a.example/x y",
        b"http://a.example/\r\nX: y",
        b"http://a.example/\x00",
        b"http://a.example/\x7f",
        b"http://a.example\\@b.example/",
        b'http://a.example/"',
        b"http://a.example/<",
        b"http://\xc3\xa4.example/",
        b"http://a.example/\xc3\xa4",
        b"http://[::1/",
        b"http://::1/",
        b"http://[a.example]/",
        b"http://[fe80::1%25eth0]/",
        b"http://[2001:db8::1]x/",
        b"http://a%2eexample/",
        b"http://a.example/" + b"x" * (MAX_ENDPOINT_BYTES - 16),
    ],
)
def test_a_bad_endpoint_is_refused(url: bytes) -> None:
    """Other schemes, no host, userinfo, controls, spaces, raw Unicode, bad ports, and what is too long."""
    assert parse(b"id=1&endpoint=" + quote_from_bytes(url).encode()) is None


@given(
    st.lists(st.sampled_from([b"%", b"2", b"5", b"3", b"A", b"F", b"a", b"f", b":", b"+", b"/"])).map(
        b"".join
    )
)
def test_values_are_decoded_once_as_the_library_does(text: bytes) -> None:
    """Whatever stands beside what is decoded the short way."""
    assert _decoded(text) == unquote_to_bytes(text.replace(b"+", b" "))


@given(st.binary(max_size=60))
def test_any_bytes_get_a_verdict(query: bytes) -> None:
    """No query makes the parser fail."""
    hit = parse(query)
    assert hit is None or hit[0] == b"%d" % int(hit[0])


@given(st.lists(INT64, min_size=1, max_size=50), st.sampled_from(["lines", "json", "strings"]), st.data())
def test_every_form_of_a_bulk_body_says_the_same(numbers: list[int], form: str, data: st.DataObject) -> None:
    """Ids a line, however the lines end, and JSON arrays of integers or strings, with any whitespace."""
    texts = [b"%d" % number for number in numbers]
    if form == "lines":
        zeros = data.draw(st.integers(0, 3))
        padded = [text if text.startswith(b"-") else b"0" * zeros + text for text in texts]
        end = data.draw(st.sampled_from([b"\n", b"\r\n"]))
        body = end.join(padded) + data.draw(st.sampled_from([b"", end]))
    else:
        gap = data.draw(st.sampled_from([b"", b" ", b"\n\t "]))
        items = texts if form == "json" else [b'"%b"' % text for text in texts]
        body = gap + b"[" + gap + (gap + b"," + gap).join(items) + gap + b"]" + gap
    assert parse_bulk(b"", body) == (texts, None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n",
        b"1\n\n2",
        b"1 2",
        b"1,2",
        b"1\nx",
        b"1\n9223372036854775808",
        b"[]",
        b"[1,]",
        b"[1 2]",
        b"[1.0]",
        b"[1e3]",
        b"[true]",
        b"[null]",
        b"[[1]]",
        b"[9223372036854775808]",
        b"[1,\x0b2]",
        b'["1", " 2"]',
        b'["\xd9\xa1"]',
        b"[1] [2]",
        b'{"ids": [1]}',
    ],
)
def test_a_bad_bulk_body_is_refused(body: bytes) -> None:
    """One bad id refuses all, whichever way it is written."""
    assert parse_bulk(b"", body) is None


def test_a_bulk_has_a_largest_number_of_ids() -> None:
    """As many as the store takes in one batch, in any form."""
    for form, between in ((b"%b", b"\n"), (b"[%b]", b",")):
        assert parse_bulk(b"", form % between.join([b"1"] * MAX_BULK_IDS)) == ([b"1"] * MAX_BULK_IDS, None)
        with pytest.raises(TooManyError):
            parse_bulk(b"", form % between.join([b"1"] * (MAX_BULK_IDS + 1)))


@pytest.mark.parametrize("body", [b"0\n" * 5000, b"[" + b"0," * 5000 + b"0]", b"-1\r\n" * 5000])
def test_too_many_are_refused_before_they_are_looked_at(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them takes the long way, and 128 KiB of them would hold up everybody."""
    monkeypatch.setattr("idagg.accept.request.canonical_id", lambda _: pytest.fail("looked at"))
    with pytest.raises(TooManyError):
        parse_bulk(b"", body)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (b"", ([b"7"], None)),
        (b"x=y", ([b"7"], None)),
        (b"endpoint=", ([b"7"], None)),
        (b"endpoint=http%3A%2F%2Fa%2F", ([b"7"], b"http://a/")),
        (b"endpoint=ftp://a/", None),
        (b"id=7", None),
        (b"i%64=7", None),
    ],
)
def test_the_query_of_a_bulk(query: bytes, found: tuple[list[bytes], bytes | None] | None) -> None:
    """It names the endpoint; an id beside those of the body is ambiguous."""
    assert parse_bulk(query, b"7") == found


@given(st.binary(max_size=60), st.sampled_from([b"", b"[", b'["']))
def test_any_body_gets_a_verdict(body: bytes, begin: bytes) -> None:
    """No body makes the parser fail."""
    found = parse_bulk(b"", begin + body)
    assert found is None or all(number == b"%d" % int(number) for number in found[0])
