"""Listening sockets: for the public listener one SO_REUSEPORT socket per worker, held by the supervisor.

The kernel spreads connections over them. If a worker dies, its socket stays open here. So the connections in
its backlog are not reset: another worker accepts them, until the dead one's successor does.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from typing import Any

from idagg.errors import CannotStartError

# The kernel caps it at net.core.somaxconn, 4096 by default since Linux 5.4.
BACKLOG = 4096


def listen(
    host: str, port: int, count: int, *, flags: str = "--host or --port", is_ours: bool = False
) -> list[socket.socket]:
    """Open ``count`` listening sockets on one address, set by ``flags``. Raises CannotStartError.

    ``is_ours``: this instance has the port already, at another address.
    """
    sockets = bind(host, port, count, flags=flags, is_ours=is_ours)
    try:
        for listener in sockets:
            listener.listen(BACKLOG)
    except OSError as error:  # since the check below
        for listener in sockets:
            listener.close()
        raise CannotStartError(f"cannot listen on {shown(host, port)}: {_why(error, flags)}") from error
    return sockets


def bind(
    host: str, port: int, count: int, *, flags: str = "--host or --port", is_ours: bool = False
) -> list[socket.socket]:
    """As ``listen``, but the kernel gives them no connections until they listen."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise CannotStartError(f"{flags.split()[0]} {host} cannot be resolved: {error.strerror}") from error
    try:
        with ExitStack() as opened:
            # SO_REUSEPORT alone would share the port with any other process of this user. So a first socket
            # is bound without it, which fails if another process listens. It is closed before the others are
            # bound.
            if not is_ours:
                with _socket(family, kind, protocol) as probe:
                    probe.bind(address)
                    address = probe.getsockname()
            sockets = [opened.enter_context(_socket(family, kind, protocol)) for _ in range(count)]
            for listener in sockets:
                _bind(listener, address)
            opened.pop_all()
    except OSError as error:
        raise CannotStartError(f"cannot listen on {shown(host, port)}: {_why(error, flags)}") from error
    return sockets


def bind_more(listener: socket.socket, count: int) -> list[socket.socket]:
    """Open ``count`` further sockets on a listener's own address, for added workers. Raises OSError."""
    with ExitStack() as opened:
        sockets = [
            opened.enter_context(_socket(listener.family, listener.type, listener.proto))
            for _ in range(count)
        ]
        for another in sockets:
            _bind(another, listener.getsockname())
        opened.pop_all()
    return sockets


def _bind(listener: socket.socket, address: Any) -> None:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(address)
    listener.setblocking(False)


def spread(listeners: Sequence[int], workers: Sequence[Collection[int] | None]) -> list[list[int]]:
    """Who accepts where: for each worker the listeners that it serves, by their descriptors.

    ``workers`` has the descriptors that each worker holds; None: it is not running. Listener k belongs to
    worker k modulo their number. While that one does not run, the next one that holds the listener serves it,
    so that new connections need not wait for a new worker.
    """
    shares: list[list[int]] = [[] for _ in workers]
    for number, listener in enumerate(listeners):
        for step in range(len(workers)):
            slot = (number + step) % len(workers)
            holds = workers[slot]
            if holds is not None and listener in holds:
                shares[slot].append(listener)
                break
    return shares


def _socket(family: int, kind: int, protocol: int) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        # `::` is every address, IPv4's too, whatever net.ipv6.bindv6only says.
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return made


def _why(error: OSError, flags: str) -> str:
    reason = os.strerror(error.errno or 0)
    what_to_do = {
        errno.EADDRINUSE: f"if another idagg runs there, stop it, or give another {flags}",
        errno.EADDRNOTAVAIL: f"no interface of this machine has it: give it one, or another {flags}",
        errno.EACCES: f"a port below 1024 needs the capability CAP_NET_BIND_SERVICE: give another {flags}",
    }.get(error.errno or 0, f"give another {flags}")
    return f"{reason}; {what_to_do}"


def shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
