"""Child processes held by their pids alone: the program that this process executes next can hold them, too.

asyncio's own subprocesses belong to one interpreter: after an exec, nothing would wait for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterable, Mapping


def spawn(
    command: list[str],
    *,
    stdin: int,
    stdout: int,
    environment: Mapping[str, str],
    pass_fds: Iterable[int] = (),
) -> int:
    """Start a process in a session of its own. Returns its pid. Raises OSError.

    ``pass_fds`` have the same numbers there. Descriptors 0 to 2 cannot be among the arguments.
    """
    actions = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stdout, 1)]
    # To itself: that clears FD_CLOEXEC (posix_spawn_file_actions_adddup2, POSIX.1-2024).
    actions += [(os.POSIX_SPAWN_DUP2, number, number) for number in pass_fds]
    return os.posix_spawn(
        command[0],
        command,
        environment,
        file_actions=actions,
        # Ctrl-C signals the whole process group, but the supervisor decides when its processes stop.
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # which Python ignores
    )


class Process:
    """A child process, watched through a pidfd. It has what idagg uses of asyncio's ``Process``."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = asyncio.Event()
        self._pidfd = os.pidfd_open(pid)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._reap)

    def __repr__(self) -> str:
        return f"<Process pid={self.pid} returncode={self.returncode}>"

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        _, status = os.waitpid(self.pid, 0)
        self.returncode = os.waitstatus_to_exitcode(status)
        self._ended.set()


def died_of(code: int) -> str:
    """The exit code, or what killed it, in words."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):  # most real-time signals have no name
        return signal.Signals(-code).name
    return f"signal {-code}"
