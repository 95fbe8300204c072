"""When to start a dead worker again. Pure: time comes in as arguments.

The first restart is immediate, since its backlog waits. A worker that dies young again and again is started
ever later, and in the end not at all: it will not get better by itself. Precedents: systemd gives up after 5
starts in 10 s; gunicorn halts when a worker could not boot.
"""

from __future__ import annotations

YOUNG_S = 1.0
FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 2.0
# The delays before add up to some 9 s.
LIMIT = 10


class Restarts:
    """The history of one process: how often in a row it died young. The ``limit``th such death is its last;
    None stands for LIMIT."""

    def __init__(
        self,
        *,
        young_s: float = YOUNG_S,
        longest_delay_s: float = LONGEST_DELAY_S,
        limit: float | None = None,
    ) -> None:
        self.young_deaths = 0
        self._young_s = young_s
        self._longest_delay_s = longest_delay_s
        self._limit = LIMIT if limit is None else limit

    def after(self, served_s: float) -> float | None:
        """The delay before the next start, s, of a worker that served so long; None: start it no more."""
        self.young_deaths = self.young_deaths + 1 if served_s < self._young_s else 0
        if self.young_deaths >= self._limit:
            return None
        if self.young_deaths <= 1:
            return 0.0
        return min(FIRST_DELAY_S * 2.0 ** min(self.young_deaths - 2, 20), self._longest_delay_s)
