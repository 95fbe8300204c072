"""idagg's own log on standard error, for the operator. Counts go to the log file, not here."""

from __future__ import annotations

import collections
import contextlib
import logging
import math
import os
import queue
import sys
import threading
import time

from idagg.deliver.logfile import wait_for_reader
from idagg.run.messages import LogLine

# About 1 MB at most. A supervisor with 256 workers that all die at once says less.
MOST_LINES = 5000
# Warnings and errors that are kept, and the length that a text is cut to.
_MOST_RECENT = 50
MAX_TEXT = 300
# syslog's priorities, by the lowest level of each.
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7
# Time that the end of a process gives to lines that nobody reads.
_LAST_S = 1.0


def log_to_stderr(process: str) -> None:
    """Log to standard error, with the time in UTC, unless the journal reads it and adds its own."""
    formatter: logging.Formatter = _JournalFormatter(f"{process} %(levelname)s %(message)s")
    if not is_journal():
        formatter = logging.Formatter(
            f"%(asctime)s.%(msecs)03dZ {process} %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
        )
        formatter.converter = time.gmtime
    handler = logging.NullHandler() if sys.stderr is None else Writer(sys.stderr.fileno())
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler, _recent])


class Recent(logging.Handler):
    """Keeps the newest warnings and errors until they are taken. For a process that nobody takes them from,
    they are some KB."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._records: collections.deque[logging.LogRecord] = collections.deque(maxlen=_MOST_RECENT)

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)

    def take(self, most_bytes: float = math.inf) -> list[LogLine]:
        """The oldest ones, of so many bytes of JSON in all."""
        taken: list[LogLine] = []
        while self._records:
            record = self._records[0]
            line = LogLine(record.created, record.levelname.lower(), record.getMessage()[:MAX_TEXT])
            most_bytes -= len(line.line())
            if most_bytes < 0:
                break
            self._records.popleft()
            taken.append(line)
        return taken


_recent = Recent()


def take_recent(most_bytes: float = math.inf) -> list[LogLine]:
    """The warnings and errors that this process has logged since the last call, the oldest first."""
    return _recent.take(most_bytes)


def take_dropped() -> int:
    """The number of lines that this process has dropped since the last call."""
    return sum(
        handler.take_dropped() for handler in logging.getLogger().handlers if isinstance(handler, Writer)
    )


class Writer(logging.Handler):
    """Writes lines to a descriptor in a thread of its own, so that no event loop waits for their reader.

    A pipe that nobody reads is full after 64 KiB. Lines past MOST_LINES are dropped; the next line that
    can be written is preceded by their number. The descriptor stays blocking, since other processes share it.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes | threading.Event] = queue.Queue(MOST_LINES)
        self._dropped = 0  # since the last call of take_dropped
        self._not_told = 0  # dropped, and not yet written about
        # The handler's own lock is held by logging.shutdown() while it waits for the thread.
        self._counting = threading.Lock()
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(f"{self.format(record)}\n".encode(errors="backslashreplace"))
        except queue.Full:
            self._drop()

    def flush(self) -> None:
        """Wait until all lines are written, a moment at most. Each process does so at its end."""
        written = threading.Event()
        with contextlib.suppress(queue.Full):
            self._lines.put(written, timeout=_LAST_S)
            written.wait(_LAST_S)

    def take_dropped(self) -> int:
        with self._counting:
            taken, self._dropped = self._dropped, 0
        return taken

    def _write_all(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            with self._counting:
                dropped, self._not_told = self._not_told, 0
            if dropped:
                line = b"%d lines of this log were dropped: its reader was too slow\n%s" % (dropped, line)
            try:
                self._write(line)
            except OSError:  # the reader is gone, or the terminal
                self._drop()

    def _write(self, line: bytes) -> None:
        while line:
            try:
                line = line[os.write(self._descriptor, line) :]
            except BlockingIOError:  # another process has made the shared descriptor so
                wait_for_reader(self._descriptor)

    def _drop(self) -> None:
        with self._counting:
            self._dropped += 1
            self._not_told += 1


class _JournalFormatter(logging.Formatter):
    """Begins each line with its priority, by sd-daemon(3): a traceback is many lines to the journal."""

    def format(self, record: logging.LogRecord) -> str:
        mark = f"<{priority(record.levelno)}>"
        return "\n".join(mark + line for line in super().format(record).split("\n"))


def priority(level: int) -> int:
    """syslog's priority of a level."""
    return next(
        (number for least, number in _PRIORITIES if level >= least),
        _DEBUG,
    )


def is_journal() -> bool:
    """Whether the journal reads standard error, by JOURNAL_STREAM of systemd.exec(5)."""
    try:
        stderr = os.fstat(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):  # closed, or no file
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"
