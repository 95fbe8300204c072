"""Batches of several workers in one call of the accept script, and the way there through a combiner."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import hiredis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from idagg.errors import StoreAwayError, StoreRefusedError
from idagg.store.client import Client
from idagg.store.combining import ABSENT_S, ALONE_S, Combined, Combiner, _Line, _Shard, _Waiting
from idagg.store.hits import COMMON, OWN, HitStore, Scripts
from idagg.store.shards import ONE_SHARD, Regime
from idagg.store.windows import WindowStore
from idagg.tasks import end
from kit.cranked import CrankedClient
from kit.servers import RedisServer
from kit.staging import seal
from kit.waiting import LIMIT_S, NOON, until

WORKERS = 4


@pytest.fixture
async def client(store_server: RedisServer) -> AsyncIterator[CrankedClient]:
    """The store at noon."""
    client = CrankedClient(store_server.url)
    await client.at(NOON)
    yield client
    await client.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, the way that a batch takes is the same."""
    monkeypatch.setattr("idagg.store.combining.PATIENCE_S", 15.0)
    monkeypatch.setattr("idagg.store.combining.ALONE_S", 60.0)
    monkeypatch.setattr("idagg.store.combining.ABSENT_S", 60.0)


@dataclasses.dataclass
class Watched:
    """A way to the store that counts calls. They wait until ``held`` is set; so many answers are ``lost``."""

    client: Client
    begun: int = 0
    calls: int = 0
    batches: int = 0
    lost: int = 0
    held: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    async def script(self, name: str, tag: str, *args: bytes | str | int) -> Any:
        self.begun += 1
        await self.held.wait()
        self.calls += 1
        answer = await self.client.script(name, tag, *args)
        self.batches += len(answer) if isinstance(answer[0], list) else 1
        if self.lost:
            self.lost -= 1
            await asyncio.Event().wait()
        return answer


class Counting(Combiner):
    """It counts the batches that have come, and knows on which lines."""

    taken = 0
    used: set[_Line]
    running: asyncio.Task[None]

    def take(self, line: Any, asked: list[bytes]) -> None:
        self.taken += 1
        self.used.add(line)
        super().take(line, asked)


@contextlib.asynccontextmanager
async def combining(scripts: Scripts, path: Path) -> AsyncIterator[Counting]:
    combiner = Counting(lambda tag: scripts)
    combiner.used = set()
    combiner.running = asyncio.create_task(combiner.run(str(path)))
    await until(path.exists)
    try:
        yield combiner
    finally:
        await end(combiner.running)


class Worker:
    def __init__(self, direct: Client, path: Path, **facts: Any) -> None:
        self.direct = Watched(direct)
        self.direct.held.set()
        # It uses no more of a client than this.
        self.way = Combined(cast(Client, self.direct), str(path), deadline_s=60)
        self.hits = hits_of(self.way, **facts)

    def close(self) -> None:
        self.way._drop()


def hits_of(scripts: Scripts, *, regime: Regime = ONE_SHARD, exact_limit: int = 1000) -> HitStore:
    return HitStore(scripts, namespace="t", window_s=60, exact_limit=exact_limit, regime=regime)


async def counts(client: Client) -> dict[int, tuple[int, int]]:
    """Unique ids and hits of the windows that wait for delivery, by start."""
    owed = await WindowStore(client, namespace="t", window_s=60, exact_limit=1000).pending.deliveries()
    return {entry.record.start_s: (entry.record.unique_ids, entry.record.hits) for entry in owed}


async def sealed(client: CrankedClient, second: int) -> dict[int, tuple[int, int]]:
    await client.at(second)
    windows = WindowStore(client, namespace="t", window_s=60, exact_limit=1000)
    epoch = (await windows.election.lead("a", lease_ms=10**9)).epoch
    while await seal(windows, epoch) == 0:
        """There is another one that has ended."""
    return await counts(client)


def ids(worker: int, seq: int) -> list[bytes]:
    """Three of its own, and one that all have."""
    return [*(b"%d" % (1000 * worker + 10 * seq + number) for number in range(3)), b"7"]


def test_no_batch_overtakes_another_of_its_line() -> None:
    """A worker tells its answers apart by their order alone. At a change of the number of shards it has a
    batch of both numbers under way."""
    shard = _Shard(cast(Scripts, None), "{t:0}", 0)
    lines = {name: _Line(cast(Combiner, None)) for name in "abc"}
    for line, regime in ("a", b"new"), ("b", b"old"), ("b", b"new"), ("c", b"new"), ("c", b"old"):
        shard.take(_Waiting(lines[line], (regime,), [], 0))
    calls = []
    while together := shard._next():
        calls.append(
            [(line, batch.common[0]) for batch in together for line in lines if lines[line] is batch.line]
        )
    assert calls == [
        [("a", b"new"), ("c", b"new")],
        [("b", b"old"), ("c", b"old")],
        [("b", b"new")],
    ]


async def test_two_batches_that_find_no_connection_open_one(client: CrankedClient, tmp_path: Path) -> None:
    way = Watched(client)
    async with combining(way, tmp_path / "socket") as combiner:
        worker = Worker(client, tmp_path / "socket")
        stores = [hits_of(worker.way), hits_of(worker.way)]
        batches = [asyncio.create_task(store.add(1, ids(n, 1))) for n, store in enumerate(stores)]
        await until(lambda: combiner.taken == 2)
        assert len(combiner.used) == 1
        way.held.set()
        await asyncio.gather(*batches)
        worker.close()


# Worker, number, ids, endpoints.
Batch = tuple[str, int, list[bytes], list[bytes]]


class Recorder:
    """Keeps what batches would send, so that they can be sent together."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes | str | int, ...]] = []

    async def script(self, name: str, tag: str, *args: bytes | str | int) -> Any:
        self.sent.append(args)
        return [0, 0, 0, 0]


async def together(client: Client, *batches: Batch) -> Any:
    """One call with batches of these workers, each named by its incarnation."""
    recorder = Recorder()
    for worker, seq, some, endpoints in batches:
        await hits_of(recorder).add(seq, some, endpoints)
        common, (_, *own) = recorder.sent[-1][:COMMON], recorder.sent[-1][COMMON:]
        recorder.sent[-1] = (*common, worker, *own)
    return await client.script("accept_many", "{t:0}", *recorder.sent[0][:COMMON], *many(recorder.sent))


def many(calls: Iterable[Sequence[bytes | str | int]]) -> list[bytes | str | int]:
    """What accept_many.lua is given of these calls of accept.lua behind what they share."""
    first, end = COMMON, COMMON + OWN
    return [arg for call in calls for arg in (*call[first:end], len(call) - end, *call[end:])]


async def test_each_batch_of_a_call_is_applied_once(client: CrankedClient) -> None:
    """All are answered in their order. Half of them come again, with new ones: only these count."""
    first: list[Batch] = [
        (f"w{number}", 1, ids(number, 1), [b"http://a/%d" % number]) for number in range(WORKERS)
    ]
    answers = await together(client, *first)
    assert answers == [[NOON, 4, 0, 0], *([[NOON, 3, 0, 0]] * (WORKERS - 1))]
    again = [(name, seq, some, urls) for name, seq, some, urls in first[:2]]
    fresh: list[Batch] = [(f"w{number}", 2, ids(number, 2), []) for number in (2, 3)]
    answers = await together(client, again[0], fresh[0], again[1], fresh[1])
    # None was acknowledged, so the store's knowledge begins anew.
    assert answers == [[NOON, 4, 0, 1], [NOON, 3, 2, 1], [NOON, 4, 0, 1], [NOON, 3, 2, 1]]
    assert await sealed(client, NOON + 60) == {NOON: (3 * 6 + 1, 4 * 6)}
    assert await client.command("SCARD", f"{{t:0}}:record:{NOON}:endpoints") == WORKERS


async def test_one_that_comes_late_does_not_stop_the_others(client: CrankedClient) -> None:
    """A batch below its worker's last number is refused alone."""
    await together(client, ("w0", 2, ids(0, 2), []))
    late, fresh, again = await together(
        client, ("w0", 1, ids(0, 1), []), ("w1", 1, ids(1, 1), []), ("w0", 2, ids(0, 2), [])
    )
    assert isinstance(late, hiredis.ReplyError)
    assert str(late) == "STALE 2"
    assert (fresh, again) == ([NOON, 3, 0, 0], [NOON, 4, 0, 2])
    assert await sealed(client, NOON + 60) == {NOON: (7, 8)}


async def test_a_worker_twice_in_a_call(client: CrankedClient) -> None:
    """The second one meets what the first one has left."""
    first: Batch = ("w0", 1, ids(0, 1), [])
    second: Batch = ("w0", 2, ids(0, 2), [])
    answers = await together(client, first, first, second)
    assert answers == [[NOON, 4, 0, 0], [NOON, 4, 0, 1], [NOON, 3, 2, 1]]
    assert await sealed(client, NOON + 60) == {NOON: (7, 8)}


async def test_over_the_end_of_a_window(client: CrankedClient) -> None:
    """What was applied before the boundary stays there, with all its hits; what is new goes to the next."""
    batches: list[Batch] = [(f"w{number}", 1, ids(number, 1), []) for number in range(WORKERS)]
    await together(client, *batches[:2])
    await client.at(NOON + 60)
    later: list[Batch] = [(f"w{number}", 2, ids(number, 2), []) for number in range(2)]
    answers = await together(client, *batches, *later)
    assert answers[:2] == [[NOON, 4, 0, 1]] * 2
    assert answers[2:] == [[NOON + 60, 4, 0, 0], [NOON + 60, 3, 0, 0], *[[NOON + 60, 3, 2, 1]] * 2]
    assert await sealed(client, NOON + 120) == {NOON: (7, 8), NOON + 60: (13, 16)}


async def test_another_regime_refuses_new_batches_alone(client: CrankedClient) -> None:
    """What was applied is known under each regime."""
    await together(client, ("w0", 1, ids(0, 1), []))
    await client.command("HSET", "{t:0}:state", "regime", "2 4 60")
    again, refused = await together(client, ("w0", 1, ids(0, 1), []), ("w1", 1, ids(1, 1), []))
    assert again == [NOON, 4, 0, 1]
    assert str(refused) == "REGIME 2 4"


async def test_a_token_that_cannot_be_read(client: CrankedClient) -> None:
    """It stops nobody else."""
    await client.command("HSET", "{t:0}:workers", "w1", "spoilt")
    batches: list[Batch] = [(f"w{number}", 1, ids(number, 1), []) for number in range(3)]
    first, refused, last = await together(client, *batches)
    assert (first, last) == ([NOON, 4, 0, 0], [NOON, 3, 0, 0])
    assert str(refused) == "DAMAGED token of w1"
    assert await client.command("HGET", "{t:0}:workers", "w1") == b"spoilt"
    await client.command("HDEL", "{t:0}:workers", "w1")
    assert await sealed(client, NOON + 60) == {NOON: (7, 8)}


async def test_full_memory(client: CrankedClient) -> None:
    """What was applied is told, and takes none. With anything new, nothing is done."""
    first: list[Batch] = [(f"w{number}", 1, ids(number, 1), []) for number in range(2)]
    await together(client, *first)
    await client.command("CONFIG", "SET", "maxmemory", "1")
    assert await together(client, *first) == [[NOON, 4, 0, 1], [NOON, 4, 0, 1]]
    for fresh in (ids(2, 1), []):
        with pytest.raises(StoreRefusedError, match="out of memory"):
            await together(client, first[0], ("w2", 1, fresh, []))
    await client.command("CONFIG", "SET", "maxmemory", "0")
    assert await sealed(client, NOON + 60) == {NOON: (7, 8)}


@dataclasses.dataclass(frozen=True)
class Sent:
    """A worker's batch. ``step`` is from its last number; if it ``knows``, it names the last answer."""

    worker: int
    step: int
    knows: bool
    repeats: int
    ids: list[int]
    endpoints: list[int]


SENT = st.builds(
    Sent,
    worker=st.integers(0, 2),
    step=st.sampled_from([1, 1, 1, 2, 0, -1]),
    knows=st.booleans(),
    repeats=st.integers(0, 2),
    ids=st.lists(st.integers(0, 9), max_size=5),
    endpoints=st.lists(st.integers(0, 5), max_size=3),
)
# Another regime of the state, or a plan, which only a state with a regime has.
STATES = (
    ["regime", "2 1 60"],
    ["regime", "1 4 60"],
    ["regime", "1 1 60", "plan", f"{NOON + 60} 2 1 60"],
    ["regime", "1 1 60", "plan", f"{NOON} 3 1 60"],
)
# Seconds that pass, what then becomes of the state, and the batches of a call.
CALLS = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 0, 1, 60, 150, -60]),
        st.sampled_from([None, None, None, *STATES]),
        st.lists(SENT, min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=6,
)
SINGLY, COMBINED = "{t:0}", "{u:0}"


async def keys(client: Client, tag: str) -> dict[str, Any]:
    """All that the store has of a shard, by key without its tag."""
    found = {}
    for key in await client.command("KEYS", f"{tag}:*"):
        kind = (await client.command("TYPE", key)).decode()
        words = {
            "hash": ("HGETALL", key),
            "set": ("SMEMBERS", key),
            "zset": ("ZRANGE", key, 0, -1, "WITHSCORES"),
            "string": ("GET", key),
        }[kind]
        value = await client.command(*words)
        if kind == "hash":
            value = dict(zip(value[::2], value[1::2], strict=True))
        found[key.decode().removeprefix(tag)] = sorted(value) if kind == "set" else value
    return found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=CALLS)
def test_what_is_combined_leaves_what_single_batches_leave(
    store_server: RedisServer, calls: list[tuple[int, list[str] | None, list[Sent]]]
) -> None:
    """The answers and every key are the same, with few ids kept exactly, few endpoints, and other regimes."""
    asyncio.run(compare(store_server.url, calls))


async def compare(url: str, calls: list[tuple[int, list[str] | None, list[Sent]]]) -> None:
    client, now = CrankedClient(url), NOON
    await client.command("FLUSHALL")
    known: dict[int, tuple[int, list[int]]] = {number: (0, [0, 0, 0]) for number in range(3)}
    common = (60, 4, 4, 2, "1 1")
    for seconds, state, batches in calls:
        now += seconds
        await client.at(now)
        if state:
            for tag in (SINGLY, COMBINED):
                await client.command("HSET", f"{tag}:state", *state)
        singly: list[Any] = []
        own: list[tuple[bytes | str | int, ...]] = []
        for sent in batches:
            seq, answer = known[sent.worker]
            number = max(1, seq + sent.step)
            args: tuple[bytes | str | int, ...] = (
                *(f"w{sent.worker}", number),
                " ".join(map(str, answer if sent.knows else (9, 9, 9))),
                *(sent.repeats, "[" + ",".join(f'"{one}"' for one in sent.ids) + "]"),
                *(f"http://{one}/" for one in sent.endpoints),
            )
            own.append((*common, *args))
            heard = await client._run("accept", SINGLY, *common, *args)
            singly.append(heard)
            if isinstance(heard, list):
                known[sent.worker] = (number, [number, heard[0], heard[2]])
        answers = await client._run("accept_many", COMBINED, *common, *many(own))
        assert list(map(str, answers)) == list(map(str, singly))
        assert await keys(client, COMBINED) == await keys(client, SINGLY)
    await client.close()


# Through a combiner


async def test_batches_meet(client: CrankedClient, tmp_path: Path) -> None:
    """What comes while a call is under way goes with the next one. Different settings do not mix."""
    scripts = Watched(client)
    async with combining(scripts, tmp_path / "s") as combiner:
        workers = [Worker(client, tmp_path / "s") for _ in range(WORKERS)]
        other = Worker(client, tmp_path / "s", exact_limit=1)
        for seq in range(1, 4):
            scripts.held.clear()
            adding = asyncio.gather(
                *(worker.hits.add(seq, ids(number, seq)) for number, worker in enumerate(workers))
            )
            # However late they come: what came first is under way, and waits.
            await until(lambda seq=seq: combiner.taken == seq * WORKERS)  # type: ignore[misc]  # mypy does not infer it
            scripts.held.set()
            answers = await adding
            assert [answer.start_s for answer in answers] == [NOON] * WORKERS
            assert sum(answer.new_ids for answer in answers) == 3 * WORKERS + (seq == 1)
            assert all(answer.continues for answer in answers) == (seq > 1)
        assert scripts.batches == 3 * WORKERS
        assert scripts.calls <= 2 * 3
        assert not any(worker.direct.calls for worker in workers)
        with pytest.raises(StoreRefusedError, match="--exact-limit"):
            await other.hits.add(1, [b"1"])
        assert (await workers[0].hits.add(4, ids(0, 4))).continues
        for worker in (*workers, other):
            worker.close()
    assert await sealed(client, NOON + 60) == {NOON: (3 * 3 * WORKERS + 4, 4 * 3 * WORKERS + 4)}


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    with contextlib.closing(writer):
        writer.write(b"?\r\n")


@pytest.mark.parametrize(
    "fault", ["dies", "loses the answer", "hangs before", "is not there", "is no combiner"]
)
async def test_one_that_fails(
    client: CrankedClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The worker's own way takes the batch, once, and those that follow."""
    if fault in ("dies", "loses the answer", "hangs before"):
        monkeypatch.setattr("idagg.store.combining.PATIENCE_S", 0.1)
    scripts, path = Watched(client), tmp_path / "s"
    async with contextlib.AsyncExitStack() as stack:
        if fault == "is no combiner":
            server = await asyncio.start_unix_server(garbage, path)
            stack.push_async_callback(server.wait_closed)
            stack.callback(server.close)
        elif fault != "is not there":
            combiner = await stack.enter_async_context(combining(scripts, path))
        worker = Worker(client, path)
        if fault == "loses the answer":
            scripts.held.set()
            scripts.lost = 1
        adding = asyncio.create_task(worker.hits.add(1, ids(0, 1)))
        if fault == "dies":
            await asyncio.sleep(0)
            await end(combiner.running)
        assert (await adding).start_s == NOON
        assert (await worker.hits.add(2, ids(0, 2))).continues
        assert worker.direct.calls == 2
        worker.close()
        # If the machine has stood still, the batch was given up before it came.
        if fault == "hangs before" and scripts.begun:
            # It goes on, and sends what it has: its number is below that of the last batch.
            scripts.held.set()
            await until(lambda: scripts.calls == 1)
    assert await sealed(client, NOON + 60) == {NOON: (7, 8)}


async def test_a_store_that_is_away(store_server: RedisServer, tmp_path: Path) -> None:
    """The worker hears it from its own client, and counts by that once the store is back.

    A probe, without ids, takes the same way.
    """
    scripts = Watched(Client(store_server.url, timeout_s=LIMIT_S))
    scripts.held.set()
    async with combining(scripts, tmp_path / "s"):
        worker = Worker(Client(store_server.url, timeout_s=LIMIT_S), tmp_path / "s")
        await worker.hits.add(1, [])
        assert (scripts.calls, worker.direct.calls) == (1, 0)
        await scripts.client.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreRefusedError, match="out of memory"):
            await worker.hits.add(2, [])
        await scripts.client.command("CONFIG", "SET", "maxmemory", "0")
        store_server.kill()
        with pytest.raises(StoreAwayError):
            await worker.hits.add(3, [b"1"])
        store_server.start()
        assert (await worker.hits.add(3, [b"1"])).new_ids == 1
        assert scripts.calls == 2  # it is alone for a while
        worker.close()
        await worker.direct.client.close()
    await scripts.client.close()


async def test_it_is_used_again(
    client: CrankedClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soon after it is there again: a worker that found none is not alone for as long as after a failure. If
    its end met no batch, then at once."""
    monkeypatch.setattr("idagg.store.combining.ABSENT_S", 0.0)
    scripts, path = Watched(client), tmp_path / "s"
    scripts.held.set()
    worker = Worker(client, path)
    for seq in range(1, 4):
        async with combining(scripts, path):
            await worker.hits.add(seq, ids(0, seq))
            assert scripts.calls == seq
        assert not path.exists()
    assert worker.direct.calls == 0
    await worker.hits.add(4, ids(0, 4))
    async with combining(scripts, path):
        await worker.hits.add(5, ids(0, 5))
    worker.close()
    assert (worker.direct.calls, scripts.calls) == (1, 4)
    assert ALONE_S > ABSENT_S > 0
