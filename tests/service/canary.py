"""Calls endpoints in a network of its own, in which every address there is leads to one listener, and tells
where packets went. To be run by ``unshare --user --map-root-user --net --mount``; see `test_canary.py`.

Reads a JSON list of networks that are allowed, and of endpoints; writes a JSON list of what became of each.
"""

from __future__ import annotations

import asyncio
import collections
import ipaddress
import json
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading

import uvloop

from idagg.accept.request import canonical_endpoint
from idagg.deliver.guard import BlockedAddressError, Guard
from idagg.deliver.post import Poster, PostError, Target
from idagg.deliver.resolve import Resolver

NAME_SERVER = "9.9.9.9"
PORTS = (80, 443, 8080)
TIME_LIMIT_S = 15.0

_ETH_P_ALL = 3
_IPV4, _IPV6 = 0x0800, 0x86DD
_OUTGOING = 4  # of if_packet.h
_TCP = 6
_SYN, _ACK = 2, 16
_A, _CNAME, _AAAA = 1, 5, 28


def lay_network() -> None:
    """Every address is this machine's, and the name server is ours."""
    for command in (
        "link set lo up",
        # So that the resolver takes us to have both kinds of addresses.
        "link add veth-a type veth peer name veth-b",
        "link set veth-a up",
        "link set veth-b up",
        "address add 198.18.0.1/32 dev veth-a",
        "-6 address add 2001:db8::1/128 dev veth-a nodad",
        "route add local 0.0.0.0/0 dev lo",
        "-6 route add local ::/0 dev lo",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    with tempfile.NamedTemporaryFile("w") as file:
        # A name may be asked for once: the default is 5 s, and then again.
        file.write(f"nameserver {NAME_SERVER}\noptions timeout:30 attempts:1\n")
        file.flush()
        subprocess.run(["mount", "--bind", file.name, "/etc/resolv.conf"], check=True)


class NameServer:
    """Knows a name for every address: ``a`` or ``b`` and its bytes in hex, then .test.

    With several, joined by ``.and.``, it has them all; by ``.then.``, one after the other. ``alias-`` in
    front is another name for it. Of names that look like IPv4 addresses, it says what they look like.
    """

    def __init__(self) -> None:
        self._asked: collections.Counter[str] = collections.Counter()
        self._socket = socket.socket(type=socket.SOCK_DGRAM)
        self._socket.bind((NAME_SERVER, 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            query, client = self._socket.recvfrom(4096)
            labels, at = [], 12
            while length := query[at]:
                labels.append(query[at + 1 : at + 1 + length].decode())
                at += 1 + length
            (kind,) = struct.unpack_from("!H", query, at + 1)
            question = query[12 : at + 5]
            records = list(self._records(".".join(labels).lower(), kind))
            head = query[:2] + struct.pack("!HHHHH", 0x8180, 1, len(records), 0, 0)
            self._socket.sendto(head + question + b"".join(records), client)

    def _records(self, name: str, kind: int) -> collections.abc.Iterator[bytes]:
        owner = b"\xc0\x0c"  # the question's name
        if name.startswith("alias-"):
            real = name.removeprefix("alias-")
            wire = b"".join(bytes([len(label)]) + label.encode() for label in real.split(".")) + b"\0"
            yield owner + struct.pack("!HHIH", _CNAME, 1, 0, len(wire)) + wire
            name, owner = real, wire
        if re.fullmatch(r"\d+\.\d+\.\d+\.\d+", name):
            found = [f"a{ipaddress.IPv4Address(name).packed.hex()}"]
        else:
            rounds = name.removesuffix(".test").split(".then.")
            found = rounds[min(self._asked[f"{name} {kind}"], len(rounds) - 1)].split(".and.")
            self._asked[f"{name} {kind}"] += 1
        for one in found:
            if re.fullmatch("a[0-9a-f]{8}" if kind == _A else "b[0-9a-f]{32}", one):
                packed = bytes.fromhex(one[1:])
                yield owner + struct.pack("!HHIH", kind, 1, 0, len(packed)) + packed


class Sniffer:
    """Hears every packet of this network."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
        self._socket.setblocking(False)

    def dialled(self) -> list[str]:
        """The addresses that were dialled since the last time."""
        found: list[str] = []
        while True:
            try:
                packet, (_, protocol, kind, *_) = self._socket.recvfrom(65_536)
            except BlockingIOError:
                return found
            if kind != _OUTGOING:
                continue  # on this network, each is heard twice
            if protocol == _IPV4:
                transport, segment = packet[9], packet[(packet[0] & 15) * 4 :]
                address = str(ipaddress.IPv4Address(packet[16:20]))
            elif protocol == _IPV6:
                transport, segment = packet[6], packet[40:]
                address = str(ipaddress.IPv6Address(packet[24:40]))
            else:
                continue
            if transport == _TCP and segment[13] & (_SYN | _ACK) == _SYN:
                found.append(address)


async def call(endpoint: str, guard: Guard, resolver: Resolver, poster: Poster) -> str:
    """The whole way of a callback, from the query to the connection."""
    accepted = canonical_endpoint(endpoint.encode())
    if accepted is None:
        return "not accepted"
    target = Target.parse(accepted.decode())
    try:
        addresses = await resolver.addresses(target.host, guard)
    except BlockedAddressError:
        return "blocked"
    except OSError:
        return "not resolved"
    said = ""
    for address in addresses:
        try:
            async with asyncio.timeout(TIME_LIMIT_S):
                said = str((await poster.post(target.with_count(7), address, {}, b"{}")).status)
        except (PostError, TimeoutError) as error:
            said = str(error) or "timeout"
    return said


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1000)
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    writer.close()
    await writer.wait_closed()


async def main() -> None:
    allow, endpoints = json.load(sys.stdin)
    lay_network()
    NameServer()
    for port in PORTS:
        await asyncio.start_server(
            answer, sock=socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        )
    sniffer, resolver, poster, guard = Sniffer(), Resolver(4), Poster(), Guard(allow)
    told = []
    for endpoint in endpoints:
        outcome = await call(endpoint, guard, resolver, poster)
        told.append((endpoint, outcome, sniffer.dialled()))
    resolver.close()
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    uvloop.run(main())
