"""Clients of a primary that sentinels watch."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar
from unittest import mock

import pytest

from idagg.accept.commit import GroupCommit
from idagg.errors import LoginRefusedError, StoreAwayError
from idagg.store import topology
from idagg.store.client import Client
from idagg.store.hits import HitStore
from idagg.store.servers import Servers
from kit import servers
from kit.fakes import Batches
from kit.groups import AGREED_S, SentinelGroup, wait_for
from kit.waiting import LIMIT_S

TAG = "{t:0}"
PATIENT_MS = 60_000
ASK_S = topology.ASK_S  # as it is for users
T = TypeVar("T")


@pytest.fixture(scope="module")
def group() -> Iterator[SentinelGroup]:
    """Each test leaves it with a primary and a replica in sync, whichever is which. No node is down only
    because it stands still."""
    with SentinelGroup(1, down_after_ms=PATIENT_MS) as group:
        yield group


def hits(client: Client) -> HitStore:
    return HitStore(client, namespace="t", window_s=3600, exact_limit=1000)


async def answered(ask: Callable[[], Awaitable[T]]) -> T:
    """The first answer, though the machine may stand still while some sentinel or replica is asked."""
    async with asyncio.timeout(AGREED_S):
        while True:
            try:
                return await ask()
            except StoreAwayError:
                await asyncio.sleep(0.05)


class Callers:
    """Requests that wait for their answers."""

    def __init__(self, url: str, *, replicas: int = 0, deadline_s: float = 2 * AGREED_S) -> None:
        loop = asyncio.get_running_loop()
        self._client = Servers(url, replicas=replicas).client(TAG)
        self._commit = GroupCommit(
            hits(self._client), Batches(), deadline_s=deadline_s, max_batch=100, now=loop.time
        )
        self._running = asyncio.create_task(self._commit.run())

    async def stored(self, canonical_id: bytes) -> bool:
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        class Caller:
            def answer(self, stored: bool) -> None:
                answer.set_result(stored)

        assert self._commit.add(Caller(), canonical_id)
        return await answer

    async def close(self) -> None:
        self._commit.stop()
        await self._running
        await self._client.close()


async def test_the_primary_is_found_whichever_sentinels_are_there(
    group: SentinelGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sentinel that is gone, and one that is frozen, delay nobody for long."""
    monkeypatch.setattr(topology, "ASK_S", ASK_S)
    gone = f"127.0.0.1:{servers.free_port()}"
    first, second, _ = group.sentinels
    primary = group.primary  # to ask a frozen one takes so long that it does nothing for 30 s then: TILT
    first.freeze()
    try:
        url = f"redis+sentinel://{gone},{first.address},{second.address}/{group.SERVICE}"
        client = Servers(url).client(TAG, timeout_s=LIMIT_S)
        assert (await answered(lambda: client.command("ROLE")))[0] == b"master"
        assert str(primary.port) in client.address
        await client.close()
    finally:
        first.thaw()


async def test_both_kinds_of_clients_follow_a_failover(group: SentinelGroup) -> None:
    """Those of batches and those of the leader. The old primary is a replica by then, and left."""
    old = await asyncio.to_thread(lambda: group.primary)
    shared = Servers(group.url)
    batches, leaders = shared.client(TAG), shared.client(TAG, timeout_s=LIMIT_S)
    store = hits(batches)
    await store.add(1, [b"1"])
    await leaders.command("PING")
    new = await asyncio.to_thread(group.failover)
    await asyncio.to_thread(group.in_sync)
    for client in (batches, leaders):
        lead = functools.partial(client.script, "lead", TAG, "a", 600_000, 3600, 1000, 1, "any")
        assert (await answered(lead))[0] == 1
        assert str(new.port) in client.address
        assert old is not new
        await client.script("resign", TAG, "a") if client is leaders else None
    await batches.close()
    await leaders.close()


async def test_a_frozen_primary_is_left_as_soon_as_another_is_elected(group: SentinelGroup) -> None:
    """A batch that it owes an answer to is answered ok within its own deadline, by its successor."""
    old = await asyncio.to_thread(lambda: group.primary)
    callers = Callers(group.url)
    assert await callers.stored(b"1")
    await asyncio.to_thread(group.down_after, 1000)
    old.freeze()
    try:
        waiting = asyncio.create_task(callers.stored(b"2"))
        await asyncio.to_thread(group.promoted, old)
        assert await waiting
    finally:
        old.thaw()
    await asyncio.to_thread(group.in_sync)
    await asyncio.to_thread(group.down_after, PATIENT_MS)
    await callers.close()


async def test_a_replica_that_sentinels_still_call_primary(group: SentinelGroup) -> None:
    """Nothing is counted there: what sentinels say is old news."""
    primary = await asyncio.to_thread(lambda: group.primary)
    for sentinel in group.sentinels:
        sentinel.freeze()
    client = Servers(group.url).client(TAG, timeout_s=LIMIT_S)
    try:
        sentence = r"no sentinel of redis.sentinel://.* did not answer"
        with mock.patch.object(topology, "ASK_S", ASK_S), pytest.raises(StoreAwayError, match=sentence):
            await client.command("PING")
    finally:
        for sentinel in group.sentinels:
            sentinel.thaw()
    await client.close()
    client = Servers(group.url).client(TAG, timeout_s=LIMIT_S)
    # Long before a sentinel undoes this.
    other = group.replicas[0]
    primary.ask("REPLICAOF", other.place.host, str(other.port))
    try:
        with pytest.raises(StoreAwayError, match=rf"127.0.0.1:{primary.port} is a replica, though its sent"):
            await client.command("PING")
    finally:
        primary.ask("REPLICAOF", "NO", "ONE")
    await asyncio.to_thread(group.in_sync)
    await client.close()


async def test_a_service_that_no_sentinel_knows(group: SentinelGroup) -> None:
    client = Servers(group.url.replace(f"/{group.SERVICE}", "/other")).client(TAG, timeout_s=LIMIT_S)
    with pytest.raises(StoreAwayError, match=r"knows no service 'other', and nothing is counted: give"):
        await client.command("PING")
    await client.close()


async def test_what_is_no_sentinel(group: SentinelGroup) -> None:
    """The data's own port, say."""
    client = Servers(f"redis+sentinel://{group.nodes[0].address}/x").client(TAG, timeout_s=LIMIT_S)
    with pytest.raises(StoreAwayError, match=r"is no sentinel, and nothing is counted: give --redis-url"):
        await client.command("PING")
    await client.close()


@pytest.mark.parametrize(
    ("scheme", "sentence"),
    [
        ("redis", r"runs no scripts, and nothing is counted: if it is a sentinel, give .*redis\+sentinel://"),
        ("redis+cluster", r"is no node of a cluster, and nothing is counted: give .* redis\+sentinel://"),
    ],
)
async def test_a_sentinel_as_if_it_had_the_data(group: SentinelGroup, scheme: str, sentence: str) -> None:
    client = Servers(f"{scheme}://{group.sentinels[0].address}").client(TAG, timeout_s=LIMIT_S)
    with pytest.raises(StoreAwayError, match=sentence):
        await hits(client).add(1, [b"1"])
    await client.close()


async def test_users_of_data_and_of_sentinels(tmp_path: Path) -> None:
    """Each has its own, in TLS; the sentence says whose is wrong."""
    with SentinelGroup(
        1,
        user="ida",
        password="p@ss",
        sentinel_user="watch",
        sentinel_password="w/tch",
        tls=True,
        down_after_ms=PATIENT_MS,
    ) as group:
        client = Servers(group.url, replicas=1).client(TAG, timeout_s=LIMIT_S)
        store = hits(client)
        assert (await answered(lambda: store.add(1, [b"1"]))).new_ids == 1
        assert client.address == f"rediss://127.0.0.1:{group.nodes[0].port}"
        await client.close()
        sentinels = "the sentinel at .* refuses the user or the password"
        for right, wrong, sentence in (
            (r"sentinel_password=w%2Ftch", "sentinel_password=x", sentinels),
            (r"sentinel_[a-z]+=[^&]*&", "", sentinels),
            (r"p%40ss@", "x@", "Redis at rediss://127.0.0.1:.* refuses the password or the user"),
        ):
            url, count = re.subn(right, wrong, group.url)
            assert count
            client = Servers(url).client(TAG, timeout_s=LIMIT_S)
            with pytest.raises(LoginRefusedError, match=sentence):
                await client.command("PING")
            await client.close()


@pytest.mark.parametrize("kind", ["valkey"])
async def test_valkeys_sentinels(kind: str) -> None:
    """They speak the same."""
    with SentinelGroup(1, sentinels=1, kind="valkey") as group:
        old = group.primary
        callers = Callers(group.url)
        assert await callers.stored(b"1")
        await asyncio.to_thread(old.kill)
        await asyncio.to_thread(group.promoted, old)
        assert await callers.stored(b"2")
        await callers.close()
        await asyncio.to_thread(wait_for, lambda: group.primary is not old)
