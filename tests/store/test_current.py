"""What can be seen of windows before they are sealed."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from idagg.store.current import Look
from idagg.store.hits import HitStore
from idagg.store.windows import WindowStore
from kit.cranked import CrankedClient
from kit.servers import RedisServer
from kit.waiting import NOON

EXACT_LIMIT = 100


@pytest.fixture
async def client(store_server: RedisServer) -> AsyncIterator[CrankedClient]:
    """The store at noon."""
    client = CrankedClient(store_server.url)
    await client.at(NOON)
    yield client
    await client.close()


async def test_a_look(client: CrankedClient) -> None:
    """The clock, the ids so far, and for how long a window is not sealed; nothing is changed by it."""
    windows = WindowStore(client, namespace="t", window_s=60, exact_limit=EXACT_LIMIT)
    hits = HitStore(client, namespace="t", window_s=60, exact_limit=EXACT_LIMIT)
    assert await windows.now() == Look(NOON, 0, 0, 0, 0, 1)
    await hits.add(1, [b"1", b"2", b"2"])
    await client.at(NOON + 30.5)
    keys = sorted(await client.command("KEYS", "*"))
    assert await windows.now() == Look(NOON + 30.5, NOON, 2, 0, NOON + 60, 1)
    await client.at(NOON + 75)
    assert await windows.now() == Look(NOON + 75, NOON + 60, 0, 15, NOON + 120, 1)
    assert sorted(await client.command("KEYS", "*")) == keys
    epoch = (await windows.election.lead("a", lease_ms=1000)).epoch
    assert await windows.sealing.seal(epoch) == 0
    assert (await windows.now()).late_s == 15  # it is not merged with the other shards' parts yet


async def test_the_open_window_while_settings_change(client: CrankedClient) -> None:
    """Its end and its shards are the store's, whatever the settings of the one who looks say."""
    first = WindowStore(client, namespace="t", window_s=60, exact_limit=EXACT_LIMIT)
    epoch = (await first.election.lead("a", lease_ms=1000)).epoch
    other = WindowStore(client, namespace="t", window_s=30, exact_limit=EXACT_LIMIT, shards=4)
    assert await other.now() == Look(NOON, NOON, 0, 0, NOON + 60, 1)
    plan = await first.merging.propose(epoch, shards=4, window_s=30)
    assert await first.merging.confirm(epoch, plan)
    assert (plan.begins_s, await other.now()) == (NOON + 60, Look(NOON, NOON, 0, 0, NOON + 60, 1))
    await client.at(NOON + 65)
    assert await first.now() == Look(NOON + 65, NOON + 60, 0, 0, NOON + 90, 4)


async def test_several_shards(client: CrankedClient) -> None:
    """Their ids are added up, and the latest of them says how late a window is."""
    windows = WindowStore(client, namespace="t", window_s=60, exact_limit=EXACT_LIMIT, shards=2)
    lease = await windows.election.lead("a", lease_ms=1000)
    course = (await windows.sealing.look(lease.epoch)).course
    assert course
    await windows.shard(1).follow(lease.epoch, 1, course)
    for shard, ids in ((0, [b"1"]), (1, [b"2", b"3"])):
        store = HitStore(
            client, namespace="t", shard=shard, regime=lease.regime, window_s=60, exact_limit=EXACT_LIMIT
        )
        await store.add(1, ids)
    assert (await windows.now(2)).ids == 3
    assert (await windows.now()).ids == 1
    await client.at(NOON + 75)
    assert (await windows.now(2)).late_s == 15


async def test_ids_past_the_exact_limit(client: CrankedClient) -> None:
    """They are estimated, since the set does not grow any more."""
    windows = WindowStore(client, namespace="t", window_s=60, exact_limit=EXACT_LIMIT)
    hits = HitStore(client, namespace="t", window_s=60, exact_limit=EXACT_LIMIT)
    for seq in range(1, 6):
        await hits.add(seq, [b"%d" % number for number in range(100 * seq, 100 * seq + 100)])
    assert 480 < ((await windows.now()).ids or 0) < 520
