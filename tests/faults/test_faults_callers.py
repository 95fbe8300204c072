"""Faults of those who call us, and of those whom we call."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import web

from idagg import failpoints
from idagg.deliver import retry
from idagg.window import iso
from kit import oracle
from kit.faults import ANSWER_S, STEADY, in_time, is_not_crowded, is_not_grown, tells
from kit.figures import Row
from kit.hostile import HOSTILE, hostile_hosts, talking
from kit.oracle import Journal, Load, Size, epoch_s, grid, lines, open_windows
from kit.servers import RedisServer
from kit.serving import Serving, send
from kit.waiting import eventually, long_window, next_window, until
from kit.wire import connect, ids, request


@pytest.mark.fault("26", "endpoints hang, answer without end, redirect for ever")
async def test_26_callbacks_that_hang(any_server: RedisServer, row: Row) -> None:
    """They hold up nothing else."""
    calls: set[str] = set()
    over = asyncio.Event()

    async def tarpit(request: web.Request) -> web.Response:
        calls.add("tarpit")
        await over.wait()
        return web.Response()

    async def endless(request: web.Request) -> web.StreamResponse:
        calls.add("endless")
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while not over.is_set():
                await response.write(b"x" * 65536)
        return response

    async def loop(request: web.Request) -> web.Response:
        calls.add("loop")
        return web.Response(status=302, headers={"Location": request.path_qs})

    async with hooks(tarpit, endless, loop) as base:
        flags = ("--redis-url", any_server.url, "--callback-allow", "127.0.0.1", *row.patient)
        with Serving(*flags, window=1, workers_have=STEADY) as serving:
            try:
                workers = serving.workers()
                before, tasks = [Size.of(pid) for pid in workers], await serving.tasks()
                async with Load(serving, callers=4) as load:
                    since = await next_window(1)
                    async for number in row.inject(2):
                        for name in ("tarpit", "endless", "loop"):
                            numbers = list(itertools.islice(ids, 20))
                            await send(serving, numbers, query=f"&endpoint={base}/{name}/{number}")
                            load.ok.update(numbers)
                        await next_window(1)
                    await until(lambda: calls == {"tarpit", "endless", "loop"})
                last = int(epoch_s(max(await serving.delivered())))
                in_time(serving, list(range(since, last + 1)), within_s=row.within_s(1))
                expected = grid(since, last, 1)
                assert row.verdict(load, lines(serving), expected=expected, answer_s=ANSWER_S) == []
                # An attempt is a descriptor, or two as it begins; four run at a time to a host.
                await is_not_grown(workers, before, memory_kib=32_768, descriptors=24)
                # Each window's delivery is one, and so is each attempt, with the look-up of its host.
                await is_not_crowded(serving, tasks)
            finally:
                over.set()
            serving.stop()


@pytest.mark.parametrize(
    ("place", "times"),
    [
        pytest.param(
            "attempt",
            1,
            marks=pytest.mark.fault("9", "callback process killed before a counted attempt is made"),
        ),
        pytest.param(
            "callback",
            2,
            marks=pytest.mark.fault("9", "callback process killed between a callback and its mark"),
        ),
    ],
)
async def test_callback_process_killed(
    any_server: RedisServer, tmp_path: Path, row: Row, place: str, times: int
) -> None:
    """Its successor makes the next attempt, under the same id; leader and counts are not touched."""
    calls: list[tuple[str, str, bytes]] = []

    async def hook(request: web.Request) -> web.Response:
        calls.append((request.path_qs, request.headers["webhook-id"], await request.read()))
        return web.Response()

    armed = tmp_path / "armed"
    sent = Journal()
    async with hooks(hook) as base:
        flags = ("--redis-url", any_server.url, "--callback-allow", "127.0.0.1", *row.patient)
        environment = {failpoints.VARIABLE: f"{place}=kill@{armed}"}
        with Serving(*flags, window=1, environment=environment, workers_have=STEADY) as serving:
            await tells(serving, "leading: epoch 1\n")
            async for _ in row.inject(1):
                armed.touch()
                numbers = list(itertools.islice(ids, 100))
                began_s = time.monotonic()
                # One names it: so it is called for one window.
                await send(serving, numbers[:1], query=f"&endpoint={base}/hook/1")
                await send(serving, numbers[1:])
                sent.slowest_s = max(sent.slowest_s, time.monotonic() - began_s)
                sent.ok.update(numbers)
                await tells(serving, "the callback process died (SIGKILL)")
                (*_, called) = await until(lambda: serving.records("callback")[times - 1 :])
            await serving.ready()
            assert (called["status"], called["attempts"]) == ("200", "2")
            assert calls == [calls[0]] * times
            await serving.delivered()
            assert row.verdict(sent, lines(serving), answer_s=ANSWER_S) == []
            assert "epoch 2" not in serving.said
            serving.stop()


@contextlib.asynccontextmanager
async def hooks(*handlers: Callable[[web.Request], object]) -> AsyncIterator[str]:
    """A server where each handler is called by its name; yields its URL."""
    app = web.Application()
    for handler in handlers:
        app.router.add_route("*", f"/{handler.__name__}/{{tail:.*}}", handler)  # type: ignore[arg-type]  # it is one
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.slow
@pytest.mark.fault("27", "100,000 endpoints in a window")
async def test_27_endpoints_without_number(any_server: RedisServer, row: Row) -> None:
    """Of 100,000 endpoints in a window 10,000 are called; the others are told of, and all ids count."""
    with Serving("--redis-url", any_server.url, window=12) as serving:
        before, tasks = [Size.of(pid) for pid in serving.workers()], await serving.tasks()
        loads = {}
        async for _ in row.inject(1):
            start = await next_window(12)
            async with Load(serving, callers=64, query="&endpoint=http://10.0.0.1/{}") as load:
                while len(load.ok) < 100_000:
                    await load.goes_on(1000)
            assert time.time() < start + 12, "too slow for one window"
            loads[iso(start)] = load
        calls = 10_000 * row.injections
        figures = await eventually(
            serving.figures,
            lambda figures: (
                figures.get("idagg_callbacks_total{blocked}", 0) == calls
                and oracle.crowded(tasks, int(figures["idagg_tasks"])) == []
            ),
            within_s=120,
        )
        for window, load in loads.items():
            found = [line for line in lines(serving) if line.window == window]
            assert row.verdict(load, found, expected=[window], answer_s=ANSWER_S) == []
        assert figures["idagg_endpoints_dropped_total"] == row.acknowledged - calls
        assert [line["error"] for line in serving.records("callback")] == ["blocked"] * calls
        for size, pid in zip(before, serving.workers(), strict=True):
            after = Size.of(pid)
            assert oracle.grown(size, after, memory_kib=65_536, descriptors=8, threads=110) == []
        serving.stop()


@pytest.mark.fault("28", "500 clients vanish")
async def test_28_clients_vanish(any_server: RedisServer, row: Row) -> None:
    """Clients that vanish by the thousand, in mid-request or before the answer, are no matter to others."""
    with Serving("--redis-url", any_server.url, *row.patient, window=long_window()) as serving:
        workers = serving.workers()
        whole = request(1)
        async with Load(serving) as load:
            load.unknown.add(1)
            before, tasks = [Size.of(pid) for pid in workers], await serving.tasks()
            async for _ in row.inject(3):
                for sent in (whole, whole[:30], b"", whole + whole[:30], b"POST / HTTP/1.1\r\n") * 100:
                    wire = await connect(serving.port)
                    if sent:
                        await wire.send(sent)
                    wire.reset()
                await load.goes_on()
            await until(
                lambda: (
                    not any(
                        oracle.grown(size, Size.of(pid), memory_kib=16_384, descriptors=4)
                        for size, pid in zip(before, workers, strict=True)
                    )
                )
            )
            await is_not_crowded(serving, tasks)
        assert (load.failed, load.unknown) == (set(), {1})
        assert row.late(load, ANSWER_S) == []
        assert row.wrong_ids(load, await open_windows(any_server.url)) == []
        assert serving.workers() == workers
        serving.stop()


@pytest.mark.fault("37", "strangers' endpoints answer without end, by the byte, in circles, with bombs")
async def test_37_hostile_endpoints(any_server: RedisServer, row: Row) -> None:
    """They get their attempts and no more, and cost nobody but the callback process, which stays small."""
    tuned: dict[str, float | str] = {
        "idagg.run.callback_keeper.CALLBACK_MODULE": "kit.hurried_callback_process"
    }
    environment = {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    }
    flags = ("--redis-url", any_server.url, "--callback-allow", "127.0.0.0/8", *row.patient)
    async with contextlib.AsyncExitStack() as stack:
        strangers = {
            name: await stack.enter_async_context(talking(kind.talk, host="0.0.0.0", limit_s=600))
            for name, kind in HOSTILE.items()
        }
        urls = [
            f"http://{host}:{stranger.port}/{name}"
            for name, stranger in strangers.items()
            for host in hostile_hosts(name)
        ]
        serving = stack.enter_context(
            Serving(*flags, window=2, tuned=tuned, environment=environment, workers_have=STEADY)
        )
        await tells(serving, "leading: epoch 1\n")
        pid = serving.callback_process()
        before = Size.of(pid)
        sizes: list[Size] = []
        async with Load(serving, callers=4) as load:
            since = await next_window(2)
            async for _ in row.inject(1):
                for url, number in zip(urls, ids, strict=False):
                    await send(serving, [number], query=f"&endpoint={url}")
                    load.ok.add(number)
                await next_window(2)

            def ended() -> bool:
                sizes.append(Size.of(pid))
                return len(serving.records("callback")) >= row.injections * len(urls)

            await until(ended, within_s=180)
        assert (load.failed, load.unknown) == (set(), set())
        last = int(epoch_s(max(await serving.delivered())))
        expected = grid(since, last, 2)
        assert row.verdict(load, lines(serving), expected=expected, answer_s=ANSWER_S) == []
        assert (serving.said.count("leading"), serving.callback_process()) == (1, pid)

        called = serving.records("callback")
        assert len(called) == row.injections * len(urls)
        timed_out = (None, "timeout", None)
        for name, kind in HOSTILE.items():
            of_kind = [line for line in called if line["url"].endswith(name)]
            told = {(line.get("status"), line.get("error"), line.get("location")) for line in of_kind}
            # Attempts are hurried here. On a busy machine some time out, and are made again.
            assert told - {timed_out} == {(kind.status, kind.error, kind.location)} - {timed_out}
            attempts = {int(line["attempts"]) for line in of_kind}
            if kind.error:
                assert attempts == {retry.ATTEMPTS}
            else:
                assert min(attempts) == 1
            calls = strangers[name].calls()
            # One can even end before the stranger has taken its connection.
            assert (len(calls), max(calls.values()) <= max(attempts)) == (len(of_kind), True)
            assert not any(b"\r\ncookie:" in request.lower() for request in strangers[name].requests)

        # All are called at once, in the worst case: each attempt is a descriptor and its lookup had a thread.
        at_once = len(called)
        for size in sizes:
            assert (
                oracle.grown(before, size, memory_kib=65_536, descriptors=at_once + 24, threads=at_once + 16)
                == []
            )
        serving.stop()
