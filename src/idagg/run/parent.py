"""The tie of a process to its supervisor: it cannot outlive it, not even if it hangs."""

from __future__ import annotations

import ctypes
import os
import select
import signal

_PR_SET_PDEATHSIG = 1  # prctl(2)


def die_with_supervisor(stdin: int) -> None:
    """Have the kernel kill this process once its supervisor has died. ``stdin`` is a pipe from that.

    A hung or stopped process would otherwise keep the port, and no new supervisor could start. The kernel's
    mark is on this process alone and survives the supervisor's execution of another program. Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    # The supervisor may have died before, and then there is no signal: its end of the pipe is closed.
    pipe = select.poll()
    pipe.register(stdin, 0)  # a hang-up is always reported
    if any(event & select.POLLHUP for _, event in pipe.poll(0)):
        os.kill(os.getpid(), signal.SIGKILL)
