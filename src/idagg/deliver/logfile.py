"""The log file: one logfmt line a record, appended whole or not at all, by any number of processes."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import fcntl
import json
import os
import time
from collections.abc import Sequence
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


@dataclasses.dataclass(frozen=True, slots=True)
class CallbackLine:
    """What became of a callback: the status that it was answered with, or the error where there was no
    answer.

    Callbacks that were not made, being over the limit of one ``address``, share a line: ``url`` is None then,
    and ``endpoints`` how many they were. ``silenced_s`` is set where the endpoint is left alone from now on.
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
    """Opened anew for each line, so that whoever rotates it has nothing to tell us."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    async def window(self, record: Record, *, reason: str | None) -> None:
        """Add a window's line; it is on disk when this returns."""
        await self.append(window_line(record, time_s=time.time(), reason=reason), durable=True)

    async def callbacks(self, lines: Sequence[CallbackLine]) -> None:
        """Add lines of callbacks."""
        now = time.time()
        if lines:
            await self.append("\n".join(line.text(now) for line in lines), durable=False)

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
