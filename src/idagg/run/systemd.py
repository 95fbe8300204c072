"""Notifications to systemd, by the protocol of sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(*states: str) -> None:
    """Send states such as ``READY=1``. Does nothing if no service manager listens, or if it is too busy."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel,
        contextlib.suppress(OSError),
    ):
        channel.sendto("\n".join(states).encode(), socket.MSG_DONTWAIT, address)


def watchdog_s() -> float | None:
    """The time after which the service manager misses ``WATCHDOG=1``; None if it does not."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    if not usec.isdecimal() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(usec) / 1e6
