"""Twice as much as it can take: what is over is refused, and nothing else suffers.

The store is behind a thin line, which passes a fixed number of ids a second: so it is the store that is too
slow, not the machine, and what can be taken is known beforehand. The load is an open loop: requests come at a
constant rate, whatever the answers do.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from statistics import median

import pytest

from kit import oracle
from kit.oracle import Size, open_windows
from kit.proxy import Proxy
from kit.servers import RedisServer
from kit.serving import Serving
from kit.told import FIRST_ID, NOT_ANSWERED, OK, REFUSED, STARTING_S, Told, tell
from kit.waiting import long_window
from kit.wire import Answer, ids

# An id of nine digits is twelve bytes of a batch.
TAKES = 8000
LINE_BYTES_PER_S = 12 * TAKES
CALM, FLOOD = TAKES // 2, TAKES * 2
# A machine that has stood still for so long at once had too much even of half a load, and took less than it
# can.
STILL_S = 0.5
# After the flood.
CALM_S, BACK_WITHIN_S = 3, 3
# At the default deadline, 2 s, as the machine is shared: what the generator is late is in it.
ANSWER_S = 15.0
AT_ONCE_S = 1.0  # most of those who are refused
# So many that none of them has more requests waiting than are read from it.
CONNECTIONS = 256


def loads(port: int, flood_s: int) -> list[Told]:
    """A load that can be taken, the flood, and, as soon as that must be over, what can be taken again."""
    found = []
    first_id = FIRST_ID
    start_s = time.time() + STARTING_S
    for rate, seconds in (CALM, CALM_S), (FLOOD, flood_s), (CALM, CALM_S):
        found.append(tell(port, first_id, rate, seconds, connections=CONNECTIONS, start_s=start_s))
        first_id += rate * seconds
        # On a busy machine the generator may be late itself.
        start_s = max(start_s + seconds + BACK_WITHIN_S * (rate == FLOOD), time.time() + STARTING_S)
    return found


class Passers:
    """Callers with a connection of their own, beside the load: who pipelines waits for earlier answers."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._calls: set[asyncio.Task[None]] = set()
        self.sent: set[int] = set()
        self.answers: list[tuple[Answer, float]] = []

    def pass_by(self) -> None:
        call = asyncio.create_task(self._call(next(ids)))
        self._calls.add(call)

    async def done(self) -> None:
        await asyncio.gather(*self._calls)

    async def _call(self, number: int) -> None:
        self.sent.add(number)
        began_s = time.monotonic()
        answer = await self._serving.ask(f"/api/verve/accept?id={number}")
        self.answers.append((answer, time.monotonic() - began_s))


@pytest.mark.alone
@pytest.mark.parametrize(
    ("flood_s", "share"),
    [(6, 0.4), pytest.param(60, 0.7, marks=pytest.mark.slow)],
    ids=["short", "long"],
)
async def test_overload(flood_s: int, share: float) -> None:
    """All are answered in time, about as many are stored as before, none is lost; then all are stored again.

    In the short form what waits when the flood begins, and how it settles, is much of the whole.
    """
    with RedisServer(appendonly="yes", appendfsync="always") as server:
        async with Proxy(str(server.socket)) as proxy:
            proxy.bytes_per_s = LINE_BYTES_PER_S
            serving = Serving("--redis-url", proxy.url, "--workers", "1", window=long_window())
            try:
                await asyncio.to_thread(serving.start)
                (worker,) = serving.workers()
                passers = Passers(serving)
                sizes, tasks = [Size.of(worker)], [await serving.tasks()]
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    parts = pool.apply_async(loads, (serving.port, flood_s))
                    stood_still_s = 0.0
                    while not parts.ready():
                        passers.pass_by()
                        began_s = time.monotonic()
                        await asyncio.sleep(0.1)
                        stood_still_s = max(stood_still_s, time.monotonic() - began_s - 0.1)
                        sizes.append(Size.of(worker))
                        tasks.append(await serving.tasks())
                    before, flood, after = parts.get()
                await passers.done()
                windows = await open_windows(server.url)
                await asyncio.to_thread(serving.stop)
            finally:
                await asyncio.to_thread(serving.close)

    everyone = oracle.Journal(
        ok=before.told(OK) | flood.told(OK) | after.told(OK),
        failed=before.told(REFUSED) | flood.told(REFUSED) | after.told(REFUSED),
        unknown=passers.sent,
        slowest_s=max(part.slowest_s for part in (before, flood, after)),
    )
    assert oracle.wrong_ids(everyone, windows) == []
    assert oracle.late(everyone, ANSWER_S) == []
    assert [part.told(NOT_ANSWERED) for part in (before, flood, after)] == [set()] * 3
    settled = flood.seconds[2:]
    rates = [sum(map(len, seconds)) / len(seconds) for seconds in (before.seconds, settled)]
    print(f"{rates[0]:,.0f} ok/s before, {rates[1]:,.0f} in the flood")  # noqa: T201  figures for those who ask
    for size in sizes:
        assert oracle.grown(sizes[0], size, memory_kib=16_384, descriptors=CONNECTIONS + 64) == []
    # Each connection that is being accepted is a task.
    assert oracle.crowded(tasks[0], max(tasks), tasks=CONNECTIONS + 64) == []
    refused = [(answer, took_s) for answer, took_s in passers.answers if answer.status == 503]
    assert refused
    assert {(answer.body, answer.headers["Retry-After"]) for answer, _ in refused} == {(b"failed", "1")}
    took_s = sorted(took_s for _, took_s in refused)
    print(f"{len(refused)} passers-by refused in {median(took_s):.3f} s, at most {took_s[-1]:.3f}")  # noqa: T201  likewise
    assert took_s[-1] < ANSWER_S
    if stood_still_s < STILL_S:
        assert (before.told(REFUSED), after.told(REFUSED)) == (set(), set())
        assert rates[1] > share * TAKES
        assert median(took_s) < AT_ONCE_S
