"""The log file: one logfmt line per record. Several processes append to it, each line whole or not at all.

A lock excludes the others: flock for a regular file, which each process opens by itself. A stream is
inherited: its processes share one open file, which flock takes for one owner. A POSIX lock belongs to a
process.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import errno
import fcntl
import json
import os
import queue
import select
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from idagg.errors import LogFileError
from idagg.window import Record, Rollup, iso

# Time limit of a line, fsync included: the same as for a message to the broker, by default.
LINE_S = 2.0
# Names of inherited descriptors. Opening such a name could yield another file, or fail.
_STANDARD = {
    **dict.fromkeys(("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"), 1),
    **dict.fromkeys(("/dev/stderr", "/dev/fd/2", "/proc/self/fd/2"), 2),
}


def window_line(record: Record, *, time_s: float, reason: str | None = None) -> str:
    """The line of a window. ``reason``: why RabbitMQ, if it is configured, did not get the count."""
    line = (
        f"time={_iso_ms(time_s)} level=INFO event=window window={iso(record.start_s)}"
        f" unique_ids={record.unique_ids} estimate={record.estimate} hits={record.hits}"
        f" exact={'true' if record.exact else 'false'}{' suspect=true' if record.suspect else ''} sink=log"
    )
    return line if reason is None else f"{line} reason={_quoted(reason)}"


def rollup_line(rollup: Rollup, *, time_s: float, reason: str | None = None) -> str:
    """The line of an hour or a day; ``reason`` as in ``window_line``."""
    line = (
        f"time={_iso_ms(time_s)} level=INFO event=rollup period={rollup.period} start={iso(rollup.start_s)}"
        f" unique_ids={rollup.unique_ids} estimate={rollup.unique_ids} hits={rollup.hits} exact=false"
        f"{' suspect=true' if rollup.suspect else ''} sink=log"
    )
    return line if reason is None else f"{line} reason={_quoted(reason)}"


@dataclasses.dataclass(frozen=True, slots=True)
class CallbackLine:
    """The outcome of a callback: the status of its answer, or the error if there was none.

    Callbacks over the limit of one ``address`` were not made, and share one line: ``url`` is None, and
    ``endpoints`` is their number. If the endpoint is silenced from now on, ``silenced_s`` says for how long.
    """

    window_s: int
    url: str | None
    status: int | None
    error: str | None
    attempts: int
    ms: int
    location: str | None = None
    address: str | None = None
    endpoints: int | None = None
    silenced_s: int | None = None

    def text(self, time_s: float) -> str:
        is_ok = self.status is not None and 200 <= self.status < 300
        fields: dict[str, str | int | None] = {
            "url": None if self.url is None else _quoted(self.url),
            "address": None if self.address is None else _quoted(self.address),
            "status": self.status,
            "location": None if self.location is None else _quoted(self.location),
            "error": None if self.error is None else _quoted(self.error),
            "endpoints": self.endpoints,
            "attempts": self.attempts,
            "ms": self.ms,
            "silenced": self.silenced_s,
        }
        named = " ".join(f"{name}={value}" for name, value in fields.items() if value is not None)
        level = "INFO" if is_ok else "WARNING"
        return f"time={_iso_ms(time_s)} level={level} event=callback window={iso(self.window_s)} {named}"


class LogFile:
    """Appends lines in its own thread, so that a hanging disk blocks that thread only.

    A regular file is opened again for each line, so that rotation needs no signal. ``-`` is standard output.
    Streams (standard output and error, terminals, named pipes) stay open, because the reader of a pipe treats
    a close as the end.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout_s: float = LINE_S) -> None:
        self._path = Path(path)
        self._timeout_s = timeout_s
        self._jobs: queue.SimpleQueue[tuple[Callable[[], None], Future[None]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._under_way: Future[None] | None = None
        self._hangs: Future[None] | None = None  # the job in progress when a caller timed out
        self._stream: int | None = None
        self._torn = False  # the last line on the stream is incomplete

    async def window(self, record: Record, *, reason: str | None) -> None:
        """Append a window's line. It is on disk when this returns."""
        await self.append(window_line(record, time_s=time.time(), reason=reason), durable=True)

    async def rollup(self, rollup: Rollup, *, reason: str | None) -> None:
        """Append the line of an hour or a day. It is on disk when this returns."""
        await self.append(rollup_line(rollup, time_s=time.time(), reason=reason), durable=True)

    async def callbacks(self, lines: Sequence[CallbackLine]) -> None:
        """Append lines of callbacks."""
        now = time.time()
        if lines:
            await self.append("\n".join(line.text(now) for line in lines), durable=False)

    async def append(self, text_line: str, *, durable: bool) -> None:
        """Append one line. If ``durable`` is true, it is on disk when this returns.

        Raises LogFileError within the time limit; while an earlier line hangs, at once.
        """
        await self._in_thread(partial(self._append, text_line.encode() + b"\n", durable))

    async def check(self) -> None:
        """Raise the error that ``append`` would raise, without writing."""
        await self._in_thread(self._check)

    async def _in_thread(self, work: Callable[[], None]) -> None:
        if self._hangs is not None and self._hangs is self._under_way:
            raise self._hanging()
        if self._thread is None:
            # A daemon thread, because the process would wait at its end for a thread of the loop's executor.
            self._thread = threading.Thread(target=self._work, name="idagg.logfile", daemon=True)
            self._thread.start()
        done = Future[None]()
        self._jobs.put((work, done))
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.wrap_future(done)
        except TimeoutError:
            # Queued jobs are cancelled by this and dropped. The job in progress may still finish later.
            self._hangs = self._under_way
            raise self._hanging() from None

    def _work(self) -> None:
        while True:
            work, done = self._jobs.get()
            if not done.set_running_or_notify_cancel():
                continue
            self._under_way = done
            try:
                work()
            except Exception as error:
                self._under_way = None
                done.set_exception(error)
            else:
                self._under_way = None
                done.set_result(None)

    def _append(self, line: bytes, durable: bool) -> None:
        try:
            if self._stream is None and (descriptor := _STANDARD.get(str(self._path))) is not None:
                self._stream = os.dup(descriptor)
            elif self._stream is None and _is_stream(self._path):
                # Without O_NONBLOCK, opening a pipe without a reader would block instead of failing.
                self._stream = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            if self._stream is None:
                self._append_to_file(line, durable)
            else:
                self._append_to_stream(self._stream, line, durable)
        except OSError as error:
            raise self._trouble(error) from error

    def _append_to_file(self, line: bytes, durable: bool) -> None:
        with self._path.open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = os.fstat(file.fileno()).st_size
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                line = b"\n" + line  # a power failure cut off the previous line
            try:
                while line:  # after a short write, the next write raises the error
                    line = line[file.write(line) :]
                if durable:
                    os.fsync(file.fileno())
                    _fsync_folder(self._path.parent)
            except OSError:
                file.truncate(size)
                raise

    def _append_to_stream(self, stream: int, line: bytes, durable: bool) -> None:
        """Write the line. Unlike in a file, a partial line cannot be removed again."""
        if self._torn:
            line = b"\n" + line
        try:
            with _locked(stream):
                while line:
                    try:
                        line = line[os.write(stream, line) :]
                        self._torn = bool(line)
                    except BlockingIOError:  # its reader is slow
                        wait_for_reader(stream)
            if durable and stat.S_ISREG(os.fstat(stream).st_mode):
                os.fsync(stream)
        except OSError:
            # Open it again for the next line: the name may then mean another file.
            self._stream = None
            os.close(stream)
            raise

    def _check(self) -> None:
        # Creates no file: if root runs the check, the file would be root's, and the service could not write.
        try:
            if (descriptor := _STANDARD.get(str(self._path))) is not None:
                os.fstat(descriptor)
                return
            kind = os.O_WRONLY | os.O_NONBLOCK if _is_stream(self._path) else os.O_RDWR | os.O_APPEND
            os.close(os.open(self._path, kind | os.O_NOCTTY))
        except FileNotFoundError as error:
            if not os.access(self._path.parent, os.W_OK | os.X_OK):
                raise LogFileError(
                    f"the log file {self._path} cannot be created: its folder is missing or not writable"
                ) from error
        except OSError as error:
            raise self._trouble(error) from error

    def _trouble(self, error: OSError) -> LogFileError:
        what = "nobody reads from it" if error.errno == errno.ENXIO else error.strerror
        return LogFileError(f"the log file {shown(self._path)} cannot be written: {what}")

    def _hanging(self) -> LogFileError:
        return LogFileError(
            f"the log file {shown(self._path)} did not take a line within {self._timeout_s:g} s: "
            "its disk, or the reader of its pipe, hangs"
        )


@contextlib.contextmanager
def _locked(stream: int) -> Iterator[None]:
    with contextlib.suppress(OSError):  # a stream without locks: short lines are whole all the same
        fcntl.lockf(stream, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.lockf(stream, fcntl.LOCK_UN)


def wait_for_reader(stream: int) -> None:
    """Wait until a pipe or a terminal takes bytes again. ``select`` knows no descriptor above 1,023."""
    poll = select.poll()
    poll.register(stream, select.POLLOUT)
    poll.poll()


def is_stdout(path: Path) -> bool:
    return _STANDARD.get(str(path)) == 1


def shown(path: Path) -> str:
    """The path as messages show it."""
    return {1: "standard output", 2: "standard error"}.get(_STANDARD.get(str(path), 0), str(path))


def _is_stream(path: Path) -> bool:
    """Whether the path exists and is no regular file. A stream cannot be rotated, synced or truncated."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(mode)


def _fsync_folder(path: Path) -> None:
    """Sync the folder. Without this, a power failure can lose a new file's name, but not its content."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _iso_ms(time_s: float) -> str:
    moment = datetime.datetime.fromtimestamp(time_s, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _quoted(text: str) -> str:
    """A JSON string in printable ASCII: it cannot end its line or field, nor control a terminal."""
    return json.dumps(text)
