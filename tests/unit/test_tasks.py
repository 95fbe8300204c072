from __future__ import annotations

import asyncio

from idagg.tasks import end


async def test_a_cancellation_that_is_lost_is_repeated() -> None:
    """A task that passes over one cancellation ends with the next; those that have failed do no harm."""
    lost = 0

    async def deaf_once() -> None:
        nonlocal lost
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            lost += 1
        await asyncio.Event().wait()

    async def fails() -> None:
        raise OSError("it fails")

    tasks = [asyncio.create_task(deaf_once()), asyncio.create_task(fails())]
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await end(*tasks)
    assert lost == 1
    assert all(task.done() for task in tasks)


async def test_nothing_to_end() -> None:
    """No tasks are ended at once."""
    await end()
