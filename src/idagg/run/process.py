"""What the processes of the supervisor have in common: their first steps, messages, heartbeats and end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import faulthandler
import os
import select
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from idagg import metrics
from idagg.run.logs import log_to_stderr, take_recent
from idagg.run.messages import Heartbeat
from idagg.run.parent import die_with_supervisor
from idagg.tasks import end

T = TypeVar("T")


def first_message(parse: Callable[[bytes], T]) -> T:
    """Read the first line of standard input, and leave that open: it ends when the supervisor dies."""
    die_with_supervisor(sys.stdin.fileno())
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # of no use here; `pkill -HUP -f idagg` reaches all processes
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as messages:
        return parse(messages.readline())


async def later_messages() -> AsyncGenerator[bytes, None]:
    """The supervisor's lines after the first one. They end when it dies."""
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    with contextlib.closing(transport):
        while line := await reader.readline():
            yield line


async def work(**parts: Coroutine[Any, Any, None]) -> None:
    """Run the parts, by name, until SIGTERM or SIGINT; then end them, the last one first. An unhandled error
    in any of them is raised, and none may end by itself."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    tasks = [asyncio.create_task(part, name=name) for name, part in parts.items()]
    stopped = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
    if stopped not in done:
        for task in done:
            task.result()
        raise RuntimeError(f"{[task.get_name() for task in done]} ended by itself")
    await end(*reversed(tasks))


def send(heartbeats: int, heartbeat: Heartbeat) -> None:
    """Send a heartbeat, with what was logged since the last one. Raises BrokenPipeError."""
    # No more than a pipe takes whole or not at all. The rest comes with the next heartbeat.
    lines = take_recent(select.PIPE_BUF - len(heartbeat.line()))
    with contextlib.suppress(BlockingIOError):  # the supervisor is busy: skip this heartbeat
        os.write(heartbeats, dataclasses.replace(heartbeat, lines=lines).line())


def begin(name: str, *, writer: int, stdout: int) -> int:
    """Log as ``name`` and write metrics as ``writer``. Returns a non-blocking descriptor for heartbeats.

    From here on, standard output is the supervisor's own, ``stdout``, under each of its names
    (``/dev/stdout``, too).
    """
    log_to_stderr(name)
    faulthandler.enable()  # if the supervisor sends SIGABRT to a hung process, it prints where it hangs
    metrics.write_as(writer)
    heartbeats = os.dup(sys.stdout.fileno())
    os.set_blocking(heartbeats, False)
    os.dup2(stdout, sys.stdout.fileno())
    os.close(stdout)
    return heartbeats
