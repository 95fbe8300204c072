"""idagg's own log on standard error, for the operator. Counts go to the log file, not here."""

from __future__ import annotations

import logging
import os
import sys
import time


def log_to_stderr(process: str) -> None:
    """Log to standard error, with the time in UTC, unless the journal reads it and adds its own."""
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
    """Whether the journal reads standard error, by JOURNAL_STREAM of systemd.exec(5)."""
    try:
        stderr = os.fstat(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):  # closed, or no file
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"
