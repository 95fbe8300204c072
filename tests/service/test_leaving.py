"""Reloads, upgrades and restarts under load: without a load balancer, and behind those of the documents.

No request fails, none is reset, and every id that got its ok is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from documents import ROOT, blocks, page
from idagg import __version__
from idagg.window import iso
from kit.balancers import Balancer, DocumentedHAProxy, DocumentedNginx
from kit.figures import Row
from kit.oracle import Delivery, Load, epoch_s, grid, together
from kit.oracle import lines as log_lines
from kit.rush import Rush
from kit.servers import RedisServer, free_port
from kit.serving import PATIENT, Serving
from kit.waiting import next_window, until

# A balancer may ask both machines in turn: each has its deadline, 2 s, on a machine that is busy.
ANSWER_S = 5.0
TUNED = {"idagg.run.restart.YOUNG_S": 0.2}
_BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
_LEFT_OUT = shutil.ignore_patterns(
    ".*", "build", "*.egg-info", "__pycache__", "results", "http_cases", "_build"
)


def machine(server: RedisServer, *flags: str, **environment: str) -> Serving:
    """One of those that share a Redis. Its ports stay when it is started again."""
    ports = ("--port", str(free_port()), "--admin-port", str(free_port()))
    return Serving(
        *("--redis-url", server.url, *ports, *PATIENT, *flags), tuned=TUNED, environment=environment, window=1
    )


@contextlib.contextmanager
def balanced(kind: str, *machines: Serving) -> Iterator[int]:
    """The port to send to: of the first machine, or of a balancer before all of them."""
    if kind == "none":
        yield machines[0].port
        return
    operating = page("docs/operating.rst")
    config = next(
        block
        for block in (*blocks(operating, "text"), *blocks(operating, "nginx"))
        if block.startswith({"haproxy": "frontend", "nginx": "upstream"}[kind])
    )
    for address, serving in zip(("10.0.0.7:8000", "10.0.0.8:8000"), machines, strict=True):
        assert address in config
        config = config.replace(address, f"127.0.0.1:{serving.port}")
    balancer: Balancer = DocumentedHAProxy(config) if kind == "haproxy" else DocumentedNginx(config)
    with balancer:
        yield balancer.port


@contextlib.asynccontextmanager
async def unnoticed(row: Row, port: int, *machines: Serving) -> AsyncIterator[None]:
    """As many requests as this machine answers, over connections that are kept, and over one for each.
    Nobody notices anything."""
    rushes = {"kept": Rush(port, 0, connections=64), "new": Rush(port, 1, connections=32, close=True)}
    since = await next_window(1)
    with rushes["kept"], rushes["new"]:
        yield
    present = iso(int(time.time()))

    def delivered() -> list[Delivery] | None:
        """By whichever machine leads; once the window that was open at the end is, all are."""
        found = [line for serving in machines for line in log_lines(serving)]
        return found if any(line.window >= present for line in found) else None

    deliveries = await until(delivered)
    last = int(epoch_s(max(delivery.window for delivery in deliveries)))
    for connections, rush in rushes.items():
        seen = rush.seen
        print(f"{connections}: {seen}, {seen.requests / seen.seconds:,.0f} requests/s")  # noqa: T201  for who measures
    told = together(*(rush.journal for rush in rushes.values()))
    assert row.verdict(told, deliveries, expected=grid(since, last, 1), answer_s=ANSWER_S) == []
    assert {connections: rush.seen.trouble for connections, rush in rushes.items()} == {"kept": 0, "new": 0}


async def has_ended(serving: Serving) -> None:
    await until(lambda: not serving.processes(), within_s=60)
    await asyncio.to_thread(serving.stop)


async def reload(serving: Serving) -> str:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "idagg", "reload", "--pid", str(serving.pid)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "balancer",
    [
        pytest.param("none", marks=pytest.mark.fault("40", "reload, no load balancer")),
        pytest.param("haproxy", marks=pytest.mark.fault("40", "reload of two machines, HAProxy")),
        pytest.param("nginx", marks=pytest.mark.fault("40", "reload of two machines, nginx")),
    ],
)
async def test_40_reloads(durable_server: RedisServer, row: Row, balancer: str) -> None:
    with machine(durable_server) as one, machine(durable_server) as two, balanced(balancer, one, two) as port:
        async with unnoticed(row, port, one, two):
            async for number in row.inject(20):
                await reload((one, two)[0 if balancer == "none" else number % 2])
        one.stop()
        two.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    "balancer",
    [
        pytest.param("haproxy", marks=pytest.mark.fault("40", "rolling restart of two machines, HAProxy")),
        pytest.param("nginx", marks=pytest.mark.fault("40", "rolling restart of two machines, nginx")),
    ],
)
async def test_40_rolling_restarts(durable_server: RedisServer, row: Row, balancer: str) -> None:
    """One machine after the other stops and starts; their drain is above the time of two checks."""
    drain = ("--drain", "3")
    with (
        machine(durable_server, *drain) as one,
        machine(durable_server, *drain) as two,
        balanced(balancer, one, two) as port,
    ):
        async with unnoticed(row, port, one, two):
            async for _ in row.inject(5, most=5):
                for serving in (one, two):
                    os.kill(serving.pid, signal.SIGTERM)
                    await has_ended(serving)
                    await asyncio.to_thread(serving.start)
                    await asyncio.sleep(2.5)  # as long as the checks take to notice
        one.stop()
        two.stop()


@pytest.mark.parametrize("balancer", [pytest.param("haproxy", marks=pytest.mark.slow), "nginx"])
async def test_a_killed_worker_on_each_machine(any_server: RedisServer, balancer: str) -> None:
    """Its requests go to others: a balancer sends them again, and new connections find another worker."""
    with machine(any_server) as one, machine(any_server) as two, balanced(balancer, one, two) as port:
        async with Load(one, port=port) as keeping, Load(one, port=port, fresh=True) as opening:
            for serving in (one, two):
                victim = serving.workers()[0]
                os.kill(victim, signal.SIGKILL)
                await keeping.goes_on(500)
                await opening.goes_on(500)
                await serving.replaces(victim)
        for load in (keeping, opening):
            assert (load.failed, load.unknown, load.trouble_at) == (set(), set(), [])
        one.stop()
        two.stop()


def build(folder: Path, version: str) -> Path:
    """Install the tree as this version; returns the folder to import it from."""
    source = shutil.copytree(ROOT, folder / f"source-{version}", ignore=_LEFT_OUT)
    package = source / "src/idagg/__init__.py"
    package.write_text(package.read_text().replace(f'"{__version__}"', f'"{version}"'))
    wheels, installed = folder / f"wheels-{version}", folder / version
    wheels.mkdir()
    subprocess.run([sys.executable, "-c", _BUILD, wheels], cwd=source, check=True, capture_output=True)
    (wheel,) = wheels.iterdir()
    shutil.unpack_archive(wheel, installed, "zip")
    return installed


@pytest.mark.slow
@pytest.mark.parametrize(
    "balancer",
    [
        pytest.param("none", marks=pytest.mark.fault("40", "upgrade and rollback, no load balancer")),
        pytest.param(
            "haproxy", marks=pytest.mark.fault("40", "upgrade and rollback of two machines, HAProxy")
        ),
        pytest.param("nginx", marks=pytest.mark.fault("40", "upgrade and rollback of two machines, nginx")),
    ],
)
async def test_40_upgrades(durable_server: RedisServer, row: Row, tmp_path: Path, balancer: str) -> None:
    """Two real builds, forth and back, on one machine after the other: versions are mixed meanwhile."""
    builds = {version: build(tmp_path, version) for version in ("7.0.0", "7.1.0")}
    current = tmp_path / "current"
    current.symlink_to(builds["7.0.0"])
    variables = {"PYTHONPATH": str(current), "PYTHONDONTWRITEBYTECODE": "1"}
    with (
        machine(durable_server, **variables) as one,
        machine(durable_server, **variables) as two,
        balanced(balancer, one, two) as port,
    ):
        assert "idagg 7.0.0 counts" in one.said
        async with unnoticed(row, port, one, two):
            async for number in row.inject(5, most=5):
                version = ("7.1.0", "7.0.0")[number % 2]
                (tmp_path / "next").symlink_to(builds[version])
                (tmp_path / "next").rename(current)
                for serving in (one, two):
                    assert await reload(serving) == f"reloaded: idagg {version}, 2 workers listen\n"
                    assert (await serving.health()).status == 200
        one.stop()
        two.stop()
