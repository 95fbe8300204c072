"""A store that cannot keep its word is told while idagg runs."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest

from idagg.store import watch as watch_module
from idagg.store.client import Client
from idagg.store.servers import Servers
from idagg.store.watch import Watch
from idagg.tasks import end
from kit import servers
from kit.serving import PATIENT, Serving
from kit.waiting import eventually, until


async def test_a_store_that_drops_keys() -> None:
    """idagg counts on, and says what that means: in its log, to who asks, and in its metrics."""
    with (
        servers.RedisServer(maxmemory="50mb", maxmemory_policy="allkeys-lru", appendonly="yes") as server,
        Serving("--redis-url", server.url, *PATIENT) as serving,
    ):
        sentence = f"Redis at {server.socket} drops keys, and counts with them, when it is full"
        answer = await eventually(
            serving.health, lambda answer: sentence.encode() in answer.body and answer.status == 200
        )
        assert answer.body.splitlines()[0] == b"ok"
        assert f"risk: {sentence}".encode() in answer.body
        await until(lambda: sentence in serving.said)
        assert await serving.hit() == 200
        await eventually(serving.figures, lambda figures: figures.get("idagg_store_risks") == 1)


async def test_a_server_that_is_away_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked again soon, and what was known of it is not forgotten when it is away again."""
    monkeypatch.setattr(watch_module, "LOOK_S", 3600.0)
    with (
        servers.RedisServer(maxmemory="50mb", maxmemory_policy="allkeys-lru", appendonly="yes") as server,
        servers.RedisServer(appendonly="no") as other,
    ):
        urls = {"a": server.url, "b": other.url}
        both = SimpleNamespace(client=lambda tag, timeout_s: Client(urls[tag], timeout_s=timeout_s))
        looks: list[int] = []
        other.stop()
        watch = Watch(cast(Servers, both), ("a", "b"), kind="server", replicas=0, on_look=looks.append)
        watching = asyncio.create_task(watch.run())
        await until(lambda: 1 in looks)
        assert "drops keys" in str(watch.risk)
        other.start()
        await until(lambda: 2 in looks)
        assert "keeps no append-only file" in str(watch.risk)
        await end(watching)
        other.stop()
        looks.clear()
        watching = asyncio.create_task(watch.run())
        await until(lambda: looks)
        assert set(looks) == {2}
        await end(watching)
