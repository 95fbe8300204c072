from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idagg.flush import leader
from idagg.flush.leader import CLOSE_S, Leadership, may_change_after, next_try_s, unwanted
from idagg.store.client import Client
from idagg.store.election import Agreed, Lease, Successor
from idagg.store.shards import Regime
from idagg.store.windows import WindowStore
from kit import servers
from kit.waiting import LIMIT_S, eventually, until

OURS = Agreed(60, 1000)
LOCK = "{t:0}:lock"
LEASE_MS = 600_000


class Bid:
    """A process that bids, on a connection of its own."""

    def __init__(
        self,
        url: str,
        *,
        window_s: int = 60,
        exact_limit: int = 1000,
        shards: int = 1,
        timeout_s: float = LIMIT_S,
        patience_s: float = leader.PATIENCE_S,
    ) -> None:
        self.client = Client(url, timeout_s=timeout_s)
        self.windows = WindowStore(
            self.client, namespace="t", window_s=window_s, exact_limit=exact_limit, shards=shards
        )
        self.heard: list[int] = []
        self.made = 0
        self.leadership = Leadership(
            self, self.windows.election.agreed, patience_s=patience_s, on_change=self.heard.append
        )
        self._task = asyncio.create_task(self.leadership.run())

    async def lead(self, name: str, *, lease_ms: int, may_change_after: Successor) -> Lease:
        self.made += 1
        return await self.windows.election.lead(name, lease_ms=lease_ms, may_change_after=may_change_after)

    async def resign(self, name: str) -> None:
        await self.windows.election.resign(name)

    @property
    def epoch(self) -> int:
        return self.leadership.epoch

    async def die(self) -> None:
        """End as a killed process does: without a word."""
        self._task.cancel()
        await asyncio.wait([self._task])
        assert self._task.cancelled()
        await self.client.close()


Start = Callable[..., Bid]


@pytest.fixture
async def start(any_server: servers.RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    # It goes on by the server's clock while we stand still: where a lease is to run out, it is made to.
    monkeypatch.setattr(leader, "LEASE_MS", LEASE_MS)
    bids = []

    def start(**options: Any) -> Bid:
        bids.append(Bid(any_server.url, **options))
        return bids[-1]

    yield start
    for bid in bids:
        await bid.die()


async def answered(*bids: Bid) -> None:
    async with asyncio.timeout(LIMIT_S):
        for bid in bids:
            await bid.leadership.answered.wait()


leases = st.integers(1, 600_000)
chances = st.floats(0, 1, exclude_max=True)


@given(epoch=st.integers(1), lasts_ms=leases, chance=chances)
def test_a_leader_renews_with_two_thirds_of_its_lease_in_hand(
    epoch: int, lasts_ms: int, chance: float
) -> None:
    """Two bids of a leader in a row may fail before its lease is over, whatever chance says."""
    pause_s = next_try_s(Lease(epoch, lasts_ms, epoch, OURS), chance=chance)
    assert pause_s * 1000 == pytest.approx(lasts_ms / 3)


@given(lasts_ms=leases, chance=chances)
def test_those_who_do_not_lead_look_often_and_apart(lasts_ms: int, chance: float) -> None:
    """However long another's lease lasts, an early end is noticed soon; nobody bids without a pause."""
    pause_s = next_try_s(Lease(0, lasts_ms, 7, OURS), chance=chance)
    assert leader.LOOK_S / 2 <= pause_s <= leader.LOOK_S
    assert pause_s == pytest.approx(leader.LOOK_S * (1 + chance) / 2)


async def test_one_leads_among_several(start: Start) -> None:
    """However many bid at once, one has the lock, and all know after their first bid whether it is they."""
    bids = [start() for _ in range(8)]
    await answered(*bids)
    assert sorted(bid.epoch for bid in bids) == [0] * 7 + [1]
    assert [bid.leadership.trouble for bid in bids] == [None] * 8
    await until(lambda: all(bid.made > 1 for bid in bids if not bid.epoch))
    assert sorted(bid.epoch for bid in bids) == [0] * 7 + [1]


async def test_a_leader_keeps_its_lease(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who lives goes on leading, under the same epoch, longer than one lease: each bid renews it."""
    monkeypatch.setattr(leader, "next_try_s", lambda lease, **_: 0.01)
    first = start()
    await answered(first)
    second = start()
    await answered(second)
    for _ in range(3):
        await second.client.command("PEXPIRE", LOCK, LEASE_MS // 3)
        await eventually(lambda: second.client.command("PTTL", LOCK), lambda left: left > LEASE_MS // 2)
    assert (first.epoch, second.epoch) == (1, 0)
    assert (first.heard, second.heard) == ([1], [])


async def test_resigning_hands_over(start: Start) -> None:
    """An orderly end is noticed by another long before the lease would have run out."""
    first = start()
    await answered(first)
    others = [start() for _ in range(3)]
    await answered(*others)
    await first.die()
    await first.leadership.resign()
    assert first.epoch == 0
    assert first.heard == [1, 0]
    await until(lambda: any(bid.epoch for bid in others))
    assert sorted(bid.epoch for bid in others) == [0, 0, 2]


async def test_who_does_not_lead_cannot_give_the_lock_away(start: Start) -> None:
    """The end of a process that does not lead changes nothing."""
    first = start()
    await answered(first)
    second = start()
    await answered(second)
    await second.leadership.resign()
    third = start()
    await answered(third)
    assert (first.epoch, third.epoch) == (1, 0)


async def test_a_dead_leaders_lease_runs_out(start: Start) -> None:
    """Who dies without a word is succeeded after the lease, each time under a higher epoch."""
    leading = start()
    await answered(leading)
    for epoch in (1, 2):
        assert leading.epoch == epoch
        successor = start()
        await answered(successor)
        assert successor.epoch == 0
        await leading.die()
        known = successor.made
        await until(lambda successor=successor, known=known: successor.made > known + 2)  # type: ignore[misc]  # mypy does not infer it
        assert successor.epoch == 0
        assert 0 < await successor.client.command("PTTL", LOCK) <= LEASE_MS
        await successor.client.command("PEXPIRE", LOCK, 1)
        async with asyncio.timeout(LIMIT_S):
            assert await successor.leadership.elected() == epoch + 1
        leading = successor


async def test_a_refused_epoch_is_over(start: Start) -> None:
    """What the store refuses ends the leadership that it was asked under, and no later one."""
    bid = start()
    await answered(bid)
    bid.leadership.lost(2)
    assert bid.epoch == 1
    bid.leadership.lost(1)
    assert bid.epoch == 0
    assert bid.heard == [1, 0]


async def test_trouble_is_said_while_the_store_is_gone(
    start: Start,
    any_server: servers.RedisServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a store nobody leads and the sentence says why; with its return all is well again."""
    monkeypatch.setattr(leader, "LEASE_MS", 5000)
    first = start()
    await answered(first)
    any_server.stop()
    late = start()
    await answered(late)
    for bid in (first, late):
        await until(lambda bid=bid: bid.leadership.trouble)  # type: ignore[misc]  # mypy does not infer it
        assert "cannot be reached" in str(bid.leadership.trouble)
        assert bid.epoch == 0
    await first.leadership.resign()
    assert "the lease has to run out" in caplog.text
    any_server.start()
    await until(lambda: first.epoch or late.epoch)
    await until(lambda: not first.leadership.trouble and not late.leadership.trouble)


async def test_a_silent_store_costs_the_leadership_only_while_it_is_silent(
    start: Start, any_server: servers.RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who held the lock when the store froze has it again when it answers, under the same epoch."""
    monkeypatch.setattr(leader, "next_try_s", lambda lease, **_: 0.05)
    bid = start(timeout_s=0.5)
    await until(lambda: bid.epoch)
    any_server.freeze()
    try:
        await until(lambda: bid.leadership.trouble)
        assert bid.epoch == 0
    finally:
        any_server.thaw()
    await until(lambda: bid.epoch and not bid.leadership.trouble)
    # If the machine stands still, the store is silent, too.
    assert bid.heard == [1, 0] * (len(bid.heard) // 2) + [1]


async def test_a_wrong_window_length_does_not_win_the_lock(start: Start) -> None:
    """Not between two terms of those who count in the store's windows, however long it has been waiting."""
    first = start(window_s=60)
    await answered(first)
    wrong = start(window_s=10, patience_s=60)
    await answered(wrong)
    for epoch in (2, 3, 4):
        await first.die()
        await first.leadership.resign()
        await until(lambda: "it will count in windows of 10 s" in str(wrong.leadership.trouble))
        first = start(window_s=60)
        await until(lambda first=first, epoch=epoch: first.epoch == epoch)  # type: ignore[misc]  # mypy does not infer it
        await until(lambda: "for another running instance" in str(wrong.leadership.trouble))
    assert wrong.epoch == 0


FREE = Lease(0, 0, 7, OURS)


def patient(looks: Iterable[tuple[float, Lease]]) -> list[Successor]:
    """After each of the looks, at these times: whose leader may be succeeded by one with other windows."""
    seen, may = None, []
    for at, lease in looks:
        seen = unwanted(seen, lease, now=at)
        may.append(may_change_after(seen, patience_s=3))
    return may


@given(
    at=st.lists(st.floats(0, 1000).map(lambda at: round(at, 3)), min_size=1, max_size=40).map(sorted),
    others=st.lists(st.booleans(), min_size=40, max_size=40),
)
def test_only_time_in_which_one_looked_is_time_in_which_nobody_wanted_the_lease(
    at: list[float], others: list[bool]
) -> None:
    """Before other windows may come, all looks of the last seconds were close and saw the lease free."""
    looks = [(when, Lease(0, 100, 7, OURS) if held else FREE) for when, held in zip(at, others, strict=False)]
    for number, may in enumerate(patient(looks)):
        run = [number]
        while (first := run[0]) and at[first] - at[first - 1] <= CLOSE_S and looks[first - 1][1] == FREE:
            run.insert(0, first - 1)
        is_free = looks[number][1] == FREE and at[number] - at[run[0]] >= 3
        assert may == (7 if is_free else "none")


def test_who_stood_still_has_not_waited() -> None:
    """Neither the time of a stop counts nor the time before it: others may have stood still as well."""
    assert patient((at, FREE) for at in (0, 1, 2, 3)) == ["none", "none", "none", 7]
    assert patient((at, FREE) for at in (0, 4, 5, 6)) == ["none"] * 4
    another = Lease(0, 0, 8, OURS)
    assert patient([(0, FREE), (1, FREE), (2, another), (3, another), (4, another)]) == ["none"] * 5


async def test_a_bid_that_comes_late_does_not_bring_its_windows(start: Start) -> None:
    """Who has seen a lease free, and stood still while another had it, has to wait anew: its bid names the
    epoch that it saw, and the store knows a later one."""
    first = start(window_s=60)
    await answered(first)
    await first.die()
    await first.leadership.resign()
    late = WindowStore(first.client, namespace="t", window_s=10, exact_limit=1000).election
    seen = await late.lead("late", lease_ms=1000)
    assert (seen.epoch, seen.lasts_ms, seen.last_epoch) == (0, 0, 1)
    for _ in range(2):
        second = start(window_s=60)
        await answered(second)
        await second.die()
        await second.leadership.resign()
        assert (await late.lead("late", lease_ms=1000, may_change_after=1)).epoch == 0
    assert (await late.lead("late", lease_ms=1000, may_change_after=3)).epoch == 4


async def test_another_window_length_is_said(start: Start) -> None:
    """Who would count in other windows than the leader is told so, and brings its own when it leads."""
    first = start(window_s=60)
    await answered(first)
    second = start(window_s=10, patience_s=0.5)
    await answered(second)
    assert first.leadership.trouble is None
    assert "windows of 60 s" in str(second.leadership.trouble)
    assert "--window" in str(second.leadership.trouble)
    assert second.epoch == 0
    await first.die()
    await first.leadership.resign()
    await until(lambda: second.epoch == 2)
    assert second.leadership.trouble is None
    third = start(window_s=60)
    await answered(third)
    assert "windows of 10 s" in str(third.leadership.trouble)


async def test_another_exact_limit_is_said(start: Start) -> None:
    """It is as with the window's length: what all agree on is the leader's."""
    first = start(exact_limit=1000)
    await answered(first)
    second = start(exact_limit=10, patience_s=0.5)
    await answered(second)
    assert (first.leadership.differs, second.leadership.differs) == (False, True)
    assert "exactly up to 1000 ids" in str(second.leadership.trouble)
    assert "the same --exact-limit, or" in str(second.leadership.trouble)
    assert second.epoch == 0
    await first.die()
    await first.leadership.resign()
    await until(lambda: second.epoch == 2)
    assert (second.leadership.trouble, second.leadership.differs) == (None, False)
    third = start(window_s=5)
    await answered(third)
    assert "the same --window and --exact-limit, or" in str(third.leadership.trouble)


async def test_other_shards_are_followed(start: Start) -> None:
    """Who has others is told, counts by the store's all the same, and leads when nobody else has for a while:
    its own are agreed on then, and the regime is as it was until it is changed window by window."""
    first = start(shards=4)
    await answered(first)
    second = start(shards=2, patience_s=0.5)
    await answered(second)
    assert first.leadership.regime == second.leadership.regime == Regime(1, 4)
    assert (second.epoch, second.leadership.differs, second.leadership.trouble) == (0, True, None)
    assert "over 4 shards" in str(second.leadership.notice)
    assert first.leadership.notice is None
    await first.die()
    await first.leadership.resign()
    await until(lambda: second.epoch == 2)
    assert (second.leadership.differs, second.leadership.notice) == (False, None)
    assert second.leadership.regime == Regime(1, 4)


async def test_a_lease_lasts_no_longer_after_a_step_of_the_clock(start: Start) -> None:
    """If the store's clock is stepped back while a leader dies, its lock would last as much longer."""
    first = start()
    await answered(first)
    await first.die()
    await first.client.command("PEXPIRE", LOCK, 10**8)
    lease = await first.windows.election.lead("b", lease_ms=2000)
    assert (lease.epoch, lease.lasts_ms) == (0, 2000)
    assert await first.client.command("PTTL", LOCK) <= 2000


async def test_who_is_alone_brings_its_windows_at_once(start: Start) -> None:
    """The embedded store's only user waits for nobody."""
    first = start(window_s=60)
    await answered(first)
    await first.die()
    await first.leadership.resign()
    second = start(window_s=10, patience_s=0)
    await answered(second)
    assert second.epoch == 2
