"""What every process of the supervisor's does first: it takes its first message, and lets go of the two
streams that it hears and talks to the supervisor by."""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Callable
from typing import TypeVar

from idagg import metrics
from idagg.run.logs import log_to_stderr

T = TypeVar("T")


def first_message(parse: Callable[[bytes], T]) -> T:
    """The first line of standard input, which stays open: it ends when the supervisor dies."""
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as messages:
        return parse(messages.readline())


def begin(name: str, *, writer: int, stdout: int) -> int:
    """Log as ``name``, write figures as ``writer``. Returns a descriptor for heartbeats, which never blocks:
    from here on, standard output is the supervisor's own, ``stdout``, by whatever name it is opened."""
    log_to_stderr(name)
    faulthandler.enable()  # says where it hung when the supervisor ends it with SIGABRT
    metrics.write_as(writer)
    heartbeats = os.dup(sys.stdout.fileno())
    os.set_blocking(heartbeats, False)
    os.dup2(stdout, sys.stdout.fileno())
    os.close(stdout)
    return heartbeats
