"""Endpoints called for a leader, with a real store, a real HTTP client and server, and a real log file."""

from __future__ import annotations

import asyncio
import collections
import re
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import aiohttp.test_utils
import pytest
from aiohttp import web

from idagg.deliver.callback import Callbacks
from idagg.deliver.guard import Guard
from idagg.deliver.logfile import LogFile
from idagg.deliver.post import Poster
from idagg.deliver.resolve import Resolver
from idagg.deliver.route import Router
from idagg.errors import LogFileError
from idagg.flush import caller, leader
from idagg.flush.caller import Caller, Ledger
from idagg.flush.leader import Leadership
from idagg.signing import Signer
from idagg.window import PendingCallback, Record, iso
from kit import servers
from kit.cranked import CrankedClient
from kit.staging import StoreStage, end, seal, window_store
from kit.waiting import LIMIT_S, NOON, until


class Website:
    """Endpoints that answer, but for the paths that are held."""

    def __init__(self) -> None:
        self.url = ""
        self.got: dict[str, list[str]] = collections.defaultdict(list)  # path: webhook ids
        self.held: set[str] = set()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self.got[request.path].append(request.headers["webhook-id"])
        await until(lambda: request.path not in self.held)
        return web.Response()

    def endpoints(self, *paths: str) -> list[bytes]:
        return [f"{self.url}{path}".encode() for path in paths]


class Calls:
    """Calls that are done when they are told to be."""

    def __init__(self) -> None:
        self.begun: list[int] = []  # windows
        self.under_way: dict[int, list[str]] = {}
        self.ended: set[int] = set()
        self.errors: dict[int, list[Exception]] = {}  # raised once each

    async def deliver(
        self, record: Record, pending: Iterable[PendingCallback], ledger: Ledger, *, deadline: float
    ) -> None:
        start = record.start_s - NOON
        self.begun.append(start)
        self.under_way[start] = sorted(callback.endpoint for callback in pending)
        try:
            if self.errors.get(start):
                raise self.errors[start].pop()
            await until(lambda: start in self.ended)
            await ledger.done(self.under_way[start])
        finally:
            del self.under_way[start]


class Process:
    """What a machine has to lead and to call."""

    def __init__(self, url: str, calls: caller.Calls) -> None:
        self.given_up: list[int] = []
        self._client = CrankedClient(url)
        windows = window_store(self._client)
        self.leadership = Leadership(windows.election, windows.election.agreed)
        self.bid = asyncio.create_task(self.leadership.run())
        work = Caller(windows, self.leadership, calls, on_given_up=self.given_up.append)
        self.calling = asyncio.create_task(work.run())

    async def kill(self) -> None:
        await end(self.bid, self.calling)
        assert self.calling.cancelled()
        await self._client.close()


class Bench(StoreStage[Process]):
    """A stage with a website and a log file."""

    def __init__(self, url: str, path: Path) -> None:
        super().__init__(url, path)
        self.site = Website()
        self.resolver = Resolver(4)
        self.callbacks = Callbacks(
            router=Router(Guard(["127.0.0.0/8"]), self.resolver, has_proxy=False),
            poster=Poster(),
            log=LogFile(path, timeout_s=LIMIT_S),
            namespace="t",
            signer=Signer(()),
            pause_s=lambda attempts, **_: 0.01,
            timeout_s=LIMIT_S,
        )
        self.calling = asyncio.create_task(self.callbacks.run())

    async def start(self, calls: caller.Calls | None = None) -> Process:
        """Another process, which leads."""
        self.processes.append(Process(self.url, calls or self.callbacks))
        async with asyncio.timeout(LIMIT_S):
            await self.processes[-1].leadership.elected()
        return self.processes[-1]

    async def seal(self, process: Process, start: int, endpoints: list[bytes]) -> None:
        """Have a window, whose count is 1, with the endpoints."""
        await self.at(start)
        await self.add(1, endpoints=endpoints)
        await self.at(start + 60)
        assert await seal(self.windows, process.leadership.epoch) == 0
        await self.windows.pending.mark_delivered(process.leadership.epoch, NOON + start)

    async def owed(self) -> list[int]:
        return [
            entry.record.start_s - NOON for entry in await self.windows.pending.with_callbacks(limit=1000)
        ]

    async def pending(self) -> list[str]:
        return sorted(callback.endpoint for callback in await self.windows.pending.callbacks(NOON))

    async def nothing_is_owed(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            while (await self.windows.pending.counts()).callbacks:
                pass
        assert await self.client.command("KEYS", "{t:0}:record:*") == []

    def logged(self) -> list[tuple[str, str]]:
        """Windows and paths in the log file."""
        line = re.compile(
            r'.* event=callback window=(\S+) url="http://[^/]+(/[^"]*)" status=200 attempts=\d+ .*'
        )
        found = [line.fullmatch(text) for text in self.path.read_text().splitlines()]
        return sorted((match[1], match[2]) for match in found if match)


@pytest.fixture
async def bench(
    any_server: servers.RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    monkeypatch.setattr(caller, "LOOK_S", 0.01)
    monkeypatch.setattr(caller, "RETRY_S", 0.01)
    monkeypatch.setattr(leader, "LOOK_S", 0.01)
    monkeypatch.setattr(leader, "LEASE_MS", 600_000)  # it goes on by the server's clock while we stand still
    bench = Bench(any_server.url, tmp_path / "log")
    await bench.at(0)
    site = aiohttp.test_utils.RawTestServer(bench.site, handler_cancellation=True)
    async with site:
        bench.site.url = f"http://127.0.0.1:{site.port}"
        yield bench
        for process in bench.processes:
            await process.kill()
        await end(bench.calling)
        bench.resolver.close()
    await bench.client.close()


async def test_endpoints_are_called_once_each(bench: Bench) -> None:
    """Every endpoint of every window gets its call and its line, and the store keeps nothing of it."""
    process = await bench.start()
    for start in (0, 60):
        await bench.seal(process, start, bench.site.endpoints("/a", "/b"))
    await bench.nothing_is_owed()
    assert {path: len(ids) for path, ids in bench.site.got.items()} == {"/a": 2, "/b": 2}
    assert bench.logged() == [(iso(NOON + start), path) for start in (0, 60) for path in ("/a", "/b")]
    assert len({webhook for ids in bench.site.got.values() for webhook in ids}) == 4


async def test_the_next_leader_calls_the_rest(bench: Bench) -> None:
    """Endpoints that were marked are not called again; one whose call was cut off is, by the same id."""
    bench.site.held = {"/c"}
    first = await bench.start()
    await bench.seal(first, 0, bench.site.endpoints("/a", "/b", "/c"))
    async with asyncio.timeout(LIMIT_S):
        while await bench.pending() != [f"{bench.site.url}/c"]:
            pass
    await until(lambda: "/c" in bench.site.got)
    await first.kill()
    await bench.lease_runs_out()
    await bench.start()
    await until(lambda: len(bench.site.got["/c"]) == 2)
    bench.site.held.clear()
    await bench.nothing_is_owed()
    assert {path: len(ids) for path, ids in bench.site.got.items()} == {"/a": 1, "/b": 1, "/c": 2}
    assert len(set(bench.site.got["/c"])) == 1
    assert bench.logged() == [(iso(NOON), path) for path in ("/a", "/b", "/c")]


async def test_calls_end_with_the_leadership(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who hears that another leads lets go of its calls, and takes no more."""
    monkeypatch.setattr(leader, "next_try_s", lambda lease, **_: 0.01)
    calls = Calls()
    process = await bench.start(calls)
    await bench.seal(process, 0, [b"http://a/"])
    await until(lambda: calls.under_way)
    await bench.client.command("SET", "{t:0}:lock", "another", "PX", 60_000)
    await until(lambda: not process.leadership.epoch)
    await until(lambda: not calls.under_way)
    assert await bench.owed() == [0]
    assert not process.calling.done()
    assert calls.begun == [0]


async def test_a_fenced_leader_marks_nothing(bench: Bench) -> None:
    """Who wakes late as another leads learns it from the store, and goes no further."""
    calls = Calls()
    zombie = await bench.start(calls)
    await bench.seal(zombie, 0, [b"http://a/", b"http://b/"])
    await until(lambda: calls.under_way)
    await end(zombie.bid)
    await bench.lease_runs_out()
    await bench.windows.election.lead("another", lease_ms=60_000)
    calls.ended.add(0)
    await until(lambda: not zombie.leadership.epoch)
    assert await bench.pending() == ["http://a/", "http://b/"]
    await until(lambda: not calls.under_way)
    assert calls.begun == [0]


async def test_a_fenced_leader_gives_nothing_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which windows are too many is for the present leader to say."""
    monkeypatch.setattr(caller, "MAX_CALLBACKS", 0)
    zombie = await bench.start(Calls())
    await bench.seal(zombie, 0, [b"http://a/"])
    await end(zombie.bid)
    await bench.lease_runs_out()
    await bench.windows.election.lead("another", lease_ms=60_000)
    monkeypatch.setattr(caller, "MAX_BACKLOG", 0)
    await until(lambda: not zombie.leadership.epoch)
    assert await bench.pending() == ["http://a/"]


async def test_the_oldest_of_too_many_windows_are_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Past the bound, windows lose their calls, with an error in the log and a figure, the oldest first."""
    monkeypatch.setattr(caller, "MAX_BACKLOG", 2)
    first = await bench.start(Calls())
    await end(first.calling)
    for start in range(0, 300, 60):
        await bench.seal(first, start, [f"http://{n}/".encode() for n in range(start // 60 + 1)])
    await bench.lease_runs_out()
    calls = Calls()
    second = await bench.start(calls)
    await until(lambda: len(calls.under_way) == 2)
    assert await bench.owed() == [180, 240]
    assert calls.begun == [180, 240]
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        f"window {iso(NOON + start)}: its callbacks are given up, too many windows wait"
        for start in (0, 60, 120)
    ]
    assert second.given_up == [1, 2, 3]
    calls.ended = {180, 240}
    await bench.nothing_is_owed()


async def test_a_window_under_way_is_not_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window that is being called is left alone; those that wait behind it go first."""
    monkeypatch.setattr(caller, "MAX_BACKLOG", 2)
    monkeypatch.setattr(caller, "MAX_CALLBACKS", 1)
    calls = Calls()
    process = await bench.start(calls)
    for start in (0, 60, 120, 180):
        await bench.seal(process, start, [b"http://a/"])
        await until(lambda: calls.under_way)
    async with asyncio.timeout(LIMIT_S):
        while await bench.owed() != [0, 180]:
            pass
    calls.ended = {0, 180}
    await bench.nothing_is_owed()
    assert calls.begun == [0, 180]


async def test_endpoints_under_way_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would take too much memory waits in the store until there is room."""
    monkeypatch.setattr(caller, "MAX_CALLBACKS", 4)
    calls = Calls()
    process = await bench.start(calls)
    for start in (0, 60, 120):
        await bench.seal(process, start, [b"http://a/", b"http://b/"])
    await until(lambda: len(calls.under_way) == 2)
    for _ in range(50):  # time enough for many looks
        assert await bench.owed() == [0, 60, 120]
    assert sorted(calls.under_way) == [0, 60]
    calls.ended = {0}
    await until(lambda: sorted(calls.under_way) == [60, 120])
    calls.ended = {0, 60, 120}
    await bench.nothing_is_owed()
    assert calls.begun == [0, 60, 120]


async def test_trouble_with_one_window_leaves_the_others_alone(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """An error ends one window's calls, which are made again, while those of others go on."""
    calls = Calls()
    calls.errors = {60: [LogFileError("The log file is full.")]}
    process = await bench.start(calls)
    await bench.seal(process, 0, [b"http://a/"])
    await until(lambda: calls.under_way)
    await bench.seal(process, 60, [b"http://b/"])
    await until(lambda: calls.begun == [0, 60, 60])
    assert calls.under_way == {0: ["http://a/"], 60: ["http://b/"]}
    assert (
        f"window {iso(NOON + 60)}: callbacks are interrupted for 0.01 s: The log file is full." in caplog.text
    )
    calls.ended = {0, 60}
    await bench.nothing_is_owed()


async def test_trouble_that_lasts_means_fewer_calls(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The pause between calls that cannot be marked grows, up to a bound, until some are marked."""
    monkeypatch.setattr(caller, "MAX_RETRY_S", 0.03)
    calls = Calls()
    process = await bench.start(calls)
    calls.errors = {0: [LogFileError("full")] * 4, 60: [LogFileError("full")]}
    calls.ended = {0, 60}
    for start in (0, 60):
        await bench.seal(process, start, [b"http://a/"])
        await bench.nothing_is_owed()
    assert calls.begun == [0] * 5 + [60] * 2
    assert re.findall(r"interrupted for (\S+) s", caplog.text) == ["0.01", "0.02", "0.03", "0.03", "0.01"]


async def test_a_full_log_file_means_another_call(bench: Bench) -> None:
    """A call whose line could not be written counts as not made: it comes again, by the same id."""
    bench.path.symlink_to("/dev/full")
    process = await bench.start()
    await bench.seal(process, 0, bench.site.endpoints("/a"))
    await until(lambda: len(bench.site.got["/a"]) > 1)
    assert await bench.owed() == [0]
    bench.path.unlink()
    await bench.nothing_is_owed()
    assert len(set(bench.site.got["/a"])) == 1
    assert bench.logged() == [(iso(NOON), "/a")]


async def test_a_store_that_restarts(
    bench: Bench, any_server: servers.RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls that could not be marked are made again when the store is back."""
    bench.site.held = {"/a"}
    process = await bench.start()
    await bench.seal(process, 0, bench.site.endpoints("/a"))
    await until(lambda: bench.site.got["/a"])
    await bench.client.command("SAVE")
    any_server.kill()
    await until(lambda: "callbacks wait" in caplog.text)
    bench.site.held.clear()
    await until(lambda: "callbacks are interrupted" in caplog.text)
    any_server.start()
    await bench.nothing_is_owed()
    assert len(set(bench.site.got["/a"])) == 1


async def test_its_end_leaves_no_task(bench: Bench) -> None:
    """A cancelled caller has ended all that it began when it ends."""
    before = asyncio.all_tasks()
    bench.site.held = {"/a", "/b"}
    process = await bench.start()
    await bench.seal(process, 0, bench.site.endpoints("/a"))
    await bench.seal(process, 60, bench.site.endpoints("/b"))
    await until(lambda: len(bench.site.got) == 2)
    await end(process.bid, process.calling)
    ours = {task for task in asyncio.all_tasks() - before if "idagg" in repr(task)}
    assert ours == set()
    assert await bench.owed() == [0, 60]
