"""Turns on the machine, where several processes run tests at once."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def turn(machine: Path, queue: Path, *, alone: bool) -> Iterator[None]:
    """Be with others, or with none. The two are locked; any files do that everybody names."""
    with queue.open() as first, machine.open() as then:
        fcntl.flock(first, fcntl.LOCK_EX)  # without it, one who would be alone can wait for ever
        fcntl.flock(then, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(first, fcntl.LOCK_UN)
        yield
