"""The states that machines publish for each other."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from idagg.store import fleet
from idagg.store.client import Client
from idagg.store.fleet import STAYS_S, FleetStore
from kit.cranked import CrankedClient
from kit.groups import SentinelGroup
from kit.servers import RedisServer
from kit.waiting import LIMIT_S, NOON, eventually

TAG = "{t:0}"


@pytest.fixture
async def client(store_server: RedisServer) -> AsyncIterator[CrankedClient]:
    """The store at noon."""
    client = CrankedClient(store_server.url)
    await client.at(NOON)
    yield client
    await client.close()


async def seen(client: Client) -> dict[str, tuple[float, bytes]]:
    return {machine.id: (machine.age_s, machine.state) for machine in await FleetStore(client, TAG).all()}


async def test_the_last_states(client: CrankedClient) -> None:
    """Each with its age by the store's clock; a reader changes nothing."""
    states = FleetStore(client, TAG)
    assert await seen(client) == {}
    await states.publish("a", b"first")
    await client.at(NOON + 2.5)
    await states.publish("b", b"x" * 10_000)
    keys = sorted(await client.command("KEYS", "*"))
    assert await seen(client) == {"a": (2.5, b"first"), "b": (0, b"x" * 10_000)}
    await client.at(NOON + 4)
    await states.publish("a", b"second")
    assert await seen(client) == {"a": (0, b"second"), "b": (1.5, b"x" * 10_000)}
    assert sorted(await client.command("KEYS", "*")) == keys


async def test_a_machine_that_says_nothing_any_more(client: CrankedClient) -> None:
    """It is shown for 10 minutes, as the documents say. The next to publish removes what is left of it."""
    assert STAYS_S == 600
    states = FleetStore(client, TAG)
    await states.publish("a", b"1")
    await client.at(NOON + STAYS_S)
    await states.publish("b", b"2")
    assert (await seen(client)).keys() == {"a", "b"}
    await client.at(NOON + STAYS_S + 0.01)
    assert (await seen(client)).keys() == {"b"}
    await states.publish("b", b"3")
    assert sorted(await client.command("KEYS", "{t*")) == [b"{t:0}:fleet", b"{t:0}:machine:b"]
    # Nothing is left in the store where all machines are gone.
    for key in (b"{t:0}:fleet", b"{t:0}:machine:b"):
        assert 0 < await client.command("PTTL", key) <= STAYS_S * 1000


async def test_a_machine_that_stops(client: CrankedClient) -> None:
    states = FleetStore(client, TAG)
    await states.publish("a", b"1")
    await states.publish("b", b"2")
    await states.withdraw("a")
    await states.withdraw("unknown")
    assert await seen(client) == {"b": (0, b"2")}


async def test_a_clock_that_is_stepped_back(client: CrankedClient) -> None:
    """What was published before it is shown again once it is said again, and never stays for longer."""
    states = FleetStore(client, TAG)
    await states.publish("a", b"1")
    await states.publish("b", b"2")
    await client.at(NOON - 60)
    assert await seen(client) == {"a": (60, b"1"), "b": (60, b"2")}  # and not as if it had just been said
    await client.at(NOON - 3600)
    assert await seen(client) == {}
    await states.publish("a", b"3")
    assert await seen(client) == {"a": (0, b"3")}


async def test_what_is_kept_is_bounded(client: CrankedClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of machines, and the size of each: a state that is too large is not published."""
    states = FleetStore(client, TAG)
    monkeypatch.setattr(fleet, "MAX_MACHINES", 3)
    for second, machine in enumerate("abcd"):
        await client.at(NOON + second)
        await states.publish(machine, b"1")
    assert (await seen(client)).keys() == set("bcd")
    monkeypatch.setattr(fleet, "MAX_BYTES", 50)
    await states.publish("d", bytes(range(256)))
    assert (await seen(client))["d"] == (0, b"1")


async def test_what_cannot_be_read(client: CrankedClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left out, and so is what would fill the memory."""
    states = FleetStore(client, TAG)
    for machine in "abc":
        await states.publish(machine, b"1" * 2000)
    await client.command("SET", f"{TAG}:machine:b", "no such thing")
    await client.command("DEL", f"{TAG}:machine:c")
    assert (await seen(client)).keys() == {"a"}
    monkeypatch.setattr(fleet, "_MOST_UNPACKED", 1000)
    assert await seen(client) == {}


async def test_no_replica_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state is published while too few replicas are there to count ids."""
    monkeypatch.setattr("idagg.store.client.WAIT_MS", 20_000)  # of the proof, as the machine may stand still
    with SentinelGroup(1, sentinels=1, down_after_ms=600_000) as group:
        client = Client(group.nodes[0].tcp_url, tag=TAG, timeout_s=LIMIT_S, replicas=1)
        await eventually(lambda: client.command("WAIT", 1, 1000), lambda count: count == 1)
        await FleetStore(client, TAG).publish("a", b"1")  # the server has shown what it permits
        group.nodes[1].freeze()
        try:
            await FleetStore(client, TAG).publish("a", b"2")
            assert (await FleetStore(client, TAG).all())[0].state == b"2"
        finally:
            group.nodes[1].thaw()
            await client.close()
