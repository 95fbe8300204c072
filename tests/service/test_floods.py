"""Clients that send as much as they can: they get their answers, and others get theirs in time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kit.oracle import Size, grown
from kit.serving import PATIENT, Serving
from kit.waiting import LIMIT_S, long_window
from kit.wire import connect, ids, request

CONNECTIONS = 200
# Of the good client, with the flood and without.
SAMPLES = 400
PAUSE_S = 0.002
GIVE_UP_S = 10.0
TRIES = 8


@pytest.fixture
def serving() -> Iterator[Serving]:
    """With one worker: whoever comes shares it."""
    with Serving("--workers", "1", *PATIENT, window=long_window()) as serving:
        yield serving


async def test_heads_that_never_end_cost_no_memory(serving: Serving) -> None:
    """Each is answered at the limit of a head and its connection closed, though it is a megabyte."""
    (worker,) = serving.workers()
    await serving.counts_again()
    before = Size.of(worker)
    most = before
    endless = b"GET /x HTTP/1.1\r\n" + b"".join(b"X-%d: " % n + b"y" * 8100 + b"\r\n" for n in range(126))

    async def each() -> int | None:
        wire = await connect(serving.port)
        sending = asyncio.create_task(wire.send(endless))
        try:
            answer = await wire.answer()
            assert await wire.closed()
            return answer.status if answer else None
        finally:
            sending.cancel()
            await asyncio.wait([sending])
            wire.close()

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, Size.of(worker), key=lambda size: size.memory_kib)
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(watch())
    try:
        statuses = await asyncio.gather(*(each() for _ in range(CONNECTIONS)))
    finally:
        watching.cancel()
    assert statuses == [431] * CONNECTIONS
    # Some of its own may come meanwhile, to the store.
    assert grown(before, most, memory_kib=32 * 1024, descriptors=CONNECTIONS + 32) == []
    assert await serving.hit() == 200


@contextlib.asynccontextmanager
async def flood(port: int, query: str) -> AsyncIterator[None]:
    """CONNECTIONS clients that send such requests, pipelined, as fast as they are taken."""
    bad = f"GET /api/verve/accept?{query} HTTP/1.1\r\nHost: x\r\n\r\n"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("flood.py")), str(port), str(CONNECTIONS), bad),
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            assert await process.stdout.readline() == b"connected\n"
        await asyncio.sleep(0.5)  # until all of them are heard
        yield
        assert process.returncode is None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def latencies(port: int) -> list[float]:
    """How long a client waits for each of SAMPLES answers, who takes them one by one."""
    found: list[float] = []
    give_up_at = time.monotonic() + GIVE_UP_S
    with socket.create_connection(("127.0.0.1", port), timeout=GIVE_UP_S) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(SAMPLES):
            began_s = time.monotonic()
            client.sendall(request(next(ids)))
            answer = b""
            while not answer.endswith((b"\r\n\r\nok", b"\r\n\r\nfailed")):
                data = client.recv(4096)
                assert data, "the connection is closed"
                answer += data
            ended_s = time.monotonic()
            assert answer.startswith(b"HTTP/1.1 200 ")
            found.append(ended_s - began_s)
            assert ended_s < give_up_at, f"{len(found)} answers took {GIVE_UP_S:g} s"
            time.sleep(PAUSE_S)
    return found


def p99_ms(samples: list[float]) -> float:
    return sorted(samples)[len(samples) * 99 // 100] * 1000


@pytest.mark.alone
async def test_a_flood_of_bad_requests_delays_nobody_else(serving: Serving) -> None:
    """Others wait at most five times as long as without it, and 20 ms. In one line with it, it is seconds."""
    complaints: list[str] = []
    for _ in range(TRIES):  # the machine is shared
        try:
            quiet_ms = p99_ms(await asyncio.to_thread(latencies, serving.port))
        except (AssertionError, TimeoutError) as error:
            complaints.append(f"quiet: {error}")
            continue
        async with flood(serving.port, "id=x"):
            try:
                flooded_ms = p99_ms(await asyncio.to_thread(latencies, serving.port))
            except (AssertionError, TimeoutError) as error:
                complaints.append(f"quiet p99 {quiet_ms:.1f} ms; flooded: {error}")
                continue
        if flooded_ms <= 5 * quiet_ms + 20:
            return
        complaints.append(f"quiet p99 {quiet_ms:.1f} ms; flooded p99 {flooded_ms:.1f} ms")
    pytest.fail("; ".join(complaints))
