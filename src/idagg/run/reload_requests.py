"""Requests for a reload, by SIGHUP or ``idagg reload``, and what is told of it."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping, Sequence

from idagg import __version__
from idagg.errors import Exit
from idagg.metrics import SupervisorMetrics
from idagg.run.control import Control, Request
from idagg.run.reload import environment
from idagg.run.systemd import notify

log = logging.getLogger("idagg.supervisor")


class ReloadRequests:
    """Requests that come after the settings were read count as one more reload.

    ``control`` is the inherited control socket, ``waiting`` are inherited connections of ``idagg reload``.
    ``failed`` is a sentence from a reload that failed until the next one goes well.
    """

    def __init__(
        self, metrics: SupervisorMetrics, *, control: int | None = None, waiting: Sequence[int] = ()
    ) -> None:
        self.failed: str | None = None
        self._metrics = metrics
        self._wanted = asyncio.Event()
        self._requests = [Request(socket.socket(fileno=number)) for number in waiting]
        self._later: list[Request] = []  # for the next reload
        self._control = Control(self._on_request, control)

    @property
    def control(self) -> int | None:
        return self._control.descriptor

    @property
    def waiting(self) -> list[int]:
        return [request.client.fileno() for request in self._requests]

    @property
    def is_wanted(self) -> bool:
        """Whether there are requests that were not taken yet."""
        return self._wanted.is_set()

    def want(self) -> None:
        self._wanted.set()

    async def next(self) -> None:
        await self._wanted.wait()

    def take(self) -> Mapping[str, str]:
        """Have the reload be for all requests so far. Returns the environment of the program to execute."""
        self._wanted.clear()
        self._requests += self._later
        self._later = []
        given = [request.environment for request in self._requests if request.environment is not None]
        return environment(given[-1] if given else None)

    def tell(self, trouble: str | None, workers: int) -> None:
        """Tell everybody what came of the reload; ``trouble``: why it failed."""
        running = f"{workers} workers listen"
        if trouble is None:
            self.failed = None
            self._metrics.reloaded("done")
            log.info("reloaded: idagg %s, %s", __version__, running)
            notify("READY=1", f"STATUS={running}")
            self._answer(f"reloaded: idagg {__version__}, {running}", Exit.OK)
        else:
            sentence = f"the reload failed, idagg serves on as before: {trouble}"
            self.failed = sentence
            self._metrics.reloaded("failed")
            log.error("%s", sentence)
            notify("READY=1", f"STATUS={sentence}")
            self._answer(sentence, Exit.TROUBLE)

    def refuse(self, sentence: str) -> None:
        self.take()
        self._answer(sentence, Exit.TROUBLE)

    def close(self) -> None:
        self._control.close()

    def _on_request(self, request: Request) -> None:
        self._later.append(request)
        self._wanted.set()

    def _answer(self, sentence: str, code: Exit) -> None:
        requests, self._requests = self._requests, []
        for request in requests:
            request.tell(sentence, exit_code=code)
