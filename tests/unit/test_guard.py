from __future__ import annotations

import ipaddress
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idagg.deliver.guard import Guard, dialled, refused_port

REFUSED = {
    "0.0.0.0": "unspecified",
    "0.1.2.3": "unspecified",
    "10.0.0.1": "private",
    "100.64.0.1": "shared",
    "100.100.100.200": "cloud metadata",
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "168.63.129.16": "cloud metadata",
    "169.254.1.1": "link-local",
    "169.254.169.254": "cloud metadata",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.0.0.192": "cloud metadata",
    "192.0.0.8": "reserved",
    "192.0.2.1": "documentation",
    "192.88.99.1": "reserved",
    "192.168.0.1": "private",
    "198.18.0.1": "benchmarking",
    "198.51.100.1": "documentation",
    "203.0.113.1": "documentation",
    "224.0.0.1": "multicast",
    "239.255.255.250": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "reserved",
    "::": "unspecified",
    "::1": "loopback",
    "::2": "unspecified",  # the IPv4-compatible form of 0.0.0.2
    "::127.0.0.1": "loopback",
    "::ffff:127.0.0.1": "loopback",
    "::ffff:7f00:1": "loopback",
    "::ffff:169.254.169.254": "cloud metadata",
    "::ffff:0:127.0.0.1": "reserved",  # IPv4-translated, RFC 2765
    "64:ff9b::127.0.0.1": "loopback",
    "64:ff9b::168.63.129.16": "cloud metadata",
    "64:ff9b:1::1.1.1.1": "private",
    "100::1": "reserved",
    "2001:10::1": "reserved",
    "2001:db8::1": "documentation",
    "2002:7f00:1::": "loopback",
    "2002:a9fe:a9fe::1": "cloud metadata",
    "3fff::1": "documentation",
    "4000::1": "reserved",
    "5f00::1": "reserved",
    "fc00::1": "private",
    "fd00:ec2::254": "cloud metadata",
    "fe80::1": "link-local",
    "fe80::1%eth0": "link-local",
    "fe80::1%25eth0": "link-local",
    "::1%lo": "loopback",
    "fec0::1": "site-local",
    "ff02::1": "multicast",
    "2130706433": "not an address",
    "127.1": "not an address",
    "0x7f000001": "not an address",
    "0177.0.0.1": "not an address",
    "localhost": "not an address",
    "": "not an address",
}
PUBLIC = [
    "1.1.1.1",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "2a00:1450:4001:82b::200e",
    "::ffff:1.1.1.1",
    "64:ff9b::1.1.1.1",
    "2002:101:101::1",
]


def teredo(server: int, client: int) -> ipaddress.IPv6Address:
    """RFC 4380: the server's address as it is, the client's inverted."""
    return ipaddress.IPv6Address(0x20010000 << 96 | server << 64 | (client ^ 0xFFFFFFFF))


ONE = int(ipaddress.IPv4Address("1.1.1.1"))
FORMS: dict[str, Callable[[int], ipaddress.IPv4Address | ipaddress.IPv6Address]] = {
    "itself": ipaddress.IPv4Address,
    "IPv4-mapped": lambda ip: ipaddress.IPv6Address(0xFFFF << 32 | ip),
    "IPv4-compatible": lambda ip: ipaddress.IPv6Address(ip),
    "NAT64": lambda ip: ipaddress.IPv6Address(0x64FF9B << 96 | ip),
    "local-use NAT64": lambda ip: ipaddress.IPv6Address(0x64FF9B0001 << 80 | ip),
    "6to4": lambda ip: ipaddress.IPv6Address(0x2002 << 112 | ip << 80 | 1),
    "Teredo client": lambda ip: teredo(ONE, ip),
    "Teredo server": lambda ip: teredo(ip, ONE),
}
INWARD = ["10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"]


@st.composite
def inward(draw: st.DrawFn) -> int:
    network = ipaddress.IPv4Network(draw(st.sampled_from(INWARD)))
    return int(network[draw(st.integers(0, network.num_addresses - 1))])


@pytest.mark.parametrize("address", REFUSED)
def test_refused(address: str) -> None:
    """An address that is not public is refused, in a word that says why."""
    assert Guard().refusal(address) == REFUSED[address]


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    """A public address passes, also where it stands inside an IPv6 one."""
    assert Guard().refusal(address) is None


@pytest.mark.parametrize("form", FORMS)
@given(inward())
def test_every_form(form: str, ip: int) -> None:
    """No way to write an inward IPv4 address gets past the guard."""
    assert Guard().refusal(str(FORMS[form](ip))) is not None


@given(st.ip_addresses())
def test_no_wider_than_ipaddress(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """What the standard library calls multicast or not global is refused; of 6to4, what is inside counts."""
    if isinstance(address, ipaddress.IPv6Address) and address.sixtofour:
        address = address.sixtofour
    if address.is_multicast or not address.is_global:
        assert Guard().refusal(str(address)) is not None


@pytest.mark.parametrize(
    ("allow", "passes", "stays_refused"),
    [
        ("10.1.0.0/16", "10.1.2.3", "10.2.0.1"),
        ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
        ("169.254.169.254", "169.254.169.254", "169.254.169.253"),
        ("10.0.0.0/8", "::ffff:10.0.0.1", "::ffff:127.0.0.1"),
        ("10.0.0.0/8", "64:ff9b::10.0.0.1", "64:ff9b:1::10.0.0.1"),
        ("10.0.0.0/8", "2002:a00:1::1", "2002:7f00:1::1"),
        ("10.0.0.0/8", str(teredo(ONE, 0x0A000001)), str(teredo(0x7F000001, 0x0A000001))),
        ("64:ff9b::/96", "64:ff9b::10.0.0.1", "10.0.0.1"),
        ("fd00::/8", "fd12::1", "fc12::1"),
        ("fe80::/10", "fe80::1%eth0", "fec0::1"),
        ("fe80::1%eth0", "fe80::1", "fe80::2"),
        ("::/0", "fd12::1", "10.0.0.1"),
        ("0.0.0.0/0", "127.0.0.1", "::1"),
    ],
)
def test_allowed_network(allow: str, passes: str, stays_refused: str) -> None:
    """An allowed network lets its addresses pass, their IPv6 forms too, and no others."""
    guard = Guard([allow])
    assert guard.refusal(passes) is None
    assert guard.refusal(stays_refused) is not None


@given(inward(), st.sampled_from(sorted(FORMS)))
def test_allow_names_what_is_judged(ip: int, form: str) -> None:
    """To allow an IPv4 address allows each form that leads nowhere else."""
    guard = Guard([str(ipaddress.IPv4Address(ip))])
    assert (guard.refusal(str(FORMS[form](ip))) is None) is (form != "local-use NAT64")


@pytest.mark.parametrize("host", ["hooks.internal", "HOOKS.Internal", "hooks.internal."])
def test_allowed_host(host: str) -> None:
    """Calls to a host that is allowed by name may go anywhere, others of the same guard may not."""
    guard = Guard(["Hooks.internal."])
    assert guard.for_host(host).refusal("127.0.0.1") is None
    assert guard.for_host(host).refusal("fe80::1") is None
    assert guard.for_host("a." + host).refusal("127.0.0.1") == "loopback"
    assert guard.refusal("127.0.0.1") == "loopback"


@pytest.mark.parametrize(
    "item",
    [
        *(
            "",
            " ",
            "a b",
            "a\n",
            "a..b",
            "*.example.com",
            "example.com:80",
            "example.com/x",
            "http://example.com",
        ),
        *("10.0.0.0/33", "10.0.0.1/8", "999.1.1.1", "2130706433", "127.1", "[::1]", "::1::"),
    ],
)
def test_bad_allow(item: str) -> None:
    """What is no network, address or host name is refused in one sentence that repeats it."""
    with pytest.raises(ValueError, match="is neither a host name, an address nor a network") as raised:
        Guard([item])
    assert str(raised.value).startswith(repr(item))


@pytest.mark.parametrize(
    ("address", "refusal"),
    [
        ("1.1.1.1", None),
        ("::ffff:1.1.1.1", None),
        ("64:ff9b::1.1.1.1", None),
        ("1.1.1.2", "not listed"),
        ("2606:4700:4700::1111", "not listed"),
        ("10.0.0.1", None),
        ("10.1.0.1", "not listed"),
        ("127.0.0.1", "not listed"),
        (str(teredo(0x0A000001, ONE)), None),
        (str(teredo(0x01010102, ONE)), "not listed"),
        ("localhost", "not an address"),
    ],
)
def test_only_allowed(address: str, refusal: str | None) -> None:
    """With a list alone, what it does not name is refused, public or not; what it names is as ever."""
    guard = Guard(["1.1.1.1", "10.0.0.0/24", "hooks.example"], only_allowed=True)
    assert guard.refusal(address) == refusal
    assert guard.for_host("hooks.example.").refusal("9.9.9.9") is None
    assert guard.for_host("other.example").refusal("9.9.9.9") == "not listed"


def test_nothing_listed() -> None:
    """An empty list lets nothing through."""
    assert Guard(only_allowed=True).refusal("1.1.1.1") == "not listed"


def test_ports() -> None:
    """The Fetch standard's bad ports are refused, and Redis'; what it leaves open is not."""
    # As the standard's table of July 2026 has them.
    table = """0 1 7 9 11 13 15 17 19 20 21 22 23 25 37 42 43 53 69 77 79 87 95 101 102 103 104 109 110
    111 113 115 117 119 123 135 137 139 143 161 179 389 427 465 512 513 514 515 526 530 531 532 540 548 554
    556 563 587 601 636 989 990 993 995 1719 1720 1723 2049 3659 4045 4190 5060 5061 6000 6566 6665 6666 6667
    6668 6669 6679 6697 10080"""
    assert [port for port in range(65_536) if refused_port(port)] == sorted([*map(int, table.split()), 6379])


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("::ffff:102:304", "1.2.3.4"),
        ("::1.2.3.4", "1.2.3.4"),
        ("64:ff9b::1.2.3.4", "1.2.3.4"),
        ("2002:102:304::9", "1.2.3.4"),
        ("2002:102:304:ffff::1", "1.2.3.4"),
        (str(teredo(ONE, 0x01020304)), "1.2.3.4"),
        ("2606:4700:4700::1111", "2606:4700:4700::/64"),
        ("2606:4700:4700:0:ffff::", "2606:4700:4700::/64"),
        ("2606:4700:4700:1::1111", "2606:4700:4700:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
    ],
)
def test_dialled(address: str, key: str) -> None:
    """All spellings of one destination are counted under one key."""
    assert dialled(address) == key


@given(st.ip_addresses(v=4), st.sampled_from(sorted(set(FORMS) - {"local-use NAT64", "Teredo server"})))
def test_dialled_in_every_form(address: ipaddress.IPv4Address, form: str) -> None:
    """Whatever IPv6 form an IPv4 address is written in, calls to it are counted together."""
    if form == "IPv4-compatible" and int(address) < 2:
        return  # :: and ::1
    assert dialled(str(FORMS[form](int(address)))) == str(address)


def test_exempt() -> None:
    """What the list names, by host or by network, in any form, is not paced."""
    guard = Guard(["10.0.0.0/8", "hooks.example"])
    assert guard.is_exempt("x.example", "10.1.2.3")
    assert guard.is_exempt("x.example", "::ffff:10.1.2.3")
    assert guard.is_exempt("HOOKS.example.", "1.1.1.1")
    assert not guard.is_exempt("a.hooks.example", "1.1.1.1")
    assert not guard.is_exempt("x.example", "11.1.2.3")
