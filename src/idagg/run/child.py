"""A process of the supervisor: a fresh interpreter that is watched by its heartbeats and killed if it hangs.

It writes a heartbeat to its standard output twice a second. If the supervisor dies, the process's standard
input closes, and it stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")

log = logging.getLogger("idagg.supervisor")

# The time of 20 heartbeats. A healthy worker is silent for one full batch at most, some tens of ms.
HUNG_S = 10.0
# The supervisor's own patience is counted in steps: see `_line`.
_STEP_S = 0.5
# From SIGABRT to SIGKILL, for a process that hangs.
LAST_WORDS_S = 1.0
# From SIGTERM to SIGKILL: above the longest deadline of a request and that of a message together.
STOP_S = 20.0


class Child(Generic[T]):
    """A process, its last heartbeat and its end. It is started at once; the task ``life`` ends with it.

    The same interpreter runs ``module``, which gets ``start``, one line. ``writer`` is the number of its
    metrics files, unique among running processes.
    """

    def __init__(
        self,
        name: str,
        module: str,
        start: bytes,
        parse: Callable[[bytes], T],
        *,
        writer: int,
        environment: Mapping[str, str],
        pass_fds: Iterable[int] = (),
    ) -> None:
        self.name = name
        self.writer = writer
        self.said: T | None = None  # last
        self.code: int | None = None  # exit code; None after its end: it could not be started
        self._module = module
        self._start = start
        self._parse = parse
        self._environment = environment
        self._pass_fds = tuple(pass_fds)
        self._process: asyncio.subprocess.Process | None = None
        self._listens_since: float | None = None
        self._stopping = False
        self.life = asyncio.create_task(self._live())

    def __repr__(self) -> str:
        return f"<Child {self.name} pid={self._process and self._process.pid} {self.said}>"

    @property
    def served_s(self) -> float:
        """Seconds since its first heartbeat; 0 before that."""
        return time.monotonic() - self._listens_since if self._listens_since else 0.0

    @property
    def died_of(self) -> str:
        if self.code is None:
            return "it could not be started"
        return signal.Signals(-self.code).name if self.code < 0 else f"exit code {self.code}"

    def send(self, line: bytes) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(RuntimeError):  # uvloop raises it if the process has died
                self._process.stdin.write(line)

    def stop(self) -> None:
        """Send SIGTERM, even to a process that is only being started."""
        self._stopping = True
        self.signal(signal.SIGTERM)

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def _live(self) -> None:
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                # -P: no file of the working folder is imported in place of a library (secrets.py, redis.py).
                *(sys.executable, "-P", "-m", self._module),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                pass_fds=self._pass_fds,
                env=dict(self._environment),
                # Ctrl-C signals the whole process group, but the supervisor decides when its processes stop.
                start_new_session=True,
            )
        except OSError as error:
            log.error("%s cannot be started: %s", self.name, error)
            return
        self.send(self._start)
        if self._stopping:
            self.signal(signal.SIGTERM)
        who = f"{self.name} (pid {process.pid})"
        try:
            await self._listen_to(process)
        except TimeoutError:
            log.error("%s has sent no heartbeat for %g s, killing it", who, HUNG_S)
            self.signal(signal.SIGABRT)  # it prints where it hangs
            await asyncio.wait([asyncio.create_task(process.wait())], timeout=LAST_WORDS_S)
            self.signal(signal.SIGKILL)  # a stopped process reacts to no other signal
        except (TypeError, ValueError) as error:
            log.error("%s sent an unreadable heartbeat (a version mismatch?), killing it: %s", who, error)
            self.signal(signal.SIGKILL)
        self.said = None
        self.code = await process.wait()

    async def _listen_to(self, process: asyncio.subprocess.Process) -> None:
        """Read its heartbeats until it ends. Raises TimeoutError if there is none for HUNG_S."""
        assert process.stdout is not None
        while True:
            line = await _line(process.stdout)
            if not line:
                return
            self.said = self._parse(line)
            self._listens_since = self._listens_since or time.monotonic()


async def _line(stdout: asyncio.StreamReader) -> bytes:
    """The next heartbeat. Raises TimeoutError if there is none for HUNG_S.

    If this process itself stood still (SIGSTOP, a paused container), it reads what the child said meanwhile
    before it judges: a stop of any length counts as one step.
    """
    for _ in range(max(1, round(HUNG_S / _STEP_S))):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STEP_S):
                return await stdout.readline()
    raise TimeoutError


async def end(*children: Child[T]) -> None:
    """Stop the processes and wait for their end. Kill those that take longer than STOP_S."""
    if not children:
        return
    for child in children:
        child.stop()
    _, late = await asyncio.wait([child.life for child in children], timeout=STOP_S)
    if late:
        log.error("%d processes did not stop within %g s, killing them", len(late), STOP_S)
    for child in children:
        child.signal(signal.SIGKILL)
