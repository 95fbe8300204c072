"""The real store with a hand-cranked clock."""

from __future__ import annotations

from typing import Any

from idagg.store.client import Client, Script, source

_TIME = "redis.call('TIME')"
_CLOCK = "redis.call('HMGET', 'cranked', 's', 'us')"


class CrankedClient(Client):
    """Its scripts, and whoever asks for it, read the time that ``at`` has set; it differs in nothing else."""

    def __init__(self, url: str, *, timeout_s: float = 5.0) -> None:
        super().__init__(url, timeout_s=timeout_s)

    async def at(self, second: float) -> None:
        await self.command("HSET", "cranked", "s", int(second), "us", int(second % 1 * 1e6))

    async def command(self, *args: bytes | str | int) -> Any:
        if args == ("TIME",):
            return await super().command("HMGET", "cranked", "s", "us")
        return await super().command(*args)

    def _script(self, name: str) -> Script:
        text = source(name)
        assert text.count(_TIME) == 1
        return Script.of(text.replace(_TIME, _CLOCK))
