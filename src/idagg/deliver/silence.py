"""Endpoints that are left alone for a while. Pure: time comes in as an argument.

A receiver that is gone says so with 410; one whose windows all fail does not want them, or is no receiver at
all. Precedent: Standard Webhooks disables an endpoint for both. Here it is for a while only, since nobody is
there whom its owner could ask to enable it again.

This is kept in memory, for the present leader: the next one finds out anew, at the cost of a few calls.
"""

from __future__ import annotations

import collections

GONE_S = 86_400
FAILING_S = 3_600
# So many windows in a row, each of them with all its attempts.
FAILING_WINDOWS = 5
# A window's endpoints (store.hits.MAX_ENDPOINTS): some 3 MB. The longest unheard of is forgotten first.
MAX_REMEMBERED = 10_000


class Silence:
    def __init__(self, *, max_remembered: int = MAX_REMEMBERED) -> None:
        self._max_remembered = max_remembered
        # By endpoint: windows failed in a row, and until when it is silenced.
        self._known: collections.OrderedDict[str, tuple[int, float]] = collections.OrderedDict()

    def until(self, endpoint: str, now: float) -> float | None:
        """Until when the endpoint is not called; None where it may be."""
        _, until = self._known.get(endpoint, (0, 0.0))
        return until if until > now else None

    def worked(self, endpoint: str) -> None:
        self._known.pop(endpoint, None)

    def failed(self, endpoint: str, now: float, *, is_gone: bool) -> int | None:
        """A window's callback has failed for good. Returns for how long, s, the endpoint is silenced now."""
        failures, until = self._known.pop(endpoint, (0, 0.0))
        failures += 1
        silenced_s = GONE_S if is_gone else FAILING_S if failures >= FAILING_WINDOWS else None
        self._known[endpoint] = failures, max(until, now + silenced_s if silenced_s else 0.0)
        if len(self._known) > self._max_remembered:
            self._known.popitem(last=False)
        return silenced_s
