"""What a worker remembers; and that it answers nobody wrongly by it, whatever happens to the store."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from idagg.accept import commit
from idagg.accept.commit import GroupCommit
from idagg.accept.repeats import MAX_IDS, RepeatCache
from idagg.errors import StoreAwayError, StoreRefusedError
from idagg.store.hits import HitStore, Stored
from idagg.store.windows import WindowStore
from kit import servers
from kit.cranked import CrankedClient
from kit.fakes import Batches
from kit.oracle import open_hits
from kit.staging import seal
from kit.waiting import NOON

IDS = [b"1", b"2", b"3", b"4"]


@pytest.fixture
def cache() -> RepeatCache:
    return RepeatCache()


@pytest.mark.parametrize(
    ("new_ids", "repeats", "remembered"),
    [(0, 0, True), (2, 0, True), (3, 0, False), (4, 3, False), (4, 4, True)],
)
def test_a_batch_is_remembered_where_half_of_it_was_not_new(
    cache: RepeatCache, new_ids: int, repeats: int, remembered: bool
) -> None:
    """Traffic in which no id comes again costs no memory; repeats that were not sent count as not new."""
    cache.learn(IDS, [b"9"] * repeats, Stored(60, new_ids, continues=True))
    assert cache.ids == (set(IDS) if remembered else set())


def test_what_does_not_continue_begins_with_nothing(cache: RepeatCache) -> None:
    """Another window, or a store that has lost something: then its repeats are no repeats."""
    cache.learn(IDS, [], Stored(60, 0, continues=True))
    cache.learn([b"9"], [b"1"], Stored(60, 1, continues=False))
    assert cache.ids == set()
    cache.learn(IDS, [], Stored(60, 0, continues=True))
    cache.learn([b"9"], [], Stored(120, 0, continues=False))
    assert cache.ids == {b"9"}


def test_memory_is_bounded(cache: RepeatCache) -> None:
    """Where it would be too much, what repeats now is kept."""
    ids, size = cache.ids, 0
    for number in range(0, 3 * MAX_IDS, 4096):
        batch = [b"%d" % (number + place) for place in range(4096)]
        cache.learn(batch, [b"-1"] * 4096, Stored(60, 4096, continues=True))
        assert {*batch} <= ids
        size = max(size, len(ids))
    assert b"-1" in ids
    assert size <= MAX_IDS
    assert size > MAX_IDS - 4096


# Against the real scripts

_LENGTH_S = 10


@dataclasses.dataclass
class Request:
    """A waiter that brings one id or many."""

    ids: list[bytes]
    began: int  # answers of the store before it
    note: Callable[[Request], None]
    stored: bool | None = None

    def answer(self, stored: bool) -> None:
        assert self.stored is None
        self.stored = stored
        self.note(self)


class Stores:
    """Two stores behind one address; one of them answers, or does not."""

    address = "one of two"

    def __init__(self, url: str) -> None:
        self.both = [CrankedClient(f"{url}?db={number}") for number in (0, 1)]
        self.now = float(NOON)
        self.faults: list[str] = []
        self.meanwhile: Callable[[], None] = lambda: None  # what happens during the next command
        self.answers: list[set[bytes]] = []  # of each answer, the ids in the window that it names

    async def crank(self, seconds: float = 0.0) -> None:
        self.now += seconds
        for client in self.both:
            await client.at(self.now)

    async def script(self, name: str, tag: str, *args: bytes | str | int) -> Any:
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "refused":
            raise StoreRefusedError("full")
        if fault == "away":
            raise StoreAwayError("away")
        client = self.both[0]
        answer = await client.script(name, tag, *args)
        if fault == "boundary":
            await self.crank(_LENGTH_S)
        if fault == "switch":
            self.both.reverse()
        if fault:
            raise StoreAwayError("lost")
        self.answers.append(set(await client.command("SMEMBERS", f"{tag}:w:{answer[0]}:ids")))
        return answer

    async def hits(self) -> int:
        """Of all windows, sealed or not, of the store that answers."""
        client = self.both[0]
        records = await client.command("KEYS", "{t:0}:record:*")
        sealed = [int(await client.command("HGET", name, "hits")) for name in records]
        return sum(sealed) + await open_hits(client, "{t:0}")

    async def dump(self) -> dict[bytes, bytes]:
        names = await self.both[0].command("KEYS", "{t:0}:*")
        return {name: await self.both[0].command("DUMP", name) for name in names}

    async def restore(self, keys: dict[bytes, bytes]) -> None:
        await self.both[0].command("FLUSHDB")
        await self.crank()
        for name, content in keys.items():
            await self.both[0].command("RESTORE", name, 0, content)

    async def begin(self) -> None:
        await self.both[0].command("FLUSHALL")
        await self.crank()

    async def close(self) -> None:
        for client in self.both:
            await client.close()


@dataclasses.dataclass(frozen=True)
class Send:
    """Requests, each of some ids; those that come while the store has the first; what befalls its answers."""

    first: list[str]
    meanwhile: list[str]
    faults: list[str]


_requests = st.lists(st.sampled_from(["1", "1", "2", "3", "11", "12", "123"]), min_size=1, max_size=3)
_sends = st.builds(
    Send,
    _requests,
    _requests | st.just([]),
    st.lists(st.sampled_from(["lost", "lost", "boundary", "switch", "away", "refused"]), max_size=3)
    | st.just([]),
)
_clock = st.sampled_from(["0.25", "3", "10", "-3", "-12"])  # s
_losses = st.sampled_from(["switch", "flush", "save", "back"])


async def _all_is_true(stores: Stores, steps: list[Send | str]) -> None:
    await stores.begin()
    windows = WindowStore(stores.both[0], namespace="t", window_s=_LENGTH_S, exact_limit=100)
    epoch = (await windows.election.lead("a", lease_ms=10**6)).epoch
    store = HitStore(stores, namespace="t", window_s=_LENGTH_S, exact_limit=100)
    group = GroupCommit(
        store,
        Batches(),
        deadline_s=60,
        max_batch=8,
        now=asyncio.get_running_loop().time,
        linger_s=0,
    )
    running = asyncio.create_task(group.run())
    asked: list[Request] = []
    told: list[Request] = []
    saved = await stores.dump()

    def ask(requests: list[str]) -> None:
        for digits in requests:
            request = Request([b"%c" % digit for digit in digits.encode()], len(stores.answers), told.append)
            asked.append(request)
            if len(digits) == 1:
                assert group.add(request, request.ids[0])
            else:
                assert group.add_many(request, request.ids)

    is_one_store = True
    for step in steps:
        if isinstance(step, Send):
            stores.faults = [*step.faults]
            is_one_store = is_one_store and "switch" not in step.faults

            def come(requests: list[str] = step.meanwhile) -> None:
                ask(requests)

            stores.meanwhile = come
            ask(step.first)
            async with asyncio.timeout(30):
                while len(told) < len(asked):  # noqa: ASYNC110  what it waits for sets no event
                    await asyncio.sleep(0)
            assert group.waiting == 0
            stores.faults = []
        elif step == "seal":
            await seal(windows, epoch)
        elif step in ("switch", "flush", "save", "back"):
            is_one_store = False
            if step == "switch":
                stores.both.reverse()
            elif step == "flush":
                await stores.restore({})
            elif step == "save":
                saved = await stores.dump()
            else:
                await stores.restore(saved)
        else:
            await stores.crank(float(step))

    assert [id(request) for request in told] == [id(request) for request in asked], "answered in disorder"
    for request in told:
        if request.stored:
            held = stores.answers[request.began :]
            assert {*request.ids} <= set().union(*held), f"{request} is in no window of its time"
    if is_one_store:
        counted = sum(len(request.ids) for request in told if request.stored)
        failed = sum(len(request.ids) for request in told if not request.stored)
        # A batch that failed may be counted only if it was applied, and its answer was lost.
        may_be_counted = any(
            isinstance(step, Send) and {"refused"} < {*step.faults} & {"refused", "lost", "boundary"}
            for step in steps
        )
        assert counted <= await stores.hits() <= counted + (failed if may_be_counted else 0)
    group.stop()
    await running


@pytest.fixture(scope="module")
def model_server() -> Iterator[servers.RedisServer]:
    with servers.RedisServer("redis") as server:
        yield server


def _check(server: servers.RedisServer, steps: list[Send | str]) -> None:
    async def check() -> None:
        stores = Stores(server.url)
        try:
            await _all_is_true(stores, steps)
        finally:
            await stores.close()

    with mock.patch.object(commit, "_RETRY_S", 0):
        asyncio.run(check())


# An id that the cache has.
_LEARNT = Send(["1", "1"], [], [])


@given(st.lists(_sends | _clock | st.just("seal"), min_size=1, max_size=15))
@example([_LEARNT, "10", Send(["1"], ["1"], [])])
@example([_LEARNT, Send(["1"], [], ["boundary"]), Send(["1"], [], [])])
@settings(deadline=None, max_examples=150)
def test_a_repeat_is_in_a_window_of_its_time_and_one_hit(
    model_server: servers.RedisServer, steps: list[Send | str]
) -> None:
    """One store loses answers, refuses, and its clock runs and steps back. Each ok is for an id that is in a
    window of its request's time, and is one hit. A request that failed is none, if it was not applied."""
    _check(model_server, steps)


@given(st.lists(_sends | _clock | _losses, min_size=1, max_size=15))
@example([_LEARNT, "switch", Send(["1"], ["1"], [])])
@example([_LEARNT, "flush", Send(["1"], ["2"], [])])
@example([_LEARNT, "flush", Send(["2"], ["1"], []), Send(["1"], [], [])])
@example(["save", _LEARNT, "back", Send(["1"], [], [])])
# The other store applies a batch whose answer is lost, and is there again for the next.
@example([_LEARNT, "switch", Send(["2"], [], ["switch"]), "switch", Send(["1"], [], [])])
@example([_LEARNT, "switch", Send(["2"], [], ["switch"]), Send(["3"], [], []), "switch", Send(["1"], [], [])])
@settings(deadline=None, max_examples=150)
def test_a_repeat_is_answered_by_a_store_that_has_it(
    model_server: servers.RedisServer, steps: list[Send | str]
) -> None:
    """The store loses everything, or its last part, or another that was not there answers: each ok is for an
    id that was in a window of the store that answered."""
    _check(model_server, steps)
