"""The guard against server-side request forgery: which addresses callbacks may be sent to. Pure.

Every API user can name an endpoint. Without a guard, this server would call hosts in its own network for
them. The guard judges the address after the name is resolved, and exactly that address is dialled. So a name
that resolves to another address later gains nothing. ``ipaddress.is_global`` cannot be used: it accepts
multicast, NAT64 and 6to4 forms of 127.0.0.1 and some clouds' metadata services, and it differs between Python
releases. So this module has its own table.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# IANA's special-purpose address registries (RFC 6890), and metadata services at public addresses. The first
# match counts. Of IPv6 only 2000::/3 is allocated (RFC 4291), hence the last two rows.
_SPECIAL: tuple[tuple[_Network, str | None], ...] = tuple(
    (ipaddress.ip_network(network), reason)
    for network, reason in (
        ("100.100.100.200/32", "cloud metadata"),  # Alibaba
        ("168.63.129.16/32", "cloud metadata"),  # Azure
        ("169.254.169.254/32", "cloud metadata"),  # AWS, Azure, Google and most others
        ("192.0.0.192/32", "cloud metadata"),  # Oracle
        ("fd00:ec2::254/128", "cloud metadata"),  # AWS
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "reserved"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("64:ff9b:1::/48", "private"),  # local-use NAT64: the position of the IPv4 address is a local choice
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
        ("2001::/23", "reserved"),
        ("2001:db8::/32", "documentation"),
        ("3fff::/20", "documentation"),
        ("2000::/3", None),
        ("::/0", "reserved"),
    )
)
_IPV4_IN_THE_LAST_32_BITS = (
    ipaddress.IPv6Network("64:ff9b::/96"),  # NAT64, RFC 6052
    ipaddress.IPv6Network("::/96"),  # IPv4-compatible, RFC 4291; it contains :: and ::1, too
)
# Ports that browsers do not call either: some of their protocols read a POST as commands. This is the Fetch
# standard's list, https://fetch.spec.whatwg.org/#bad-port, and Redis' port, which it lacks.
_BAD_PORTS = frozenset(
    {
        *(0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102),
        *(103, 104, 109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512),
        *(513, 514, 515, 526, 530, 531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995),
        *(1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669),
        *(6679, 6697, 10080),
        6379,
    }
)
# The last label is no number: resolvers read 2130706433 and 127.1 as addresses.
_HOST = re.compile(r"(?:[a-z0-9_-]+\.)*(?!\d+\Z)[a-z0-9_-]+")


class BlockedAddressError(OSError):
    """The guard refuses this address. Nothing was sent to it."""


class Guard:
    """Refuses every address that is not public, except those that ``allow`` names.

    An item of ``allow`` is a network, an address or a host name. A network allows the addresses in it, and
    IPv6 forms of them, such as IPv4-mapped or NAT64. A host name allows every address that it resolves to. If
    ``only_allowed`` is true, every other address is refused, public or not.
    """

    def __init__(self, allow: Iterable[str] = (), only_allowed: bool = False) -> None:
        self.only_allowed = only_allowed
        self._hosts: set[str] = set()
        self._networks: list[_Network] = []
        for item in allow:
            try:
                self._networks.append(ipaddress.ip_network(item))
            except ValueError:
                host = _plain(item)
                if not _HOST.fullmatch(host):
                    raise ValueError(
                        f"{item!r} is neither a host name, an address nor a network such as 10.0.0.0/8"
                    ) from None
                self._hosts.add(host)

    def for_host(self, host: str) -> Guard:
        """The guard for calls to ``host``. If ``allow`` has its name, this guard refuses nothing."""
        return _OPEN if _plain(host) in self._hosts else self

    def refusal(self, address: str) -> str | None:
        """The reason why ``address`` must not be dialled; None if it may be."""
        try:
            dialled = ipaddress.ip_address(address)
        except ValueError:
            return "not an address"
        unnamed = self._unnamed(dialled)
        if unnamed and self.only_allowed:
            return "not listed"
        return next(filter(None, map(_special, unnamed)), None)

    def is_exempt(self, host: str, address: str) -> bool:
        """Whether calls to ``host`` at ``address`` have no rate limit: ``allow`` names one of the two."""
        return _plain(host) in self._hosts or not self._unnamed(ipaddress.ip_address(address))

    def _unnamed(self, address: _Address) -> list[_Address]:
        """The final destinations of ``address`` that are in no network of ``allow``."""
        if self._allows(address):
            return []
        return [judged for judged in _destinations(address) if not self._allows(judged)]

    def _allows(self, address: _Address) -> bool:
        return any(address in network for network in self._networks)


_OPEN = Guard(["0.0.0.0/0", "::/0"])


def refused_port(port: int) -> bool:
    """Whether callbacks to ``port`` are refused at every address. ``allow`` does not change this."""
    return port in _BAD_PORTS


def dialled(address: str) -> str:
    """The key under which calls to ``address`` are counted, the same for all forms of one destination.

    It is the IPv4 address itself or the one inside an IPv6 address. For other IPv6 addresses it is the /64,
    the smallest network that one owner has.
    """
    inner = _destinations(ipaddress.ip_address(address))[-1]  # for Teredo: the client, not the server
    if isinstance(inner, ipaddress.IPv4Address):
        return str(inner)
    return str(ipaddress.ip_network((int(inner) >> 64 << 64, 64)))


def _plain(host: str) -> str:
    return host.lower().removesuffix(".")


def _destinations(address: _Address) -> tuple[_Address, ...]:
    """The final destinations of ``address``: the IPv4 addresses inside an IPv6 one, else the address."""
    if isinstance(address, ipaddress.IPv4Address):
        return (address,)
    if inner := address.ipv4_mapped or address.sixtofour:
        return (inner,)
    if address.teredo:
        return address.teredo
    if int(address) > 1 and any(address in network for network in _IPV4_IN_THE_LAST_32_BITS):
        return (ipaddress.IPv4Address(int(address) & 0xFFFFFFFF),)
    return (address,)


def _special(address: _Address) -> str | None:
    return next((reason for network, reason in _SPECIAL if address in network), None)
