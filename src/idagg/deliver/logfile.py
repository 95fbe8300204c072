"""The log file: one logfmt line a record, appended whole or not at all, by any number of processes."""

from __future__ import annotations

import asyncio
import datetime
import fcntl
import json
import os
import time
from pathlib import Path

from idagg.errors import LogFileError
from idagg.window import Record, iso


def window_line(record: Record, *, time_s: float, reason: str | None = None) -> str:
    """A window's count; ``reason`` says why the broker, where there is one, did not get it."""
    line = (
        f"time={_iso_ms(time_s)} level=INFO event=window window={iso(record.start_s)}"
        f" unique_ids={record.unique_ids} estimate={record.estimate} hits={record.hits}"
        f" exact={'true' if record.exact else 'false'} sink=log"
    )
    return line if reason is None else f"{line} reason={_quoted(reason)}"


def callback_line(
    *, time_s: float, window_s: int, url: str, status: int | None, attempts: int, ms: int, error: str | None
) -> str:
    """A callback's outcome: the status it was answered with, or the error where there was no answer."""
    level, outcome = ("INFO", f"status={status}") if error is None else ("WARNING", f"error={_quoted(error)}")
    return (
        f"time={_iso_ms(time_s)} level={level} event=callback window={iso(window_s)}"
        f" url={_quoted(url)} {outcome} attempts={attempts} ms={ms}"
    )


class LogFile:
    """Opened anew for each line, so that whoever rotates it has nothing to tell us."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    async def window(self, record: Record, *, reason: str | None) -> None:
        """Add a window's line; it is on disk when this returns."""
        await self.append(window_line(record, time_s=time.time(), reason=reason), durable=True)

    async def callback(
        self, *, window_s: int, url: str, status: int | None, attempts: int, ms: int, error: str | None
    ) -> None:
        """Add a callback's line."""
        line = callback_line(
            time_s=time.time(),
            window_s=window_s,
            url=url,
            status=status,
            attempts=attempts,
            ms=ms,
            error=error,
        )
        await self.append(line, durable=False)

    async def append(self, text_line: str, *, durable: bool) -> None:
        """Add one line; ``durable``: it is on disk when this returns."""
        await asyncio.to_thread(self._append, text_line.encode() + b"\n", durable)

    async def check(self) -> None:
        """Raise what ``append`` would raise."""
        await asyncio.to_thread(self._check)

    def _append(self, line: bytes, durable: bool) -> None:
        try:
            with self._path.open("a+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                size = os.fstat(file.fileno()).st_size
                if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                    line = b"\n" + line  # a power cut tore the line before
                try:
                    while line:  # after a short write, the next one says what is wrong
                        line = line[file.write(line) :]
                    if durable:
                        os.fsync(file.fileno())
                        _fsync_folder(self._path.parent)
                except OSError:
                    file.truncate(size)
                    raise
        except OSError as error:
            raise self._trouble(error) from error

    def _check(self) -> None:
        # Creates nothing: where root asks, the file would be root's and closed to the service.
        try:
            os.close(os.open(self._path, os.O_RDWR | os.O_APPEND))
        except FileNotFoundError as error:
            if not os.access(self._path.parent, os.W_OK | os.X_OK):
                raise LogFileError(
                    f"The log file {self._path} cannot be made: its folder is missing or not writable."
                ) from error
        except OSError as error:
            raise self._trouble(error) from error

    def _trouble(self, error: OSError) -> LogFileError:
        return LogFileError(f"The log file {self._path} cannot be written: {error.strerror}.")


def _fsync_folder(path: Path) -> None:
    """Without this, a power cut can take a new file's name while its content is safe."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _iso_ms(time_s: float) -> str:
    moment = datetime.datetime.fromtimestamp(time_s, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _quoted(text: str) -> str:
    """A JSON string in printable ASCII: it cannot end its line or its field, nor steer a terminal."""
    return json.dumps(text)
