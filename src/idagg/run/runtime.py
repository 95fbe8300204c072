"""The folder of runtime files: the metrics of all processes, and the embedded store's socket."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from idagg.errors import CannotStartError

# Enough for the metrics of some processes; a file system that is full is not used.
_TRIAL_BYTES = 1 << 20
# Besides the usual places for temporary files. In containers it is often the only place that can be written.
_LAST_RESORT = "/dev/shm"  # noqa: S108  the folder in it has a random name and mode 0700


class RuntimeFolder:
    """$RUNTIME_DIRECTORY, which systemd makes and removes; without it, a folder that this class makes."""

    def __init__(self, inherited: Path | None = None) -> None:
        """``inherited``: one that the program executed before has left. Raises CannotStartError."""
        given = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
        self._is_own = not given
        self._lock = -1
        try:
            self.path = inherited or (Path(given) if given else _made())
            self.metrics = self.path / "metrics"
            if inherited is None:
                shutil.rmtree(self.metrics, ignore_errors=True)  # of a predecessor that was killed
            self.metrics.mkdir(mode=0o700, exist_ok=True)
            # systemd-tmpfiles, which sweeps /tmp, leaves a locked folder alone.
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_SH)
        except OSError as error:
            raise CannotStartError(
                f"there is no folder for runtime files ({error}): set RUNTIME_DIRECTORY to one that can be "
                "written and has room"
            ) from error

    def remove(self) -> None:
        shutil.rmtree(self.path if self._is_own else self.metrics, ignore_errors=True)
        os.close(self._lock)


def _made() -> Path:
    """A new folder on a file system that has room. Raises OSError."""
    failed: OSError | None = None
    for parent in (None, _LAST_RESORT):
        folder = None
        try:
            folder = Path(tempfile.mkdtemp(prefix="idagg-", dir=parent))
            _try_out(folder)
        except OSError as error:
            failed = failed or error
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
        else:
            return folder
    assert failed is not None
    raise failed


def _try_out(folder: Path) -> None:
    """Raises OSError if there is no room."""
    trial = folder / "trial"
    with trial.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, _TRIAL_BYTES)
    trial.unlink()
