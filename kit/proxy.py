"""A proxy before a real server, for what a real network does and loopback does not."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
from types import TracebackType
from typing import Self

from idagg.tasks import end

# uvloop's timers count whole milliseconds, and may end so much too early.
_EARLY_S = 0.001


class Proxy:
    """Listens on loopback and passes bytes to ``target`` and back, until it is told otherwise.

    ``target`` is a Unix socket's path or a port on loopback; another is for new connections only. Set at any
    time, for open connections too:

    - ``delay_s``: bytes arrive so much later, each way
    - ``bytes_per_s``: no more pass in a second, on each connection, each way
    - ``stall``, ``stall_replies``: nothing passes, or nothing back, while connections stay open; what came
      meanwhile passes later
    - ``cut_after``: after so many more bytes of replies, their connection is cut
    - ``drop_replies``: the next so many replies are swallowed and their connections cut
    - ``refuse``: open connections are cut, and new ones as soon as they are made
    """

    def __init__(self, target: str | int) -> None:
        self.target = target
        self._connections: set[asyncio.Task[None]] = set()
        self._flows = {False: asyncio.Event(), True: asyncio.Event()}  # by whether they are replies
        self._refusing = False
        self.delay_s = 0.0
        self.bytes_per_s: float = math.inf
        self.cut_after: int | None = None
        self.drop_replies = 0
        self.swallowed = asyncio.Event()
        self.cut = asyncio.Event()  # for want of ``cut_after``
        self.port = 0
        self.accepted = 0  # connections, until now
        self.stall = False

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def amqp_url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def stall(self) -> bool:
        return not self._flows[False].is_set()

    @stall.setter
    def stall(self, stalled: bool) -> None:
        for flow in self._flows.values():
            (flow.clear if stalled else flow.set)()

    @property
    def stall_replies(self) -> bool:
        return not self._flows[True].is_set()

    @stall_replies.setter
    def stall_replies(self, stalled: bool) -> None:
        (self._flows[True].clear if stalled else self._flows[True].set)()

    @property
    def refuse(self) -> bool:
        return self._refusing

    @refuse.setter
    def refuse(self, refusing: bool) -> None:
        self._refusing = refusing
        if refusing:
            for connection in self._connections:
                connection.cancel()

    async def __aenter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._accepting = asyncio.create_task(self._accept())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await end(self._accepting, *self._connections)
        self._listener.close()

    async def _accept(self) -> None:
        while True:
            client, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            self.accepted += 1
            if self._refusing:
                _reset(client)
                continue
            connection = asyncio.create_task(self._connect(client))
            self._connections.add(connection)
            connection.add_done_callback(self._connections.discard)

    async def _connect(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        family = socket.AF_INET if isinstance(self.target, int) else socket.AF_UNIX
        address = ("127.0.0.1", self.target) if isinstance(self.target, int) else self.target
        server = socket.socket(family)
        server.setblocking(False)
        try:
            with contextlib.suppress(OSError):  # a target that is away is a cut
                await loop.sock_connect(server, address)
                pumps = [
                    asyncio.create_task(self._pump(client, server, replies=False)),
                    asyncio.create_task(self._pump(server, client, replies=True)),
                ]
                try:
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    await end(*pumps)
        finally:
            _reset(server)
            client.close()

    async def _pump(self, source: socket.socket, sink: socket.socket, *, replies: bool) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await loop.sock_recv(source, 65536):
                if wait_s := self.delay_s + len(data) / self.bytes_per_s:
                    await asyncio.sleep(wait_s + _EARLY_S)
                await self._flows[replies].wait()
                if replies and self.drop_replies:
                    self.drop_replies -= 1
                    self.swallowed.set()
                    return
                if replies and self.cut_after is not None:
                    data, self.cut_after = data[: self.cut_after], self.cut_after - len(data)
                await loop.sock_sendall(sink, data)
                if replies and self.cut_after is not None and self.cut_after <= 0:
                    self.cut_after = None
                    self.cut.set()
                    return


def _reset(end: socket.socket) -> None:
    """Close it as a process that dies does: the other side gets a reset."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()
