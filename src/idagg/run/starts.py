"""Starts that fail one after the other under a service manager: each waits longer before it ends.

The service manager starts idagg again at once, so that a supervisor that was killed is missing for a second
only. systemd before 254 cannot lengthen the interval by itself.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

LONGEST_DELAY_S = 30.0
_FIRST_DELAY_S = 1.0


def delay_s(failures: int) -> float:
    """The delay after this many failures in a row. The first one is told at once."""
    return min(_FIRST_DELAY_S * 2.0 ** min(failures - 2, 20), LONGEST_DELAY_S) if failures > 1 else 0.0


class FailedStarts:
    """Their number, in a file of the runtime folder, which the unit keeps over restarts."""

    def __init__(self) -> None:
        folder = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
        self._file = Path(folder, "failed-starts") if folder and "NOTIFY_SOCKET" in os.environ else None

    def one_more(self) -> int:
        """Count a failure. Returns how many there were in a row; 0 if there is no service manager."""
        if self._file is None:
            return 0
        failures = 1
        with contextlib.suppress(OSError, ValueError):
            failures += int(self._file.read_text())
        with contextlib.suppress(OSError):
            self._file.write_text(str(failures))
        return failures

    def none(self) -> None:
        """Forget them: this start went well."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)
