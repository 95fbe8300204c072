from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idagg.flush import leader
from idagg.flush.leader import Leadership, next_try_s
from idagg.store.client import Client
from idagg.store.election import Lease
from idagg.store.windows import WindowStore
from kit import servers
from kit.waiting import LIMIT_S, until


class Bid:
    """A process that bids, on a connection of its own."""

    def __init__(
        self, url: str, *, window_s: int = 60, timeout_s: float = 5.0, patience_s: float = leader.PATIENCE_S
    ) -> None:
        self.client = Client(url, timeout_s=timeout_s)
        self.windows = WindowStore(self.client, namespace="t", window_s=window_s, exact_limit=1000)
        self.heard: list[int] = []
        self.made = 0
        self.leadership = Leadership(
            self, window_s=window_s, patience_s=patience_s, on_change=self.heard.append
        )
        self._task = asyncio.create_task(self.leadership.run())

    async def lead(self, name: str, *, lease_ms: int, may_change_length: bool) -> Lease:
        self.made += 1
        return await self.windows.election.lead(name, lease_ms=lease_ms, may_change_length=may_change_length)

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
async def start(any_server: servers.RedisServer) -> AsyncIterator[Start]:
    bids = []

    def start(*, window_s: int = 60, timeout_s: float = 5.0, patience_s: float = leader.PATIENCE_S) -> Bid:
        bids.append(Bid(any_server.url, window_s=window_s, timeout_s=timeout_s, patience_s=patience_s))
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
    pause_s = next_try_s(Lease(epoch, lasts_ms, 60), chance=chance)
    assert pause_s * 1000 == pytest.approx(lasts_ms / 3)


@given(lasts_ms=leases, chance=chances)
def test_those_who_do_not_lead_look_often_and_apart(lasts_ms: int, chance: float) -> None:
    """However long another's lease lasts, an early end is noticed soon; nobody bids without a pause."""
    pause_s = next_try_s(Lease(0, lasts_ms, 60), chance=chance)
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
    """Who lives goes on leading, under the same epoch, longer than one lease."""
    monkeypatch.setattr(leader, "LEASE_MS", 1500)
    first = start()
    await answered(first)
    second = start()
    await until(lambda: first.made > 4)
    assert (first.epoch, second.epoch) == (1, 0)
    assert (first.heard, second.heard) == ([1], [])


async def test_resigning_hands_over_within_a_second(start: Start) -> None:
    """An orderly end is noticed by another long before the lease would have run out."""
    first = start()
    await answered(first)
    others = [start() for _ in range(3)]
    await answered(*others)
    await first.die()
    await first.leadership.resign()
    assert first.epoch == 0
    assert first.heard == [1, 0]
    await until(lambda: any(bid.epoch for bid in others), within_s=1)
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


async def test_a_dead_leaders_lease_runs_out(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who dies without a word is succeeded after the lease, each time under a higher epoch."""
    monkeypatch.setattr(leader, "LEASE_MS", 600)
    leading = start()
    await answered(leading)
    for epoch in (1, 2):
        assert leading.epoch == epoch
        successor = start()
        await answered(successor)
        assert successor.epoch == 0
        await leading.die()
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
    start: Start, any_server: servers.RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a store nobody leads and the sentence says why; with its return all is well again."""
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
    monkeypatch.setattr(leader, "LEASE_MS", 3000)
    bid = start(timeout_s=0.1)
    await answered(bid)
    any_server.freeze()
    try:
        await until(lambda: bid.leadership.trouble)
        assert bid.epoch == 0
    finally:
        any_server.thaw()
    await until(lambda: bid.epoch and not bid.leadership.trouble)
    assert bid.heard == [1, 0, 1]


async def test_a_wrong_window_length_does_not_win_the_lock(start: Start) -> None:
    """Not between two terms of those who count in the store's windows, however long it has been waiting."""
    first = start(window_s=60)
    await answered(first)
    wrong = start(window_s=10)
    await answered(wrong)
    for epoch in (2, 3, 4):
        await first.die()
        await first.leadership.resign()
        await until(lambda: "they become 10 s" in str(wrong.leadership.trouble))
        first = start(window_s=60)
        await until(lambda first=first, epoch=epoch: first.epoch == epoch)  # type: ignore[misc]  # mypy does not infer it
        await until(lambda: "for another running instance" in str(wrong.leadership.trouble))
    assert wrong.epoch == 0


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


async def test_who_is_alone_brings_its_windows_at_once(start: Start) -> None:
    """The embedded store's only user waits for nobody."""
    first = start(window_s=60)
    await answered(first)
    await first.die()
    await first.leadership.resign()
    second = start(window_s=10, patience_s=0)
    await answered(second)
    assert second.epoch == 2
