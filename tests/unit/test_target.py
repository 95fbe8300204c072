from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idagg.accept.request import canonical_endpoint
from idagg.deliver.target import Proxy, Target


@pytest.mark.parametrize(
    ("endpoint", "target", "authority"),
    [
        ("http://a.example", Target(False, "a.example", 80, b"/"), b"a.example"),
        ("HTTPS://A.Example./X", Target(True, "a.example.", 443, b"/X"), b"a.example."),
        ("http://a:80", Target(False, "a", 80, b"/"), b"a"),
        ("http://a:080/", Target(False, "a", 80, b"/"), b"a"),
        ("http://a:/", Target(False, "a", 80, b"/"), b"a"),
        ("https://a:", Target(True, "a", 443, b"/"), b"a"),
        ("https://a:80", Target(True, "a", 80, b"/"), b"a:80"),
        ("http://a:443", Target(False, "a", 443, b"/"), b"a:443"),
        ("http://a:65535?x", Target(False, "a", 65_535, b"/?x"), b"a:65535"),
        ("http://a:8080", Target(False, "a", 8080, b"/"), b"a:8080"),
        (
            "http://[::FFFF:1.2.3.4]:8080/",
            Target(False, "::ffff:1.2.3.4", 8080, b"/"),
            b"[::ffff:1.2.3.4]:8080",
        ),
        ("https://[::1]#top", Target(True, "::1", 443, b"/"), b"[::1]"),
        ("http://0x5db8d822", Target(False, "0x5db8d822", 80, b"/"), b"0x5db8d822"),
        ("http://a/x?y=http://b/#z?", Target(False, "a", 80, b"/x?y=http://b/"), b"a"),
    ],
)
def test_parse(endpoint: str, target: Target, authority: bytes) -> None:
    """An endpoint is taken apart as browsers do; its Host field names no port that goes without saying."""
    assert Target.parse(endpoint) == target
    assert target.authority == authority


@pytest.mark.parametrize(
    "endpoint",
    [
        *(
            "",
            "a.example",
            "//a",
            "ftp://a",
            "http://",
            "http:///x",
            "http://:80",
            "http://u@a",
            "http://a:b@c",
        ),
        *("http://a:0", "http://a:65536", "http://a:123456", "http://a:-1", "http://[::1", "http://::1"),
        *(
            "http://a b",
            "http://a/x y",
            "http://a/\r\nX: y",
            "http://a\n",
            "http://ä",
            "http://a/ä",
            "http://a..b",
        ),
        *("http://.a", f"http://{64 * 'a'}", "http://[fe80::1%25eth0]", "http://a\\b", "http://%31"),
    ],
)
def test_no_target(endpoint: str) -> None:
    """What no accepted endpoint looks like is refused."""
    with pytest.raises(ValueError, match=r"^not "):
        Target.parse(endpoint)


@pytest.mark.parametrize(
    ("endpoint", "path"),
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
        ("/%7e/%2F/a%20b?x=%7E&y=%2b+%26", "/%7e/%2F/a%20b?x=%7E&y=%2b+%26&count=4000"),
        ("/a/../b/./c;d=1?q=a/b?c:@!$'()*,;", "/a/../b/./c;d=1?q=a/b?c:@!$'()*,;&count=4000"),
    ],
)
def test_count(endpoint: str, path: str) -> None:
    """The count comes last in the query, the fragment stays here, the rest is the endpoint's to the byte."""
    assert Target.parse(f"http://a{endpoint}").with_count(4000).path == path.encode()


labels = st.text("aZ09-_", min_size=1, max_size=4)
hosts = st.lists(labels, min_size=1, max_size=3).map(".".join) | st.ip_addresses(v=6).map(
    lambda ip: f"[{ip}]"
)
ports = st.just("") | st.integers(0, 70_000).map(":{}".format) | st.sampled_from([":", ":080", ":00443"])
rests = st.just("") | st.builds(
    str.__add__, st.sampled_from("/?#"), st.text('aZ/?#&=%25;:@!~[]\\" \r\n', max_size=9)
)


@given(st.builds("{}://{}{}{}".format, st.sampled_from(["http", "HttpS", "ws"]), hosts, ports, rests))
def test_takes_what_the_api_accepts(endpoint: str) -> None:
    """Every endpoint that the API accepts is a target, and nothing in it breaks a line of the request."""
    if canonical_endpoint(endpoint.encode()) is not None:
        target = Target.parse(endpoint)
        assert target.path.startswith(b"/")
        assert not set(target.path + target.authority) & set(b" \r\n#")


@pytest.mark.parametrize(
    ("url", "host", "port", "field"),
    [
        ("http://proxy.example:3128", "proxy.example", 3128, b""),
        ("http://[::1]:8080/", "::1", 8080, b""),
        ("http://ida:hunter2@h:1", "h", 1, b"Proxy-Authorization: Basic aWRhOmh1bnRlcjI=\r\n"),
        ("http://i%3Aa:p%40%25:x@h:1", "h", 1, b"Proxy-Authorization: Basic aTphOnBAJTp4\r\n"),
        ("http://ida@h:1", "h", 1, b"Proxy-Authorization: Basic aWRhOg==\r\n"),
    ],
)
def test_proxy(url: str, host: str, port: int, field: bytes) -> None:
    """A proxy's URL has its credentials percent-encoded; what prints a proxy does not print them."""
    proxy = Proxy.parse(url)
    assert (proxy.host, proxy.port, proxy.field) == (host, port, field)
    assert "hunter2" not in repr(proxy)


@pytest.mark.parametrize(
    "url", ["", "h:1", "http://h", "https://h:1", "http://h:0", "http://h:65536", "http://h:1/x"]
)
def test_no_proxy(url: str) -> None:
    """What is not the URL of a proxy is refused."""
    with pytest.raises(ValueError, match=r"^not "):
        Proxy.parse(url)
