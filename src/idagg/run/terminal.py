"""The controlling terminal of this process, and SIGHUP, which means two things."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

# From SIGHUP to the question whether the terminal is still there.
HANGUP_S = 0.2


def is_there() -> bool:
    """Whether this process has one, by tty(4). When it is closed, the kernel takes it away before SIGHUP."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


class Hangup:
    """SIGHUP asks for a reload; or, if the terminal was closed, for a stop, as of every program.

    ``outlives_terminal``: nohup started this program. None: ask the system.
    """

    def __init__(
        self, reload: Callable[[], None], stop: Callable[[], None], outlives_terminal: bool | None = None
    ) -> None:
        self._reload = reload
        self._stop = stop
        self.outlives_terminal = (
            signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            if outlives_terminal is None
            else outlives_terminal
        )
        self._had_terminal = is_there()

    def begin(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._on_signal)

    def _on_signal(self) -> None:
        if not self._had_terminal:
            self._reload()
            return
        # A shell may send the signal shortly before it closes the terminal.
        asyncio.get_running_loop().call_later(HANGUP_S, self._judge)

    def _judge(self) -> None:
        if is_there():
            self._reload()
        elif not self.outlives_terminal:
            self._stop()
