"""Groups of asyncio tasks, and their end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks until they have ended, and ignore their results.

    One cancellation is not enough: a library can lose one, as aiohappyeyeballs does where it arrives while an
    attempt to connect is being given up.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.1)
    await asyncio.gather(*tasks, return_exceptions=True)


class Tasks:
    """Tasks that all have to go on. If one ends by itself, ``over`` is set."""

    def __init__(self, over: asyncio.Event) -> None:
        self._over = over
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, part: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(part)
        self._tasks.append(task)
        task.add_done_callback(lambda task: self._over.set() if task in self._tasks else None)
        return task

    async def give_up(self, task: asyncio.Task[None]) -> None:
        """End one, so that the others go on."""
        self._tasks.remove(task)
        await end(task)

    async def one_ends(self, other: asyncio.Task[Any], *, timeout_s: float) -> None:
        """Wait until one of them ends, or ``other``, but no longer than so."""
        await asyncio.wait([other, *self._tasks], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)

    async def end(self) -> None:
        """End all. Raises the error of the first that failed."""
        await end(*self._tasks)
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
