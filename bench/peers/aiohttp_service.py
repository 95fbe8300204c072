"""The service in plain aiohttp on uvloop.

Its argument says how it stores: ``sadd``, a command for each request, or ``group``, one command for all
requests that came while the last one travelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import Protocol

import uvloop
from aiohttp import web
from redis.asyncio import Redis
from redis.exceptions import RedisError


class Store(Protocol):
    async def add(self, number: int, endpoint: str | None) -> None: ...


class Sadd:
    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def add(self, number: int, endpoint: str | None) -> None:
        minute = int(time.time()) // 60
        await self._redis.sadd(f"ids:{minute}", number)
        if endpoint:
            await self._redis.sadd(f"endpoints:{minute}", endpoint)


class Batch:
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.endpoints: set[str] = set()
        self.settled = asyncio.get_running_loop().create_future()


class GroupCommit:
    """Everyone in a batch awaits the same future: aiohttp cancels no handler, save at the end of them all."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._some = asyncio.Event()
        self._open: Batch | None = None

    async def add(self, number: int, endpoint: str | None) -> None:
        if self._open is None:
            self._open = Batch()
            self._some.set()
        self._open.ids.append(number)
        if endpoint:
            self._open.endpoints.add(endpoint)
        await self._open.settled

    async def run(self) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            batch, self._open = self._open, None
            assert batch is not None
            minute = int(time.time()) // 60
            try:
                await self._redis.sadd(f"ids:{minute}", *batch.ids)
                if batch.endpoints:
                    await self._redis.sadd(f"endpoints:{minute}", *batch.endpoints)
            except RedisError as error:
                batch.settled.set_exception(error)
            else:
                batch.settled.set_result(None)

    async def while_serving(self, app: web.Application) -> AsyncIterator[None]:
        running = asyncio.create_task(self.run())
        yield
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def service(storing: str) -> web.Application:
    redis = Redis(unix_socket_path=os.environ["REDIS_SOCKET"], max_connections=1024)
    app = web.Application()
    store: Store
    if storing == "group":
        store = group = GroupCommit(redis)
        app.cleanup_ctx.append(group.while_serving)
    else:
        store = Sadd(redis)

    async def accept(request: web.Request) -> web.Response:
        try:
            number = int(request.query["id"])
        except (KeyError, ValueError):
            return web.Response(status=400, text="failed")
        try:
            await store.add(number, request.query.get("endpoint"))
        except RedisError:
            return web.Response(status=503, text="failed")
        return web.Response(text="ok")

    app.router.add_get("/api/verve/accept", accept)
    return app


web.run_app(
    service(sys.argv[1]),
    host="127.0.0.1",
    port=int(os.environ["PORT"]),
    backlog=4096,
    access_log=None,
    print=None,
    shutdown_timeout=1,
    loop=uvloop.new_event_loop(),
)
