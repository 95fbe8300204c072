from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from idagg.accept.commit import LINGER_S, GroupCommit, linger_s
from idagg.errors import StoreAwayError, StoreRefusedError
from idagg.store.hits import Stored
from kit.fakes import Batches, Hits, settle

# Longer than the machine may stand still in the midst of a test.
DEADLINE_S = 100.0
HASTY_S = 0.3


class Client:
    """A waiter that notes its answers with its name."""

    def __init__(self, name: str, answers: list[tuple[str, bool]]) -> None:
        self._name = name
        self._answers = answers

    def answer(self, stored: bool) -> None:
        self._answers.append((self._name, stored))


class Bench:
    """A group commit at work on a store that waits for word."""

    def __init__(
        self,
        *,
        deadline_s: float = DEADLINE_S,
        max_batch: int = 4,
        max_waiting: int = 8,
        linger_s: float = 0,
    ) -> None:
        self.hits = Hits()
        self.batches = Batches()
        self.answers: list[tuple[str, bool]] = []
        self.time: Callable[[], float] = asyncio.get_running_loop().time
        self.commit = GroupCommit(
            self.hits,
            self.batches,
            deadline_s=deadline_s,
            max_batch=max_batch,
            max_waiting=max_waiting,
            now=lambda: self.time(),
            linger_s=linger_s,
        )
        self.task = asyncio.create_task(self.commit.run())

    def add(self, *names: str) -> list[bool]:
        return [self.commit.add(Client(name, self.answers), name.encode()) for name in names]

    def many(self, waiter: str, *names: str) -> bool:
        return self.commit.add_many(Client(waiter, self.answers), [name.encode() for name in names])

    async def remember(self, *names: str) -> None:
        """Let the repeat cache have them, and nothing else be different from a new bench."""
        self.add(*names)
        self.hits.reply(Stored(60, 0, continues=True))
        await settle()
        assert self.commit.repeats.ids >= {name.encode() for name in names}
        self.hits.sent.clear()
        self.hits.repeats.clear()
        self.batches.settled.clear()
        self.answers.clear()

    async def answered(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.answers) < count:  # noqa: ASYNC110  what it waits for sets no event
                await asyncio.sleep(0.001)

    async def sent(self, batches: int) -> None:
        async with asyncio.timeout(30):
            while len(self.hits.sent) < batches:  # noqa: ASYNC110  likewise
                await asyncio.sleep(0.001)

    async def end(self) -> None:
        self.commit.stop()
        self.hits.reply(*[None] * 100)
        async with asyncio.timeout(30):
            await self.task


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """One that does not wait for those who were just answered."""
    bench = Bench()
    yield bench
    await bench.end()


@pytest.fixture
async def hasty() -> AsyncIterator[Bench]:
    """One whose requests expire while a test waits for that."""
    bench = Bench(deadline_s=HASTY_S)
    yield bench
    await bench.end()


@pytest.fixture
async def patient() -> AsyncIterator[Bench]:
    """One that would wait for them for ever."""
    bench = Bench(max_batch=100, max_waiting=100, linger_s=3600)
    yield bench
    await bench.end()


async def test_nobody_is_answered_before_the_store(bench: Bench) -> None:
    """ok comes after the store's reply, not before."""
    bench.add("1")
    await settle()
    assert bench.hits.sent == [(1, [b"1"], set())]
    assert bench.answers == []
    bench.hits.reply(None)
    await settle()
    assert bench.answers == [("1", True)]


async def test_ids_collect_while_a_batch_travels(bench: Bench) -> None:
    """One batch is under way; the next holds all that came meanwhile, in their order."""
    bench.add("1")
    await settle()
    bench.add("2", "3")
    await settle()
    assert len(bench.hits.sent) == 1
    bench.hits.reply(None)
    await settle()
    assert bench.hits.sent[1] == (2, [b"2", b"3"], set())
    bench.hits.reply(None)
    await settle()
    assert bench.answers == [("1", True), ("2", True), ("3", True)]


async def test_a_batch_has_a_largest_size(bench: Bench) -> None:
    """What does not fit goes with the next batch."""
    bench.add("1")
    await settle()
    bench.add("2", "3", "4", "5", "6")
    bench.hits.reply(None, None, None)
    await settle()
    assert [ids for _, ids, _ in bench.hits.sent] == [[b"1"], [b"2", b"3", b"4", b"5"], [b"6"]]


async def test_endpoints_travel_with_their_batch_once(bench: Bench) -> None:
    """A batch names an endpoint once, however many hits named it."""
    for name in ("1", "2"):
        bench.commit.add(Client(name, bench.answers), name.encode(), b"http://a/")
    await settle()
    assert bench.hits.sent == [(1, [b"1", b"2"], {b"http://a/"})]
    bench.hits.reply(None)


async def test_an_attempt_without_outcome_is_repeated_under_its_number(bench: Bench) -> None:
    """A lost reply is followed by the same batch with the same number, so that it counts once."""
    bench.add("1")
    bench.hits.reply(StoreAwayError("gone"), None)
    await bench.answered(1)
    assert bench.answers == [("1", True)]
    assert bench.hits.sent == [(1, [b"1"], set())] * 2
    assert bench.commit.trouble is None


async def test_a_refusal_is_not_repeated(bench: Bench) -> None:
    """Where the store says no, the answer is failed, at once."""
    bench.add("1")
    bench.hits.reply(StoreRefusedError("full"))
    await settle()
    assert bench.answers == [("1", False)]
    assert len(bench.hits.sent) == 1
    assert bench.commit.trouble == "full"


async def test_a_silent_store_fails_everyone_at_their_deadline_and_is_asked_again(hasty: Bench) -> None:
    """The batch under way and those that wait fail; the next one has a number of its own."""
    hasty.add("1")
    await settle()
    hasty.add("2")
    await hasty.answered(2)
    assert hasty.answers == [("1", False), ("2", False)]
    assert "did not answer" in str(hasty.commit.trouble)
    hasty.hits.reply(*[None] * 100)
    async with asyncio.timeout(30):
        while hasty.answers[-1] != ("3", True):  # it expires, too, if the machine stands still
            hasty.add("3")
            await hasty.answered(len(hasty.answers) + 1)
    assert hasty.hits.sent[-1][0] > 1


async def test_what_an_earlier_batch_met_is_not_said_of_a_later_one(hasty: Bench) -> None:
    hasty.add("1")
    hasty.hits.reply(StoreAwayError("a replica is away"))
    await hasty.answered(1)
    assert hasty.commit.trouble == "a replica is away"
    hasty.add("2")
    await hasty.answered(2)
    assert "did not answer" in str(hasty.commit.trouble)


@pytest.fixture
def prober(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """One that asks the store without a pause."""
    monkeypatch.setattr("idagg.accept.commit.PROBE_S", 0)
    return bench


async def test_trouble_lasts_until_an_empty_batch_is_stored(prober: Bench) -> None:
    """Each has a number of its own, is sent once, and is nobody's batch."""
    prober.add("1")
    prober.hits.reply(StoreRefusedError("full"))
    await prober.sent(2)
    assert prober.commit.trouble == "full"
    prober.hits.reply(StoreAwayError("gone"))
    await prober.sent(3)
    assert prober.commit.trouble == "gone"
    prober.commit._deadline_s = 0.05
    prober.hits.reply(StoreAwayError("gone"))
    await prober.sent(5)
    assert "did not answer" in str(prober.commit.trouble)
    prober.hits.reply(None)
    async with asyncio.timeout(30):
        while prober.commit.trouble:  # noqa: ASYNC110  what it waits for sets no event
            await asyncio.sleep(0.001)
    assert [seq for seq, _, _ in prober.hits.sent] == list(range(1, len(prober.hits.sent) + 1))
    assert {tuple(ids) for _, ids, _ in prober.hits.sent[1:]} == {()}
    assert prober.answers == [("1", False)]
    assert len(prober.batches.settled) == 1
    count = len(prober.hits.sent)
    await settle()
    assert len(prober.hits.sent) == count  # well: nothing is asked any more


async def test_a_store_that_is_well_is_asked_nothing(prober: Bench) -> None:
    """Without requests there are no batches."""
    prober.add("1")
    prober.hits.reply(None)
    await prober.answered(1)
    await settle()
    assert len(prober.hits.sent) == 1


async def test_repeats_that_wait_for_an_empty_batch_are_not_trusted_behind_it(prober: Bench) -> None:
    """It may have gone to another window, or to a store that has forgotten: they are sent as ids."""
    await prober.remember("1")
    prober.add("2")
    prober.hits.reply(StoreRefusedError("full"))
    await prober.sent(2)
    prober.add("1")
    prober.hits.reply(Stored(120, 0, continues=False))
    await prober.sent(3)
    assert prober.hits.sent[-1][1] == [b"1"]
    assert prober.hits.repeats[-1] == 0
    prober.hits.reply(None)
    await prober.answered(2)
    assert prober.answers[-1] == ("1", True)


async def test_a_stop_does_not_wait_for_an_empty_batch() -> None:
    bench = Bench(deadline_s=3600)
    bench.add("1")
    bench.hits.reply(StoreRefusedError("full"))
    await bench.sent(2)
    bench.commit.stop()
    async with asyncio.timeout(30):
        await bench.task


async def test_what_expired_while_it_waited_is_not_sent(hasty: Bench) -> None:
    """A batch whose time is over before its turn fails without asking the store."""
    clock, now = hasty.time, hasty.time()
    hasty.time = lambda: now  # both batches expire at one time
    hasty.add("1")
    await settle()
    hasty.add("2")
    hasty.commit.tick()
    hasty.time = lambda: clock() + 0.001  # the loop's timers count in whole milliseconds
    await hasty.answered(2)
    assert [ids for _, ids, _ in hasty.hits.sent] == [[b"1"]]


async def test_a_tick_closes_the_batch_that_waits(bench: Bench) -> None:
    """Nobody shares the deadline of one who came a tick earlier."""
    bench.add("1")
    await settle()
    bench.add("2")
    bench.commit.tick()
    bench.add("3")
    bench.hits.reply(None, None, None)
    await settle()
    assert [ids for _, ids, _ in bench.hits.sent] == [[b"1"], [b"2"], [b"3"]]


async def test_those_who_wait_behind_each_other_travel_together() -> None:
    """As many as fit: a store that takes longer than a tick gets no more commands than it can take."""
    bench = Bench(max_batch=3)
    bench.add("1")
    await settle()
    for name in ("2", "3", "4", "5"):
        bench.commit.add(Client(name, bench.answers), name.encode(), b"http://a/" + name.encode())
        bench.commit.tick()
    bench.hits.reply(None, None, None)
    await settle()
    assert bench.hits.sent[1:] == [
        (2, [b"2", b"3", b"4"], {b"http://a/2", b"http://a/3", b"http://a/4"}),
        (3, [b"5"], {b"http://a/5"}),
    ]
    assert bench.answers == [(name, True) for name in ("1", "2", "3", "4", "5")]
    await bench.end()


async def test_a_slow_store_is_not_sent_what_would_expire_there() -> None:
    """Who waited too long for a store that slow fails at once."""
    bench = Bench(deadline_s=100)
    now = bench.time()
    bench.time = lambda: now
    bench.add("1")
    await settle()
    bench.add("2")
    bench.commit.tick()
    now += 40
    bench.hits.reply(None)  # in 40 s: whoever has 50 s left will be in time
    await bench.answered(1)
    assert bench.hits.sent[1:] == [(2, [b"2"], set())]
    bench.add("3")
    bench.commit.tick()
    now += 49
    bench.add("4")
    bench.commit.tick()
    now += 1
    bench.hits.reply(None, None)
    await bench.answered(4)
    assert bench.answers == [("1", True), ("2", True), ("3", False), ("4", True)]
    await bench.end()


async def test_a_slow_store_makes_less_room() -> None:
    """Nobody is taken whose turn would come too late; a store that is faster again makes room, by and by."""
    bench = Bench(deadline_s=100, max_waiting=100)
    now = bench.time()
    bench.time = lambda: now
    for took_s, room in ((20, 8), (30, 4), (1, 52)):
        bench.add("first")
        await settle()
        now += took_s
        bench.hits.reply(None)
        await bench.answered(len(bench.answers) + 1)
        bench.add("next")
        await settle()
        taken = bench.add(*["more"] * 120)
        assert taken == [True] * room + [False] * (120 - room)
        bench.hits.reply(*[None] * (1 + room // 4))
        await bench.answered(len(bench.answers) + 1 + room)
    await bench.end()


async def test_room_is_bounded(bench: Bench) -> None:
    """Past the bound nothing is taken, and there is room again when some have been answered."""
    bench.add("0")
    await settle()
    taken = bench.add(*map(str, range(1, 20)))
    assert taken == [True] * 8 + [False] * 11
    bench.hits.reply(None, None, None)
    await settle()
    assert len(bench.answers) == 9
    assert bench.add("x") == [True]


async def test_a_waiter_that_fails_harms_nobody(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """It is told of, and the others of its batch and the next are answered."""

    class Broken:
        def answer(self, stored: bool) -> None:
            raise OSError("gone")

    bench.commit.add(Broken(), b"1")
    bench.add("2")
    bench.hits.reply(None, None)
    await settle()
    bench.add("3")
    await settle()
    assert bench.answers == [("2", True), ("3", True)]
    assert "an answer could not be written" in caplog.text


async def test_stop_answers_everyone_first(bench: Bench) -> None:
    """The run ends when nobody waits any more."""
    bench.add("1")
    await settle()
    bench.add("2")
    bench.commit.stop()
    await settle()
    assert not bench.task.done()
    bench.hits.reply(None, None)
    await settle()
    assert bench.task.done()
    assert bench.answers == [("1", True), ("2", True)]


async def test_observer_hears_of_each_batch(bench: Bench) -> None:
    """Figures move per batch."""
    began = bench.time()
    bench.add("1", "2")
    bench.hits.reply(None)
    await settle()
    bench.add("3")
    bench.hits.reply(StoreRefusedError("no"))
    await settle()
    assert bench.batches.settled == [(2, 2, 0, True), (1, 1, 0, False)]
    assert bench.batches.causes == [None, "refused"]
    took_s = bench.time() - began + 1e-6
    assert all(waited_s is not None and -1e-6 <= waited_s <= took_s for waited_s in bench.batches.waits)


async def test_those_just_answered_join_those_who_wait(patient: Bench) -> None:
    """Two halves that would take turns become one batch, which leaves as soon as all are there."""
    patient.add("1", "2")
    await settle()
    patient.add("3")
    patient.hits.reply(None)
    await settle()
    assert len(patient.hits.sent) == 1
    patient.add("1")
    await settle()
    assert len(patient.hits.sent) == 1
    patient.add("2")
    await settle()
    assert [ids for _, ids, _ in patient.hits.sent] == [[b"1", b"2"], [b"3", b"1", b"2"]]


async def test_those_just_answered_wait_for_each_other(patient: Bench) -> None:
    """Where nobody came meanwhile, the first of them to come again does not leave alone."""
    patient.add("1", "2")
    patient.hits.reply(None)
    await patient.answered(2)
    patient.add("1")
    await settle()
    assert len(patient.hits.sent) == 1
    patient.add("2")
    await settle()
    assert [ids for _, ids, _ in patient.hits.sent] == [[b"1", b"2"]] * 2


async def test_a_lone_client_is_not_kept_waiting(patient: Bench) -> None:
    """Its requests leave at once: who else should come?"""
    for number in range(3):
        patient.add("1")
        await settle()
        assert len(patient.hits.sent) == number + 1
        patient.hits.reply(None)
        await settle()


async def test_who_was_answered_is_not_waited_for_long() -> None:
    """Those who wait leave after LINGER_S without them."""
    bench = Bench(linger_s=0.01)
    bench.add("1")
    await settle()
    bench.add("2")
    bench.hits.reply(None, None)
    await bench.answered(2)
    await bench.end()


def test_many_workers_linger_longer() -> None:
    """Their clients come back later. With few workers nothing changes, and there is a limit."""
    assert [linger_s(workers) for workers in (1, 4)] == [LINGER_S] * 2
    assert LINGER_S < linger_s(5) < linger_s(8) < linger_s(16) == linger_s(256) == 0.008


@pytest.mark.parametrize("event", ["tick", "stop", "full"])
async def test_waiting_for_them_ends_with(patient: Bench, event: str) -> None:
    """A stop, a batch that a tick closed behind which others come, and a batch that is full."""
    patient.add("1")
    await settle()
    patient.add("2")
    patient.hits.reply(None)
    await settle()
    assert len(patient.hits.sent) == 1
    if event == "tick":
        patient.commit.tick()
        patient.add("3")
    elif event == "stop":
        patient.commit.stop()
    else:
        patient.add(*map(str, range(99)))
    await settle()
    assert len(patient.hits.sent) == 2


# Repeats

ELSEWHERE = Stored(120, 0, continues=False)  # another window, or a store that does not have everything


async def test_a_repeat_waits_for_the_store_without_its_id(bench: Bench) -> None:
    """Its ok comes with the answer to a batch, in which it is a hit and nothing more."""
    await bench.remember("1")
    bench.add("1", "2", "1")
    await settle()
    assert bench.hits.sent == [(2, [b"2"], set())]
    assert bench.hits.repeats == [2]
    assert bench.answers == []
    bench.hits.reply(None)
    await settle()
    assert bench.answers == [("1", True), ("2", True), ("1", True)]
    assert bench.batches.settled == [(3, 1, 2, True)]


async def test_a_batch_of_repeats_alone_needs_the_store(bench: Bench) -> None:
    """Only the store knows which window is open."""
    await bench.remember("1")
    bench.add("1")
    await settle()
    assert bench.hits.sent == [(2, [], set())]
    assert bench.answers == []
    bench.hits.reply(None)
    await settle()
    assert bench.answers == [("1", True)]
    assert bench.batches.settled == [(1, 0, 1, True)]


async def test_an_endpoint_may_be_new(bench: Bench) -> None:
    """The cache does not know which endpoints were named."""
    await bench.remember("1")
    bench.commit.add(Client("1", bench.answers), b"1", b"http://a/")
    assert bench.commit.add_many(Client("1", bench.answers), [b"1"], b"http://b/")
    await settle()
    assert bench.hits.sent == [(2, [b"1", b"1"], {b"http://a/", b"http://b/"})]
    assert bench.hits.repeats == [0]


async def test_repeats_that_are_not_confirmed_are_sent(bench: Bench) -> None:
    """In front of all others, under a number of its own; nobody is answered before, so all are in order."""
    await bench.remember("1")
    bench.commit.add(Client("2", bench.answers), b"2", b"http://a/")
    bench.add("1", "3")
    await settle()
    bench.add("4")
    bench.hits.reply(ELSEWHERE)
    await settle()
    assert bench.hits.sent == [(2, [b"2", b"3"], {b"http://a/"}), (3, [b"1"], set())]
    assert bench.hits.repeats == [1, 0]
    assert bench.answers == []
    bench.hits.reply(None, None)
    await settle()
    assert bench.answers == [(name, True) for name in ("2", "1", "3", "4")]
    assert bench.batches.settled == [(0, 2, 0, True), (3, 1, 0, True), (1, 1, 0, True)]


@pytest.mark.parametrize("took_s", [20, 60])
async def test_repeats_that_are_not_confirmed_keep_their_deadline(bench: Bench, took_s: float) -> None:
    """Their time does not begin anew: what would come too late from a store that slow is not sent again."""
    await bench.remember("1")
    now = bench.time()
    bench.time = lambda: now
    bench.add("1")
    await settle()
    now += took_s
    bench.hits.reply(ELSEWHERE, None)
    await settle()
    in_time = took_s < DEADLINE_S / 2
    assert [ids for _, ids, _ in bench.hits.sent] == ([[], [b"1"]] if in_time else [[]])
    assert bench.answers == [("1", in_time)]
    assert bench.batches.settled == [(0, 0, 0, True), (1, int(in_time), 0, in_time)]


async def test_repeats_of_one_store_are_not_confirmed_by_another(bench: Bench) -> None:
    """Those collected before the answer came are repeats of what the cache had then, and are sent."""
    await bench.remember("1", "2")
    bench.add("1")
    await settle()
    bench.add("2")
    bench.commit.tick()
    bench.add("1", "3")
    bench.hits.reply(ELSEWHERE, None, None)
    await settle()
    assert bench.hits.sent == [(2, [], set()), (3, [b"1", b"2"], set()), (4, [b"3", b"1"], set())]
    assert bench.hits.repeats == [1, 0, 0]
    assert bench.answers == [(name, True) for name in ("1", "2", "1", "3")]


async def test_an_answer_without_repeats_can_end_the_cache(bench: Bench) -> None:
    """That the window is another is heard with every batch."""
    await bench.remember("1")
    bench.add("2")
    await settle()
    bench.hits.reply(Stored(120, 1, continues=False), None)
    bench.add("1")
    await settle()
    assert bench.hits.sent == [(2, [b"2"], set()), (3, [b"1"], set())]


async def test_repeats_are_failed_where_the_store_refuses(bench: Bench) -> None:
    """Nothing is counted of the batch, and nothing of it comes again."""
    await bench.remember("1")
    bench.add("1", "2")
    bench.hits.reply(StoreRefusedError("full"), None)
    await bench.answered(2)
    assert bench.answers == [("1", False), ("2", False)]
    bench.add("3")
    await bench.answered(3)
    assert bench.hits.repeats == [1, 0]
    assert bench.batches.settled == [(2, 1, 0, False), (1, 1, 0, True)]


async def test_an_attempt_that_is_repeated_brings_the_same_repeats(bench: Bench) -> None:
    """The store counts them with the attempt that it applies."""
    await bench.remember("1")
    bench.add("1", "2")
    bench.hits.reply(StoreAwayError("gone"), None)
    await bench.answered(2)
    assert bench.hits.sent == [(2, [b"2"], set())] * 2
    assert bench.hits.repeats == [1, 1]


async def test_stop_answers_those_who_wait_again(bench: Bench) -> None:
    """Repeats that are not confirmed keep the run from ending."""
    await bench.remember("1")
    bench.add("1")
    await settle()
    bench.commit.stop()
    bench.hits.reply(ELSEWHERE)
    await settle()
    assert not bench.task.done()
    bench.hits.reply(None)
    await settle()
    assert bench.task.done()
    assert bench.answers == [("1", True)]


# Many ids of one waiter


async def test_many_ids_have_one_answer(bench: Bench) -> None:
    """They are in one batch, beside others, and repeats among them are not sent."""
    await bench.remember("1")
    bench.add("2")
    assert bench.many("bulk", "3", "1", "4")
    await settle()
    assert bench.hits.sent == [(2, [b"2", b"3", b"4"], set())]
    assert bench.hits.repeats == [1]
    bench.hits.reply(None)
    await settle()
    assert bench.answers == [("2", True), ("bulk", True)]
    assert bench.batches.settled == [(2, 3, 1, True)]


async def test_many_ids_are_never_divided(bench: Bench) -> None:
    """Where the open batch has no room for all, they begin the next."""
    bench.add("0")
    await settle()
    bench.add("1", "2")
    assert bench.many("bulk", "3", "4", "5")
    bench.add("6", "7")
    bench.hits.reply(None, None, None, None)
    await settle()
    assert [ids for _, ids, _ in bench.hits.sent] == [[b"0"], [b"1", b"2"], [b"3", b"4", b"5", b"6"], [b"7"]]
    assert [name for name, _ in bench.answers] == ["0", "1", "2", "bulk", "6", "7"]


async def test_a_batch_is_full_by_its_ids() -> None:
    """Whether one waiter brought them or many, and also when batches are joined."""
    bench = Bench(max_batch=4, max_waiting=100)
    bench.add("0")
    await settle()
    assert bench.many("a", "1", "2", "3", "4")
    assert bench.many("b", "5", "6")
    bench.commit.tick()
    bench.add("7")
    bench.commit.tick()
    assert bench.many("c", "8", "9", "10")
    bench.commit.tick()
    bench.add("11", "12")
    bench.hits.reply(*[None] * 5)
    await settle()
    assert [len(ids) for _, ids, _ in bench.hits.sent] == [1, 4, 3, 3, 2]
    assert bench.commit.waiting == 0
    await bench.end()


async def test_batches_are_joined_by_their_ids(bench: Bench) -> None:
    """What was joined weighs what its parts did."""
    bench.add("0")
    await settle()
    bench.add("1")
    bench.commit.tick()
    bench.many("a", "2", "3")
    bench.commit.tick()
    bench.many("b", "4", "5")
    bench.hits.reply(None, None, None)
    await settle()
    assert [ids for _, ids, _ in bench.hits.sent] == [[b"0"], [b"1", b"2", b"3"], [b"4", b"5"]]
    assert bench.commit.waiting == 0


async def test_room_is_bounded_by_ids(bench: Bench) -> None:
    """What is not taken is not taken in part, and what was open before stays open."""
    bench.add("0")
    await settle()
    assert bench.many("a", "1", "2", "3", "4")
    assert bench.many("b", "5", "6", "7")
    assert bench.commit.waiting == 8
    assert bench.many("c", "8", "9")
    assert bench.commit.waiting == 10
    assert not bench.many("d", "10", "11", "12")
    assert bench.add("13", "14", "15") == [True, True, False]
    assert not bench.many("e", "16")
    assert bench.commit.waiting == 12
    bench.hits.reply(*[None] * 5)
    await settle()
    assert bench.commit.waiting == 0
    assert [name for name, _ in bench.answers] == ["0", "a", "b", "c", "13", "14"]


async def test_what_is_not_confirmed_still_waits(bench: Bench) -> None:
    """It has its weight until it is settled, once."""
    await bench.remember("1")
    assert bench.many("bulk", "1", "2")
    await settle()
    assert bench.commit.waiting == 2
    bench.add("3")
    bench.hits.reply(ELSEWHERE)
    await settle()
    assert bench.commit.waiting == 3
    bench.hits.reply(None, None)
    await settle()
    assert bench.commit.waiting == 0
    assert bench.batches.settled == [(0, 1, 0, True), (1, 1, 0, True), (1, 1, 0, True)]


async def test_many_ids_are_one_of_those_just_answered(patient: Bench) -> None:
    """What is waited for are waiters, whatever they bring."""
    patient.many("bulk", *map(str, range(50)))
    patient.hits.reply(None)
    await patient.answered(1)
    patient.many("bulk", *map(str, range(50)))
    await settle()
    assert len(patient.hits.sent) == 2
