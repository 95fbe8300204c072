"""The admin listener: the supervisor serves metrics and health of this machine, never in public."""

from __future__ import annotations

import asyncio
import collections
import functools
import logging
import socket
import time
from pathlib import Path
from typing import Protocol

from aiohttp import web

from idagg import metrics
from idagg.accept.fallback import Fallback
from idagg.accept.fast_path import FastPath
from idagg.accept.listener import Listener
from idagg.run.fleet import Fleet
from idagg.run.machine import Machine, families
from idagg.run.messages import READY_WITHOUT
from idagg.tasks import end

log = logging.getLogger("idagg.admin")

_KEEPALIVE_S = 75
# Time for which a stop waits for answers in progress.
_CLOSE_S = 1.0


class Watched(Protocol):
    """The supervisor, as the admin listener needs it."""

    metrics_folder: Path
    fleet: Fleet

    def trouble(self) -> dict[str, str]: ...

    def writers(self) -> list[int]:
        """The numbers of the running processes' metrics files."""

    def machine(self) -> Machine:
        """The present moment."""


class AdminListener:
    """Serves ``/metrics``, ``/livez`` and ``/readyz``."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        readyz = self._readyz
        self._fallback = Fallback(
            [
                web.get("/metrics", self._metrics),
                web.get("/livez", self._livez),
                web.options("/livez", self._livez),
                web.get("/readyz", readyz),
                web.options("/readyz", readyz),
                web.get("/api/v1/status", self._status),
            ],
            collections.Counter(),
        )
        self._path = FastPath(
            None, self._fallback, epoch_s=time.time(), deadline_s=_CLOSE_S, keepalive_s=_KEEPALIVE_S
        )
        self._left_out = set[str]()  # files, of the last answer of /metrics
        self._listener: Listener | None = None
        self._ticking: asyncio.Task[None] | None = None

    async def start(self, listening: socket.socket) -> None:
        """Serve this socket. Its descriptor stays the caller's."""
        await self._fallback.start()
        self._listener = Listener(listening.dup(), self._path)
        self._ticking = asyncio.create_task(self._tick())

    async def close(self) -> None:
        if self._listener is not None and self._ticking is not None:
            await self._listener.close()
            await end(self._ticking)
            await self._path.close(_CLOSE_S)
            await self._fallback.close()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1)
            self._path.second(time.time())

    async def _metrics(self, request: web.Request) -> web.Response:
        watched = self._watched
        body, left_out = await asyncio.to_thread(
            metrics.exposition,
            watched.metrics_folder,
            watched.writers(),
            functools.partial(families, watched.machine()),
        )
        if set(left_out) - self._left_out:
            log.error(
                "/metrics leaves out %s in %s, which cannot be read: what they count is missing until the "
                "processes that write them are replaced",
                ", ".join(sorted(left_out)),
                watched.metrics_folder,
            )
        self._left_out = set(left_out)
        return web.Response(body=body, headers={"Content-Type": metrics.CONTENT_TYPE})

    async def _status(self, request: web.Request) -> web.Response:
        body = self._watched.fleet.status().model_dump_json().encode()
        return web.Response(body=body, content_type="application/json")

    async def _livez(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _readyz(self, request: web.Request) -> web.Response:
        """Answer 200 if hits are counted. Trouble with deliveries is listed, but changes no status."""
        trouble = self._watched.trouble()
        ready = not trouble.keys() - READY_WITHOUT
        text = "ok" if ready else "failed"
        if "verbose" in request.query:
            lines = [f"{part}: {sentence}" for part, sentence in sorted(trouble.items())]
            text = "\n".join([text, *lines]) + "\n"
        return web.Response(status=200 if ready else 503, text=text)
