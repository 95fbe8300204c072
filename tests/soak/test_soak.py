"""idagg for a long time under load, while something dies, stops or is lost every few seconds.

Windows are short, so that many end; Redis, with `appendfsync always`, and RabbitMQ are real, each behind a
proxy that can swallow replies. In the end the oracle judges.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import multiprocessing
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest
from aiohttp import web

from idagg.window import iso
from kit.oracle import Consumer, Size, lines
from kit.proxy import Proxy
from kit.servers import RabbitServer, RedisServer
from kit.serving import Serving
from kit.soak.faults import DEADLY, NOTICED, Scene, in_random_order
from kit.soak.load import Plan, load
from kit.soak.results import Event, Results
from kit.waiting import eventually, first_window, until

_QUEUE = "counts_queue"
# Until the generator has its connections.
_STARTING_S = 3
# When in a cycle the fault comes: away from the ends of windows.
_FAULT_AFTER_S = (1.5, 3.5)
_FAULT_TAKES_S = 90
_SETTLED_WITHIN_S = 120


@dataclasses.dataclass(frozen=True)
class _Options:
    """As `conftest.py` beside this file explains them."""

    minutes: float = 20
    rate: int = 10_000
    window: int = 5
    windows_a_cycle: int = 4
    out: Path = Path(__file__).parent / "results"


@pytest.mark.alone
@pytest.mark.slow
async def test_soak(pytestconfig: pytest.Config, seed: int) -> None:
    """Counts are right, windows arrive, answers are in time, and nothing grows, whatever dies."""
    names = (field.name for field in dataclasses.fields(_Options))
    given = {name: pytestconfig.getoption(name, None) for name in names}
    options = _Options(**{name: value for name, value in given.items() if value is not None})
    say(f"seed {seed}: the same faults come in the same order with --seed {seed}")
    found = await _soak(options, seed)
    summary = f"{found.summary()}\nThe same faults again: --seed {seed}"
    say(summary)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "verdict.txt").write_text(summary + "\n")
    from kit.soak.plots import draw  # not above: other tests' environments have no matplotlib

    await asyncio.to_thread(draw, found, options.out)
    assert found.complaints == []


def say(progress: str) -> None:
    print(progress, file=sys.stderr, flush=True)  # noqa: T201  -s shows how far it is


async def _soak(options: _Options, seed: int) -> Results:
    random = Random(seed)
    cycle_s = options.window * options.windows_a_cycle
    cycles = max(1, round(options.minutes * 60 / cycle_s))
    calls: list[tuple[str, str, int]] = []
    async with _scene(options, calls) as (scene, base):
        plan = Plan(
            port=scene.serving.port,
            rate=options.rate,
            seconds=cycles * cycle_s,
            start_s=first_window(options.window, after_s=_STARTING_S),
            window_s=options.window,
            cycle_s=cycle_s,
            first_id=time.time_ns() // 1000,  # another in each run
            endpoints=tuple(f"{base}/{number}" for number in range(4)),
        )
        found = Results(plan, calls=calls)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            loading = pool.apply_async(load, (plan,))
            sampling = asyncio.create_task(_sample(scene, found))
            try:
                for cycle, (name, fault) in zip(range(cycles), in_random_order(random), strict=False):
                    at_s = cycle * cycle_s + random.uniform(*_FAULT_AFTER_S)
                    await asyncio.sleep(plan.start_s + at_s - time.time())
                    began_s = time.time() - plan.start_s
                    async with asyncio.timeout(_FAULT_TAKES_S):
                        await fault(scene, random)
                    ended_s = time.time() - plan.start_s
                    found.events.append(
                        Event(name, began_s, ended_s, noticed=name in NOTICED, deadly=name in DEADLY)
                    )
                    took = f"{began_s:7.1f} s of {plan.seconds}: {name}, {ended_s - began_s:.1f} s"
                    say(f"{took}; {_state(found)}")
                # The rest of the last cycle, and what a process that has died would never say.
                within_s = plan.start_s + plan.seconds - time.time() + _SETTLED_WITHIN_S
                found.told = await asyncio.to_thread(loading.get, within_s)
            finally:
                sampling.cancel()
                await asyncio.wait([sampling])
            if not sampling.cancelled():
                sampling.result()
        with contextlib.suppress(AssertionError, TimeoutError):  # what is missing is the oracle's to say
            await _settle(scene, found)
        found.deliveries = [*await scene.consumer.deliveries(), *lines(scene.serving)]
        await asyncio.to_thread(scene.serving.stop)
    return found


@contextlib.asynccontextmanager
async def _scene(options: _Options, calls: list[tuple[str, str, int]]) -> AsyncIterator[tuple[Scene, str]]:
    """All that it takes, and the URL of who is called back."""

    async def called(request: web.Request) -> web.Response:
        record = await request.json()
        calls.append((record["window_start"], str(request.url.with_query(None)), record["unique_ids"]))
        return web.Response()

    app = web.Application()
    app.router.add_post("/{number}", called)
    runner = web.AppRunner(app, access_log=None)
    async with contextlib.AsyncExitStack() as stack:
        say("starting Redis, RabbitMQ and idagg")
        redis = stack.enter_context(RedisServer("redis", appendonly="yes", appendfsync="always"))
        redis.start_timeout_s = 60  # it has a long log to read after a while
        rabbit = stack.enter_context(RabbitServer())
        store_line = await stack.enter_async_context(Proxy(str(redis.socket)))
        broker_line = await stack.enter_async_context(Proxy(rabbit.port))
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        serving = Serving(
            *("--redis-url", store_line.url, "--amqp-url", broker_line.amqp_url, "--amqp-queue", _QUEUE),
            *("--callback-allow", "127.0.0.1"),
            window=options.window,
        )
        stack.push_async_callback(asyncio.to_thread, serving.close)
        await asyncio.to_thread(serving.start)
        # It keeps its ports when it is started again.
        serving.flags += ("--port", str(serving.port), "--admin-port", str(serving.admin_port))
        consumer = Consumer(rabbit, _QUEUE)
        await eventually(consumer.take, bool, within_s=30)
        scene = Scene(serving, redis, rabbit, _QUEUE, consumer, store_line, broker_line)
        yield scene, f"http://127.0.0.1:{runner.addresses[0][1]}"


async def _sample(scene: Scene, found: Results) -> None:
    """Each second, who lives."""
    while True:
        at_s = time.time() - found.plan.start_s
        for name, pids in (await asyncio.to_thread(_processes, scene)).items():
            sizes = []
            for pid in pids:
                with contextlib.suppress(OSError, KeyError):  # it has ended, or is about to
                    sizes.append(Size.of(pid))
            if sizes and at_s > 0:
                most = Size(*(max(values) for values in zip(*map(_fields, sizes), strict=True)))
                found.sizes.setdefault(name, []).append((at_s, most))
        with contextlib.suppress(OSError, AssertionError, KeyError):  # it has ended, or is about to
            found.tasks.append((at_s, await scene.serving.tasks()))
        await asyncio.sleep(1 - time.time() % 1)


def _fields(size: Size) -> tuple[int, int, int]:
    return size.memory_kib, size.descriptors, size.threads


def _processes(scene: Scene) -> dict[str, list[int]]:
    found = {"supervisor": list[int](), "workers": scene.serving.workers(), "Redis": []}
    with contextlib.suppress(AssertionError):  # not running
        found["supervisor"].append(scene.serving.pid)
    with contextlib.suppress(AssertionError):
        found["Redis"].append(scene.redis.pid)
    return found


def _state(found: Results) -> str:
    return ", ".join(f"{name} {sizes[-1][1].memory_kib // 1024} MiB" for name, sizes in found.sizes.items())


async def _settle(scene: Scene, found: Results) -> None:
    """Wait until all is delivered and everyone called."""
    plan = found.plan
    last = iso(plan.window_start_s((plan.seconds - 1) // plan.window_s))
    say(f"waiting for the window that began at {last}")
    await eventually(scene.consumer.counts, lambda counts: last in counts, within_s=_SETTLED_WITHIN_S)
    await eventually(
        scene.consumer.counts,
        lambda counts: {line.window for line in lines(scene.serving)} <= counts.keys(),
        within_s=_SETTLED_WITHIN_S,
    )
    last_calls = {(last, endpoint) for endpoint in plan.endpoints}
    await until(
        lambda: last_calls <= {(window, endpoint) for window, endpoint, _ in found.calls} or None,
        within_s=_SETTLED_WITHIN_S,
    )
