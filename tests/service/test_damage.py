"""Somebody else's values where ours belong: each is named, what it spoils is quarantined, all else goes
on."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from idagg.errors import StoreRefusedError, UnknownRefusalError
from idagg.store.client import Client
from idagg.store.hits import HitStore
from idagg.store.replies import refusal
from idagg.store.windows import WindowStore
from idagg.window import iso
from kit import servers
from kit.cranked import CrankedClient
from kit.serving import PATIENT, Serving, in_one_window, send
from kit.staging import seal
from kit.waiting import LIMIT_S, NOON, eventually, until

# Of a check: those that it would look at may be another program's.
NO_PORTS = ("--port", "0", "--admin-port", "0")

BEFORE, SPOILT, AFTER = (NOON + 60 * number for number in range(3))
WINDOW = f"{{t:0}}:w:{SPOILT}"
RECORD = f"{{t:0}}:record:{SPOILT}"


class Store:
    """One with three windows, of 1, 2 and 3 ids, an endpoint in each."""

    def __init__(self, url: str) -> None:
        self.client = CrankedClient(url, timeout_s=LIMIT_S)
        self.windows = WindowStore(self.client, namespace="t", window_s=60, exact_limit=1000)
        self.hits = HitStore(self.client, namespace="t", window_s=60, exact_limit=1000)
        self.epoch = 0

    async def fill(self) -> None:
        await self.client.at(BEFORE)
        self.epoch = (await self.windows.election.lead("a", lease_ms=600_000)).epoch
        for number, start in enumerate((BEFORE, SPOILT, AFTER), 1):
            await self.client.at(start)
            ids = [b"%d" % identity for identity in range(number)]
            assert (await self.hits.add(number, ids, [b"http://a/"])).start_s == start

    async def seal(self, *, at: int = AFTER + 60) -> None:
        """Seal all that has ended, as far as it can be."""
        await self.client.at(at)
        wait_ms = 0
        while not wait_ms:
            async with self.windows.sealing.quarantining(self.epoch):
                wait_ms = await seal(self.windows, self.epoch)

    async def deliver(self) -> dict[int, int]:
        """Do all that is pending, as far as it can be read; returns the counts by window."""
        counts: dict[int, int] = {}
        done = False
        while not done:
            async with self.windows.sealing.quarantining(self.epoch):
                for owed in await self.windows.pending.deliveries():
                    counts[owed.record.start_s] = owed.record.unique_ids
                    await self.windows.pending.mark_delivered(self.epoch, owed.record.start_s)
                for owed in await self.windows.pending.with_callbacks():
                    pending = await self.windows.pending.callbacks(owed.record.start_s)
                    endpoints = [callback.endpoint for callback in pending]
                    await self.windows.pending.mark_called(self.epoch, owed.record.start_s, endpoints)
                done = True
        return counts

    async def quarantined(self) -> dict[str, str]:
        found = await self.client.command("HGETALL", "{t:0}:quarantine")
        return {name.decode(): what.decode() for name, what in zip(found[::2], found[1::2], strict=True)}

    async def keys(self, pattern: str = f"*:{SPOILT}*") -> dict[bytes, bytes]:
        """The spoilt window's, or those of another pattern, with what they hold."""
        names = await self.client.command("KEYS", pattern)
        return {name: await self.client.command("DUMP", name) for name in names}


@pytest.fixture
async def store(any_server: servers.RedisServer) -> AsyncIterator[Store]:
    store = Store(any_server.url)
    await store.fill()
    yield store
    await store.client.close()


async def test_a_refusal_that_is_not_about_what_is_stored_damages_nothing() -> None:
    """Such as that of a server without the command: nothing is quarantined for it."""
    client = Mock(Client)
    client.script.side_effect = refusal("x", "ERR unknown command")
    windows = WindowStore(client, namespace="t", window_s=60, exact_limit=1000)
    for read in (windows.pending.deliveries(), windows.pending.callbacks(60)):
        with pytest.raises(UnknownRefusalError, match="unknown command"):
            await read


@pytest.mark.parametrize(
    ("spoil", "key"),
    [
        (["SET", WINDOW, "theirs"], WINDOW),
        (["HSET", WINDOW, "hits", "many"], WINDOW),
        (["HSET", WINDOW, "length", "long"], WINDOW),
        (["DEL", WINDOW], WINDOW),
        (["SET", f"{WINDOW}:ids", "theirs"], f"{WINDOW}:ids"),
        (["DEL", f"{WINDOW}:ids"], f"{WINDOW}:ids"),
        (["SET", f"{WINDOW}:hll", "theirs"], f"{WINDOW}:hll"),
        (["DEL", f"{WINDOW}:hll"], f"{WINDOW}:hll"),
        (["SET", f"{WINDOW}:endpoints", "theirs"], f"{WINDOW}:endpoints"),
        (["SET", RECORD, "theirs"], RECORD),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
async def test_a_window_that_is_spoilt(store: Store, spoil: list[str], key: str) -> None:
    """It is quarantined with its keys as they are, and delivered once a person has put it back mended."""
    good = await store.keys()
    await store.client.command(*spoil)
    spoilt = await store.keys()
    await store.seal()
    assert await store.deliver() == {BEFORE: 1, AFTER: 3}
    quarantined = await store.quarantined()
    assert list(quarantined) == [f"open {SPOILT}"]
    assert quarantined[f"open {SPOILT}"].startswith(f"{key} ")
    assert (await store.keys()).keys() == spoilt.keys()
    assert await store.client.damage("{t:0}") == [
        "1 windows are in {t:0}:quarantine, docs/operating says how to mend them"
    ]

    await store.client.command("DEL", *spoilt)
    for name, content in good.items():
        await store.client.command("RESTORE", name, 0, content)
    await store.client.command("ZADD", "{t:0}:open", SPOILT, SPOILT)
    await store.client.command("HDEL", "{t:0}:quarantine", f"open {SPOILT}")
    await store.seal()
    assert await store.deliver() == {SPOILT: 2}
    assert await store.client.damage("{t:0}") == []


@pytest.mark.parametrize("index", ["deliveries", "messages", "callbacks"])
@pytest.mark.parametrize(
    "spoil",
    [
        ["SET", RECORD, "theirs"],
        ["DEL", RECORD],
        ["HSET", RECORD, "unique", "many"],
        ["HDEL", RECORD, "estimate"],
    ],
    ids=lambda spoil: f"{spoil[0]} {spoil[2] if spoil[2:] else ''}",
)
async def test_a_record_that_is_spoilt(store: Store, spoil: list[str], index: str) -> None:
    """It is quarantined, whatever is pending of it, and what is pending is there again once it is mended."""
    await store.seal()
    for start in (BEFORE, SPOILT, AFTER):
        if index != "deliveries":
            await store.windows.pending.mark_logged(store.epoch, start)
        if index == "callbacks":
            await store.windows.pending.mark_delivered(store.epoch, start)
    good = await store.client.command("DUMP", RECORD)
    await store.client.command(*spoil)
    for _ in range(3):
        async with store.windows.sealing.quarantining(store.epoch):
            await store.windows.pending.messages()
    await store.deliver()
    expected = {f"{index} {SPOILT}", f"callbacks {SPOILT}"}
    quarantined = await store.quarantined()
    assert quarantined.keys() == expected
    assert all(RECORD in what for what in quarantined.values())
    counts = await store.windows.pending.counts()
    assert (counts.deliveries, counts.callbacks) == (0, 0)

    await store.client.command("RESTORE", RECORD, 0, good, "REPLACE")
    for name in expected:
        await store.client.command("ZADD", f"{{t:0}}:{name.split()[0]}", SPOILT, SPOILT)
        await store.client.command("HDEL", "{t:0}:quarantine", name)
    pending = store.windows.pending
    reads = {"deliveries": pending.deliveries, "messages": pending.messages}
    found = await reads.get(index, pending.with_callbacks)()
    assert (SPOILT, 2) in [(window.record.start_s, window.record.unique_ids) for window in found]


@pytest.mark.parametrize(
    "spoil",
    [
        ["SET", f"{RECORD}:endpoints", "theirs"],
        ["SADD", f"{RECORD}:endpoints", b"\xff\xfe"],
        ["SET", f"{RECORD}:attempts", "theirs"],
        ["HSET", f"{RECORD}:attempts", "http://a/", "theirs"],
    ],
    ids=["SET", "SADD", "SET attempts", "HSET"],
)
async def test_endpoints_that_are_spoilt(store: Store, spoil: list[str | bytes]) -> None:
    """The window counts, its calls are quarantined, and the record is kept for them."""
    await store.seal()
    await store.client.command(*spoil)
    async with store.windows.sealing.quarantining(store.epoch):
        await store.windows.pending.callbacks(SPOILT)
    ((member, what),) = (await store.quarantined()).items()
    assert member == f"callbacks {SPOILT}"
    assert f"{RECORD}:attempts has" in what or what.startswith(
        f"the endpoints of window {SPOILT} cannot be read: "
    )
    assert await store.deliver() == {BEFORE: 1, SPOILT: 2, AFTER: 3}
    assert await store.client.command("EXISTS", RECORD) == 1
    await store.client.command("DEL", f"{RECORD}:endpoints", f"{RECORD}:attempts")
    await store.client.command("SADD", f"{RECORD}:endpoints", "http://a/")
    await store.client.command("ZADD", "{t:0}:callbacks", SPOILT, SPOILT)
    await store.client.command("DEL", "{t:0}:quarantine")
    await store.deliver()
    assert await store.client.command("KEYS", "{t:0}:record:*") == []


@pytest.mark.parametrize("index", ["open", "deliveries", "messages", "callbacks"])
@pytest.mark.parametrize(
    "member", [b"theirs", b"a b\r\nc", b"", b"\xff", b"1e3", b"+5", b"-5", b"5", b" 7", b"0x10", b"nan"]
)
async def test_a_foreign_member(store: Store, index: str, member: bytes) -> None:
    """What no window could be called is quarantined, and hides none behind it."""
    await store.client.command("ZADD", f"{{t:0}}:{index}", 0, member)
    await store.seal()
    async with store.windows.sealing.quarantining(store.epoch):
        await store.windows.pending.messages()
    assert await store.deliver() == {BEFORE: 1, SPOILT: 2, AFTER: 3}
    quarantined = await store.client.command("HGETALL", "{t:0}:quarantine")
    assert quarantined[::2] == [index.encode() + b" " + member]
    assert await store.client.command("ZSCORE", f"{{t:0}}:{index}", member) is None


@pytest.mark.parametrize(
    ("key", "belongs"),
    [
        ("state", "hash"),
        ("lock", "string"),
        ("open", "zset"),
        ("deliveries", "zset"),
        ("messages", "zset"),
        ("callbacks", "zset"),
        ("workers", "hash"),
    ],
)
async def test_a_key_of_another_type(store: Store, key: str, belongs: str) -> None:
    """The error names it; what needs it waits, what does not goes on; nothing is lost or done by halves."""
    name = f"{{t:0}}:{key}"
    await store.client.command("SADD", "theirs", "theirs")
    there = await store.client.command("EXISTS", name)
    if there:
        await store.client.command("RENAME", name, "ours")
    await store.client.command("COPY", "theirs", name)
    wrong = f"is damaged: {name} is a set, a {belongs} belongs there"

    await store.client.at(AFTER + 60)
    for _ in range(2):
        for uses, step in (
            ({"state", "open", "workers"}, store.hits.add(4, [b"9"])),
            ({"state", "lock"}, store.windows.election.lead("a", lease_ms=600_000)),
            (
                {"state", "open", "deliveries", "messages", "callbacks", "workers"},
                seal(store.windows, store.epoch),
            ),
        ):
            if key in uses:
                before = await store.keys("{t:0}:o*")  # indexes and records
                with pytest.raises(StoreRefusedError, match=wrong):
                    await step
                assert await store.keys("{t:0}:o*") == before
            else:
                await step
    assert await store.client.damage("{t:0}") == [wrong.removeprefix("is damaged: ")]

    await store.client.command("DEL", name)
    if there:
        await store.client.command("RENAME", "ours", name)
    assert (await store.hits.add(4, [b"9"])).start_s == AFTER + 60
    await store.seal(at=AFTER + 120)
    assert await store.deliver() == {BEFORE: 1, SPOILT: 2, AFTER: 3, AFTER + 60: 1}


@pytest.mark.parametrize("field", ["length", "exact_limit", "sealed_through", "since"])
async def test_a_state_that_is_spoilt(store: Store, field: str) -> None:
    """What is no number is named, and nothing is done."""
    good = await store.client.command("HGET", "{t:0}:state", field)
    await store.client.command("HSET", "{t:0}:state", field, "theirs")
    await store.client.at(AFTER + 60)
    wrong = rf"is damaged: \{{t:0}}:state has no number as {field}, but theirs"
    with pytest.raises(StoreRefusedError, match=wrong):
        await seal(store.windows, store.epoch)
    if field != "since":
        with pytest.raises(StoreRefusedError, match=wrong):
            await store.hits.add(4, [b"9"])
    await store.client.command("HSET", "{t:0}:state", field, good)
    await store.seal()
    assert await store.deliver() == {BEFORE: 1, SPOILT: 2, AFTER: 3}


async def test_a_bridge_that_is_spoilt(store: Store) -> None:
    """What is no window is named, and nothing is done."""
    await store.client.command("HSET", "{t:0}:state", "bridge", "theirs")
    await store.client.at(AFTER + 60)
    wrong = r"is damaged: \{t:0}:state has no window as bridge, but theirs"
    for step in (seal(store.windows, store.epoch), store.hits.add(4, [b"9"])):
        with pytest.raises(StoreRefusedError, match=wrong):
            await step
    assert len(await store.client.damage("{t:0}")) == 1
    await store.client.command("HDEL", "{t:0}:state", "bridge")
    await store.seal()
    assert await store.deliver() == {BEFORE: 1, SPOILT: 2, AFTER: 3}


async def test_a_token_that_is_spoilt(store: Store) -> None:
    """It is named, and costs its own worker's hits alone: windows are sealed, and others count."""
    (worker,) = await store.client.command("HKEYS", "{t:0}:workers")
    await store.client.command("HSET", "{t:0}:workers", worker, "theirs", "nobody", "1 2 3")
    found = await store.client.damage("{t:0}")
    assert len(found) == 1
    assert found[0].startswith("{t:0}:workers has no token as ")
    with pytest.raises(StoreRefusedError, match=r"is damaged: \{t:0}:workers has no token as"):
        await store.hits.add(4, [b"9"])
    other = HitStore(store.client, namespace="t", window_s=60, exact_limit=1000)
    await other.add(1, [b"8", b"9"])
    await store.seal()
    records = {owed.record.start_s: owed.record for owed in await store.windows.pending.deliveries()}
    assert [records[start].unique_ids for start in (BEFORE, SPOILT, AFTER)] == [1, 2, 5]
    assert [records[start].hits for start in (BEFORE, SPOILT, AFTER)] == [1, 2, 2]


async def test_a_spoilt_window_does_not_harm_the_next(store: Store) -> None:
    """A worker's hits of it are lost with it; ids that come after it are counted."""
    await store.client.command("DEL", f"{{t:0}}:w:{AFTER}")
    await store.client.command("SET", f"{{t:0}}:w:{AFTER}", "theirs")
    await store.client.at(AFTER + 60)
    assert (await store.hits.add(4, [b"9"])).start_s == AFTER + 60
    await store.seal(at=AFTER + 120)
    assert await store.deliver() == {BEFORE: 1, SPOILT: 2, AFTER + 60: 1}


async def test_another_schema(store: Store) -> None:
    """What another version wrote is left alone."""
    await store.client.command("HSET", "{t:0}:state", "schema", "1")
    before = sorted(await store.client.command("KEYS", "*"))
    for step in (
        store.hits.add(4, [b"9"]),
        store.windows.election.lead("a", lease_ms=1),
        store.windows.election.lead("b", lease_ms=1),
    ):
        with pytest.raises(
            StoreRefusedError, match=r"another version of idagg wrote \(schema 1\).*--namespace"
        ):
            await step
    assert sorted(await store.client.command("KEYS", "*")) == before


async def test_a_state_that_is_gone(store: Store) -> None:
    """A leader whose epoch is not known any more begins a new one, and what was open is sealed."""
    await store.client.command("DEL", "{t:0}:state")
    assert (await store.windows.election.lead("a", lease_ms=600_000)).epoch == 1
    await store.seal()
    assert await store.deliver() == {BEFORE: 1, SPOILT: 2, AFTER: 3}


@pytest.fixture
async def client(any_server: servers.RedisServer) -> AsyncIterator[Client]:
    client = Client(any_server.url, timeout_s=LIMIT_S)
    yield client
    await client.close()


# The ids of a window that is not sealed: between a look and a write, one by one, it might be.
SPOIL = """
local names = redis.call('KEYS', '*:w:*:ids')
if names[1] then
  redis.call('SET', names[1], 'theirs')
end
return names[1]
"""


async def test_a_damaged_store_that_is_served(any_server: servers.RedisServer, client: Client) -> None:
    """Real processes: the windows beside the spoilt one arrive, and whoever looks after it is told."""
    with Serving("--redis-url", any_server.url, *PATIENT, window=1) as serving:
        name = None
        while name is None:  # until the machine is not too slow
            await send(serving, range(100))
            name = await client.command("EVAL", SPOIL, 0)
        await client.command("ZADD", "{idagg:0}:deliveries", 0, "theirs")
        await until(lambda: serving.said.count("is quarantined in {idagg:0}:quarantine") == 2)
        assert f"{name.decode()} is a string, a set belongs there" in serving.said
        start = await in_one_window(serving, range(100))
        await until(lambda: serving.counts().get(iso(start)) == 100)
        quarantined, pending = "idagg_quarantined", "idagg_pending{deliveries}"
        # Each window is pending for a moment.
        await eventually(serving.figures, lambda figures: (figures[quarantined], figures[pending]) == (2, 0))

        await client.command("SET", "{idagg:0}:state", "theirs")
        damaged = b"is damaged: {idagg:0}:state is a string, a hash belongs there"
        await eventually(serving.health, lambda answer: answer.status == 503 and damaged in answer.body)
        assert await serving.hit() == 503
        await client.command("DEL", "{idagg:0}:state")
        await serving.counts_again()
        await serving.ready()
        serving.stop()


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (
            "CONFIG SET maxmemory-policy allkeys-lru",
            "drops keys, and counts with them, when it is full (maxmemory",
        ),
        ("SET {idagg:0}:open theirs", "is damaged: {idagg:0}:open is a string, a zset belongs there"),
        ("HSET {idagg:0}:quarantine open why", "1 windows are in {idagg:0}:quarantine"),
    ],
)
async def test_check_says_so(
    any_server: servers.RedisServer, client: Client, tmp_path: Path, command: str, sentence: str
) -> None:
    """`idagg check` tells what would cost counts, or has spoilt some."""
    await client.command("CONFIG", "SET", "maxmemory", "1gb")
    flags = ("--redis-url", any_server.url, "--log-file", str(tmp_path / "log"), *NO_PORTS)
    assert (await check(*flags)).startswith("ok      store: ")
    await client.command(*command.split())
    said = await check(*flags)
    assert said.startswith("failed  store: ")
    assert sentence in said


async def check(*flags: str) -> str:
    command = (sys.executable, "-m", "idagg", "check", *flags)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == (1 if b"failed" in output else 0)
    return output.decode()
