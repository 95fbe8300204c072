"""Our own log, for whoever operates this. The counts go to the log file, which is another thing."""

from __future__ import annotations

import logging
import sys


def log_to_stderr(who: str) -> None:
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format=f"%(asctime)s {who} %(levelname)s %(message)s"
    )
