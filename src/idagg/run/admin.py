"""The admin listener: the supervisor serves metrics and health of this machine, never in public."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from pathlib import Path
from typing import Protocol

from aiohttp import web

from idagg import metrics
from idagg.read import fleet
from idagg.read.query import NoQuery
from idagg.run.access import Access
from idagg.run.api import Api
from idagg.run.events import Events
from idagg.run.explorer import Explorer
from idagg.run.fleet import Fleet
from idagg.run.http_server import HttpServer
from idagg.run.kept_windows import KeptWindows
from idagg.run.machine import Machine, families
from idagg.run.messages import READY_WITHOUT
from idagg.run.operations import JSON, Operation
from idagg.run.page import StatusPage
from idagg.run.reading import Reading
from idagg.settings import Settings

log = logging.getLogger("idagg.admin")


_HIDDEN = "in trouble: send the token of --admin-token to read why"


class Watched(Protocol):
    """The supervisor, as the admin listener needs it."""

    metrics_folder: Path
    fleet: Fleet

    @property
    def settings(self) -> Settings:
        """Those in force now."""

    @property
    def store_url(self) -> str:
        """Empty until the embedded store runs."""

    def trouble(self) -> dict[str, str]: ...

    def writers(self) -> list[int]:
        """The numbers of the running processes' metrics files."""

    def machine(self) -> Machine:
        """The present moment."""


class AdminListener:
    """Serves this machine's metrics and health, the status page, and the API."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._events = Events(watched.fleet)
        own = [
            web.get("/metrics", self._metrics),
            web.get("/livez", self._livez),
            web.options("/livez", self._livez),
            web.get("/readyz", self._readyz),
            web.options("/readyz", self._readyz),
            web.get("/api/v1/events", self._events.stream, allow_head=False),
        ]
        self._reading = Reading(watched)
        operations = [*Api(watched, self._reading).operations(), self._status_operation()]
        served = [one.route() for one in operations]
        self._access = Access(lambda: watched.settings)
        self._page = StatusPage(watched.fleet, KeptWindows(self._reading))
        described = Explorer(operations).routes()
        self._server = HttpServer(
            [*own, *described, *served, *self._page.routes()], [self._access.middleware]
        )
        self._left_out = set[str]()  # files, of the last answer of /metrics

    async def start(self, listening: socket.socket) -> None:
        """Serve this socket. Its descriptor stays the caller's."""
        await self._server.start(listening)

    async def close(self) -> None:
        await self._page.close()
        await self._events.close()
        await self._server.close()
        await self._reading.close()

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

    def _status_operation(self) -> Operation:
        return Operation(
            "/api/v1/status",
            self._status,
            "status",
            "All machines of the namespace, and what is pending",
            {JSON: fleet.Status},
        )

    async def _status(self, request: web.Request, query: NoQuery, media: str) -> web.Response:
        body = (await self._watched.fleet.status()).model_dump_json().encode()
        return web.Response(body=body, content_type=media)

    async def _livez(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _readyz(self, request: web.Request) -> web.Response:
        """Answer 200 if hits are counted. Trouble with deliveries is listed, but changes no status."""
        trouble = self._watched.trouble()
        ready = not trouble.keys() - READY_WITHOUT
        text = "ok" if ready else "failed"
        if "verbose" in request.query:
            # Sentences name addresses.
            is_reader = await self._access.is_reader(request)
            lines = [
                f"{part}: {sentence if is_reader else _HIDDEN}" for part, sentence in sorted(trouble.items())
            ]
            text = "\n".join([text, *lines]) + "\n"
        return web.Response(status=200 if ready else 503, text=text)
