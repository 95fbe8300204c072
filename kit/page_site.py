"""The status page of an idagg that is in whatever state somebody says.

``python -m kit.page_site late 8002`` serves one of the states of ``kit.page_states``, to look at it.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Sequence

from idagg.read.fleet import Status
from idagg.run.http_server import HttpServer
from idagg.run.page import StatusPage
from idagg.store.kept import KeptWindow
from kit.page_states import STATES


class Site:
    def __init__(self, state: str) -> None:
        self.seen = STATES[state]()
        self.url = ""
        self._server: HttpServer | None = None
        self._page = self._new_page()

    def show(self, state: str) -> None:
        self.seen = STATES[state]()

    async def status(self) -> Status:
        return self.seen.status

    def essence(self) -> object:
        return id(self.seen)

    async def newest(self, from_s: int, limit: int) -> Sequence[KeptWindow]:
        return self.seen.windows

    async def start(self, port: int = 0) -> None:
        self._server = HttpServer(self._page.routes(), [])
        with socket.create_server(("127.0.0.1", port)) as listening:
            await self._server.start(listening)
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}/"

    async def stop(self) -> None:
        await self._page.close()
        assert self._server is not None
        await self._server.close()
        self._page = self._new_page()

    def _new_page(self) -> StatusPage:
        return StatusPage(self, self)


async def _main(state: str, port: int) -> None:
    site = Site(state)
    await site.start(port)
    print(f"{site.url} shows the state {state}; others: {', '.join(STATES)}")  # noqa: T201  for who types it
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2])))
