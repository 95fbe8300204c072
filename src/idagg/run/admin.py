"""The admin door: metrics and health of this VM. Served by the supervisor, never on the public door."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Protocol

from aiohttp import web

from idagg import metrics
from idagg.accept.app import KEEPALIVE_S
from idagg.errors import CannotStartError
from idagg.run.sockets import shown


class Watched(Protocol):
    metrics_folder: Path

    def trouble(self) -> dict[str, str]: ...


class AdminDoor:
    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        app = web.Application()
        app.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
            ]
        )
        self._runner = web.AppRunner(
            app, handle_signals=False, access_log=None, keepalive_timeout=KEEPALIVE_S, shutdown_timeout=1.0
        )

    async def start(self, host: str, port: int) -> str:
        """Returns the URL. Raises CannotStartError."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            raise CannotStartError(
                f"cannot listen on {shown(host, port)} for the admin door: {os.strerror(error.errno or 0)}; "
                "stop what listens there, or give another --admin-host or --admin-port"
            ) from error
        return f"http://{shown(host, self._runner.addresses[0][1])}"

    async def close(self) -> None:
        await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        body = await asyncio.to_thread(metrics.exposition, self._watched.metrics_folder)
        return web.Response(body=body, headers={"Content-Type": metrics.CONTENT_TYPE})

    async def _livez(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _readyz(self, request: web.Request) -> web.Response:
        """200 where hits are counted; a broker that is away is told of, and does not keep us from that."""
        trouble = self._watched.trouble()
        ready = not trouble.keys() - {"broker"}
        text = "ok" if ready else "failed"
        if "verbose" in request.query:
            lines = [f"{part}: {sentence}" for part, sentence in sorted(trouble.items())]
            text = "\n".join([text, *lines]) + "\n"
        return web.Response(status=200 if ready else 503, text=text)
