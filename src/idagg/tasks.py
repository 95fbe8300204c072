"""Ending tasks."""

from __future__ import annotations

import asyncio


async def end(*tasks: asyncio.Task[None]) -> None:
    """Cancel the tasks and wait for them, whatever they end with.

    Again and again: ``asyncio.wait_for`` of Python 3.11, in which the Redis client sends its commands, loses
    a cancellation that meets its end.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.1)
    await asyncio.gather(*tasks, return_exceptions=True)
