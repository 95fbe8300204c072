"""Ids over several shards, before a real store."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from pathlib import Path

from idagg.store.client import Client
from idagg.store.hits import HitStore
from idagg.store.shards import shard_of, shard_tag
from kit import oracle
from kit.listeners import counted, open_listener
from kit.proxy import Proxy
from kit.servers import RedisServer
from kit.serving import PATIENT, WORKERS, Serving, agreed, send
from kit.waiting import LIMIT_S, eventually, long_window, next_window, until
from kit.wire import Wire, ids, request

SHARDS = 4
# Longer than the machine stands still: who is served meanwhile must not fail.
DEADLINE_S = 6.0
FLAGS = ("--shards", str(SHARDS))


def next_id(*shards: int) -> int:
    """A new id of one of these shards."""
    return next(number for number in ids if shard_of(b"%d" % number, SHARDS) in shards)


async def test_every_id_is_in_one_window(durable_server: RedisServer) -> None:
    """Over several windows and two workers, the counts add up to the ids."""
    with Serving("--redis-url", durable_server.url, *FLAGS, *PATIENT, window=1) as serving:
        await serving.ready()
        async with oracle.Load(serving) as load:
            for _ in range(3):
                await load.goes_on(100)
                await next_window(1)
        counts = await serving.delivered()
        assert (load.failed, load.unknown) == (set(), set())
        assert sum(counts.values()) == len(load.ok)
        assert sum(count > 0 for count in counts.values()) >= 2
        assert all(record["exact"] == "true" for record in serving.records("window"))
        serving.stop()


async def test_ids_and_their_repeats_go_to_their_shards(any_server: RedisServer) -> None:
    """Pipelined and in bulk. Each shard holds what belongs to it, and repeats are not sent."""
    with Serving("--redis-url", any_server.url, *FLAGS, *PATIENT, window=long_window()) as serving:
        await serving.ready()
        numbers = [next_id(0, 1, 2, 3) for _ in range(400)]
        for _ in range(3):
            await send(serving, numbers)
        bulk = [next_id(0, 1, 2, 3) for _ in range(100)]
        body = "\n".join(map(str, bulk))
        wire = Wire()
        await asyncio.get_running_loop().sock_connect(wire.socket, ("127.0.0.1", serving.port))
        head = f"POST /api/verve/accept HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        await wire.send((head + body).encode())
        answer = await wire.answer()
        wire.close()
        assert answer is not None
        assert answer.body == b"ok"
        client = Client(any_server.url, timeout_s=LIMIT_S)
        for shard in range(SHARDS):
            (key,) = await client.command("KEYS", f"{shard_tag('idagg', shard)}:w:*:ids")
            found = {int(member) for member in await client.command("SMEMBERS", key)}
            assert found == {number for number in numbers + bulk if shard_of(b"%d" % number, SHARDS) == shard}
        await client.close()
        figures = await eventually(
            serving.figures, lambda figures: figures["idagg_requests_total{200}"] >= 1201
        )
        assert figures["idagg_requests_total{200}"] == 1201
        assert figures["idagg_repeats_total"] > 0
        assert figures["idagg_shards_away"] == 0
        serving.stop()


async def test_another_number_of_shards_begins_with_a_window(durable_server: RedisServer) -> None:
    """A process goes by the store's shards, and by its own once it leads; no id is lost or counted twice."""
    store = ("--redis-url", durable_server.url)
    with Serving(*store, "--shards", "1", window=1) as former:
        await former.ready()
        with Serving(*store, *FLAGS, window=1) as serving:
            await serving.ready()
            await eventually(serving.health, lambda answer: b"give it the same --shards" in answer.body)
            async with oracle.Load(serving) as load:
                await load.goes_on()
                former.stop()
                told = "spread over 4 shards from now on"
                await until(lambda: serving.said.count(told) == WORKERS)
                await load.goes_on()
            counts = agreed([*former.counts().items(), *(await serving.delivered()).items()])
            assert len(load.ok) <= sum(counts.values()) <= len(load.sent)
            assert len(load.failed) < len(load.ok)
            await eventually(serving.health, lambda answer: b"shards: " not in answer.body)
            serving.stop()


async def test_check_beside_another_number_of_shards(any_server: RedisServer, tmp_path: Path) -> None:
    """An instance would count, and not lead: a warning."""
    store = ("--redis-url", any_server.url)
    with Serving(*store, "--shards", "2", window=long_window()) as serving:
        await serving.ready()
        window = ("--window", str(serving.window))
        done = await asyncio.to_thread(
            subprocess.run,
            [
                sys.executable,
                "-m",
                "idagg",
                "check",
                *store,
                *FLAGS,
                *window,
                "--port",
                "0",
                "--admin-port",
                "0",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        serving.stop()
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        "warning store: the store's ids are spread over 2 shards for other running instances: this one "
        "counts so, too, and does not lead: give it the same --shards\n"
    ) in done.stdout


async def test_a_shard_in_trouble_fails_its_own_ids_and_is_named(any_server: RedisServer) -> None:
    """The worker is ready for all others, and says which shard it is, until it works again."""
    with Serving("--redis-url", any_server.url, *FLAGS, *PATIENT, window=long_window()) as serving:
        await serving.ready()
        await send(serving, [next_id(1)])
        client = Client(any_server.url, timeout_s=LIMIT_S)
        state = f"{shard_tag('idagg', 1)}:state"
        await client.command("RENAME", state, "kept")
        await client.command("SET", state, "spoilt")

        async def status(shard: int) -> int:
            return (await serving.ask(f"/api/verve/accept?id={next_id(shard)}")).status

        assert [await status(shard) for shard in (0, 1, 2, 3)] == [200, 503, 200, 200]
        named = b"shards: of 4 shards, 1 store no ids"
        await eventually(serving.health, lambda answer: named in answer.body and answer.status == 200)
        assert (await serving.ask("/readyz")).status == 200
        await eventually(serving.figures, lambda figures: figures["idagg_shards_away"] == 1)
        await until(lambda: "shard 1 stores no ids" in serving.said)
        await client.command("DEL", state)
        await client.command("RENAME", "kept", state)
        await client.close()
        # Each worker finds it out for itself, without an id.
        await until(lambda: "shard 1 stores ids again" in serving.said)
        await eventually(serving.health, lambda answer: b"shards:" not in answer.body)
        assert await status(1) == 200
        serving.stop()


async def test_a_frozen_shard_keeps_nobody_else_waiting(any_server: RedisServer) -> None:
    """Its ids fail at their deadline, the others' are answered as fast as ever, in order on a connection."""
    async with contextlib.AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Proxy(str(any_server.socket)))
        stores = []
        for shard in range(SHARDS):  # each a namespace of its own, since nobody leads
            url = proxy.url if shard == 1 else any_server.url
            stack.push_async_callback((client := Client(url)).close)
            stores.append(HitStore(client, namespace=f"t{shard}", window_s=3600, exact_limit=10**6))
        listener = await stack.enter_async_context(
            open_listener(stores[0], more=stores[1:], deadline_s=DEADLINE_S)
        )
        theirs, ours, mixed = [await listener.connect() for _ in range(3)]

        async def ask(wire: Wire, *numbers: int) -> tuple[list[int], float]:
            began_s = time.monotonic()
            await wire.send(b"".join(map(request, numbers)))
            answers = [await wire.answer() for _ in numbers]
            return [answer.status for answer in answers if answer], time.monotonic() - began_s

        numbers = [next_id(shard) for shard in (0, 1, 2, 3)]
        assert (await ask(mixed, *numbers))[0] == [200] * SHARDS
        proxy.stall = True
        lost = [next_id(1) for _ in range(10)]
        waiting = asyncio.create_task(ask(ours, *lost))
        behind = asyncio.create_task(ask(mixed, here := next_id(0), next_id(1), there := next_id(2)))
        served = []
        while not waiting.done():
            served.append(next_id(0, 2, 3))
            assert (await ask(theirs, served[-1]))[0] == [200]
        for task, expected in ((waiting, [503] * 10), (behind, [200, 503, 200])):
            statuses, took_s = await task
            assert statuses == expected
            assert DEADLINE_S / 2 < took_s < 10 * DEADLINE_S
        assert len(served) > 5  # none of them has waited for the deadline
        assert {int(number) for number in await counted(any_server.url)} == {
            *numbers,
            *served,
            here,
            there,
        }
        proxy.stall = False
        await eventually(lambda: ask(ours, next_id(1)), lambda result: result[0] == [200])
