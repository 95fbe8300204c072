from __future__ import annotations

import asyncio
import gc
import itertools
import secrets
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import pytest_asyncio
import uvloop

from idagg.store import connection, topology
from kit import engines, servers
from kit.figures import Figures
from kit.turns import turn
from kit.waiting import LIMIT_S

if TYPE_CHECKING:
    from playwright.async_api import Browser

# Machines that run tests are shared: an example that took long says nothing. And a run tells about what has
# changed: its examples are those of the last one. `--hypothesis-profile explore` looks at others each time.
hypothesis.settings.register_profile("idagg", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile("idagg")

_UNIT = Path(__file__).parent / "unit"
_loop_troubles: list[dict[str, Any]] = []
_tests = itertools.count(1)
_TESTS_A_WALK = 20


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--injections", type=int, help="how often each fault is injected; default: a few times")
    group.addoption("--seed", type=int, default=secrets.randbits(32), help="of the faults' moments and order")
    group.addoption("--figures", type=Path, help="folder for the figures of the faults' tests")
    parser.addoption("--store-server", help="the program to use wherever tests start a Redis or Valkey")


def pytest_configure(config: pytest.Config) -> None:
    engines.stand_in = config.getoption("store_server")
    if config.getoption("figures") and config.getoption("numprocesses", None):
        raise pytest.UsageError("--figures: one process has to run all tests: leave out -n")
    options = (config.getoption(name) for name in ("figures", "injections", "seed"))
    config.pluginmanager.register(Figures(*options))


def pytest_sessionstart(session: pytest.Session) -> None:
    # A terminated run ends its servers as an interrupted one does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if _only_unit_tests(session.config):
        return
    with session.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        servers.ensure_installed()


def _only_unit_tests(config: pytest.Config) -> bool:
    """They need nothing that would have to be installed. Known before a test is collected: what runs tests
    for others collects none."""
    chosen = [config.invocation_params.dir / argument.partition("::")[0] for argument in config.args]
    return all(path.resolve().is_relative_to(_UNIT) for path in chosen)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    alone = item.get_closest_marker("alone") is not None
    with turn(Path(__file__), Path(servers.__file__), alone=alone):
        return (yield)


def pytest_collection_finish() -> None:
    gc.freeze()  # what is loaded by now stays, so the collection after each test need not walk it


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": _new_loop}


def _new_loop() -> asyncio.AbstractEventLoop:
    loop = uvloop.new_event_loop()
    loop.set_exception_handler(lambda _, context: _loop_troubles.append(context))
    return loop


@pytest.fixture
def seed(pytestconfig: pytest.Config) -> int:
    """Of all that a test leaves to chance; another in each run, unless one is given."""
    number: int = pytestconfig.getoption("seed")
    return number


@pytest.fixture
def durable_server() -> Iterator[servers.RedisServer]:
    """A store that has on disk what it has acknowledged."""
    with servers.RedisServer("redis", appendonly="yes", appendfsync="always") as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def what_is_left() -> None:
    """What earlier tests left in memory, their reports above all, is walked once and not after each test to
    come: the walks took a sixth of the suite's time."""
    _walk()


def _walk() -> None:
    _loop_troubles.clear()
    gc.collect()
    assert _loop_troubles == []  # of the last test's loop, which has been closed meanwhile
    gc.freeze()


@pytest.fixture(autouse=True)
def no_loop_troubles() -> Iterator[None]:
    """A test fails on any exception that nothing handled in its event loop."""
    if next(_tests) % _TESTS_A_WALK == 0:  # of a module with many
        _walk()
    _loop_troubles.clear()
    yield
    gc.collect()  # a lost exception is reported when its task is collected
    assert _loop_troubles == []


@pytest.fixture(autouse=True)
def patient_dials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own clients connect however long the machine stands still meanwhile. Those of idagg's processes try
    again."""
    monkeypatch.setattr(connection, "DIAL_S", LIMIT_S)
    monkeypatch.setattr(topology, "ASK_S", LIMIT_S / 2)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "store_kind" in metafunc.fixturenames:
        metafunc.parametrize("store_kind", engines.kinds(), scope="session")


@pytest.fixture
def store_server(store_kind: str) -> Iterator[servers.RedisServer]:
    """An empty store, once of each kind."""
    with servers.RedisServer(store_kind) as server:
        yield server


@pytest.fixture
def any_server() -> Iterator[servers.RedisServer]:
    """An empty store, for what is the same with every kind."""
    with servers.RedisServer() as server:
        yield server


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Of the size that the test says; it needs root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", disk], check=True)
    yield disk
    # A process that was killed may hold a file for a moment after it is gone.
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """The session's Chromium: tests that use it run in the session's loop."""
    from kit.browser import chromium  # its packages take a third of a second to import

    async with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def rabbit() -> Iterator[servers.RabbitServer]:
    """The session's RabbitMQ; a test that stops or freezes it brings it back."""
    with servers.RabbitServer() as server:
        yield server


@pytest.fixture
def rabbit_queue() -> str:
    """A queue's name that no other test uses."""
    return f"test-{uuid.uuid4()}"
