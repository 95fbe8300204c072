"""The delay before a dead process is started again. Pure: time comes in as an argument.

The first restart is immediate, because connections wait in the worker's backlog. If a process dies again and
again within YOUNG_S of its start, the delay doubles each time. After a limit there is no restart. Precedents:
systemd gives up after 5 starts in 10 s; gunicorn halts if a worker cannot boot.
"""

from __future__ import annotations

YOUNG_S = 1.0
FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 2.0
# The delays before the last start add up to about 9 s.
LIMIT = 10


class Restarts:
    """The restart history of one process: its deaths in a row within ``young_s`` of a start.

    After ``limit`` such deaths there is no restart. None stands for the constants.
    """

    def __init__(
        self,
        *,
        young_s: float | None = None,
        longest_delay_s: float | None = None,
        limit: float | None = None,
    ) -> None:
        self.young_deaths = 0
        self._young_s = YOUNG_S if young_s is None else young_s
        self._longest_delay_s = LONGEST_DELAY_S if longest_delay_s is None else longest_delay_s
        self._limit = LIMIT if limit is None else limit

    def after(self, served_s: float) -> float | None:
        """The delay in seconds before the next start, after ``served_s`` of service; None: no restart."""
        self.young_deaths = self.young_deaths + 1 if served_s < self._young_s else 0
        if self.young_deaths >= self._limit:
            return None
        if self.young_deaths <= 1:
            return 0.0
        return min(FIRST_DELAY_S * 2.0 ** min(self.young_deaths - 2, 20), self._longest_delay_s)
