"""However an endpoint spells an address that is not public, not one packet goes there."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

INWARD = [
    *("127.0.0.1", "127.255.255.254", "10.0.0.1", "10.255.255.254", "172.16.0.1", "172.31.255.254"),
    *("192.168.0.1", "192.168.255.254", "169.254.169.254", "169.254.0.1", "100.64.0.1", "100.100.100.200"),
    *("168.63.129.16", "192.0.0.192", "0.0.0.0", "0.1.2.3", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
]
INWARD6 = [
    *("::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1", "2001:10::1"),
    *("64:ff9b:1::1", "100::1", "5f00::1"),
]
PUBLIC = "93.184.216.34"
PUBLIC6 = "2606:2800:220:1::1"
ONE = int(ipaddress.IPv4Address("1.1.1.1"))


class Call(NamedTuple):
    """What became of an endpoint, and which addresses were dialled for it."""

    endpoint: str
    outcome: str
    dialled: list[str]


def numbers(text: str) -> Iterator[str]:
    """An IPv4 address in every form that resolvers of old, or browsers, read."""
    a, b, c, d = ipaddress.IPv4Address(text).packed
    whole = int(ipaddress.IPv4Address(text))
    yield text
    yield f"{text}."
    yield f"{whole}"
    yield f"0x{whole:x}"
    yield f"0X{whole:08X}"
    yield f"0{whole:o}"
    yield f"0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}"
    yield f"0{a:o}.0{b:o}.0{c:o}.0{d:o}"
    yield f"000{a:o}.{b}.0x{c:02x}.{d}"
    yield f"{a}.{b << 16 | c << 8 | d}"
    yield f"{a}.{b}.{c << 8 | d}"
    yield f"0x{a:x}.{b << 16 | c << 8 | d}"


def embedded(text: str) -> Iterator[ipaddress.IPv6Address]:
    """The IPv6 addresses that lead to an IPv4 address."""
    whole = int(ipaddress.IPv4Address(text))
    for number in (
        0xFFFF << 32 | whole,  # IPv4-mapped
        whole,  # IPv4-compatible
        0x64FF9B << 96 | whole,  # NAT64
        0x64FF9B0001 << 80 | whole,  # NAT64, of local use
        0x2002 << 112 | whole << 80 | 1,  # 6to4
        0x20010000 << 96 | ONE << 64 | (whole ^ 0xFFFFFFFF),  # Teredo, the client
        0x20010000 << 96 | whole << 64 | (ONE ^ 0xFFFFFFFF),  # Teredo, the server
    ):
        yield ipaddress.IPv6Address(number)


def name(*addresses: str) -> str:
    """One that the canary's name server has for these."""
    parsed = [ipaddress.ip_address(address) for address in addresses]
    return ".and.".join(f"{'a' if ip.version == 4 else 'b'}{ip.packed.hex()}" for ip in parsed)


def spellings() -> Iterator[str]:
    for text in INWARD:
        yield from (f"http://{host}/" for host in numbers(text))
        yield f"http://[::ffff:{text}]/"
        yield f"https://[::FFFF:{text}]:8080/x?y"
        for ip in embedded(text):
            yield f"http://[{ip}]:080/"
            yield f"HTTP://[{ip.exploded.upper()}]"
            yield f"http://{name(str(ip))}.test/"
        yield f"http://{name(text)}.test:8080/"
        yield f"https://{name(text).upper()}.Test./"
        yield f"http://alias-{name(text)}.test/"
        yield f"http://{name(text, '10.9.8.7', '::1')}.test/"
    for text in INWARD6:
        yield f"http://[{text}]/"
        yield f"https://[{ipaddress.IPv6Address(text).exploded.upper()}]:443"
        yield f"http://{name(text)}.test/"
        yield f"http://[{text}%25lo]/"
        yield f"http://[{text}%lo]/"
    for host in (
        "localhost",
        "LocalHost",
        "localhost.",
        "ip6-localhost",
        "localhost.localdomain",
        "a.localhost",
    ):
        yield f"http://{host}/"
    yield from (
        f"http://{PUBLIC}@127.0.0.1/",
        f"http://{PUBLIC}:80@127.0.0.1/",
        f"http://127.0.0.1#@{PUBLIC}/",
        f"http://127.0.0.1?@{PUBLIC}/",
        f"http://127.0.0.1\\@{PUBLIC}/",
        f"http://{PUBLIC}\\@127.0.0.1/",
        "http://%31%32%37.0.0.1/",
        "http://127%2e0%2e0%2e1/",
        "http://127。0。0。1/",
        "http://①②⑦.⓪.⓪.①/",
        "http://127.0.0.1/",
        "http://ⓛocalhost/",
        "http://127.0.0.1\t/",
        "http://127.0.0.1 /",
        "http:127.0.0.1/",
        "http:/127.0.0.1/",
        "http:///127.0.0.1/",
        "//127.0.0.1/",
        "http://127.0.0.1:80:80/",
        "http://127.0.0.1:0/",
        "http://127.0.0.1:65616/",
        "http://[127.0.0.1]/",
        "http://[::1]:80]/",
        "http://::1/",
        "http://127..0.0.1/",
        "http://.127.0.0.1/",
        "ftp://127.0.0.1/",
        "file://127.0.0.1/etc/passwd",
        "gopher://127.0.0.1:80/_",
    )


def called(endpoints: Sequence[str], allow: Sequence[str] = ()) -> list[Call]:
    if os.geteuid() != 0:
        pytest.fail("this test makes network namespaces: run it as root")
    done = subprocess.run(
        [
            *("unshare", "--user", "--map-root-user", "--net", "--mount"),
            *(sys.executable, Path(__file__).with_name("canary.py")),
        ],
        input=json.dumps([allow, endpoints]),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [Call(*told) for told in json.loads(done.stdout)]


def test_canary() -> None:
    """No spelling of an inward address brings a packet anywhere; without the guard, hundreds do."""
    endpoints = list(dict.fromkeys(spellings()))
    calls = called(endpoints)
    assert [call.endpoint for call in calls] == endpoints
    assert [call for call in calls if call.dialled] == []
    assert {call.outcome for call in calls} == {"not accepted", "blocked", "not resolved"}
    arrived = [call for call in called(endpoints, ["0.0.0.0/0", "::/0"]) if call.dialled]
    assert len(arrived) >= 150


def test_public() -> None:
    """The canary is alive: every spelling of a public address brings a connection there, and is answered."""
    hosts = [
        *numbers(PUBLIC),
        f"[{PUBLIC6}]",
        f"[::ffff:{PUBLIC}]",
        f"[64:ff9b::{PUBLIC}]",
        f"{name(PUBLIC)}.test",
    ]
    for call in called([f"http://{host}/" for host in hosts]):
        assert call.outcome == "200", call
        assert call.dialled, call
        for address in call.dialled:
            assert address in (PUBLIC, PUBLIC6, "64:ff9b::5db8:d822"), call


def test_mixed() -> None:
    """Of a name's addresses none but the public ones are dialled."""
    mixed = f"http://{name('127.0.0.1', PUBLIC, '10.0.0.1', '::1', PUBLIC6)}.test/"
    [call] = called([mixed])
    assert call.outcome == "200"
    assert set(call.dialled) == {PUBLIC, PUBLIC6}


@pytest.mark.parametrize("inward", ["127.0.0.1", "169.254.169.254", "10.0.0.1"])
def test_rebinding(inward: str) -> None:
    """A name that is public when it is judged, and inward when asked for again, is dialled as judged."""
    endpoint = f"http://{name(PUBLIC)}.then.{name(inward)}.test/"
    calls = called(5 * [endpoint])
    assert [call.outcome for call in calls] == ["200", *(4 * ["blocked"])]
    assert [call.dialled for call in calls] == [[PUBLIC], [], [], [], []]
