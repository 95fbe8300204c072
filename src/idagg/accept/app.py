"""The second door: a minimal aiohttp application for everything that is not the plain hot request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong

from idagg.accept.commit import GroupCommit
from idagg.accept.request import PATH, parse

log = logging.getLogger("idagg.accept")

# aiohttp's keep-alive time is its header deadline too.
KEEPALIVE_S = 15.0
MAX_LINE_BYTES = 8190
# One apart from the line's limit: aiohttp's error tells the limit and not whose it is.
MAX_FIELD_BYTES = 8191
# How long a close waits for requests in progress: above the longest deadline.
CLOSE_S = 11.0

Ready = Callable[[], str | None]
"""Why this process is not ready, in a sentence; None when it is."""

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


# In place of aiohttp's own, which tells its version and Python's.
_SERVER = {"Server": "idagg"}


def ok() -> web.Response:
    return web.Response(text="ok", headers=_SERVER)


def failed(status: int, **headers: str) -> web.Response:
    return web.Response(status=status, text="failed", headers=_SERVER | headers)


def unavailable() -> web.Response:
    return failed(503, **{"Retry-After": "1"})


@web.middleware
async def _plain_errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        allow = error.headers.get("Allow")
        return failed(error.status, Allow=allow) if allow else failed(error.status)


def health_routes(ready: Ready) -> list[web.RouteDef]:
    """``/livez``: this process turns its loop. ``/readyz``: it can store hits."""

    async def livez(request: web.Request) -> web.Response:
        return ok()

    async def readyz(request: web.Request) -> web.Response:
        return ok() if ready() is None else unavailable()

    return [web.get("/livez", livez), web.get("/readyz", readyz)]


class _FutureWaiter:
    def __init__(self) -> None:
        self.stored: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def answer(self, stored: bool) -> None:
        if not self.stored.done():  # the client may have gone
            self.stored.set_result(stored)


def application(commit: GroupCommit, ready: Ready, refused: Callable[[int], None]) -> web.Application:
    """``refused`` is told the status of each accept request that was answered without asking the store."""

    async def accept(request: web.Request) -> web.Response:
        if request.body_exists:
            refused(413)
            response = failed(413)
            response.force_close()
            return response
        # The target as it came: aiohttp's own query is decoded by other rules.
        hit = parse(request.raw_path.partition("?")[2].encode("utf-8", "surrogateescape"))
        if hit is None:
            refused(400)
            return failed(400)
        if commit.known.repeat(*hit):
            return ok()
        waiter = _FutureWaiter()
        if not commit.add(waiter, *hit):
            refused(503)
            return unavailable()
        if await waiter.stored:
            return ok()
        response = unavailable()
        response.force_close()  # those behind it on the connection would wait as long, one after the other
        return response

    app = web.Application(middlewares=[_plain_errors])
    app.router.add_get(PATH, accept, allow_head=False)
    app.add_routes(health_routes(ready))
    return app


class _Connection(web.RequestHandler):
    """aiohttp's own handler, but for what it says to those whose bytes are no request."""

    __slots__ = ()

    def eof_received(self) -> bool:  # type: ignore[override]  # a protocol's; aiohttp's own always says None
        """The client has said all; it may still be listening."""
        # aiohttp has no public word for it; this is how its keep-alive timer asks.
        idle = self._waiter is not None and not self._waiter.done()
        if not idle and not self._messages:
            self.close()  # behind the answer
        return not idle

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if isinstance(exc, LineTooLong):
            status = 414 if exc.args[1] == MAX_LINE_BYTES else 431
        elif isinstance(exc, BadHttpMessage):
            status = 431 if "Too many headers" in exc.message else 400
        else:
            log.error("answering %d", status, exc_info=exc)
        response = failed(status)
        response.force_close()
        return response


class AppDoor:
    """The application's server side. Call it to make the protocol of a connection, new or handed over."""

    def __init__(self, app: web.Application) -> None:
        self._draining = False
        app.on_response_prepare.append(self._last)
        self._runner = web.AppRunner(app, handle_signals=False, access_log=None)

    async def start(self) -> None:
        await self._runner.setup()

    def __call__(self) -> asyncio.Protocol:
        server = self._runner.server
        assert server is not None
        return _Connection(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=KEEPALIVE_S,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_FIELD_BYTES,
            access_log=None,  # type: ignore[arg-type]  # aiohttp takes None for no log, and its types do not say so
        )

    @property
    def connections(self) -> int:
        assert self._runner.server is not None
        return len(self._runner.server.connections)

    def drain(self) -> None:
        """From now on each answer is its connection's last, and says so."""
        self._draining = True

    async def close(self) -> None:
        """Let requests in progress end, then close every connection."""
        assert self._runner.server is not None
        self._runner.server.pre_shutdown()
        await self._runner.server.shutdown(CLOSE_S)
        await self._runner.cleanup()

    async def _last(self, request: web.Request, response: web.StreamResponse) -> None:
        if self._draining:
            response.force_close()
            response.headers["Connection"] = "close"  # they were made before
