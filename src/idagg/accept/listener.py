"""The listener: accepts connections. Most get a transport of the event loop; one-shot connections do not.

A one-shot client opens a connection, sends one request and asks to close. For such a client, a transport
costs more than the request: registration, two address look-ups, and two turns of the loop. So the listener
peeks at the first bytes. If they are one complete plain request that closes the connection, no transport is
created.

With TCP_DEFER_ACCEPT the kernel holds a connection back until its first bytes have arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import resource
import socket

from idagg.accept.fast_path import FastPath
from idagg.accept.head import CLOSING, MAX_LINE_BYTES, Style, query_of
from idagg.accept.replies import OK, UNAVAILABLE

log = logging.getLogger("idagg.accept")

# Connections accepted in one turn of the loop, before existing ones are served again.
_AT_ONCE = 64
# A silent client is accepted after about 1 s: the kernel counts in retransmissions, the first after 1 s.
_DEFER_S = 1
# Pause after an error. Precedent: asyncio's pause when file descriptors run out.
_BREATHER_S = 1.0
# Descriptors reserved for the store and the sinks, so that clients cannot stop counting and delivery.
RESERVED_FILES = 600


def most_connections() -> int:
    """How many connections one process accepts, at most: a descriptor each."""
    most_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(most_files - RESERVED_FILES, most_files // 2)


class OneShot:
    """A client that gets one answer, on a socket without a transport; the kernel's buffer has room for it."""

    __slots__ = ("_client", "_path")

    def __init__(self, client: socket.socket, path: FastPath) -> None:
        self._client = client
        self._path = path

    def answer(self, stored: bool) -> None:
        self.send(OK if stored else UNAVAILABLE)

    def send(self, status: int) -> None:
        with contextlib.suppress(OSError):  # the client has disconnected
            self._client.send(self._path.replies.by_status[status][Style.CLOSE], socket.MSG_DONTWAIT)
        self._client.close()


class Listener:
    """Accepts the connections of one socket."""

    def __init__(self, listener: socket.socket, path: FastPath) -> None:
        listener.setblocking(False)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _DEFER_S)
        # Time for which a client may leave answers unacknowledged. Connections inherit this option.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, path.keepalive_s * 1000)
        self._listener = listener
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._most_files = most_connections()
        self._told_at = -math.inf
        self._joining: set[asyncio.Task[object]] = set()
        self._closed = False
        self._open()

    def stop(self) -> None:
        """Stop accepting. Connections in the backlog wait for another process that holds the listener."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._listener)
            self._listener.close()

    async def close(self) -> None:
        """Stop accepting, and wait until every accepted connection has its transport."""
        self.stop()
        if self._joining:
            await asyncio.wait(self._joining)

    def _open(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listener, self._arrivals)

    def _arrivals(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # the client has disconnected already
            except OSError as error:  # out of descriptors or memory, as a rule
                log.error("connections are not accepted for 1 s, new ones wait: %s", error.strerror)
                self._loop.remove_reader(self._listener)
                self._loop.call_later(_BREATHER_S, self._open)
                return
            if client.fileno() < self._most_files:  # the kernel assigns the lowest free number
                self._welcome(client)
            else:
                self._turn_away(client)

    def _welcome(self, client: socket.socket) -> None:
        try:
            said = client.recv(MAX_LINE_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            match = CLOSING(said) if self._path.admission else None
            if match is not None:
                client.recv(len(said))  # closing with unread bytes would reset the connection
                self._answer(client, query_of(match))
                return
        except BlockingIOError:
            pass  # nothing has arrived yet
        except OSError:
            client.close()
            return
        client.setblocking(False)
        joining = self._loop.create_task(self._loop.connect_accepted_socket(self._path, client))
        self._joining.add(joining)
        joining.add_done_callback(self._joined)

    def _answer(self, client: socket.socket, query: bytes) -> None:
        assert self._path.admission is not None, "without one nothing matches"
        one_shot = OneShot(client, self._path)
        status = self._path.admission.one(one_shot, query)
        if status:
            one_shot.send(status)

    def _turn_away(self, client: socket.socket) -> None:
        if self._loop.time() >= self._told_at + _BREATHER_S:
            self._told_at = self._loop.time()
            log.error(
                "more than %d files are open: new connections are answered 503, their ids are not counted; "
                "raise the limit of open files or add workers",
                self._most_files,
            )
        with contextlib.suppress(OSError):  # nothing has arrived yet, or the client has disconnected
            client.recv(MAX_LINE_BYTES, socket.MSG_DONTWAIT)  # unread bytes would reset the connection
        self._path.tally[UNAVAILABLE] += 1
        self._path.turned_away += 1
        OneShot(client, self._path).send(UNAVAILABLE)

    def _joined(self, joining: asyncio.Task[object]) -> None:
        self._joining.discard(joining)
        if not joining.cancelled() and joining.exception():
            log.error("a connection could not be set up", exc_info=joining.exception())
