"""Silenced endpoints: those that get no callbacks for a time. Pure: time comes in as an argument.

An endpoint is silenced after a 410 (Gone), or after FAILING_WINDOWS failed windows in a row. Precedent:
Standard Webhooks disables an endpoint in both cases. Here the silence is limited in time, because there is no
interface to enable an endpoint again.

The state is in memory only. The next leader learns it again, at the cost of a few calls.
"""

from __future__ import annotations

import collections

GONE_S = 86_400
FAILING_S = 3_600
# Failed windows in a row, each after all its attempts.
FAILING_WINDOWS = 5
# As many as a window's endpoints (store.hits.MAX_ENDPOINTS): about 3 MB. The oldest entry is dropped first.
MAX_REMEMBERED = 10_000


class Silence:
    """The failures of endpoints, and which endpoints are silenced."""

    def __init__(self, *, max_remembered: int = MAX_REMEMBERED) -> None:
        self._max_remembered = max_remembered
        # By endpoint: failed windows in a row, and the end of the silence.
        self._known: collections.OrderedDict[str, tuple[int, float]] = collections.OrderedDict()

    def until(self, endpoint: str, now: float) -> float | None:
        """The end of the endpoint's silence; None if it may be called."""
        _, until = self._known.get(endpoint, (0, 0.0))
        return until if until > now else None

    def worked(self, endpoint: str) -> None:
        self._known.pop(endpoint, None)

    def failed(self, endpoint: str, now: float, *, is_gone: bool) -> int | None:
        """Note a callback that has failed finally. Returns the endpoint's silence in seconds, or None."""
        failures, until = self._known.pop(endpoint, (0, 0.0))
        failures += 1
        silenced_s = GONE_S if is_gone else FAILING_S if failures >= FAILING_WINDOWS else None
        self._known[endpoint] = failures, max(until, now + silenced_s if silenced_s else 0.0)
        if len(self._known) > self._max_remembered:
            self._known.popitem(last=False)
        return silenced_s
