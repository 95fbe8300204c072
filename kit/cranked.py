"""The real store with a hand-cranked clock."""

from __future__ import annotations

from typing import Any

from idagg.store.client import Client, Script, source
from kit.waiting import LIMIT_S

_TIME = "redis.call('TIME')"
_CLOCK = "redis.call('HMGET', {key}, 's', 'us')"
# Redis 7.2 writes some numbers of nine digits and more that a script passes on as 1.8e+9.
_STRICT = """
local redis = setmetatable({}, {__index = function(_, name)
  return function(...)
    for _, argument in ipairs({...}) do
      assert(type(argument) ~= 'number' or argument < 1e8, 'a number that is not in digits')
    end
    return redis[name](...)
  end
end})
"""


class CrankedClient(Client):
    """Its scripts, and whoever asks for it, read the time that ``at`` has set.

    They pass no number on that some servers would not write in digits. With ``tag``, that of a shard in a
    cluster, the shard has a clock of its own.
    """

    def __init__(self, url: str, *, timeout_s: float = LIMIT_S, tag: str = "") -> None:
        super().__init__(url, timeout_s=timeout_s, tag=tag)
        self._clock, self._named = (
            (f"{tag}:cranked", "KEYS[1] .. ':cranked'") if tag else ("cranked", "'cranked'")
        )

    async def at(self, second: float) -> None:
        await self.command("HSET", self._clock, "s", int(second), "us", int(second % 1 * 1e6))

    async def command(self, *args: bytes | str | int) -> Any:
        if args == ("TIME",):
            return await super().command("HMGET", self._clock, "s", "us")
        return await super().command(*args)

    def _script(self, name: str) -> Script:
        text = source(name)
        assert text.count(_TIME) == 1
        return Script.of(_STRICT + text.replace(_TIME, _CLOCK.format(key=self._named)))
