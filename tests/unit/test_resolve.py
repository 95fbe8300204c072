from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from idagg.deliver.guard import BlockedAddressError, Guard
from idagg.deliver.resolve import Resolver
from kit.waiting import until

LIMIT_S = 30.0  # no test waits this long unless it fails


@contextlib.contextmanager
def resolving(threads: int = 2) -> Iterator[Resolver]:
    with contextlib.closing(Resolver(threads)) as resolver:
        yield resolver


def names(monkeypatch: pytest.MonkeyPatch, table: dict[str, list[str]]) -> None:
    """The system's resolver has these names, and no others."""

    def getaddrinfo(host: str, *_: object, **__: object) -> list[Any]:
        if host not in table:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, socket.SOCK_STREAM, 6, "", (address, 0)) for address in table[host]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("93.184.216.34", "93.184.216.34"),
        ("0x5db8d822", "93.184.216.34"),
        ("1572395042", "93.184.216.34"),
        ("0135.0270.0330.042", "93.184.216.34"),
        ("93.184.55330", "93.184.216.34"),
        ("2606:4700:4700:0:0::1111", "2606:4700:4700::1111"),
    ],
)
async def test_numeric(host: str, address: str) -> None:
    """A number is an address, in whatever form it is written, and told in one."""
    with resolving() as resolver:
        assert await resolver.addresses(host, Guard()) == [address]


@pytest.mark.parametrize(
    "host", ["2130706433", "127.1", "0x7f.1", "0", "017700000001", "::1", "::ffff:a00:1"]
)
async def test_numeric_inward(host: str) -> None:
    """A number that leads inward is refused in every form."""
    with (
        resolving() as resolver,
        pytest.raises(BlockedAddressError, match=f"^{host} has no address that may be called$"),
    ):
        await resolver.addresses(host, Guard())


async def test_refused_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a name's addresses those that may be dialled are told, in their order, once each."""
    names(
        monkeypatch,
        {"mixed.test": ["127.0.0.1", "1.1.1.1", "::1", "1.0.0.1", "1.1.1.1"], "inward.test": ["10.0.0.1"]},
    )
    with resolving() as resolver:
        assert await resolver.addresses("mixed.test", Guard()) == ["1.1.1.1", "1.0.0.1"]
        with pytest.raises(BlockedAddressError):
            await resolver.addresses("inward.test", Guard())
        assert await resolver.addresses("inward.test", Guard(["inward.test"])) == ["10.0.0.1"]
        with pytest.raises(BlockedAddressError):
            await resolver.addresses("mixed.test", Guard(["inward.test"], only_allowed=True))
        with pytest.raises(socket.gaierror):
            await resolver.addresses("unknown.test", Guard())


async def test_addresses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with any number of addresses costs a few connections."""
    many = [f"1.1.1.{n}" for n in range(250)]
    names(monkeypatch, {"many.test": many})
    with resolving() as resolver:
        assert await resolver.addresses("many.test", Guard()) == many[:8]


async def test_dead_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lookups that hang hold their threads and no more, and those that never began are dropped."""
    asked: list[str] = []
    answered = threading.Event()

    def getaddrinfo(host: str, *_: object, **__: object) -> list[Any]:
        asked.append(host)
        answered.wait(LIMIT_S)
        return [(0, socket.SOCK_STREAM, 6, "", ("1.1.1.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with resolving(threads=2) as resolver:
        lookups = [asyncio.create_task(resolver.addresses(f"{n}.test", Guard())) for n in range(6)]
        try:
            await until(lambda: len(asked) == 2)
            for lookup in lookups:
                lookup.cancel()
            await asyncio.wait(lookups)
        finally:
            answered.set()
        assert await resolver.addresses("last.test", Guard()) == ["1.1.1.1"]
    assert sorted(asked) == ["0.test", "1.test", "last.test"]


async def test_stacks() -> None:
    """Its threads are small, and nobody else's are."""
    before = threading.stack_size()
    with resolving() as resolver:
        await resolver.addresses("1.1.1.1", Guard())
    assert threading.stack_size() == before
