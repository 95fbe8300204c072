"""The supervisor's running processes, and what each of them gets at its start."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from idagg import metrics
from idagg.in_force import InForce
from idagg.run.child import Child
from idagg.run.messages import CallbackStart, Heartbeat
from idagg.run.reload import held_from
from idagg.settings import Settings

log = logging.getLogger("idagg.supervisor")


class Children:
    """The processes that run, starting and stopping ones included.

    ``settings`` are those in force; a reload changes them at its end. ``store_url`` is the address of Redis,
    or of the embedded store once it runs. ``stdout`` is a descriptor of the supervisor's standard output.
    ``on_said`` is called with a process's name and each of its heartbeats.
    """

    def __init__(
        self,
        settings: Settings,
        store_url: str,
        metrics_folder: Path,
        stdout: int,
        *,
        on_said: Callable[[str, Heartbeat], None] = lambda name, heartbeat: None,
    ) -> None:
        self.settings = settings
        self.store_url = store_url
        self.metrics_folder = metrics_folder
        self.stdout = stdout
        self._on_said = on_said
        self.running = set[Child[Heartbeat]]()
        self.deaths = collections.Counter[str]()  # by kind of process
        self.stopping = asyncio.Event()  # all of them are to end

    def common(self, settings: Settings) -> tuple[InForce, str, int, int]:
        """The fields with which each first message begins."""
        return settings.in_force(), settings.redis_url or self.store_url, self._free_writer(), self.stdout

    def start(
        self,
        name: str,
        module: str,
        start: CallbackStart,
        *,
        later: bytes = b"",
        pass_fds: Iterable[int] = (),
        hung_s: float | None = None,
    ) -> Child[Heartbeat]:
        """Start a process. It gets the message ``start``, and then the lines ``later``."""
        return self._watched(
            Child.start(
                name,
                module,
                start.line() + later,
                Heartbeat.parse,
                writer=start.writer,
                environment=self.environment(start.writer),
                pass_fds=[*pass_fds, self.stdout],
                hung_s=hung_s,
            )
        )

    def adopted(self, held: Mapping[str, Any] | None) -> Child[Heartbeat] | None:
        """A process that the program executed before has left."""
        return None if held is None else self._watched(Child(held_from(held), Heartbeat.parse))

    def environment(self, writer: int) -> dict[str, str]:
        """This process's environment, with a metrics file of that number."""
        variables = {**os.environ, metrics.FOLDER_VARIABLE: str(self.metrics_folder)}
        try:
            metrics.reserve(self.metrics_folder, writer)
        except OSError as error:
            log.error("a process runs without metrics: %s in %s", error.strerror, self.metrics_folder)
            del variables[metrics.FOLDER_VARIABLE]
        return variables

    async def pause(self, seconds: float) -> None:
        """Wait for so long, or until the processes are to end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stopping.wait()

    def _free_writer(self) -> int:
        taken = {child.writer for child in self.running}
        return next(number for number in itertools.count() if number not in taken)

    def _watched(self, child: Child[Heartbeat]) -> Child[Heartbeat]:
        def ended(life: asyncio.Task[None]) -> None:
            self.running.discard(child)
            metrics.forget(self.metrics_folder, child.writer)

        self.running.add(child)
        child.life.add_done_callback(ended)
        child.on_said = functools.partial(self._on_said, child.name)
        return child
