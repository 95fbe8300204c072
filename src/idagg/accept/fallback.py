"""The fallback app: a minimal aiohttp application for every request that is no plain accept request.

It gets one complete request at a time, as an ``Exchange``: a transport for a single answer, used by aiohttp's
own request handler. The head has been validated before (``head.py``), and the body is complete (``body.py``).
The handler closes this transport after the answer, and the fast path goes on with the connection. So aiohttp
never handles framing, pipelining, 100 (Continue) or the end of a connection.
"""

from __future__ import annotations

import asyncio
import collections
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeVar

from aiohttp import web

from idagg.accept.admission import TAKEN, Admission
from idagg.accept.head import MAX_LINE_BYTES, PATH, Head, Style
from idagg.accept.replies import UNAVAILABLE, fixed_fields
from idagg.accept.request import MAX_BULK_BYTES

T = TypeVar("T")

log = logging.getLogger("idagg.accept")

# Time for which a close waits for requests in progress: above the longest deadline.
CLOSE_S = 11.0
# Time for which a browser may cache the answer to a preflight.
_PREFLIGHT_S = 86_400
_CONNECTION = {Style.KEEP: "keep-alive", Style.CLOSE: "close", Style.KEEP_10: "keep-alive"}

Ready = Callable[[], str | None]
"""Returns one sentence about why this process is not ready; None if it is ready."""

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def ok() -> web.Response:
    return web.Response(text="ok")


def failed(status: int, **headers: str) -> web.Response:
    return web.Response(status=status, text="failed", headers=headers)


def unavailable() -> web.Response:
    return failed(503, **{"Retry-After": "1"})


@web.middleware
async def _plain_errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as error:
        return failed(405, Allow=", ".join(sorted(error.allowed_methods)))
    except web.HTTPException as error:
        return failed(error.status)


def health_routes(ready: Ready) -> list[web.RouteDef]:
    """The routes for load balancers, for GET and OPTIONS.

    ``/livez``: the event loop runs. ``/readyz``: hits can be stored. ``/`` is the same as ``/readyz``,
    because it is the default path of load balancers.
    """

    async def livez(request: web.Request) -> web.Response:
        return ok()

    async def readyz(request: web.Request) -> web.Response:
        return ok() if ready() is None else unavailable()

    return [
        method(path, handler)
        for path, handler in (("/livez", livez), ("/readyz", readyz), ("/", readyz))
        for method in (web.get, web.options)
    ]


class _FutureWaiter:
    def __init__(self) -> None:
        self.stored: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def answer(self, stored: bool) -> None:
        if not self.stored.done():  # the client may have disconnected
            self.stored.set_result(stored)


def accept_routes(admission: Admission, cors_origin: str | None) -> list[web.RouteDef]:
    async def accept(request: web.Request) -> web.Response:
        return await _settled(request, lambda waiter: admission.one(waiter, _query(request)))

    async def bulk(request: web.Request) -> web.Response:
        body = await request.read()
        return await _settled(request, lambda waiter: admission.many(waiter, _query(request), body))

    async def preflight(request: web.Request) -> web.Response:
        allowed = {
            "Access-Control-Allow-Methods": "GET, POST",
            "Access-Control-Allow-Headers": "Content-Type",
        }
        return web.Response(status=204, headers=allowed | {"Access-Control-Max-Age": str(_PREFLIGHT_S)})

    routes = [web.get(PATH, accept, allow_head=False), web.post(PATH, bulk)]
    return [*routes, web.options(PATH, preflight)] if cors_origin else routes


def _query(request: web.Request) -> bytes:
    """The query as it was sent, because aiohttp decodes by other rules."""
    return request.raw_path.partition("?")[2].encode()


async def _settled(request: web.Request, admit: Callable[[_FutureWaiter], int]) -> web.Response:
    exchange = _exchange(request)
    if exchange.is_late:
        return unavailable()
    exchange.is_counted = True  # by the admission, or by the group commit
    waiter = _FutureWaiter()
    status = admit(waiter)
    if status == TAKEN:
        return ok() if await waiter.stored else unavailable()
    return unavailable() if status == UNAVAILABLE else failed(status)


class Client(Protocol):
    """The connection, as an exchange needs it."""

    def write(self, data: bytes) -> None: ...

    def answered(self, style: Style) -> None:
        """End the exchange; ``style`` says whether the connection stays open."""


class Exchange(asyncio.Transport):
    """One request and its answer: the transport of one aiohttp request handler."""

    def __init__(
        self, fallback: Fallback, message: bytes, style: Style, client: Client, *, is_late: bool
    ) -> None:
        super().__init__()
        self.is_late = is_late  # it has waited behind an expired request, and is refused
        self.is_counted = False
        self.fields = fallback.fields
        self._tally = fallback.tally
        self._style = style
        self._client: Client | None = client
        self._answered = Style.CLOSE  # until the head of an answer is written
        self._handler = fallback.handler()
        self._handler.connection_made(self)
        self._handler.data_received(message)

    def conclude(self) -> str:
        """Note that the answer's head is being written. Returns its Connection field."""
        self._answered = self._style
        return _CONNECTION[self._style]

    def lost(self) -> None:
        """Drop the answer, because the client has disconnected."""
        self._client = None
        # The handler's own task begins in the next turn of the loop, and must begin before this.
        asyncio.get_running_loop().call_soon(self._handler.connection_lost, None)

    # Called by the handler.

    def write(self, data: Any) -> None:
        if self._client is None:
            return
        if not self.is_counted:
            self.is_counted = True
            self._tally[int(bytes(data[9:12]))] += 1  # the status, after "HTTP/1.1 "
        self._client.write(data)

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return self._client is None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            asyncio.get_running_loop().call_soon(self._end, client)

    abort = close

    def _end(self, client: Client) -> None:
        self._handler.connection_lost(None)
        client.answered(self._answered)


def _exchange(request: web.BaseRequest) -> Exchange:
    """The request's exchange. Raises ConnectionError if the client has disconnected; aiohttp expects that."""
    if request.transport is None:
        raise ConnectionResetError
    assert isinstance(request.transport, Exchange)
    return request.transport


class Fallback:
    """The fallback app. It creates an exchange for each request.

    ``tally`` counts answers by status, ``reasons`` requests by the reason of the hand-off.
    """

    def __init__(
        self,
        routes: Iterable[web.RouteDef],
        tally: collections.Counter[int],
        *,
        cors_origin: str | None = None,
    ) -> None:
        app = web.Application(middlewares=[_plain_errors], client_max_size=MAX_BULK_BYTES)
        app.add_routes(routes)
        app.on_response_prepare.append(self._finish_head)
        self.tally = tally
        self.reasons: collections.Counter[str] = collections.Counter()
        # aiohttp's default would publish its version and Python's.
        self.fields = fixed_fields(cors_origin) | {"Server": "idagg"}
        self._runner = web.AppRunner(app, handle_signals=False, access_log=None, handler_cancellation=True)

    async def start(self) -> None:
        await self._runner.setup()

    async def close(self) -> None:
        """Wait up to CLOSE_S for requests in progress, then close."""
        assert self._runner.server is not None
        self._runner.server.pre_shutdown()
        await self._runner.server.shutdown(CLOSE_S)
        await self._runner.cleanup()

    def take_tally(self) -> dict[int, int]:
        """Answers by status since the last call, without those that the group commit counts."""
        return _taken(self.tally)

    def take_reasons(self) -> dict[str, int]:
        """Requests handed off, by reason, since the last call."""
        return _taken(self.reasons)

    def begin(self, head: Head, body: bytes, style: Style, client: Client, *, is_late: bool) -> Exchange:
        self.reasons[_reason(head)] += 1
        return Exchange(self, head.message(body), style, client, is_late=is_late)

    def handler(self) -> web.RequestHandler:
        assert self._runner.server is not None
        return _RequestHandler(
            self._runner.server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=0,  # one request, and no socket
            lingering_time=0,
            tcp_keepalive=False,
            auto_decompress=False,
            # The fast path applies the limits. A percent-encoded target is longer than the one that was sent.
            max_line_size=4 * MAX_LINE_BYTES,
            max_field_size=4 * MAX_LINE_BYTES,
            read_bufsize=2 * MAX_BULK_BYTES,  # never full: this transport cannot pause the socket
            access_log=None,  # type: ignore[arg-type]  # aiohttp accepts None for no log; its types do not
        )

    async def _finish_head(self, request: web.Request, response: web.StreamResponse) -> None:
        exchange = _exchange(request)
        response.headers.update(exchange.fields)
        response.headers["Connection"] = exchange.conclude()
        response.force_close()  # which ends the exchange


def _taken(counter: collections.Counter[T]) -> dict[T, int]:
    taken = dict(counter)
    counter.clear()
    return taken


def _reason(head: Head) -> str:
    if head.method == b"POST":
        return "post"
    if head.method != b"GET":
        return "method"
    return "path"


class _RequestHandler(web.RequestHandler):
    """aiohttp's own handler, with idagg's answers to errors."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= 500:
            log.error("the fallback app failed, answering %d", status, exc_info=exc)
        response = failed(status)
        response.headers.update(_exchange(request).fields)
        response.force_close()
        return response
