"""``idagg check``: connect to every dependency and print the state of each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from idagg.deliver.logfile import LogFile, shown
from idagg.errors import BrokerAwayError, CannotStartError, Exit, LogFileError, StoreError
from idagg.run import sinks, stores
from idagg.settings import Settings
from idagg.store.embedded import find_binary
from idagg.store.probe import probe

TIMEOUT_S = 5.0


def check(settings: Settings) -> int:
    """Print one line for each dependency. Returns Exit.OK if all can be used, else Exit.TROUBLE."""
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
        print(verdict)  # noqa: T201  printing is the purpose of this command
    return Exit.OK if well else Exit.TROUBLE


async def _store(settings: Settings) -> str:
    if settings.redis_url is None:
        return f"embedded {find_binary()}, its data goes to {settings.state_dir}"
    return await probe(
        settings.redis_url,
        settings.namespace,
        timeout_s=TIMEOUT_S,
        replicas=settings.replicas,
        shards=stores.shards(settings),
    )


async def _broker(settings: Settings) -> str:
    broker = sinks.broker(settings)
    return await broker.check() if broker else f"none configured, counts go to {shown(settings.log_file)}"


async def _log_file(settings: Settings) -> str:
    await LogFile(settings.log_file).check()
    return f"{shown(settings.log_file)} can be written"
