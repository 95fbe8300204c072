from __future__ import annotations

import asyncio
import contextlib

import pytest

from idagg.tasks import Tasks, end


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
    async with asyncio.timeout(30):
        await end(*tasks)
    assert lost == 1
    assert all(task.done() for task in tasks)


async def test_nothing_to_end() -> None:
    """No tasks are ended at once."""
    await end()


async def test_one_of_many_that_ends() -> None:
    """It is told, whether it failed or not; one that is given up is not, and its error is nobody's."""
    over, stopped = asyncio.Event(), asyncio.Event()
    tasks = Tasks(over)
    given_up = tasks.begin(_until(asyncio.Event()))
    tasks.begin(_until(asyncio.Event()))
    await tasks.give_up(given_up)
    assert not over.is_set()
    failing = tasks.begin(_until(stopped))
    stopped.set()
    async with asyncio.timeout(30):
        await over.wait()
    assert failing.done()
    with pytest.raises(OSError, match="it ends"):
        await tasks.end()


async def _until(event: asyncio.Event) -> None:
    await event.wait()
    raise OSError("it ends")


async def test_a_cancellation_that_one_of_many_has_lost() -> None:
    """All end, that one too."""
    tasks = Tasks(asyncio.Event())

    async def deaf_once() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    task = tasks.begin(deaf_once())
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await tasks.end()
    assert task.cancelled()
