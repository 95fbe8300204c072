"""Tests that need the machine have it for themselves, and get their turn."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kit.turns import turn
from kit.waiting import until


class Taker:
    """Somebody with a turn, or on the way to it."""

    def __init__(self, folder: Path, *, alone: bool) -> None:
        self._folder, self._alone = folder, alone
        self._over = threading.Event()
        self.has_it = threading.Event()
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        with turn(self._folder / "machine", self._folder / "queue", alone=self._alone):
            self.has_it.set()
            self._over.wait()

    def waits(self) -> bool:
        """Whether it is still on the way, a moment later."""
        return not self.has_it.wait(0.05)

    def is_next(self) -> bool:
        """Whether somebody holds the queue."""
        with (self._folder / "queue").open() as queue:
            try:
                fcntl.flock(queue, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def ends(self) -> None:
        self._over.set()
        self._thread.join()


Take = Callable[[bool], Taker]


@pytest.fixture
def take(tmp_path: Path) -> Take:
    for name in ("machine", "queue"):
        (tmp_path / name).touch()
    return lambda alone: Taker(tmp_path, alone=alone)


async def test_turns(take: Take) -> None:
    """Some are at it together, one is alone, and who comes after it has come waits for it."""
    one, another = take(False), take(False)
    for taker in (one, another):
        await until(taker.has_it.is_set)
    alone = take(True)
    await until(alone.is_next)
    assert alone.waits()
    later = take(False)
    assert later.waits()  # or it could go on like this for ever
    one.ends()
    assert alone.waits()
    another.ends()
    await until(alone.has_it.is_set)
    assert later.waits()
    alone.ends()
    await until(later.has_it.is_set)
    later.ends()
