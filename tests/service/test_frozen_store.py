"""A store that answers nothing for a while: every request is answered in its time, however it was sent."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Coroutine

import pytest

from idagg.tasks import end
from kit import processes
from kit.faults import beside
from kit.servers import RedisServer
from kit.serving import Serving
from kit.waiting import LIMIT_S, StoodStill, long_window, until
from kit.wire import Wire, connect, ids, request

DEADLINE_S = 2
ANSWER_S = DEADLINE_S + 0.5  # and what the machine stood still, or others kept it busy
FROZEN_S = 6
RATE = 300
# Requests in one call of the kernel.
TOGETHER = 100
TRIES = 3
LATE = " s late"


class Pipeline:
    """A connection whose requests do not wait for answers, and when each was sent and answered."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._rest = b""
        self.sent_at: list[float] = []
        self.answered_at: list[float] = []
        self.statuses: set[int] = set()
        self.receiving = asyncio.create_task(self._receive())

    async def send(self, *requests: bytes) -> None:
        for start in range(0, len(requests), TOGETHER):
            some = requests[start : start + TOGETHER]
            await self._wire.send(b"".join(some))
            self.sent_at += [time.monotonic()] * len(some)

    @property
    def is_answered(self) -> bool:
        return len(self.answered_at) == len(self.sent_at)

    def complaints(self, limit_s: float) -> list[str]:
        """What was not answered, or late."""
        pairs = list(zip(self.sent_at, self.answered_at, strict=False))
        slowest_s = max((answered_s - sent_s for sent_s, answered_s in pairs), default=0.0)
        late = sum(answered_s - sent_s > limit_s for sent_s, answered_s in pairs)
        found = [f"{late} answers were up to {slowest_s - limit_s:.2f}{LATE}"] * (late > 0)
        missing = len(self.sent_at) - len(self.answered_at)
        found += [f"{missing} requests of {len(self.sent_at)} got no answer"] * (missing != 0)
        return found + [f"answers were {sorted(self.statuses)}"] * (not self.statuses <= {200, 503})

    async def _receive(self) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(self._wire.socket, 1 << 18):
            now_s = time.monotonic()  # others may have the loop before the last answer of many is read
            self._rest += data
            read = 0
            for answer in re.finditer(rb"HTTP/1\.1 (\d{3}).*?\r\n\r\n(ok|failed)", self._rest, re.DOTALL):
                self.statuses.add(int(answer[1]))
                self.answered_at.append(now_s)
                read = answer.end()
            self._rest = self._rest[read:]


Load = Callable[[list[Pipeline]], Coroutine[None, None, None]]


async def steady(pipelines: list[Pipeline]) -> None:
    """Each sends RATE requests a second, for as long as the store is frozen."""
    began_s = time.monotonic()
    for number in range(RATE * FROZEN_S):
        await asyncio.sleep(began_s + number / RATE - time.monotonic())
        for pipeline in pipelines:
            await pipeline.send(request(next(ids)))


def burst(count: int) -> Load:
    async def send(pipelines: list[Pipeline]) -> None:
        await pipelines[0].send(*(request(next(ids)) for _ in range(count)))

    return send


def two(second: bytes) -> Load:
    async def send(pipelines: list[Pipeline]) -> None:
        await pipelines[0].send(request(next(ids)), second)

    return send


BULK = (
    b"POST /api/verve/accept HTTP/1.1\r\nHost: x\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 4\r\n\r\n5\n6\n"
)
ENCODED = b"GET /api/verve/%61ccept?id=7 HTTP/1.1\r\nHost: x\r\n\r\n"


LOADS = {
    "steady": steady,
    "burst of 2500": burst(2500),
    "burst of 20000": burst(20_000),
    "then a bulk": two(BULK),
    "then an encoded path": two(ENCODED),
}


async def endures(load: Load, frozen: asyncio.Barrier) -> list[str]:
    """Send this load to an idagg of its own whose store freezes with the others'; returns the complaints."""
    async with contextlib.AsyncExitStack() as stack:
        store = stack.enter_context(RedisServer())
        flags = ("--redis-url", store.url, "--deadline", str(DEADLINE_S), "--workers", "1")
        serving = await stack.enter_async_context(beside(Serving(*flags, window=long_window())))
        await serving.counts_again()
        (worker,) = serving.workers()
        waited_s = processes.waited_s(worker)
        stood_still = await stack.enter_async_context(StoodStill())
        wires = [await connect(serving.port) for _ in range(4)]
        for wire in wires:
            stack.callback(wire.close)
        pipelines = [Pipeline(wire) for wire in wires]
        stack.push_async_callback(end, *(pipeline.receiving for pipeline in pipelines))
        for pipeline in pipelines:
            await pipeline.send(request(next(ids)))
        await until(lambda: all(pipeline.is_answered for pipeline in pipelines))
        await frozen.wait()
        store.freeze()
        stack.callback(store.thaw)
        thaw_at = time.monotonic() + FROZEN_S
        loading = asyncio.create_task(load(pipelines))
        stack.push_async_callback(end, loading)
        await asyncio.sleep(thaw_at - time.monotonic())
        store.thaw()
        await serving.counts_again()
        async with asyncio.timeout(LIMIT_S):
            await loading
        with contextlib.suppress(AssertionError):  # they are told below
            await until(lambda: all(pipeline.is_answered for pipeline in pipelines))
        limit_s = ANSWER_S + stood_still.s + processes.waited_s(worker) - waited_s
        return [complaint for pipeline in pipelines for complaint in pipeline.complaints(limit_s)]


async def test_every_request_is_answered_while_the_store_is_frozen() -> None:
    """Those behind others wait no longer than those; and counting goes on as soon as the store does.

    Each load has an idagg and a store of its own; they freeze at the same time, to be waited for once. Who is
    too slow is asked again: a processor that is taken away from a worker alone is seen by nobody here.
    """
    loads = LOADS
    complaints: dict[str, list[str]] = {}
    for _ in range(TRIES):
        frozen = asyncio.Barrier(len(loads))
        async with asyncio.TaskGroup() as group:
            tasks = {name: group.create_task(endures(load, frozen)) for name, load in loads.items()}
        complaints = {name: found for name, task in tasks.items() if (found := task.result())}
        if not all(complaint.endswith(LATE) for found in complaints.values() for complaint in found):
            break
        loads = {name: loads[name] for name in complaints}
        if not loads:
            return
    pytest.fail(str(complaints))
