"""Row 24 of the fault matrix: a machine is cut off from the store. Network namespaces are the machines."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from figures import Row
from idagg.window import iso
from oracle import Journal, Load, epoch_s, grid, lines
from servers import RedisServer
from serving import Serving, eventually, next_window, until

DEADLINE_S = 1
ANSWER_S = 1.5
# The lease, 5 s, and the others' next look.
LEADS_S = 6.0
RECOVERS_S = 3.0
# Until a leader that cannot renew its lease has noticed.
NOTICES_S = 8.0

# The first address of those for tests of networks (RFC 2544); a run of the tests takes 32 of them.
FIRST = ipaddress.IPv4Address("198.18.0.0")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@dataclasses.dataclass
class Link:
    """A cable between this machine and another."""

    name: str
    here: str
    there: str

    def cut(self) -> None:
        """Nothing arrives any more, and nobody is told."""
        ip("link", "set", self.name, "down")

    def mend(self) -> None:
        ip("link", "set", self.name, "up")


@dataclasses.dataclass
class Machine:
    """It has a link to its callers, and one to the store."""

    name: str
    callers: Link
    store: Link

    @property
    def prefix(self) -> list[str]:
        return ["ip", "netns", "exec", self.name]


@contextlib.contextmanager
def machine(name: str, networks: Iterator[ipaddress.IPv4Network]) -> Iterator[Machine]:
    ip("netns", "add", name)
    try:
        with (
            laid(f"{name}c", name, next(networks)) as callers,
            laid(f"{name}s", name, next(networks)) as store,
        ):
            yield Machine(name, callers, store)
    finally:
        ip("netns", "del", name)


@contextlib.contextmanager
def laid(name: str, machine: str, network: ipaddress.IPv4Network) -> Iterator[Link]:
    here, there = map(str, network.hosts())
    ip("link", "add", name, "type", "veth", "peer", "name", name, "netns", machine)
    try:
        for where, address in (((), here), (("-n", machine), there)):
            ip(*where, "address", "add", f"{address}/30", "dev", name)
            ip(*where, "link", "set", name, "up")
        yield Link(name, here, there)
    finally:
        # The machine's end goes with ours; by itself not before the last connection that was cut is given up.
        ip("link", "del", name)


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    if os.geteuid() != 0:
        pytest.fail("this test makes network namespaces: run it as root")
    name = f"idagg{os.getpid()}"  # with what is added to it a link's name, of at most 15 characters
    networks = ipaddress.IPv4Network((int(FIRST) + os.getpid() % 4096 * 32, 27)).subnets(new_prefix=30)
    with machine(f"{name}a", networks) as first, machine(f"{name}b", networks) as second:
        yield [first, second]


def instance(machine: Machine, port: int) -> Serving:
    url = f"redis://{machine.store.here}:{port}"
    flags = ("--redis-url", url, "--deadline", str(DEADLINE_S))
    return Serving(*flags, window=1, prefix=machine.prefix, host=machine.callers.there)


async def leads_in_time(serving: Serving, epoch: int) -> None:
    await until(lambda: f"leading: epoch {epoch}" in serving.said, within_s=LEADS_S)


@pytest.mark.fault("24", "leader's machine cut off from the store", takeover_must_s=6.0)
async def test_24_cut_off(machines: list[Machine], row: Row) -> None:
    """It says so to its callers in time, the other one leads and counts on, and it comes back by itself."""
    with (
        RedisServer(tcp=True, bind="0.0.0.0", protected_mode="no") as server,
        instance(machines[0], server.port) as first,
        instance(machines[1], server.port) as second,
    ):
        instances = [first, second]
        assert "leading: epoch 1" in first.said
        async with Load(first, callers=8) as first_load, Load(second, callers=8) as second_load:
            loads = [first_load, second_load]
            since = await next_window(1)
            for injection in row.inject(1):
                leads, follows = injection % 2, 1 - injection % 2
                cut, there, cable = instances[leads], loads[leads], machines[leads].store
                other, here = instances[follows], loads[follows]
                cable.cut()
                cut_s = time.monotonic()
                await leads_in_time(other, injection + 2)
                row.taken_over(time.monotonic() - cut_s)
                await there.fails(16)
                for admin in (False, True):
                    assert (await cut.ask("/readyz", admin=admin)).status == 503
                assert (await other.health()).status == 200
                await eventually(
                    cut.figures, lambda figures: figures["idagg_leader"] == 0, within_s=NOTICES_S
                )
                assert (await other.figures())["idagg_leader"] == 1
                assert [at for at in there.ok_at if at > cut_s + DEADLINE_S] == []
                cable.mend()
                mended_s = time.monotonic()
                await cut.ready()
                await there.goes_on()
                assert row.not_recovered(there, mended_s, within_s=RECOVERS_S) == []
                assert [at for at in here.trouble_at if at > cut_s] == []
        assert (first_load.unknown, second_load.unknown) == (set(), set())
        told = Journal(
            first_load.ok | second_load.ok,
            first_load.failed | second_load.failed,
            slowest_s=max(first_load.slowest_s, second_load.slowest_s),
        )
        now_s = int(time.time())
        await until(
            lambda: max(line.window for instance in instances for line in lines(instance)) >= iso(now_s)
        )
        found = [*lines(first), *lines(second)]
        last = int(epoch_s(max(line.window for line in found)))
        assert row.verdict(told, found, expected=grid(since, last, 1), answer_s=ANSWER_S) == []
        assert sum(instance.said.count("leading: epoch") for instance in instances) == 1 + row.injections
        second.stop()
        first.stop()
