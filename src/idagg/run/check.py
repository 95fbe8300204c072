"""``idagg check``: connect to every dependency and print the state of each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from idagg.deliver.logfile import LogFile, shown
from idagg.errors import BrokerAwayError, CannotStartError, Exit, LogFileError, StoreError
from idagg.run import sinks, stores
from idagg.settings import Settings
from idagg.store import embedded
from idagg.store.probe import probe

TIMEOUT_S = 5.0


def check(settings: Settings, tell: Callable[[str], None]) -> int:
    """Tell one line for each dependency. Returns Exit.OK if all can be used, else Exit.TROUBLE."""
    return asyncio.run(_check(settings, tell))


async def _check(settings: Settings, tell: Callable[[str], None]) -> int:
    parts: dict[str, Callable[[Settings], Awaitable[str]]] = {
        "store": _store,
        "broker": _broker,
        "log file": _log_file,
    }
    well = True
    for name, part in parts.items():
        try:
            verdict = f"ok      {name}: {await part(settings)}"
        except (StoreError, BrokerAwayError, LogFileError, CannotStartError) as error:
            well = False
            verdict = f"failed  {name}: {error}"
        tell(verdict)
    return Exit.OK if well else Exit.TROUBLE


async def _store(settings: Settings) -> str:
    if settings.redis_url is None:
        assert settings.state_dir is not None  # the settings see to that
        if trouble := await asyncio.to_thread(embedded.examine, settings.state_dir):
            raise CannotStartError(trouble)
        return f"embedded {embedded.find_binary()}, its data goes to {settings.state_dir}"
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
