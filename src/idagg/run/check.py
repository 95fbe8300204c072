"""``idagg check``: reach every dependency, and say how each is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from idagg.deliver.broker import Broker
from idagg.deliver.logfile import LogFile
from idagg.errors import BrokerAwayError, CannotStartError, Exit, LogFileError, StoreError
from idagg.settings import Settings
from idagg.store.embedded import find_binary
from idagg.store.probe import probe

TIMEOUT_S = 5.0


def check(settings: Settings) -> int:
    """Print a line a dependency; returns Exit.OK where all are well, else Exit.TROUBLE."""
    return asyncio.run(_check(settings))


async def _check(settings: Settings) -> int:
    parts: list[tuple[str, Awaitable[str]]] = [
        ("store", _store(settings)),
        ("broker", _broker(settings)),
        ("log file", _log_file(settings)),
    ]
    well = True
    for name, part in parts:
        try:
            verdict = f"ok      {name}: {await part}"
        except (StoreError, BrokerAwayError, LogFileError, CannotStartError) as error:
            well = False
            verdict = f"failed  {name}: {error}"
        print(verdict)  # noqa: T201  what this command is for
    return Exit.OK if well else Exit.TROUBLE


async def _store(settings: Settings) -> str:
    if settings.redis_url is None:
        return f"embedded {find_binary()}, data would be in {settings.state_dir}"
    return await probe(settings.redis_url, settings.namespace, timeout_s=TIMEOUT_S)


async def _broker(settings: Settings) -> str:
    if settings.amqp_url is None:
        return f"none, counts go to {settings.log_file}"
    broker = Broker(
        settings.amqp_url, settings.amqp_queue, body=settings.amqp_body, namespace=settings.namespace
    )
    state = "is there" if await broker.check() else "will be declared, durable and of type quorum"
    return f"reached, queue {settings.amqp_queue} {state}"


async def _log_file(settings: Settings) -> str:
    await LogFile(settings.log_file).check()
    return f"{settings.log_file} can be written"
