"""``idagg check``: whether `idagg serve` would start and count with these settings, part by part."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal, NamedTuple

import orjson

from idagg.deliver.logfile import LogFile, shown
from idagg.errors import BrokerAwayError, CannotStartError, Exit, LogFileError, StoreError
from idagg.run import preflight, sinks, stores
from idagg.settings import Settings
from idagg.store import embedded
from idagg.store.election import Agreed
from idagg.store.probe import agreement, probe

TIMEOUT_S = 5.0


class Verdict(NamedTuple):
    """``warning``: idagg counts, but not as well as it could, or not for long."""

    state: Literal["ok", "warning", "failed"]
    part: str
    said: str


def check(
    settings: Settings,
    origin: Mapping[str, str],
    tell: Callable[[str], None],
    *,
    as_json: bool = False,
) -> int:
    """Tell one line for each part. Returns Exit.OK if idagg can count, else Exit.TROUBLE."""
    verdicts = asyncio.run(_Check(settings, origin).run())
    is_well = all(verdict.state != "failed" for verdict in verdicts)
    if as_json:
        tell(orjson.dumps({"ok": is_well, "parts": [verdict._asdict() for verdict in verdicts]}).decode())
    else:
        for verdict in verdicts:
            tell(f"{verdict.state:8}{verdict.part}: {verdict.said}")
    return Exit.OK if is_well else Exit.TROUBLE


class _Check:
    def __init__(self, settings: Settings, origin: Mapping[str, str]) -> None:
        self._settings = settings
        self._origin = origin
        self._skew_s: float | None = None  # this machine's clock minus the store's
        self._warnings: list[Verdict] = []

    async def run(self) -> list[Verdict]:
        parts: dict[str, Callable[[], Awaitable[str]]] = {
            "store": self._store,
            "broker": self._broker,
            "log file": self._log_file,
            "listeners": self._listeners,
        }
        verdicts = []
        for name, part in parts.items():
            try:
                verdicts.append(Verdict("ok", name, await part()))
            except (StoreError, BrokerAwayError, LogFileError, CannotStartError) as error:
                verdicts.append(Verdict("failed", name, str(error)))
        for name, said in preflight.warnings(self._settings, self._origin, self._skew_s):
            self._warn(name, said)
        return [*verdicts, *self._warnings]

    def _warn(self, part: str, said: str) -> None:
        self._warnings.append(Verdict("warning", part, said))

    async def _store(self) -> str:
        settings = self._settings
        if settings.redis_url is None:
            assert settings.state_dir is not None  # the settings see to that
            binary = embedded.find_binary()
            if trouble := await asyncio.to_thread(embedded.examine, settings.state_dir):
                raise CannotStartError(trouble)
            return f"embedded {binary}, its data goes to {preflight.state_folder(settings)}"
        said = await probe(
            settings.redis_url,
            settings.namespace,
            timeout_s=TIMEOUT_S,
            replicas=settings.replicas,
            shards=stores.shards(settings.in_force()),
        )
        ours = Agreed(settings.window, settings.exact_limit, stores.shards(settings.in_force()))
        sent_s = time.time()
        beside = await agreement(settings.redis_url, settings.namespace, ours, timeout_s=TIMEOUT_S)
        self._skew_s = (sent_s + time.time()) / 2 - beside.now_s
        if beside.notice:  # why this instance would not lead
            self._warn("store", beside.notice)
        if beside.trouble:
            raise CannotStartError(beside.trouble)
        return said

    async def _broker(self) -> str:
        settings = self._settings
        broker = sinks.broker(settings.in_force())
        if broker is None:
            return f"none configured, counts go to {shown(settings.log_file)}"
        said, unreached = await broker.check()
        for host in unreached:
            self._warn("broker", host)
        return said

    async def _log_file(self) -> str:
        await LogFile(self._settings.log_file).check()
        room = preflight.log_disk(self._settings)
        return f"{shown(self._settings.log_file)} can be written" + (f", {room}" if room else "")

    async def _listeners(self) -> str:
        return await asyncio.to_thread(preflight.listeners, self._settings)
