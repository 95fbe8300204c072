"""Listening sockets: for the public listener one SO_REUSEPORT socket per worker, held by the supervisor.

The kernel spreads connections over them. If a worker dies, its socket stays open here. So the connections in
its backlog wait for the next worker instead of being reset.
"""

from __future__ import annotations

import os
import socket

from idagg.errors import CannotStartError

# The kernel caps it at net.core.somaxconn, 4096 by default since Linux 5.4.
BACKLOG = 4096


def listen(host: str, port: int, count: int, *, flags: str = "--host or --port") -> list[socket.socket]:
    """Open ``count`` listening sockets on one address, set by ``flags``. Raises CannotStartError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise CannotStartError(f"{flags.split()[0]} {host} cannot be resolved: {error.strerror}") from error
    sockets: list[socket.socket] = []
    try:
        # SO_REUSEPORT alone would share the port with any other process of this user. So a first socket is
        # bound without it, which fails if another process listens. It is closed before the others are bound.
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            address = probe.getsockname()
        for _ in range(count):
            listener = socket.socket(family, kind, protocol)
            sockets.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
            listener.setblocking(False)
    except OSError as error:
        for listener in sockets:
            listener.close()
        reason = os.strerror(error.errno or 0)
        raise CannotStartError(
            f"cannot listen on {shown(host, port)}: {reason}; if another idagg runs there, stop it, "
            f"or give another {flags}"
        ) from error
    return sockets


def shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
