"""The controlling terminal of this process."""

from __future__ import annotations

import os


def is_there() -> bool:
    """Whether this process has one, by tty(4). When it is closed, the kernel takes it away before SIGHUP."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
