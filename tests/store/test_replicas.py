"""An answer that counts only once replicas have what it says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from unittest import mock

import pytest

from idagg.errors import StoreAwayError, StoreError
from idagg.store.client import WAIT_MS, Client
from idagg.store.combining import Combined, Combiner
from idagg.store.hits import HitStore
from idagg.store.probe import probe
from idagg.store.windows import WindowStore
from idagg.tasks import end
from kit.groups import Node, SentinelGroup, wait_for
from kit.waiting import LIMIT_S, eventually, long_window, until

TAG = "{t:0}"


@pytest.fixture(scope="module")
def shared_group() -> Iterator[SentinelGroup]:
    """A primary and two replicas. Sentinels look on, and act on nothing."""
    with SentinelGroup(2, sentinels=1, down_after_ms=600_000) as group:
        yield group


@pytest.fixture
def group(shared_group: SentinelGroup) -> SentinelGroup:
    """In sync, whatever the test before has left."""
    shared_group.in_sync()
    return shared_group


def wait(ms: int) -> bytes:
    """For both replicas, as a client sends it."""
    return f"*3\r\n$4\r\nWAIT\r\n$1\r\n2\r\n${len(str(ms))}\r\n{ms}\r\n".encode()


@pytest.fixture
async def both(group: SentinelGroup, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    """A client of the primary, for which both replicas must have everything, and have it so far. It gives
    them more than WAIT_MS where none is frozen: the machine may be busy."""
    client = Client(group.nodes[0].tcp_url, tag=TAG, timeout_s=LIMIT_S, replicas=2)
    await client.command("FLUSHALL")
    await acknowledged(client)
    monkeypatch.setattr(client, "_wait", wait(20_000))
    yield client
    await client.close()


async def acknowledged(client: Client) -> None:
    """Wait until both replicas have everything: after a start or a freeze one may be busy with its log for
    longer than WAIT_MS."""
    assert await eventually(lambda: client.command("WAIT", 2, 1000), lambda count: count == 2) == 2


@contextlib.contextmanager
def frozen(node: Node, client: Client) -> Iterator[None]:
    """The client does not wait long for a replica that is frozen."""
    node.freeze()
    try:
        with mock.patch.object(client, "_wait", wait(WAIT_MS)):
            yield
    finally:
        node.thaw()


def hits(client: Client, window_s: int = 3600) -> HitStore:
    return HitStore(client, namespace="t", window_s=window_s, exact_limit=1000)


async def test_replicas_have_what_was_answered(group: SentinelGroup, both: Client) -> None:
    """At the moment of the answer, with nothing to wait for."""
    window_s = long_window()
    for seq in range(1, 50):
        start = (await hits(both, window_s).add(seq, [b"%d" % seq])).start_s
        for replica in group.nodes[1:]:
            reader = Client(f"unix://{replica.socket}", timeout_s=LIMIT_S)
            assert await reader.command("SCARD", f"{TAG}:w:{start}:ids") == seq
            await reader.close()


async def test_a_replica_that_is_frozen(group: SentinelGroup, both: Client) -> None:
    """No answer counts, of batches, elections and seals; what was repeated counts once."""
    window_s = long_window()
    store = hits(both, window_s)
    windows = WindowStore(both, namespace="t", window_s=window_s, exact_limit=1000)
    start = (await store.add(1, [b"1"])).start_s
    too_few = pytest.raises(
        StoreAwayError, match=r"only [01] of 2 replicas of Redis .* answered failed, and may be counted"
    )
    with frozen(group.nodes[2], both):
        for _ in range(2):
            with too_few:
                await store.add(2, [b"2"])
        with too_few:
            await windows.election.lead("a", lease_ms=60_000)
        assert await both.command("SCARD", f"{TAG}:w:{start}:ids") == 2  # it is there, and not acknowledged
        assert sum(await both.script("counts", TAG)) == 0  # a question has nothing to wait for
    await acknowledged(both)
    await store.add(2, [b"2"])
    assert (await windows.election.lead("a", lease_ms=60_000)).epoch == 1
    assert await both.command("SCARD", f"{TAG}:w:{start}:ids") == 2


async def test_more_replicas_than_there_are(group: SentinelGroup, both: Client) -> None:
    """Nothing is counted, not even once: that is seen before the first batch."""
    client = Client(group.nodes[0].tcp_url, tag=TAG, timeout_s=LIMIT_S, replicas=3)
    with pytest.raises(StoreAwayError, match=r"only [012] of 3 replicas"):
        await hits(client).add(1, [b"1"])
    assert await both.command("KEYS", f"{TAG}:w:*") == []
    await client.close()


async def test_a_new_connection_proves_nothing_by_itself(group: SentinelGroup, both: Client) -> None:
    """A batch that was applied on another connection is waited for again, on this one: a WAIT on a connection
    that has written nothing would be answered at once."""
    store = hits(both)
    await store.add(1, [b"1"])
    with frozen(group.nodes[2], both):
        for _ in range(2):
            with pytest.raises(StoreAwayError, match=r"only [01] of 2"):
                await store.add(2, [b"2"])
            both._drop()
    await acknowledged(both)
    await store.add(2, [b"2"])


async def test_scripts_that_the_server_forgot(both: Client) -> None:
    """What is sent again, with its text, is waited for."""
    await both.command("SCRIPT", "FLUSH")
    assert (await hits(both).add(1, [b"1"])).new_ids == 1


async def test_a_primary_that_is_demoted_while_it_waits(
    group: SentinelGroup, both: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch's outcome is unknown, and the sentence says what has become of the server."""
    store, primary = hits(both), group.nodes[0]
    await store.add(1, [b"1"])
    monkeypatch.setattr(both, "_wait", wait(25_000))
    group.nodes[2].freeze()
    try:
        waiting = asyncio.create_task(store.add(2, [b"2"]))
        await eventually(
            lambda: asyncio.to_thread(primary.ask, "INFO", "clients"),
            lambda said: "blocked_clients:1" in said,
        )
        await asyncio.to_thread(primary.ask, "REPLICAOF", "127.0.0.1", str(group.nodes[1].port))
        with pytest.raises(StoreAwayError, match=r"it became a replica|the connection was lost"):
            await waiting
    finally:
        await asyncio.to_thread(primary.ask, "REPLICAOF", "NO", "ONE")
        group.nodes[2].thaw()
    await asyncio.to_thread(group.in_sync)


async def test_a_primary_that_wants_more_replicas(both: Client) -> None:
    """It refuses by itself, and the sentence names its setting."""
    await hits(both).add(1, [b"1"])
    await both.command("CONFIG", "SET", "min-replicas-to-write", "5")
    try:
        with pytest.raises(StoreAwayError, match=r"takes no writes, it has fewer replicas than its min-repl"):
            await hits(both).add(1, [b"2"])
    finally:
        await both.command("CONFIG", "SET", "min-replicas-to-write", "0")
    await hits(both).add(1, [b"2"])


async def test_a_user_without_permission_to_wait(group: SentinelGroup, both: Client) -> None:
    """It is named, and nothing is counted."""
    await both.command("ACL", "SETUSER", "u", "on", ">p", "~*", "+@all", "-wait")
    client = Client(f"redis://u:p@{group.nodes[0].address}", tag=TAG, timeout_s=LIMIT_S, replicas=1)
    with pytest.raises(
        StoreAwayError, match=r"does not permit this user what counting needs.*SETUSER with \+wait"
    ):
        await hits(client).add(1, [b"1"])
    assert await both.command("KEYS", f"{TAG}:w:*") == []
    await client.close()


@pytest.mark.parametrize(
    ("replicas", "worth"),
    [
        (
            0,
            "2 replicas and --replicas 0: a failover loses the last ids that were answered ok, and those",
        ),
        (1, "--replicas 1 of 2: an ok survives a failover, unless the replica that is promoted is one that"),
        (2, "--replicas 2 of 2: an ok survives the loss of any machine"),
    ],
)
async def test_what_an_ok_is_worth(group: SentinelGroup, replicas: int, worth: str) -> None:
    """`idagg check` says it in a sentence."""
    said = await probe(group.url, "t", timeout_s=LIMIT_S, replicas=replicas)
    assert f"appendfsync always: an ok is on disk; {worth}" in said


async def test_a_replica_that_is_away_counts(group: SentinelGroup) -> None:
    """As many as `--replicas` are there, but a failover can still promote the one that is away."""
    away, followers = group.nodes[2], "connected_slaves"
    away.stop()
    try:
        await asyncio.to_thread(wait_for, lambda: group.primary.info("replication").get(followers) == "1")
        said = await probe(group.url, "t", timeout_s=LIMIT_S, replicas=1)
    finally:
        await asyncio.to_thread(group.restart, away)
    assert "--replicas 1 of 2 (1 of them away now): an ok survives a failover, unless the replica" in said


async def test_check_with_more_replicas_than_there_are(group: SentinelGroup) -> None:
    with pytest.raises(StoreError, match=r"has 2 of the 3 replicas that --replicas asks for, and no id is"):
        await probe(group.url, "t", timeout_s=LIMIT_S, replicas=3)


async def test_check_with_a_replica_as_the_primary(group: SentinelGroup) -> None:
    with pytest.raises(StoreError, match=r"is a replica, and nothing is counted: give --redis-url its prim"):
        await probe(group.nodes[1].tcp_url, "t", timeout_s=LIMIT_S)


async def test_check_with_a_sentinel_as_the_server(group: SentinelGroup) -> None:
    with pytest.raises(
        StoreError, match=r"is a sentinel: give --redis-url as redis\+sentinel://HOST/SERVICE"
    ):
        await probe(group.sentinels[0].tcp_url, "t", timeout_s=LIMIT_S)


async def test_check_with_a_primary_that_wants_more_replicas(group: SentinelGroup) -> None:
    group.primary.ask("CONFIG", "SET", "min-replicas-to-write", "3")
    try:
        with pytest.raises(
            StoreError, match=r"2 of the 3 replicas that its min-replicas-to-write asks for, and"
        ):
            await probe(group.url, "t", timeout_s=LIMIT_S)
    finally:
        group.primary.ask("CONFIG", "SET", "min-replicas-to-write", "0")


async def test_through_a_combiner(
    group: SentinelGroup, both: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ok says to each worker of a call that the replicas have its batch. Without them, none gets one."""
    monkeypatch.setattr("idagg.store.combining.PATIENCE_S", 15.0)
    monkeypatch.setattr("idagg.store.combining.ALONE_S", 0.0)
    path = tmp_path / "combiner"
    running = asyncio.create_task(Combiner(lambda tag: both).run(str(path)))
    await until(path.exists)
    # Without a way of their own.
    ways = [Combined(Client("unix:///nowhere"), str(path), deadline_s=30) for _ in range(4)]
    window_s = long_window()
    stores = [HitStore(way, namespace="t", window_s=window_s, exact_limit=1000) for way in ways]
    try:
        for seq in range(1, 20):
            answers = await asyncio.gather(
                *(store.add(seq, [b"%d" % (100 * number + seq)]) for number, store in enumerate(stores))
            )
            for replica in group.nodes[1:]:
                reader = Client(f"unix://{replica.socket}", timeout_s=LIMIT_S)
                found = await reader.command("SCARD", f"{TAG}:w:{answers[0].start_s}:ids")
                assert found == seq * len(stores)
                await reader.close()
        with frozen(group.nodes[2], both):
            heard = await asyncio.gather(*(store.add(20, [b"7"]) for store in stores), return_exceptions=True)
            assert [type(error) for error in heard] == [StoreAwayError] * len(stores)
            assert "nowhere" in str(heard[0])  # so it has asked there
        assert [(await store.add(20, [b"7"])).new_ids for store in stores] == [1] * len(stores)
    finally:
        await end(running)
        for way in ways:
            await way.close()
