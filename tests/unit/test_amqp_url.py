from __future__ import annotations

import pytest

from idagg.amqp_url import one_per_host
from idagg.errors import UnfitError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://h", ["amqp://h/"]),
        ("amqp://h/", ["amqp://h/"]),
        ("amqps://u:p@h:5673/v", ["amqps://u:p@h:5673/v"]),
        ("amqp://u:p@h1,h2:5673/v", ["amqp://u:p@h1/v", "amqp://u:p@h2:5673/v"]),
        ("amqp://h1:1,h2:65535", ["amqp://h1:1/", "amqp://h2:65535/"]),
        (
            "amqp://[::1]:5673,[fe80::2],10.0.0.1/",
            ["amqp://[::1]:5673/", "amqp://[fe80::2]/", "amqp://10.0.0.1/"],
        ),
        ("amqp://u:p,q@r@h1,h_2/", ["amqp://u:p,q@r@h1/", "amqp://u:p,q@r@h_2/"]),
        ("amqp://h/%2Fv?heartbeat=9&name=a%20b", ["amqp://h/%2Fv?heartbeat=9&name=a%20b"]),
        ("amqp://a,b?auth=EXTERNAL", ["amqp://a/?auth=EXTERNAL", "amqp://b/?auth=EXTERNAL"]),
        (
            "amqps://h/?cafile=/ca.pem&capath=/d&cadata=QUJD&certfile=/c&keyfile=/k",
            ["amqps://h/?cafile=/ca.pem&capath=/d&cadata=QUJD&certfile=/c&keyfile=/k"],
        ),
    ],
)
def test_one_url_for_each_host(url: str, expected: list[str]) -> None:
    """With all that is not the host the same, in their order."""
    assert list(one_per_host(url)) == expected


@pytest.mark.parametrize(
    "url",
    [
        *("", "amqp:", "amqp:/h", "amqp://", "amqp:///v", "redis://h", "AMQP://h", "amqp://u:p@/v", "h:5672"),
        *("amqp://h1,", "amqp://,h2/", "amqp://h1,,h2", "amqp://h1;h2", "amqp://h1, h2", "amqp://h\n"),
        *("amqp://h:0", "amqp://h:65536", "amqp://h:", "amqp://h:a", "amqp://h1:5672:1", "amqp://::1/"),
        *("amqp://[::1", "amqp://h/v#f", "amqp://h/?name=a b"),
    ],
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        one_per_host(url)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("cacertfile=/ca", "'cacertfile' in its query: use cafile"),
        ("ssl_ca_certs=/ca", "'ssl_ca_certs' in its query: use cafile"),
        (
            "no_verify_ssl=1",
            "'no_verify_ssl' in its query: certificates are always verified; cafile names a private CA",
        ),
        (
            "verify=verify_none",
            "'verify' in its query: certificates are always verified; cafile names a private CA",
        ),
        ("timeout=5", "'timeout' in its query: use --amqp-connect-timeout"),
        ("connection_timeout=5", "'connection_timeout' in its query: use --amqp-connect-timeout"),
        ("channel_max=5", "'channel_max' in its query: aiormq has no such parameter"),
        ("heartbeat=0", "'heartbeat' in its query: it is 1 to 999 whole seconds"),
        ("heartbeat=", "'heartbeat' in its query: it is 1 to 999 whole seconds"),
        ("heartbeat=5s", "'heartbeat' in its query: it is 1 to 999 whole seconds"),
        ("heartbeat=5&heartbeat=6", "a parameter occurs twice in its query"),
        ("auth=amqplain", "'auth' in its query: it is plain or external"),
        ("keyfile=/k", "'keyfile' in its query: it needs certfile"),
        ("cadata=%21", "'cadata' in its query: it is not base64"),
    ],
)
def test_what_nothing_would_heed(query: str, sentence: str) -> None:
    """It is refused, with what to write instead."""
    with pytest.raises(UnfitError) as raised:
        one_per_host(f"amqps://h/?{query}")
    assert str(raised.value) == sentence


def test_what_is_for_tls() -> None:
    with pytest.raises(UnfitError, match="'cafile' in its query: that is for amqps://"):
        one_per_host("amqp://h/?cafile=/ca")
