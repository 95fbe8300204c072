"""``idagg check``: reach every dependency, and say how each is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from idagg.deliver.logfile import LogFile, shown
from idagg.errors import BrokerAwayError, CannotStartError, Exit, LogFileError, StoreError
from idagg.run import sinks
from idagg.settings import Settings
from idagg.store.client import Client
from idagg.store.embedded import OLDEST, find_binary
from idagg.store.windows import WindowStore

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
    client = Client(settings.redis_url, timeout_s=TIMEOUT_S)
    try:
        info = await client.command("INFO")
        version = str(info.get("valkey_version") or info["redis_version"])
        if tuple(map(int, version.split(".")[:2])) < OLDEST:
            wanted = ".".join(map(str, OLDEST))
            raise StoreError(f"Redis at {client.address} is {version}: {wanted} or newer is needed")
        policy = str(info.get("maxmemory_policy", "noeviction"))
        if info.get("maxmemory") and policy != "noeviction":
            raise StoreError(
                f"Redis at {client.address} drops keys, and counts with them, when it is full "
                f"(maxmemory-policy {policy}): set noeviction"
            )
        windows = WindowStore(
            client,
            namespace=settings.namespace,
            window_s=settings.window,
            exact_limit=settings.exact_limit,
        )
        if damage := await windows.damage():
            raise StoreError(f"Redis at {client.address} is damaged: {'; '.join(damage)}")
        durable = await _durability(client, info)
        return f"Redis {version} at {client.address}, {durable}"
    finally:
        await client.close()


async def _durability(client: Client, info: dict[str, object]) -> str:
    """What an ``ok`` is worth there."""
    if not info.get("aof_enabled"):
        return "appendonly no: an ok can be lost when Redis dies"
    try:
        told: list[bytes] = await client.command("CONFIG", "GET", "*appendfsync*")
    except StoreError:  # many hosted servers do not tell
        told = []
    config = dict(zip(told[::2], told[1::2], strict=True))
    policy = config.get(b"appendfsync", b"unknown").decode()
    if policy == "unknown":
        return "appendonly yes, appendfsync unknown"
    if policy == "always" and config.get(b"no-appendfsync-on-rewrite") == b"yes":
        return "appendfsync always, but no-appendfsync-on-rewrite: an ok of a rewrite's time can be lost"
    worth = {
        "always": "an ok is on disk",
        "everysec": "an ok of the last 2 s can be lost when Redis dies",
    }.get(policy, "an ok can be lost when Redis' machine dies")
    return f"appendfsync {policy}: {worth}"


async def _broker(settings: Settings) -> str:
    broker = sinks.broker(settings)
    return await broker.check() if broker else f"none, counts go to {shown(settings.log_file)}"


async def _log_file(settings: Settings) -> str:
    await LogFile(settings.log_file).check()
    return f"{shown(settings.log_file)} can be written"
