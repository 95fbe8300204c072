"""As many requests as are answered, from wrk, for as long as a test likes: all ids are new."""

from __future__ import annotations

import dataclasses
import itertools
import json
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from kit.oracle import Journal
from kit.traffic import blocks

# Above what any test takes: a signal ends it.
_AN_HOUR = "3600s"
# Above all deadlines: a late answer is an answer.
_TIMEOUT = "10s"
# More than one load sends.
_IDS_EACH = 10**8


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the client saw: ``requests`` were answered, ``refused`` of them with an error status. ``broken``
    were not answered: no connection, a reset, an end without an answer."""

    requests: int
    refused: int
    broken: int
    seconds: float
    slowest_s: float

    @property
    def trouble(self) -> int:
        return self.refused + self.broken


class Rush:
    """``number`` sets its ids apart from those of others. ``close``: a new connection for each request, which
    says so."""

    def __init__(self, port: int, number: int, *, connections: int, close: bool = False) -> None:
        self._port = port
        self._first_id = _IDS_EACH * (1 + number)
        self._connections = connections
        self._close = close
        self._process: subprocess.Popen[str] | None = None
        self._seen: Seen | None = None

    @property
    def seen(self) -> Seen:
        """Once it has ended."""
        assert self._seen is not None
        return self._seen

    @property
    def journal(self) -> Journal:
        """Right in its numbers; which ids were answered is not known. Requests that were under way at the end
        are unknown."""
        seen = self.seen
        counts = (seen.requests - seen.refused, seen.refused, seen.broken + self._connections)
        starts = itertools.accumulate(counts, initial=self._first_id)
        ok, failed, unknown = (
            set(range(start, start + count)) for start, count in zip(starts, counts, strict=False)
        )
        return Journal(ok, failed, unknown, seen.slowest_s)

    def __enter__(self) -> Self:
        with tempfile.TemporaryFile("w+") as headers:
            headers.write("".join(blocks()))
            headers.seek(0)
            self._process = subprocess.Popen(
                [
                    *("wrk", "-t", "1", "-c", str(self._connections), "-d", _AN_HOUR, "--timeout", _TIMEOUT),
                    *("-s", str(Path(__file__).with_suffix(".lua"))),
                    *(f"http://127.0.0.1:{self._port}", "--"),
                    *(str(self._first_id), "Connection: close\r\n" if self._close else ""),
                ],
                stdin=headers,
                stdout=subprocess.PIPE,
                text=True,
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        process = self._process
        assert process is not None
        process.send_signal(signal.SIGINT if kind is None else signal.SIGKILL)
        said = process.communicate()[0]
        if kind is None:
            self._seen = Seen(**json.loads(said.splitlines()[-1]))
