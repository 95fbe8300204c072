"""Records that are kept to be read back, on a real store whose clock is cranked by hand."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest

from idagg.errors import StoreRefusedError
from idagg.store.client import Client
from idagg.store.hits import HitStore
from idagg.store.kept import KEEP_S, Kept, KeptWindow
from idagg.store.parts import Part
from idagg.store.windows import WindowStore
from idagg.window import Record
from kit import servers
from kit.cranked import CrankedClient
from kit.staging import seal, window_store
from kit.waiting import LIMIT_S, NOON

TAG = "{t:0}"
HOUR_S, DAY_S = 3600, 86_400


@pytest.fixture
async def client(store_server: servers.RedisServer) -> AsyncIterator[CrankedClient]:
    """The store at noon."""
    client = CrankedClient(store_server.url)
    await client.at(NOON)
    yield client
    await client.close()


async def lead(windows: WindowStore) -> int:
    return (await windows.election.lead("a", lease_ms=10**9)).epoch


async def merge(windows: WindowStore, epoch: int, *starts: int, length_s: int = 60) -> None:
    for start_s in starts:
        part = Part(
            start_s, length_s, start_s % 1000, start_s % 999, 10**6, exact=True, suspect=False, dropped=0
        )
        assert await windows.merging.merge(epoch, part)


def starts(found: list[KeptWindow]) -> list[int]:
    return [window.record.start_s for window in found]


async def test_a_window_on_its_way(client: CrankedClient) -> None:
    """Its record can be read once it is sealed, and then says which sink took it, and when by the store's
    clock. A mark that comes again changes nothing."""
    windows, kept = window_store(client), Kept(client, TAG)
    epoch = await lead(windows)
    assert await kept.one(NOON) is None
    await HitStore(client, namespace="t", window_s=60, exact_limit=1000).add(1, [b"1", b"2", b"2"])
    await client.at(NOON + 60.5)
    assert await seal(windows, epoch) == 0
    record = Record(NOON, 60, unique_ids=2, estimate=2, hits=3, exact=True, epoch=epoch)
    assert await kept.one(NOON) == KeptWindow(record, sink=None, delivered_s=None)

    await client.at(NOON + 61.25)
    await windows.pending.mark_logged(epoch, NOON)
    logged = KeptWindow(record, "log", NOON + 61.25)
    assert await kept.one(NOON) == logged
    await client.at(NOON + 62)
    await windows.pending.mark_logged(epoch, NOON)
    assert await kept.one(NOON) == logged

    await client.at(NOON + 7000)
    await windows.pending.mark_delivered(epoch, NOON)
    both = logged._replace(published_s=NOON + 7000)
    assert await kept.one(NOON) == both
    await client.at(NOON + 8000)
    await windows.pending.mark_delivered(epoch, NOON)
    assert await kept.one(NOON) == both
    assert await kept.begin_s() == NOON


async def test_delivered_at_once(client: CrankedClient) -> None:
    """To the queue; or to the log file where there is no broker."""
    windows, kept = window_store(client), Kept(client, TAG)
    epoch = await lead(windows)
    await merge(windows, epoch, NOON, NOON + 60)
    await client.at(NOON + 121)
    await windows.pending.mark_delivered(epoch, NOON, "broker")
    await windows.pending.mark_delivered(epoch, NOON + 60, "log")
    sinks = [window[1:] for window in await kept.page(NOON, NOON + HOUR_S, limit=9)]
    assert sinks == [("broker", NOON + 121, NOON + 121), ("log", NOON + 121, None)]


async def test_a_clock_that_was_stepped_back(client: CrankedClient) -> None:
    """The time of delivery is the store's, also where that is before the window's end."""
    windows, kept = window_store(client), Kept(client, TAG)
    epoch = await lead(windows)
    await merge(windows, epoch, NOON)
    await client.at(NOON + 50)
    await windows.pending.mark_delivered(epoch, NOON, "broker")
    assert (await kept.page(0, 2**60, limit=1))[0].delivered_s == NOON + 50


async def test_pages(client: CrankedClient, seed: int) -> None:
    """Of windows of several lengths over days, some hours of which have none, every range is read as what a
    list of them says; page by page as at once."""
    chance = random.Random(seed)
    windows, kept = window_store(client), Kept(client, TAG)
    epoch = await lead(windows)
    have = sorted(
        {NOON + chance.randrange(3 * DAY_S) for _ in range(300)}
        | {NOON + 30 * HOUR_S + second for second in range(600)}
    )
    for start_s in chance.sample(have, len(have)):
        await merge(windows, epoch, start_s, length_s=1)
    assert await kept.begin_s() == have[0]
    for _ in range(50):
        from_s, to_s = (NOON + chance.randrange(-HOUR_S, 4 * DAY_S) for _ in range(2))
        limit = chance.choice([1, 2, 59, 10**9])
        wanted = [start_s for start_s in have if from_s <= start_s < to_s]
        found = starts(await kept.page(from_s, to_s, limit=limit))
        assert found == wanted[:limit]
        found = starts(await kept.page(from_s, to_s, limit=limit, newest_first=True))
        assert found == wanted[::-1][:limit]
    read: list[int] = []
    while page := starts(await kept.page(read[-1] + 1 if read else 0, 2**60, limit=70)):
        read += page
    assert read == have
    read = []
    while page := starts(await kept.page(0, read[-1] if read else 2**60, limit=70, newest_first=True)):
        read += page
    assert read == have[::-1]
    assert await kept.page(0, 2**60, limit=0) == []


async def test_for_how_long(client: Client) -> None:
    """Records go after the time that is set, and what they were kept under does, too."""
    epoch = await lead(window_store(client))
    short = WindowStore(client, namespace="t", window_s=60, exact_limit=1000, keep_s=DAY_S)
    for store, keep_s in ((window_store(client), KEEP_S), (short, DAY_S)):
        await merge(store, epoch, NOON + keep_s)
        ttl = await client.command("TTL", f"{TAG}:kept:{NOON + keep_s}")
        assert keep_s - LIMIT_S < ttl <= keep_s
    await client.command("DEL", f"{TAG}:kept:{NOON + DAY_S}")  # it has expired
    kept = Kept(client, TAG)
    assert await kept.begin_s() == NOON + KEEP_S
    await merge(short, epoch, NOON + KEEP_S + 60)
    assert await client.command("ZRANGE", f"{TAG}:kept", 0, -1) == [b"%d" % (NOON + KEEP_S)]


async def test_none_are_kept(client: Client) -> None:
    store = WindowStore(client, namespace="t", window_s=60, exact_limit=1000, keep_s=0)
    epoch = await lead(store)
    await merge(store, epoch, NOON)
    await store.pending.mark_delivered(epoch, NOON)
    assert await client.command("KEYS", f"{TAG}:kept*") == []
    assert await Kept(client, TAG).begin_s() is None


async def test_merged_by_the_version_before(client: Client) -> None:
    """Its windows are missing, and are delivered."""
    windows = window_store(client)
    epoch = await lead(windows)
    await merge(windows, epoch, NOON, NOON + 60)
    await client.command("HDEL", f"{TAG}:kept:{NOON}", NOON)
    await windows.pending.mark_delivered(epoch, NOON)
    assert starts(await Kept(client, TAG).page(0, 2**60, limit=9)) == [NOON + 60]
    assert [window.record.start_s for window in await windows.pending.deliveries()] == [NOON + 60]


@pytest.mark.parametrize("key", [f"{TAG}:kept", f"{TAG}:kept:{NOON}"])
async def test_what_another_program_wrote(client: Client, key: str) -> None:
    """It costs the record, and no delivery; it stays."""
    windows = window_store(client)
    epoch = await lead(windows)
    await client.command("SET", key, "theirs")
    await merge(windows, epoch, NOON)
    assert [window.record.start_s for window in await windows.pending.deliveries()] == [NOON]
    await windows.pending.mark_delivered(epoch, NOON)
    assert await windows.pending.deliveries() == []
    assert await client.command("GET", key) == b"theirs"


async def test_a_record_that_cannot_be_read(client: Client) -> None:
    windows, kept = window_store(client), Kept(client, TAG)
    epoch = await lead(windows)
    await merge(windows, epoch, NOON)
    for theirs in ("x", "[1]", "{}", '["a",2,3,4,5,6,7,8,9,10]'):
        await client.command("HSET", f"{TAG}:kept:{NOON}", NOON, theirs)
        with pytest.raises(StoreRefusedError, match=rf"{TAG}:kept:{NOON} holds what idagg did not write"):
            await kept.one(NOON)
        await windows.pending.mark_delivered(epoch, NOON)
