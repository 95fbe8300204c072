"""Clients of a cluster's masters."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Literal

import pytest
from aiohappyeyeballs import AddrInfoType

from idagg.errors import StoreAwayError, StoreError
from idagg.store import connection
from idagg.store.client import Client
from idagg.store.hits import HitStore
from idagg.store.probe import probe
from idagg.store.servers import Servers
from idagg.store.shards import shard_tag, slot_of
from kit import servers
from kit.groups import AGREED_S, RedisCluster, wait_for
from kit.waiting import LIMIT_S

TAG = shard_tag("t")
PATIENT_MS = 20_000


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    """Each test leaves it whole, whoever has which slots. No node is down only because it stands still."""
    with RedisCluster(3, 1) as cluster:
        cluster.node_timeout(PATIENT_MS)
        yield cluster


def hits(client: Client) -> HitStore:
    return HitStore(client, namespace="t", window_s=3600, exact_limit=1000)


async def ids(cluster: RedisCluster) -> set[str]:
    """The ids in the store."""
    client = Servers(cluster.url).client(TAG, timeout_s=LIMIT_S)
    try:
        found: set[str] = set()
        for node in cluster.masters:
            for key in node.ask("KEYS", f"{TAG}:w:*:ids").split():
                found |= set(node.ask("SMEMBERS", key).split())
        return found
    finally:
        await client.close()


async def stored(store: HitStore, seq: int, canonical_id: bytes) -> None:
    """As accepting does it: again and again, under one number."""
    async with asyncio.timeout(AGREED_S):
        while True:
            try:
                await store.add(seq, [canonical_id])
            except StoreAwayError:
                await asyncio.sleep(0.05)
            else:
                return


async def test_each_shard_is_where_its_slot_is(cluster: RedisCluster) -> None:
    """From any node that is there, the others being away."""
    gone = f"127.0.0.1:{servers.free_port()}"
    shared = Servers(f"redis+cluster://{gone},{cluster.nodes[0].address}")
    found = set()
    for index in range(8):
        tag = shard_tag("t", index)
        client = shared.client(tag, timeout_s=LIMIT_S)
        await client.command("SET", f"{tag}:x", index)
        assert cluster.master_of(tag).address in client.address
        found.add(client.address)
        await client.close()
    assert len(found) == 3


async def test_a_slot_that_moves(cluster: RedisCluster) -> None:
    """While it is on its way nothing is done at either end, however much is there already; then the client
    follows it."""
    client = Servers(cluster.url).client(TAG, timeout_s=LIMIT_S)
    store = hits(client)
    await stored(store, 1, b"1")
    slot = slot_of(TAG)
    source = await asyncio.to_thread(cluster.holder, slot)
    target = next(node for node in await asyncio.to_thread(lambda: cluster.masters) if node is not source)
    await asyncio.to_thread(cluster.begin_move, slot, target)
    keys = source.ask("CLUSTER", "GETKEYSINSLOT", str(slot), "100").split()
    assert keys
    for half_done in (False, True):
        before = [sorted(node.ask("KEYS", f"{TAG}*").split()) for node in (source, target)]
        with pytest.raises(StoreAwayError, match="hands a slot to another node of its cluster, and nothing"):
            await store.add(2, [b"2"])
        with pytest.raises(StoreAwayError, match="hands a slot"):
            await client.script("lead", TAG, "a", 60_000, 3600, 1000, 1, "any")
        assert before == [sorted(node.ask("KEYS", f"{TAG}*").split()) for node in (source, target)]
        if not half_done:
            source.ask("MIGRATE", "127.0.0.1", str(target.port), "", "0", "5000", "KEYS", keys[0])
    waiting = asyncio.create_task(stored(store, 2, b"2"))
    await asyncio.to_thread(cluster.move, slot, target)
    await waiting
    assert target.address in client.address
    assert await ids(cluster) == {"1", "2"}
    for node in await asyncio.to_thread(lambda: cluster.masters):
        node.ask("FLUSHALL")
    await client.close()


async def test_a_failover_that_was_asked_for(cluster: RedisCluster) -> None:
    """The old master names the new one, and nobody has to ask."""
    client = Servers(cluster.url, replicas=1).client(TAG, timeout_s=LIMIT_S)
    store = hits(client)
    await stored(store, 1, b"1")
    replica = await asyncio.to_thread(lambda: cluster.replica_of(cluster.master_of(TAG)))
    await asyncio.to_thread(cluster.failover, replica)
    await stored(store, 2, b"2")
    assert replica.address in client.address
    assert await ids(cluster) == {"1", "2"}
    await client.close()


async def test_a_frozen_master_is_left_for_its_successor(cluster: RedisCluster) -> None:
    """By a batch that waits for its answer, without a limit of its own."""
    client = Servers(cluster.url).client(TAG)
    store = hits(client)
    await stored(store, 1, b"1")
    await asyncio.to_thread(cluster.node_timeout, 1000)
    master = await asyncio.to_thread(cluster.master_of, TAG)
    master.freeze()
    try:
        await stored(store, 2, b"3")
        assert master.address not in client.address
    finally:
        master.thaw()
    await asyncio.to_thread(cluster.in_sync)
    await asyncio.to_thread(cluster.node_timeout, PATIENT_MS)
    await client.close()


@pytest.mark.parametrize("all_or_none", [False, True])
async def test_a_slot_that_nobody_has(cluster: RedisCluster, all_or_none: bool) -> None:
    """The sentence says which, and the other shards go on. With cluster-require-full-coverage they do not,
    and another sentence says what to set."""
    shared = Servers(cluster.url)
    for node in cluster.running:
        node.ask("CONFIG", "SET", "cluster-require-full-coverage", "yes" if all_or_none else "no")
    slot = slot_of(TAG)
    holder = await asyncio.to_thread(cluster.holder, slot)
    nodes = [holder, *(node for node in cluster.running if node is not holder)]

    def forgotten() -> bool:
        """Nobody had it any more: whoever has just heard from the holder has it again."""
        answers = [node.may_answer("CLUSTER", "DELSLOTS", str(slot)) for node in nodes]
        return not any(answers)

    await asyncio.to_thread(wait_for, forgotten)
    client = shared.client(TAG, timeout_s=LIMIT_S)
    try:
        with pytest.raises(StoreAwayError, match=rf"has the slot {slot}, and the ids of its shard are not"):
            await client.command("PING")
        tag = shard_tag("t", 1)
        other = shared.client(tag, timeout_s=LIMIT_S)
        if all_or_none:
            with pytest.raises(StoreAwayError, match=r"is part of a cluster that is down, .* set clust"):
                await other.command("SET", f"{tag}:x", "1")
        else:
            assert await other.command("SET", f"{tag}:x", "1") == b"OK"
        await other.close()
    finally:
        for node in cluster.running:
            node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
        holder.ask("CLUSTER", "ADDSLOTS", str(slot))
        await asyncio.to_thread(cluster.in_sync)
        await client.close()


async def test_a_node_as_if_it_were_a_server(cluster: RedisCluster) -> None:
    """The sentence has the URL to use."""
    master = await asyncio.to_thread(cluster.master_of, TAG)
    other = next(node for node in cluster.nodes if node is not master)
    client = Client(f"redis://{other.address}", timeout_s=LIMIT_S)
    with pytest.raises(StoreError, match=r"is a node of a cluster.*give --redis-url as redis\+cluster://"):
        await hits(client).add(1, [b"1"])
    await client.close()


async def test_a_server_as_if_it_were_a_cluster() -> None:
    with servers.RedisServer(tcp=True) as server:
        client = Servers(f"redis+cluster://127.0.0.1:{server.port}").client(TAG, timeout_s=LIMIT_S)
        with pytest.raises(StoreAwayError, match=r"is no node of a cluster, and nothing is counted: give"):
            await client.command("PING")
        await client.close()


async def test_names_that_nodes_leave_to_us() -> None:
    """A hosted cluster has one name; its nodes may not say theirs. In TLS, with a password."""
    with RedisCluster(
        3, 0, tls=True, password="p", cluster_preferred_endpoint_type="unknown-endpoint"
    ) as cluster:
        cluster.node_timeout(PATIENT_MS)
        node = cluster.master_of(TAG)
        client = Servers(cluster.url_of([node])).client(TAG, timeout_s=LIMIT_S)
        assert (await hits(client).add(1, [b"1"])).new_ids == 1
        await client.close()


@pytest.mark.parametrize("kind", ["redis", "valkey"])
async def test_nodes_that_have_names(
    kind: Literal["redis", "valkey"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hosted cluster's nodes have names of their own, which other nodes answer MOVED with, too."""
    looked_up = set()

    async def addresses(host: str, port: int) -> list[AddrInfoType]:
        looked_up.add(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port))]

    monkeypatch.setattr(connection, "_addresses", addresses)
    with RedisCluster(
        *(3, 0),
        kind=kind,
        cluster_preferred_endpoint_type="hostname",
        cluster_announce_hostname="node.example",
    ) as cluster:
        cluster.node_timeout(PATIENT_MS)
        node = cluster.master_of(TAG)
        client = Servers(cluster.url_of([node])).client(TAG, timeout_s=LIMIT_S)
        assert (await hits(client).add(1, [b"1"])).new_ids == 1
        assert f"node.example:{node.port}" in client.address
        other = next(each for each in cluster.masters if each is not node)
        await asyncio.to_thread(cluster.move, slot_of(TAG), other)
        await stored(hits(client), 2, b"2")
        assert f"node.example:{other.port}" in client.address
        await client.close()
    assert looked_up == {"127.0.0.1", "node.example"}


async def test_check_with_a_replica_away(cluster: RedisCluster) -> None:
    """The nodes remember it, and a failover could promote it."""
    master = await asyncio.to_thread(cluster.master_of, TAG)
    replica = await asyncio.to_thread(cluster.replica_of, master)
    replica.stop()
    try:
        followers = "connected_slaves"
        await asyncio.to_thread(wait_for, lambda: master.info("replication").get(followers) == "0")
        said = await probe(cluster.url, "t", timeout_s=LIMIT_S)
        with pytest.raises(StoreError, match=r"has 0 of the 1 replicas that --replicas asks for"):
            await probe(cluster.url, "t", timeout_s=LIMIT_S, replicas=1)
    finally:
        await asyncio.to_thread(cluster.restart, replica)
    assert "none of its 1 replicas follows it now: an ok is on this machine alone" in said


async def test_check(cluster: RedisCluster) -> None:
    """All masters with shards are asked; what is the same with all is said once."""
    said = await probe(cluster.url, "t", timeout_s=LIMIT_S, replicas=1, shards=16)
    for master in await asyncio.to_thread(lambda: cluster.masters):
        assert said.count(master.address) == 1
    assert said.count("--replicas 1 of 1: an ok survives the loss of any machine") == 1
    master = await asyncio.to_thread(cluster.master_of, TAG)
    master.ask("CONFIG", "SET", "cluster-require-full-coverage", "yes")
    try:
        said = await probe(cluster.url, "t", timeout_s=LIMIT_S)
    finally:
        master.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
    assert "cluster-require-full-coverage yes: while one master is away, none counts; set no" in said
    with pytest.raises(StoreError, match=r"is a node of a cluster, .* give --redis-url as redis\+cluster://"):
        await probe(f"redis://{master.address}", "t", timeout_s=LIMIT_S)
