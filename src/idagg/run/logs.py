"""Our own log, for the operator. The counts go to the log file, which is another thing."""

from __future__ import annotations

import logging
import os
import sys
import time


def log_to_stderr(process: str) -> None:
    """Lines on standard error, in UTC; without a time where the journal reads them, which has its own."""
    formatter = logging.Formatter(f"{process} %(levelname)s %(message)s")
    if not _is_journal():
        formatter = logging.Formatter(
            f"%(asctime)s.%(msecs)03dZ {process} %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
        )
        formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _is_journal() -> bool:
    """Whether standard error is what systemd says that the journal reads (systemd.exec(5),
    JOURNAL_STREAM)."""
    try:
        stderr = os.fstat(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):  # closed, or no file
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"
