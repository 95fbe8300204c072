"""Rows 24 and 30 of the fault matrix: a machine is cut off from the store, or together with its primary.

Network namespaces are the machines.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import html
import ipaddress
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import pytest

from idagg.errors import Exit
from idagg.window import iso
from kit.figures import Row
from kit.groups import Place, SentinelGroup
from kit.oracle import Load, epoch_s, held, lines, open_parts, together
from kit.servers import RedisServer
from kit.serving import Serving
from kit.waiting import eventually, long_window, next_window, until

DEADLINE_S = 1
ANSWER_S = 1.5
CALLERS = 8
RECOVERS_S = 3.0
# For what nobody measures.
WITHIN_S = 60.0

# Of those for tests of networks (RFC 2544); nobody else has them where they are used.
NETWORKS = ipaddress.IPv4Network("198.18.0.0/28")
# Of the middle; the machines have it, and one another, over the cables to the store.
MIDDLE = "198.18.0.17"
CLONE_NEWNET = 0x40000000  # of sched.h


class Machine:
    """A network namespace, in a user namespace in which whoever made it may lay cables.

    It lives as long as a process in it does, and all that was laid goes with it.
    """

    def __init__(self, *prefix: str) -> None:
        self._process = subprocess.Popen([*prefix, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"I am there\n")
        self._process.stdin.flush()
        self._process.stdout.readline()
        self.prefix = ["nsenter", f"--net=/proc/{self.pid}/ns/net"]
        self.ip("link", "set", "lo", "up")

    @property
    def pid(self) -> int:
        return self._process.pid

    def ip(self, *arguments: str) -> None:
        subprocess.run(
            ["nsenter", "--target", str(self.pid), "--user", "--net", "ip", *arguments], check=True
        )

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """We, and all that we start, are in its network."""
        proc = Path("/proc")
        with (proc / "thread-self/ns/net").open() as outside, (proc / f"{self.pid}/ns/net").open() as inside:
            enter(inside)
            try:
                yield
            finally:
                enter(outside)

    def close(self) -> None:
        self._process.communicate()


def enter(namespace: TextIO) -> None:
    """Python has it from 3.12 on, as os.setns."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class Cable:
    """Between the middle, where the store and all callers are, and a machine."""

    def __init__(self, middle: Machine, machine: Machine, name: str, network: ipaddress.IPv4Network) -> None:
        self._middle = middle
        self._name = name
        self.here, self.there = map(str, network.hosts())
        middle.ip("link", "add", name, "type", "veth", "peer", "name", name, "netns", str(machine.pid))
        for end, address in ((middle, self.here), (machine, self.there)):
            end.ip("address", "add", f"{address}/30", "dev", name)
            end.ip("link", "set", name, "up")

    def cut(self) -> None:
        """Nothing arrives any more, and nobody is told."""
        self._middle.ip("link", "set", self._name, "down")

    def mend(self) -> None:
        self._middle.ip("link", "set", self._name, "up")


@dataclasses.dataclass
class Host:
    """A machine with a cable to its callers, and one to the store."""

    machine: Machine
    callers: Cable
    store: Cable


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    if os.geteuid() != 0:
        pytest.fail("this test makes network namespaces: run it as root")
    with contextlib.ExitStack() as stack:

        def machine(*prefix: str) -> Machine:
            return stack.enter_context(contextlib.closing(Machine(*prefix)))

        middle = machine("unshare", "--user", "--map-root-user", "--net")
        inside = ("nsenter", "--target", str(middle.pid), "--user", "--net", "unshare", "--net")
        networks = NETWORKS.subnets(new_prefix=30)
        found = []
        for name in "ab":
            its = machine(*inside)
            cables = [Cable(middle, its, name + kind, next(networks)) for kind in ("callers", "store")]
            found.append(Host(its, *cables))
            its.ip("route", "add", "default", "via", cables[1].here)
        middle.ip("address", "add", MIDDLE, "dev", "lo")
        stack.enter_context(middle.entered())
        yield found


def instance(host: Host, url: str, *flags: str, window: int = 1) -> Serving:
    flags = ("--redis-url", url, "--deadline", str(DEADLINE_S), *flags)
    return Serving(*flags, window=window, prefix=host.machine.prefix, host=host.callers.there)


async def begins_to_lead(serving: Serving, epoch: int) -> None:
    await until(lambda: f"leading: epoch {epoch}" in serving.said)


@pytest.mark.fault("24", "leader's machine cut off from the store", takeover_must_s=6.0)
async def test_24_cut_off(hosts: list[Host], row: Row) -> None:
    """It says so to its callers in time, the other one leads and counts on, and it comes back by itself."""
    with (
        RedisServer(tcp=True, bind="0.0.0.0", protected_mode="no") as server,
        instance(hosts[0], f"redis://{hosts[0].store.here}:{server.port}") as first,
        instance(hosts[1], f"redis://{hosts[1].store.here}:{server.port}") as second,
    ):
        instances = [first, second]
        await begins_to_lead(first, 1)
        async with Load(first, callers=CALLERS) as first_load, Load(second, callers=CALLERS) as second_load:
            loads = [first_load, second_load]
            since = await next_window(1)
            async for injection in row.inject(1):
                leads, follows = injection % 2, 1 - injection % 2
                cut, there, cable = instances[leads], loads[leads], hosts[leads].store
                other, here = instances[follows], loads[follows]
                cable.cut()
                cut_s = time.monotonic()
                await begins_to_lead(other, injection + 2)
                row.taken_over(time.monotonic() - cut_s)
                await there.fails(16)
                await eventually(cut.readiness, lambda said: said == {503})
                known = len(there.ok_at)  # by now no worker waits for an answer that could be an ok
                await eventually(cut.health, lambda answer: answer.status == 503)
                await other.ready()
                await eventually(cut.figures, lambda figures: figures["idagg_leader"] == 0)
                await eventually(other.figures, lambda figures: figures["idagg_leader"] == 1)
                assert len(there.ok_at) == known
                cable.mend()
                mended_s = time.monotonic()
                await cut.ready()
                await there.goes_on()
                assert row.not_recovered(there, mended_s, within_s=RECOVERS_S) == []
                # With a deadline of 1 s, a shared machine fails each caller as often as it stands still.
                troubles = len([at for at in here.trouble_at if at > cut_s])
                assert troubles <= (4 * CALLERS if row.patience > 1 else 0)
        assert (first_load.unknown, second_load.unknown) == (set(), set())
        told = together(first_load, second_load)
        now_s = int(time.time())
        await until(
            lambda: max(line.window for instance in instances for line in lines(instance)) >= iso(now_s)
        )
        found = [*lines(first), *lines(second)]
        last = int(epoch_s(max(line.window for line in found)))
        assert row.verdict(told, found, expected=held(told, since, last), answer_s=ANSWER_S) == []
        assert sum(instance.said.count("leading: epoch") for instance in instances) == 1 + row.injections
        second.stop()
        first.stop()


async def primary_cut_off(hosts: list[Host], row: Row, replicas: int) -> None:
    """The first machine has the primary, with it an instance; replicas, sentinels, callers and the other
    instance are in the middle. There are three replicas, so that two are left to the one that is promoted."""
    middle, primary = Place(MIDDLE), Place(hosts[0].store.there, tuple(hosts[0].machine.prefix))
    places = [primary, *[middle] * 6]
    flags = ("--replicas", str(replicas))
    length = long_window()
    with (
        SentinelGroup(3, places=places, bind="0.0.0.0") as group,
        instance(hosts[0], group.url, *flags, window=length) as first,
        Serving(
            *("--redis-url", group.url, "--deadline", str(DEADLINE_S), *flags), window=length, host=MIDDLE
        ) as second,
    ):
        async with Load(first, callers=8) as first_load, Load(second, callers=8) as second_load:
            async for _ in row.inject(1, most=1):
                old = group.primary
                hosts[0].store.cut()
                cut_s = time.monotonic()
                _, promoted_s = await asyncio.to_thread(group.promoted, old)
                whole_s = await asyncio.to_thread(group.whole, replicas) if replicas else promoted_s
                print(f"promoted {whole_s - promoted_s:.2f} s before it had its replicas")  # noqa: T201  a figure
                await second_load.goes_on()
                assert row.not_recovered(second_load, whole_s, within_s=RECOVERS_S) == []
                wrong = [at for at in first_load.ok_at if at > cut_s + ANSWER_S]
                assert bool(wrong) == (replicas == 0)
                hosts[0].store.mend()
                await asyncio.to_thread(group.in_sync)
                mended_s = time.monotonic()
                await first_load.goes_on()
                assert row.not_recovered(first_load, mended_s, within_s=RECOVERS_S) == []
        told = together(first_load, second_load)
        may_lose = told.ok if replicas == 0 else frozenset[int]()
        assert row.wrong_ids(told, open_parts([group.primary]), may_lose=may_lose) == []
        assert row.late(told, ANSWER_S) == []
        second.stop()
        first.stop()


@pytest.mark.slow
@pytest.mark.fault("30", "primary cut off with one instance, --replicas 2 of 3", recovery_must_s=1.0)
async def test_30_primary_cut_off(hosts: list[Host], row: Row) -> None:
    """On its side there is no ok any more; the other side counts on, and no ok is lost."""
    await primary_cut_off(hosts, row, 2)


@pytest.mark.slow
@pytest.mark.fault("30", "primary cut off with one instance, --replicas 0", recovery_must_s=1.0)
async def test_30_primary_cut_off_none(hosts: list[Host], row: Row) -> None:
    """Every ok on its side is lost when the cable is mended: this is what ``--replicas`` is for."""
    await primary_cut_off(hosts, row, 0)


@pytest.mark.slow
async def test_both_machines_tell_the_same(hosts: list[Host]) -> None:
    """The leader's machine is cut off, and then the other one is killed: pages and status of both agree on
    the leader, its epoch and the last window, and the exit code of `idagg status` tells of the trouble."""
    with (
        RedisServer(
            "redis", tcp=True, bind="0.0.0.0", protected_mode="no", appendonly="yes", appendfsync="always"
        ) as server,
        instance(hosts[0], f"redis://{hosts[0].store.here}:{server.port}", window=3) as first,
        instance(hosts[1], f"redis://{hosts[1].store.here}:{server.port}", window=3) as second,
    ):
        both = (first, second)
        before = await agreed_on(*both)
        assert before.epoch == 1
        await all_is_well(*both)

        hosts[0].store.cut()
        alone = await agreed_on(second, after=before)
        assert await exit_code(first) == Exit.TROUBLE
        # The other machine misses it.
        await eventually(lambda: exit_code(second), lambda code: code == Exit.TROUBLE, within_s=WITHIN_S)
        hosts[0].store.mend()
        mended = await agreed_on(*both, after=alone, epoch=alone.epoch)
        assert mended.machine == alone.machine != before.machine
        await all_is_well(*both)

        os.kill(second.pid, signal.SIGKILL)
        killed = await agreed_on(first, after=mended)
        assert (killed.machine == before.machine, killed.epoch) == (True, mended.epoch + 1)
        assert await exit_code(second) == Exit.NO_ANSWER
        second.kill()
        # The same admin listener: so it takes the dead one's place.
        second.without = ("--admin-port",)
        second.flags = (*second.flags, "--admin-port", str(second.admin_port))
        second.start()
        again = await agreed_on(*both, after=killed, epoch=killed.epoch)
        assert again.machine == killed.machine
        await all_is_well(*both)
        second.stop()
        first.stop()


class Told(NamedTuple):
    """What a machine tells of the fleet: by its API, and by its page."""

    machine: str  # the leader's id
    epoch: int
    last: str
    page: tuple[str, str]

    @classmethod
    async def by(cls, serving: Serving) -> Told | None:
        """None: it knows of no leader, or not of a window yet."""
        status = json.loads((await serving.ask("/api/v1/status", admin=True)).body)
        view = json.loads((await serving.ask("/page/view", admin=True)).body)
        page = (await serving.ask("/", admin=True)).body.decode()
        leader, last = status["leader"], status["last"]
        if not leader or not last or status["stale"] or html.escape(view["leader"]) not in page:
            return None
        return cls(
            leader["machine"], leader["epoch"], last["window_start"], (view["leader"], str(view["last"]))
        )


async def agreed_on(*servings: Serving, after: Told | None = None, epoch: int = 0) -> Told:
    """Wait until these tell the same, of a later window, and of this epoch or a later one."""

    async def told() -> list[Told | None]:
        return await asyncio.gather(*map(Told.by, servings))

    def enough(found: list[Told | None]) -> bool:
        one = found[0]
        if one is None or any(other != one for other in found):
            return False
        is_later = after is None or (one.last > after.last and one.epoch >= (epoch or after.epoch + 1))
        return is_later and f"epoch {one.epoch}" in one.page[0]

    found = (await eventually(told, enough, within_s=WITHIN_S))[0]
    assert found is not None
    return found


async def exit_code(serving: Serving) -> int:
    """Of `idagg status`."""
    url = f"http://{serving.host}:{serving.admin_port}"
    command = [sys.executable, "-m", "idagg", "status", "--admin-url", url]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=60, check=False)
    return done.returncode


async def all_is_well(*servings: Serving) -> None:
    """Wait until `idagg status` says so of each."""

    async def codes() -> set[int]:
        return set(await asyncio.gather(*map(exit_code, servings)))

    await eventually(codes, lambda codes: codes == {Exit.OK}, within_s=WITHIN_S)
