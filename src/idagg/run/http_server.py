"""The HTTP server of the admin listener: aiohttp's own, with limits.

The supervisor's event loop judges the workers' heartbeats, so no client may keep it busy: connections, heads
and the time of an answer are bounded.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable
from typing import cast

from aiohttp import ClientConnectionError, ClientConnectionResetError, hdrs, web
from aiohttp.typedefs import Middleware

from idagg.run import problems
from idagg.run.problems import Handler

log = logging.getLogger("idagg.admin")

# Operators' tools, and pages with a stream of events each. Excess connections are answered 503.
MAX_CONNECTIONS = 128
# For a request's head, and between requests.
KEEPALIVE_S = 75
# Time in which a client has to read its answer. Streams of events have limits of their own.
ANSWER_S = 30.0
# A larger body is written in pieces of this size, each once the client has read enough of those before.
PIECE_BYTES = 65_536
# No resource reads a body.
_MAX_BODY_BYTES = 1024
# Time for which a stop waits for answers in progress.
CLOSE_S = 1.0
BACKLOG = 128

# aiohttp's default would publish its version and Python's.
_SERVER = {"Server": "idagg"}
# Of answers that do not say otherwise.
_FIELDS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 5\r\nCache-Control: no-store\r\n"
    b"Connection: close\r\n\r\n"
)


class HttpServer:
    """Serves routes. ``middlewares`` see a request before its handler, the first one first."""

    def __init__(self, routes: Iterable[web.AbstractRouteDef], middlewares: Iterable[Middleware]) -> None:
        app = web.Application(
            middlewares=[_answered, problems.problems, *middlewares], client_max_size=_MAX_BODY_BYTES
        )
        for route in routes:
            if isinstance(route, web.RouteDef):
                route.kwargs.setdefault("expect_handler", _expect_nothing)
            route.register(app.router)
        app.on_response_prepare.append(_finish_head)
        self._runner = web.AppRunner(app, handle_signals=False, access_log=None, handler_cancellation=True)
        self._listening: asyncio.Server | None = None

    async def start(self, listening: socket.socket) -> None:
        """Serve this socket. Its descriptor stays the caller's."""
        await self._runner.setup()
        # Time for which a client may leave an answer unread. Connections inherit this option.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, KEEPALIVE_S * 1000)
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(self._connection, sock=listening.dup(), backlog=BACKLOG)

    async def close(self) -> None:
        """Stop accepting, and end connections after their answers in progress, or after CLOSE_S."""
        if self._listening is not None:
            self._listening.close()
            assert self._runner.server is not None
            self._runner.server.pre_shutdown()
            await self._runner.server.shutdown(CLOSE_S)
            await self._runner.cleanup()

    def _connection(self) -> asyncio.Protocol:
        server = self._runner.server
        assert server is not None
        if len(server.connections) >= MAX_CONNECTIONS:
            return _Full()
        return _Connection(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=KEEPALIVE_S,
            lingering_time=1,
            access_log=None,  # type: ignore[arg-type]  # aiohttp accepts None for no log; its types do not
        )


class _Full(asyncio.Protocol):
    """A connection too many. It is closed after its request: unread bytes would reset it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._patience = asyncio.get_running_loop().call_later(CLOSE_S, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        self._transport.write(_FULL)
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._patience.cancel()


class _Connection(web.RequestHandler):
    """aiohttp's own, with problem details where a request cannot be parsed."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= 500:
            log.error("the admin listener failed, answering %d", status, exc_info=exc)
        response = problems.answer(status, "this is no request of HTTP/1.1 that idagg understands")
        response.headers.update(_FIELDS | _SERVER)
        response.force_close()
        return response


async def _expect_nothing(request: web.Request) -> None:
    """Answer without 100 (Continue): no resource reads a body. aiohttp's own fails with bytes above 0x7f."""


async def _finish_head(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in _FIELDS.items():
        response.headers.setdefault(name, value)
    response.headers.update(_SERVER)


@web.middleware
async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Send the answer here, so that its time is bounded, and that it is no fault if the client vanishes."""
    try:
        return await _send(request, await handler(request))
    except ClientConnectionError:
        # aiohttp would log this as its own failure, and answer 500.
        if request.transport is not None:
            request.transport.abort()
        return web.Response()  # to nobody: aiohttp notices, and ends the connection


async def _send(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    if response.prepared:  # a stream, which bounds itself
        return response
    body = response.body if isinstance(response, web.Response) else None
    is_large = isinstance(body, bytes) and len(body) > PIECE_BYTES and request.method != hdrs.METH_HEAD
    try:
        async with asyncio.timeout(ANSWER_S):
            if is_large:
                assert isinstance(body, bytes)
                assert isinstance(response, web.Response)
                return await _in_pieces(request, response, body)
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        raise ClientConnectionResetError("the client does not read its answer") from None
    return response


async def _in_pieces(request: web.Request, response: web.Response, body: bytes) -> web.StreamResponse:
    stream = web.StreamResponse(status=response.status, headers=response.headers)
    stream.content_length = len(body)
    await stream.prepare(request)
    for start in range(0, len(body), PIECE_BYTES):
        await stream.write(body[start : start + PIECE_BYTES])
    await stream.write_eof()
    return stream
