"""What the leader's loops say of their trouble."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from unittest.mock import Mock

import pytest

from idagg.errors import StoreAwayError
from idagg.flush import turns
from idagg.flush.turns import Turns
from kit.waiting import until


async def test_loops_with_troubles_of_their_own_are_one_more_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one for each: shards of several masters can be away."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(turns, "RETRY_S", 0.01)
    monkeypatch.setattr(turns, "GATHER_S", 0.1)
    away = {0, 1, 2}
    leader_loops = Turns(Mock(epoch=1))
    sealing = Mock(quarantining=lambda _: contextlib.nullcontext())

    def add(shard: int) -> None:
        async def turn(_: int) -> None:
            if shard in away:
                raise StoreAwayError(f"{shard} is away")
            await asyncio.sleep(0.01)

        leader_loops.add(f"shard {shard}", turn, sealing)

    for shard in sorted(away):
        add(shard)
    await until(lambda: len(caplog.messages) == 2)
    assert caplog.messages == [
        "windows stay pending, trying again: 0 is away",
        "windows stay pending, trying again: 0 is away; 1 is away; 2 is away",
    ]
    monkeypatch.setattr(turns, "GATHER_S", 600)  # the machine may stand still while one works and another not
    away.clear()
    await until(lambda: leader_loops.trouble is None)
    assert caplog.messages[2:] == ["windows are delivered again"]
    leader_loops.stop()
    await leader_loops.run()
