"""Where connections arrive: most get a transport of the event loop, the shortest-lived do not.

A client that opens a connection for one request, says all at once and asks to close it, costs the loop's
transport more than its request: registration, two look-ups of addresses, a turn of the loop for the greeting
and one for the end. So the first bytes are looked at here; where they are one whole plain request that
closes, the socket waits for its answer as it is.

TCP_DEFER_ACCEPT lets the kernel keep a connection until its first bytes are there.
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

# Between two looks at the connections that already exist.
_AT_ONCE = 64
# A silent client is let in after about this time; the kernel counts in retransmissions, the first after 1 s.
_DEFER_S = 1
# Precedent: asyncio's pause after running out of file descriptors.
_BREATHER_S = 1.0
# Kept back for the store, the sinks and 500 callbacks, lest clients stop the counts they came for.
RESERVED_FILES = 600


class OneShot:
    """A client that is answered once, on a socket without a transport. The kernel has room for one answer."""

    __slots__ = ("_client", "_path")

    def __init__(self, client: socket.socket, path: FastPath) -> None:
        self._client = client
        self._path = path

    def answer(self, stored: bool) -> None:
        self.send(OK if stored else UNAVAILABLE)

    def send(self, status: int) -> None:
        with contextlib.suppress(OSError):  # the client has gone
            self._client.send(self._path.replies.by_status[status][Style.CLOSE], socket.MSG_DONTWAIT)
        self._client.close()


class Listener:
    def __init__(self, listener: socket.socket, path: FastPath) -> None:
        listener.setblocking(False)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _DEFER_S)
        # For how long a client may not take its answers. Connections inherit it.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, path.keepalive_s * 1000)
        self._listener = listener
        self._path = path
        self._loop = asyncio.get_running_loop()
        most_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_files = max(most_files - RESERVED_FILES, most_files // 2)
        self._told_at = -math.inf
        self._joining: set[asyncio.Task[object]] = set()
        self._closed = False
        self._open()

    async def close(self) -> None:
        """Let nobody in any more. Who waits in the backlog waits for another holder of the listener."""
        self._closed = True
        self._loop.remove_reader(self._listener)
        self._listener.close()
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
                continue  # the client has gone already
            except OSError as error:  # out of descriptors or memory, as a rule
                log.error("no connection can be taken for a second: %s", error.strerror)
                self._loop.remove_reader(self._listener)
                self._loop.call_later(_BREATHER_S, self._open)
                return
            if client.fileno() < self._most_files:  # the kernel gives the lowest number that is free
                self._welcome(client)
            else:
                self._turn_away(client)

    def _welcome(self, client: socket.socket) -> None:
        try:
            said = client.recv(MAX_LINE_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            match = CLOSING(said) if self._path.admission else None
            if match is not None:
                client.recv(len(said))  # to close on unread bytes would be a reset
                self._answer(client, query_of(match))
                return
        except BlockingIOError:
            pass  # it has said nothing yet
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
            log.error("more than %d files are open: new connections are turned away", self._most_files)
        with contextlib.suppress(OSError):  # it has said nothing yet, or has gone
            client.recv(MAX_LINE_BYTES, socket.MSG_DONTWAIT)  # to close on unread bytes would be a reset
        self._path.tally[UNAVAILABLE] += 1
        OneShot(client, self._path).send(UNAVAILABLE)

    def _joined(self, joining: asyncio.Task[object]) -> None:
        self._joining.discard(joining)
        if not joining.cancelled() and joining.exception():
            log.error("a connection could not be taken", exc_info=joining.exception())
