"""A process of the supervisor: a fresh interpreter that is watched by its heartbeats and killed if it hangs.

It writes a heartbeat to its standard output twice a second. If the supervisor dies, the kernel kills it
(``parent.py``). A reload executes another supervisor, which adopts the process: it needs the pid
and two descriptors.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

from idagg.spawn import Process, died_of, spawn

T = TypeVar("T")

log = logging.getLogger("idagg.supervisor")

# The time of 20 heartbeats. A healthy worker is silent for one full batch at most, some tens of ms.
HUNG_S = 10.0
# A supervisor that wakes up so much later than it should has stood still itself, and judges nobody by that.
ASLEEP_S = 1.0
# From SIGABRT to SIGKILL, for a process that hangs.
LAST_WORDS_S = 1.0
# From SIGTERM to SIGKILL: above the longest deadline of a request and that of a message together.
STOP_S = 20.0
# Capacity of a pipe by default. A first message may be longer, with thousands of --callback-allow.
_PIPE_BYTES = 65_536


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """What is needed to hold a running process. ``stdin`` and ``stdout`` are our ends of two pipes.

    ``hung_s``: it hangs if it has been silent for so long; None: for HUNG_S.
    """

    name: str
    pid: int
    writer: int
    stdin: int
    stdout: int
    pass_fds: list[int]
    hung_s: float | None = None
    listens_since: float | None = None  # by the system's monotonic clock
    last: str = ""  # heartbeat, as it came
    unread: str = ""  # the beginning of the next one


class Child(Generic[T]):
    """A process, its last heartbeat and its end. The task ``life`` ends with it.

    ``writer`` is the number of its metrics files, unique among running processes; ``pass_fds`` are the
    descriptors that it has inherited.
    """

    def __init__(
        self, held: Held, parse: Callable[[bytes], T], *, unstartable: OSError | None = None
    ) -> None:
        self.name = held.name
        self.writer = held.writer
        self.pass_fds = held.pass_fds
        self.said: T | None = None  # last
        self.said_at = time.monotonic()  # that
        self.code: int | None = None  # exit code; None after its end: it could not be started
        self.on_change: Callable[[], None] = lambda: None  # called once it listens, and when it has died
        self.on_said: Callable[[T], None] = lambda said: None  # called with each heartbeat
        self._held = held
        self._hung_s = held.hung_s or HUNG_S
        self._parse = parse
        self._unstartable = unstartable
        self._process = None if unstartable else Process(held.pid)
        self._listens_since = held.listens_since
        self._last = held.last.encode()
        self._unread = held.unread.encode()
        self._is_open = True  # its descriptors are
        if held.last:
            with contextlib.suppress(TypeError, ValueError):  # the next one will tell
                self.said = parse(self._last)
        self.life = asyncio.create_task(self._live())

    @classmethod
    def start(
        cls,
        name: str,
        module: str,
        first: bytes,
        parse: Callable[[bytes], T],
        *,
        writer: int,
        environment: Mapping[str, str],
        pass_fds: Iterable[int] = (),
        hung_s: float | None = None,
    ) -> Child[T]:
        """Run ``module`` by the same interpreter. It gets the lines ``first``."""
        inherited = list(pass_fds)
        (stdin_there, stdin), (stdout, stdout_there) = _pipe(), _pipe()
        unstartable, pid = None, 0
        with contextlib.suppress(OSError):  # more than the system allows: less is written then
            if len(first) > _PIPE_BYTES:
                fcntl.fcntl(stdin, fcntl.F_SETPIPE_SZ, len(first))
        os.set_blocking(stdin, False)
        os.set_blocking(stdout, False)
        try:
            if os.write(stdin, first) < len(first):
                raise OSError(errno.EMSGSIZE, "its settings are longer than fs.pipe-max-size lets a pipe be")
            pid = spawn(
                # -P: no file of the working folder is imported in place of a library (secrets.py, redis.py).
                [sys.executable, "-P", "-m", module],
                stdin=stdin_there,
                stdout=stdout_there,
                environment=environment,
                pass_fds=inherited,
            )
        except OSError as error:
            unstartable = error
        finally:
            os.close(stdin_there)
            os.close(stdout_there)
        return cls(Held(name, pid, writer, stdin, stdout, inherited, hung_s), parse, unstartable=unstartable)

    def __repr__(self) -> str:
        return f"<Child {self.name} pid={self._held.pid} {self.said}>"

    @property
    def held(self) -> Held:
        """Its present state, for the next supervisor."""
        return dataclasses.replace(
            self._held,
            listens_since=self._listens_since,
            last=self._last.decode(errors="replace"),
            unread=self._unread.decode(errors="replace"),
        )

    @property
    def descriptors(self) -> list[int]:
        return [self._held.stdin, self._held.stdout]

    @property
    def served_s(self) -> float:
        """Seconds since its first heartbeat; 0 before that."""
        return time.monotonic() - self._listens_since if self._listens_since else 0.0

    @property
    def died_of(self) -> str:
        if self.code is None:
            return "it could not be started"
        return died_of(self.code)

    def send(self, line: bytes) -> None:
        if self._is_open:
            with contextlib.suppress(BrokenPipeError, BlockingIOError):  # it has died, or hangs
                os.write(self._held.stdin, line)

    def stop(self) -> None:
        self.signal(signal.SIGTERM)

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    async def _live(self) -> None:
        process = self._process
        if process is None:
            log.error("%s cannot be started: %s", self.name, self._unstartable)
        else:
            await self._watch(process)
        self._is_open = False
        for number in self.descriptors:
            os.close(number)
        self.on_change()

    async def _watch(self, process: Process) -> None:
        who = f"{self.name} (pid {process.pid})"
        try:
            await self._listen()
        except TimeoutError:
            log.error("%s has sent no heartbeat for %g s, killing it", who, self._hung_s)
            process.send_signal(signal.SIGABRT)  # it prints where it hangs
            await asyncio.wait([asyncio.create_task(process.wait())], timeout=LAST_WORDS_S)
            process.kill()  # a stopped process reacts to no other signal
        except (TypeError, ValueError) as error:
            log.error("%s sent an unreadable heartbeat (a version mismatch?), killing it: %s", who, error)
            process.kill()
        self.said = None
        self.code = await process.wait()

    async def _listen(self) -> None:
        """Read its heartbeats until it ends. Raises TimeoutError if there is none for ``hung_s``."""
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._held.stdout, readable.set)
        try:
            while True:
                since_s = time.monotonic()
                try:
                    async with asyncio.timeout(self._hung_s):
                        await readable.wait()
                except TimeoutError:
                    # Timers run before descriptors: what it said while this process stood still is there.
                    if self._read() is None and time.monotonic() - since_s < self._hung_s + ASLEEP_S:
                        raise
                readable.clear()
                if self._read() is False:
                    return
        finally:
            loop.remove_reader(self._held.stdout)

    def _read(self) -> bool | None:
        """Read what there is. Returns False at the end, None if there is nothing."""
        try:
            data = os.read(self._held.stdout, _PIPE_BYTES)
        except BlockingIOError:
            return None
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self.said, self._last = self._parse(line), line
            self.said_at = time.monotonic()
            self.on_said(self.said)
        if lines and self._listens_since is None:
            self._listens_since = time.monotonic()
            self.on_change()
        return bool(data)


async def end(*children: Child[T]) -> None:
    """Stop the processes, and kill those that take longer than STOP_S."""
    if not children:
        return
    for child in children:
        child.stop()
    _, late = await asyncio.wait([child.life for child in children], timeout=STOP_S)
    if late:
        log.error("%d processes did not stop within %g s, killing them", len(late), STOP_S)
    for child in children:
        child.signal(signal.SIGKILL)


def _pipe() -> tuple[int, int]:
    """A pipe whose descriptors are none of the standard ones, even if those are closed."""
    ends = os.pipe()
    lifted = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3) for number in ends]
    for number in ends:
        os.close(number)
    return lifted[0], lifted[1]
