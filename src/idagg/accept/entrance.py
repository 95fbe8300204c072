"""Where connections arrive: most are given to the event loop, the shortest-lived are not.

A client that opens a connection for one request, says all at once and asks to close it, costs the loop's
transport more than its request: registration, two look-ups of addresses, a turn of the loop for the greeting
and one for the end. So the first bytes are looked at here; where they are one whole plain request that
closes, the socket waits for its answer as it is.

TCP_DEFER_ACCEPT lets the kernel keep a connection until its first bytes are there.
"""

from __future__ import annotations

import asyncio
import logging
import math
import resource
import socket

from idagg.accept.front import IDLE_S, FrontDoor
from idagg.accept.head import MAX_HEAD_BYTES

log = logging.getLogger("idagg.accept")

# Between two looks at the connections that already exist.
_AT_ONCE = 64
# A silent client is let in after about this time; the kernel counts in retransmissions, the first after 1 s.
_DEFER_S = 1
# Precedent: asyncio's pause after running out of file descriptors.
_BREATHER_S = 1.0
# Kept back for the store, the sinks and 500 callbacks, lest clients stop the counts they came for.
RESERVED_FILES = 600


class Entrance:
    def __init__(self, listener: socket.socket, door: FrontDoor) -> None:
        listener.setblocking(False)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _DEFER_S)
        # For how long a client may not take its answers, whichever door it is at. Connections inherit it.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, IDLE_S * 1000)
        self._listener = listener
        self._door = door
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
            said = client.recv(MAX_HEAD_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            if self._door.once(client, said):
                return
        except BlockingIOError:
            pass  # it has said nothing yet
        except OSError:
            client.close()
            return
        client.setblocking(False)
        joining = self._loop.create_task(self._loop.connect_accepted_socket(self._door, client))
        self._joining.add(joining)
        joining.add_done_callback(self._joined)

    def _turn_away(self, client: socket.socket) -> None:
        if self._loop.time() >= self._told_at + _BREATHER_S:
            self._told_at = self._loop.time()
            log.error("more than %d files are open: new connections are turned away", self._most_files)
        self._door.turn_away(client)

    def _joined(self, joining: asyncio.Task[object]) -> None:
        self._joining.discard(joining)
        if not joining.cancelled() and joining.exception():
            log.error("a connection could not be taken", exc_info=joining.exception())
