"""The end of asyncio tasks."""

from __future__ import annotations

import asyncio
from typing import Any


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks until they have ended, and ignore their results.

    One cancellation is not enough: ``asyncio.wait_for`` of Python 3.11 loses one that arrives just as it
    ends. The Redis client sends its commands in it.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.1)
    await asyncio.gather(*tasks, return_exceptions=True)
