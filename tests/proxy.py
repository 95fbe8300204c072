"""A proxy before a real server, for what a real network does and loopback does not."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self


class Proxy:
    """Listens on loopback and passes bytes to a Unix socket and back, until it is told otherwise."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._pumps: set[asyncio.Task[None]] = set()
        self.drop_replies = 0  # the next so many replies are swallowed and their connection cut
        self.swallowed = asyncio.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pumps.add(task)
        try:
            back_reader, back_writer = await asyncio.open_unix_connection(self._target)
            forth = asyncio.create_task(self._pump(reader, back_writer, replies=False))
            back = asyncio.create_task(self._pump(back_reader, writer, replies=True))
            try:
                await asyncio.wait([forth, back], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in (forth, back):
                    pump.cancel()
                await asyncio.gather(forth, back, return_exceptions=True)
                for end in (writer, back_writer):
                    end.transport.abort()
        except asyncio.CancelledError:
            pass  # the proxy ends; its server would report a cancelled handler as an error
        finally:
            self._pumps.discard(task)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, replies: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                if replies and self.drop_replies:
                    self.drop_replies -= 1
                    self.swallowed.set()
                    return
                sink.write(data)
                await sink.drain()
