"""A store that cannot keep its word is told while idagg runs."""

from __future__ import annotations

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
