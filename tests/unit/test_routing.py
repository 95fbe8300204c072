"""Several group commits: each id goes to its shard's, and each connection's answers stay in order."""

from __future__ import annotations

import asyncio
import collections
import re
from collections.abc import AsyncIterator, Callable, Collection, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idagg.accept.admission import Admission
from idagg.accept.commit import MAX_WAITING
from idagg.accept.connection import Connection
from idagg.accept.fallback import Fallback, accept_routes
from idagg.accept.fast_path import FastPath
from idagg.accept.repeats import MAX_IDS
from idagg.accept.routing import Router
from idagg.errors import OtherRegimeError, StoreAwayError, StoreError, StoreRefusedError
from idagg.store.hits import Stored
from idagg.store.shards import Regime, shard_of
from kit.fakes import Batches, Transport, settle

# Longer than the machine may stand still in the midst of a test.
DEADLINE_S = 100.0
SHARDS = 4


class Shard:
    """The store of one shard, as batches of one regime see it. It holds each batch until it is let go."""

    def __init__(self, index: int, regime: Regime) -> None:
        self.index = index
        self.regime = regime
        self.stored: list[bytes] = []
        self.sent: list[list[bytes]] = []
        self.endpoints: set[bytes] = set()
        self._held: asyncio.Future[None] | None = None

    async def add(
        self, seq: int, ids: Sequence[bytes], endpoints: Collection[bytes] = (), repeats: int = 0
    ) -> Stored:
        self.sent.append(list(ids))
        self._held = asyncio.get_running_loop().create_future()
        await self._held
        self.stored += ids
        self.endpoints |= set(endpoints)
        return Stored(60, len(ids), continues=True)

    def let_go(self, error: StoreError | None = None) -> bool:
        """Answer the batch that it holds, if there is one."""
        if self._held is None or self._held.done():
            return False
        if error:
            self._held.set_exception(error)
        else:
            self._held.set_result(None)
        return True


class Note:
    """A waiter that notes its answers with its name."""

    def __init__(self, name: object, answers: list[tuple[object, bool]]) -> None:
        self._name = name
        self._answers = answers

    def answer(self, stored: bool) -> None:
        self._answers.append((self._name, stored))


class Bench:
    """A router over shards that wait for word, and the public listener's connections before it."""

    def __init__(
        self,
        shards: int = SHARDS,
        *,
        deadline_s: float = DEADLINE_S,
        max_batch: int = 4096,
        linger_s: float = 0,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.opened: list[Shard] = []
        self.tally = collections.Counter[int]()
        self.batches = Batches()
        self.answers: list[tuple[object, bool]] = []
        self.router = Router(
            self._open,
            Regime(1, shards),
            self.batches,
            self.tally,
            deadline_s=deadline_s,
            max_batch=max_batch,
            now=loop.time,
            linger_s=linger_s,
        )
        admission = Admission(self.router, self.tally)
        self.path = FastPath(
            admission,
            Fallback(accept_routes(admission, None), self.tally),
            epoch_s=0,
            deadline_s=deadline_s,
            keepalive_s=75,
        )
        self.task = asyncio.create_task(self.router.run())

    def _open(self, shard: int, regime: Regime) -> Shard:
        self.opened.append(opened := Shard(shard, regime))
        return opened

    @property
    def shards(self) -> list[Shard]:
        """Those of the present regime."""
        return self.opened[-self.router.regime.shards :]

    @property
    def stored(self) -> set[bytes]:
        return {canonical_id for shard in self.opened for canonical_id in shard.stored}

    def add(self, *ids: int) -> list[bool]:
        return [self.router.add(Note(number, self.answers), b"%d" % number, None) for number in ids]

    async def end(self) -> None:
        self.router.stop()
        async with asyncio.timeout(30):
            while not self.task.done():
                for shard in self.opened:
                    shard.let_go()
                await settle()
        await self.task


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.end()


def other_regime(number: int, shards: int) -> OtherRegimeError:
    return OtherRegimeError("spread otherwise", number, shards)


def ids_of(shard: int, count: int, shards: int = SHARDS) -> list[int]:
    """So many ids that belong to this shard."""
    numbers = (number for number in range(1, 10**6) if shard_of(b"%d" % number, shards) == shard)
    return [number for number, _ in zip(numbers, range(count), strict=False)]


def get(query: str, fields: str = "") -> bytes:
    return f"GET /api/verve/accept?{query} HTTP/1.1\r\nHost: x\r\n{fields}\r\n".encode()


# Which shard takes an id


async def test_an_id_goes_to_its_shard(bench: Bench) -> None:
    """And to no other, also in a bulk request."""
    bench.add(*range(1, 50))
    bench.router.add_many(
        Note("bulk", bench.answers), [b"%d" % number for number in range(50, 99)], b"http://a/"
    )
    for _ in range(3):
        await settle()
        for shard in bench.shards:
            shard.let_go()
    await settle()
    for shard in bench.shards:
        assert sorted(shard.stored) == sorted(
            b"%d" % number for number in range(1, 99) if shard_of(b"%d" % number, SHARDS) == shard.index
        )
        assert shard.endpoints == {b"http://a/"}
    assert {stored for _, stored in bench.answers} == {True}
    assert len(bench.answers) == 50


async def test_a_frozen_shard_fails_its_own_ids_at_their_deadline_and_no_others(bench: Bench) -> None:
    """The others are answered at once meanwhile, and again afterwards."""
    frozen, *alive = bench.shards
    ours, others = ids_of(0, 20), [number for shard in (1, 2, 3) for number in ids_of(shard, 20)]
    bench.router.commits[0]._deadline_s = 0.3  # what is the others' does not expire
    bench.add(*ours, *others)
    for number in ids_of(1, 200)[20:]:
        await settle()
        for shard in alive:
            shard.let_go()
        await settle()
        assert bench.add(number) == [True]
    told = [name for name, stored in bench.answers if stored]
    assert set(others) <= set(told)
    assert not set(ours) & set(told)
    async with asyncio.timeout(30):
        while len(bench.answers) < len(ours) + len(told):
            await asyncio.sleep(0.001)
            alive[0].let_go()
    assert {name for name, stored in bench.answers if not stored} == set(ours)
    assert list(bench.router.trouble()) == [0]
    bench.router.commits[0]._deadline_s = DEADLINE_S
    frozen.let_go()
    bench.add(ours[0])
    await settle()
    frozen.let_go()
    await settle()
    assert bench.answers[-1] == (ours[0], True)
    assert bench.router.trouble() == {}


async def test_trouble_of_a_shard_lasts_until_it_takes_a_batch(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is not ready gets no requests whose success could end it: it asks by itself."""
    monkeypatch.setattr("idagg.accept.commit.PROBE_S", 0.001)
    bench.add(*ids_of(2, 1))
    await settle()
    shard = bench.shards[2]
    for refusals in range(1, 4):
        async with asyncio.timeout(30):
            while len(shard.sent) < refusals:  # noqa: ASYNC110  what it waits for sets no event
                await asyncio.sleep(0.001)
        shard.let_go(StoreRefusedError(f"full {refusals}"))
        await settle()
        assert bench.router.trouble() == {2: f"full {refusals}"}
    async with asyncio.timeout(30):
        while not shard.let_go():  # noqa: ASYNC110  likewise
            await asyncio.sleep(0.001)
    await settle()
    assert bench.router.trouble() == {}
    assert shard.sent[1:] == [[]] * 3
    assert [other.sent for other in bench.shards if other is not shard] == [[]] * 3


async def test_memory_is_bounded_for_all_shards_together() -> None:
    """A frozen shard's requests fill its own part, and the others go on being taken."""
    bench = Bench(deadline_s=60, max_batch=64)
    frozen = ids_of(0, 2 * MAX_WAITING // SHARDS)
    taken = 0
    for start in range(0, len(frozen), 64):
        taken += sum(bench.add(*frozen[start : start + 64]))
        await settle()
    assert taken <= MAX_WAITING // SHARDS + 2 * 64
    assert bench.router.waiting == taken
    assert bench.add(*ids_of(1, 10)) == [True] * 10
    for commit in bench.router.commits:
        commit.repeats.learn([b"1"] * (MAX_IDS // SHARDS), [], Stored(60, 0, continues=True))
        commit.repeats.learn([b"%d" % n for n in range(100)], [], Stored(60, 0, continues=True))
    bench.task.cancel()
    await asyncio.wait([bench.task])


# Waiting for clients that were just answered


@pytest.fixture
async def patient() -> AsyncIterator[Bench]:
    """One that would wait for them for ever."""
    bench = Bench(deadline_s=60, max_batch=8, linger_s=3600)
    yield bench
    await bench.end()


async def answered(bench: Bench, *ids: int) -> None:
    """Clients send these ids and are answered, and nothing is sent since."""
    bench.add(*ids)
    await settle()
    for shard in bench.shards:
        shard.let_go()
    await settle()
    for shard in bench.shards:
        shard.sent.clear()


async def test_those_just_answered_are_waited_for_at_all_shards(patient: Bench) -> None:
    """Wherever they come back; then all batches leave together."""
    (zero,), (one,), (two, more) = ids_of(0, 1), ids_of(1, 1), ids_of(2, 2)
    await answered(patient, zero, one, two)
    patient.add(two, more)
    await settle()
    assert [shard.sent for shard in patient.shards] == [[], [], [], []]
    patient.add(zero)
    await settle()
    both = [b"%d" % two, b"%d" % more]
    assert [shard.sent for shard in patient.shards] == [[[b"%d" % zero]], [], [both], []]


async def test_a_lone_client_is_not_kept_waiting(patient: Bench) -> None:
    """Whatever shard its next id belongs to."""
    for number in range(1, 20):
        await answered(patient, number)
        assert patient.answers.pop() == (number, True)


async def test_bulk_requests_are_waited_for_as_others_are(patient: Bench) -> None:
    """If their ids are of one shard. Of the others, nobody knows when all parts will be answered."""
    for shards in ((0,), (0, 1), (0,)):
        await bulk(patient, *shards)
        assert all(patient.shards[shard].let_go() for shard in shards)
        await settle()
    patient.add(*ids_of(1, 1))
    await settle()
    patient.shards[1].let_go()
    await settle()
    assert [stored for _, stored in patient.answers] == [True] * 4


async def test_those_just_answered_are_not_waited_for_long() -> None:
    """Batches leave without them after the linger, counted from the first answer."""
    bench = Bench(deadline_s=60, linger_s=0.01)
    numbers = [number for shard in range(SHARDS) for number in ids_of(shard, 2)]
    await answered(bench, *numbers)
    bench.add(numbers[0])
    async with asyncio.timeout(30):
        while not bench.shards[0].sent:  # noqa: ASYNC110  what it waits for sets no event
            await asyncio.sleep(0.001)
    await bench.end()


@pytest.mark.parametrize("event", ["tick", "stop", "full", "regime"])
async def test_waiting_for_them_ends_with(patient: Bench, event: str) -> None:
    """A tick, a stop, a full batch; and a former regime waits for nobody."""
    (number, *others) = ids_of(0, 10)
    shard = patient.shards[0]
    await answered(patient, *others[:8], *ids_of(1, 8))
    patient.add(number)
    await settle()
    assert shard.sent == []
    if event == "tick":
        patient.router.tick()
    elif event == "stop":
        patient.router.stop()
    elif event == "regime":
        patient.router.follow(Regime(2, 2))
    else:
        patient.add(*others[:7])
    await settle()
    assert len(shard.sent) == 1


# Bulk requests


async def bulk(bench: Bench, *shards: int) -> None:
    ids = [b"%d" % number for shard in shards for number in ids_of(shard, 3)]
    assert bench.router.add_many(Note("bulk", bench.answers), ids, None)
    await settle()


async def test_a_bulk_request_is_answered_once_all_its_parts_are(bench: Bench) -> None:
    """And is one request, however many shards it has ids of."""
    await bulk(bench, 0, 1, 3)
    for shard in (3, 0):
        bench.shards[shard].let_go()
        await settle()
        assert bench.answers == []
    bench.shards[1].let_go()
    await settle()
    assert bench.answers == [("bulk", True)]
    assert bench.tally == {200: 1}
    assert [requests for requests, _, _, _ in bench.batches.settled] == [0, 0, 0]


async def test_a_bulk_request_fails_with_any_of_its_parts(bench: Bench) -> None:
    """Its other parts are counted."""
    await bulk(bench, 0, 1)
    bench.shards[0].let_go(StoreRefusedError("full"))
    await settle()
    bench.shards[1].let_go()
    await settle()
    assert bench.answers == [("bulk", False)]
    assert bench.tally == {503: 1}


async def test_a_bulk_request_of_one_shard_is_a_request_like_others(bench: Bench) -> None:
    """The group commit counts it."""
    await bulk(bench, 2)
    bench.shards[2].let_go()
    await settle()
    assert bench.answers == [("bulk", True)]
    assert bench.tally == {}
    assert bench.batches.settled == [(1, 3, 0, True)]


async def test_a_bulk_request_fails_where_a_shard_has_no_room() -> None:
    """What was taken by then may be counted; where nothing was, it is refused at once."""
    bench = Bench(deadline_s=60, max_batch=8)
    full = ids_of(1, MAX_WAITING // SHARDS + 16)
    for start in range(0, len(full), 8):
        bench.add(*full[start : start + 8])
        await settle()
    bench.answers.clear()
    await bulk(bench, 0, 1)
    bench.shards[0].let_go()
    await settle()
    assert bench.answers == [("bulk", False)]
    assert bench.tally == {503: 1}
    ids = [b"%d" % number for shard in (1, 0) for number in ids_of(shard, 2)]
    waiting = bench.router.waiting
    assert not bench.router.add_many(Note("refused", bench.answers), ids, None)
    assert bench.router.waiting == waiting
    bench.task.cancel()
    await asyncio.wait([bench.task])


# Regimes


async def test_a_regime_that_the_home_shard_names_holds_at_once(bench: Bench) -> None:
    """What was routed by the former one is answered failed where the store refuses it, and nobody waits."""
    bench.add(*range(1, 40))
    await settle()
    bench.add(*range(40, 80))
    former = bench.shards
    former[0].let_go(other_regime(2, 2))
    await settle()
    assert bench.router.regime == Regime(2, 2)
    assert [shard.regime for shard in bench.shards] == [Regime(2, 2)] * 2
    bench.add(*range(80, 120))
    await settle()
    for shard in bench.shards:
        shard.let_go()
    await settle()
    assert {name for name, stored in bench.answers if stored} == set(range(80, 120))
    for _ in range(3):
        for shard in former:
            shard.let_go(other_regime(2, 2))
        await settle()
    assert sorted(bench.answers) == [(number, number >= 80) for number in range(1, 120)]
    assert bench.router.waiting == 0
    assert repr(bench.router).count("GroupCommit") == 2


async def test_another_shard_has_no_say_in_the_regime(bench: Bench) -> None:
    """It may know of a plan that the home shard never confirms."""
    bench.add(*ids_of(1, 1))
    await settle()
    bench.shards[1].let_go(other_regime(2, 2))
    await settle()
    assert bench.router.regime == Regime(1, SHARDS)
    assert [stored for _, stored in bench.answers] == [False]


async def test_a_former_home_has_no_say_either(bench: Bench) -> None:
    """Its word was overtaken."""
    bench.add(*ids_of(0, 1))
    await settle()
    former = bench.shards[0]
    bench.router.follow(Regime(3, 2))
    former.let_go(other_regime(2, 3))
    await settle()
    assert bench.router.regime == Regime(3, 2)


async def test_an_older_regime_is_followed(bench: Bench) -> None:
    """A store that has lost its state begins with the first."""
    bench.router.follow(Regime(7, 2))
    bench.router.follow(Regime(1, 1))
    bench.add(1)
    await settle()
    assert bench.shards[0].sent == [[b"1"]]
    assert bench.shards[0].regime == Regime(1, 1)


async def test_order_holds_over_a_change_to_one_shard() -> None:
    """As long as the former group commit has waiters, answers can come out of order."""
    bench = Bench(1)
    assert bench.router.in_order
    await settle()
    bench.add(1)
    await settle()
    bench.router.follow(Regime(2, 1))
    assert not bench.router.in_order
    bench.opened[0].let_go()
    await settle()
    assert bench.router.in_order
    await bench.end()


async def test_a_stop_while_the_regime_changes(bench: Bench) -> None:
    """Everyone is answered first, and no new regime begins."""
    bench.add(*range(1, 40))
    await settle()
    bench.router.stop()
    bench.shards[0].let_go(other_regime(2, 2))
    await settle()
    assert bench.router.regime == Regime(1, SHARDS)
    for shard in bench.shards[1:]:
        shard.let_go()
    await settle()
    assert bench.task.done()
    assert len(bench.answers) == 39


async def test_an_error_in_one_group_commit_ends_the_run(bench: Bench) -> None:
    """The process ends with it, and the next one starts from a known state."""
    task, bench.task = bench.task, asyncio.create_task(asyncio.sleep(0))
    bench.add(*range(1, 40))
    await settle()
    held = bench.shards[1]._held
    assert held is not None
    held.set_exception(ZeroDivisionError())
    with pytest.raises(ExceptionGroup) as caught:
        await task
    assert caught.group_contains(ZeroDivisionError)


# The order of a connection's answers

ANSWER = re.compile(rb"HTTP/1\.1 (\d{3}) ")
ERRORS = st.sampled_from([None, None, None, StoreRefusedError("full")])


@st.composite
def scripts(draw: st.DrawFn) -> list[Callable[[Play], None]]:
    """What happens, in its order."""
    connections = st.integers(0, 2)
    say = st.builds(
        lambda at, kinds: lambda play: play.say(at, kinds),
        connections,
        st.lists(st.sampled_from("ggggx1"), min_size=1, max_size=5),
    )
    answer = st.builds(lambda shard, error: lambda play: play.answer(shard, error), st.integers(), ERRORS)
    follow = st.builds(lambda shards: lambda play: play.follow(shards), st.sampled_from([1, 1, 2, 4]))
    leave = st.builds(lambda at: lambda play: play.leave(at), connections)
    return draw(
        st.lists(st.one_of(say, say, say, answer, answer, answer, answer, follow, leave), max_size=40)
    )


class Play:
    """Connections that send requests without waiting for the answers."""

    def __init__(self, shards: int) -> None:
        self.bench = Bench(shards, deadline_s=60)
        self._number = 0
        self._regime = 1
        self.asked: list[list[bytes]] = [[] for _ in range(3)]  # ids; empty: a request to refuse
        self.transports = [Transport() for _ in range(3)]
        self.connections = [Connection(self.bench.path) for _ in range(3)]
        for connection, transport in zip(self.connections, self.transports, strict=True):
            connection.connection_made(transport)

    def say(self, at: int, kinds: str) -> None:
        said = b""
        for kind in kinds:
            if kind == "x":
                self.asked[at].append(b"")
                said += get("id=x")
                continue
            self._number += 1
            self.asked[at].append(b"%d" % self._number)
            request = get(f"id={self._number}")
            if kind == "1":
                request = request.replace(b"HTTP/1.1", b"HTTP/1.0").replace(
                    b"Host: x", b"Connection: keep-alive"
                )
            said += request
        self.connections[at].data_received(said)

    def answer(self, shard: int, error: StoreError | None) -> None:
        self.bench.opened[shard % len(self.bench.opened)].let_go(error)

    def follow(self, shards: int) -> None:
        self._regime += 1
        self.bench.router.follow(Regime(self._regime, shards))

    def leave(self, at: int) -> None:
        """The client goes away; another takes its place."""
        self.connections[at].connection_lost(None)
        self.asked[at] = []
        self.transports[at] = Transport()
        self.connections[at] = Connection(self.bench.path)
        self.connections[at].connection_made(self.transports[at])

    async def end(self) -> None:
        await settle()
        await self.bench.end()
        await settle()


async def played(shards: int, script: list[Callable[[Play], None]]) -> None:
    play = Play(shards)
    for step in script:
        step(play)
        await settle()
        for asked, transport in zip(play.asked, play.transports, strict=True):
            check(play, asked, transport)  # nothing is told before it is known
    await play.end()
    for asked, transport, connection in zip(play.asked, play.transports, play.connections, strict=True):
        assert check(play, asked, transport) == len(asked)
        assert repr(connection) == "<Connection open unanswered=0 unjudged=0>"
        connection.data_received(get("id=x"))  # it goes on, at once
        assert transport.written.endswith(b"failed")
        connection.connection_lost(None)


def check(play: Play, asked: list[bytes], transport: Transport) -> int:
    """Each answer is that of the request in its place; returns their number."""
    told = [int(status) for status in ANSWER.findall(transport.written)]
    stored = play.bench.stored
    right = [400 if not number else 200 if number in stored else 503 for number in asked]
    assert told == right[: len(told)]
    return len(told)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([1, 2, SHARDS]), scripts())
def test_answers_of_a_connection_stay_in_order(shards: int, script: list[Callable[[Play], None]]) -> None:
    """In whatever order shards answer, refuse, and change; nothing is lost, and nobody is left waiting."""
    asyncio.run(played(shards, script))


async def test_a_frozen_shard_holds_only_what_is_behind_its_requests(bench: Bench) -> None:
    """A pipelined connection waits for its own oldest answer; another connection does not."""
    (away,), (here, more) = ids_of(0, 1), ids_of(1, 2)
    first, second = Transport(), Transport()
    for transport, queries in ((first, (away, here)), (second, (more,))):
        connection = Connection(bench.path)
        connection.connection_made(transport)
        connection.data_received(b"".join(get(f"id={number}") for number in queries))
    await settle()
    bench.shards[1].let_go()
    await settle()
    bench.shards[1].let_go()
    await settle()
    assert ANSWER.findall(second.written) == [b"200"]
    assert first.written == b""
    bench.shards[0].let_go(StoreRefusedError("full"))
    await settle()
    assert ANSWER.findall(first.written) == [b"503", b"200"]
    for connection in list(bench.path.connections):
        connection.connection_lost(None)


async def test_an_attempt_without_outcome_is_repeated_at_its_shard(bench: Bench) -> None:
    """A shard that is away for a moment fails nobody."""
    bench.add(*ids_of(3, 1))
    await settle()
    bench.shards[3].let_go(StoreAwayError("gone"))
    async with asyncio.timeout(30):
        while len(bench.shards[3].sent) < 2:  # noqa: ASYNC110  likewise
            await asyncio.sleep(0.001)
    bench.shards[3].let_go()
    await settle()
    assert [stored for _, stored in bench.answers] == [True]
