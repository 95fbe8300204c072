"""A store that answers nothing for a while: every request is answered in its time, however it was sent."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from doors import Wire
from servers import RedisServer
from serving import Serving, connect, ids, long_window, request

DEADLINE_S = 2
ANSWER_S = DEADLINE_S + 0.5
FROZEN_S = 6
BACK_WITHIN_S = 1.0
RATE = 300
# Requests in one call of the kernel.
TOGETHER = 100


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

    def complaints(self) -> list[str]:
        """What was not answered, or late."""
        pairs = list(zip(self.sent_at, self.answered_at, strict=False))
        slowest_s = max((answered_s - sent_s for sent_s, answered_s in pairs), default=0.0)
        late = sum(answered_s - sent_s > ANSWER_S for sent_s, answered_s in pairs)
        found = [f"{late} answers are late, by up to {slowest_s - ANSWER_S:.2f} s"] * (late > 0)
        missing = len(self.sent_at) - len(self.answered_at)
        found += [f"{missing} requests of {len(self.sent_at)} got no answer"] * (missing != 0)
        return found + [f"answers were {sorted(self.statuses)}"] * (not self.statuses <= {200, 503})

    async def _receive(self) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(self._wire.socket, 1 << 18):
            self._rest += data
            end = 0
            for answer in re.finditer(rb"HTTP/1\.1 (\d{3}).*?\r\n\r\n(ok|failed)", self._rest, re.DOTALL):
                self.statuses.add(int(answer[1]))
                self.answered_at.append(time.monotonic())
                end = answer.end()
            self._rest = self._rest[end:]


async def steady(pipelines: list[Pipeline]) -> None:
    """Each sends RATE requests a second, for as long as the store is frozen."""
    began_s = time.monotonic()
    for number in range(RATE * FROZEN_S):
        await asyncio.sleep(began_s + number / RATE - time.monotonic())
        for pipeline in pipelines:
            await pipeline.send(request(next(ids)))


def burst(count: int) -> Callable[[list[Pipeline]], Awaitable[None]]:
    async def send(pipelines: list[Pipeline]) -> None:
        await pipelines[0].send(*(request(next(ids)) for _ in range(count)))

    return send


def two(second: bytes) -> Callable[[list[Pipeline]], Awaitable[None]]:
    async def send(pipelines: list[Pipeline]) -> None:
        await pipelines[0].send(request(next(ids)), second)

    return send


BULK = (
    b"POST /api/verve/accept HTTP/1.1\r\nHost: x\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 4\r\n\r\n5\n6\n"
)
ENCODED = b"GET /api/verve/%61ccept?id=7 HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
async def frozen() -> AsyncIterator[tuple[Serving, RedisServer]]:
    with (
        RedisServer() as store,
        Serving(
            *("--redis-url", store.url, "--deadline", str(DEADLINE_S), "--workers", "1"), window=long_window()
        ) as serving,
    ):
        yield serving, store


@pytest.mark.parametrize(
    "load",
    [
        pytest.param(steady, id="steady"),
        pytest.param(burst(2500), id="burst of 2500"),
        pytest.param(burst(20_000), id="burst of 20000"),
        pytest.param(two(BULK), id="then a bulk"),
        pytest.param(two(ENCODED), id="then an encoded path"),
    ],
)
async def test_every_request_is_answered_while_the_store_is_frozen(
    frozen: tuple[Serving, RedisServer], load: Callable[[list[Pipeline]], Awaitable[None]]
) -> None:
    """Those behind others wait no longer than those; and counting goes on as soon as the store does."""
    serving, store = frozen
    await serving.counts_again()
    wires = [await connect(serving.port) for _ in range(4)]
    pipelines = [Pipeline(wire) for wire in wires]
    for pipeline in pipelines:
        await pipeline.send(request(next(ids)))
    await asyncio.sleep(0.2)
    store.freeze()
    thaw_at = time.monotonic() + FROZEN_S
    loading = asyncio.ensure_future(load(pipelines))
    try:
        await asyncio.sleep(thaw_at - time.monotonic())
        store.thaw()
        await serving.counts_again(within_s=BACK_WITHIN_S)
        await asyncio.sleep(ANSWER_S)
        assert loading.done()
        found = [complaint for pipeline in pipelines for complaint in pipeline.complaints()]
    finally:
        store.thaw()
        loading.cancel()
        for pipeline in pipelines:
            pipeline.receiving.cancel()
        await asyncio.wait([loading, *(pipeline.receiving for pipeline in pipelines)])
        for wire in wires:
            wire.close()
    assert found == []
