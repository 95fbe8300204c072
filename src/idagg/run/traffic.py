"""What a worker did in the last seconds: rates, batches and commit latencies. Pure.

Updated once for each batch and looked at once for each heartbeat, so that a request costs nothing.
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

from idagg.batch import BatchResult
from idagg.run.messages import Traffic

# Rates and latencies are those of so many seconds.
SPAN_S = 5.0
# A bucket's upper bound is 19 % above the one before. From 0.1 ms on, 80 of them reach 100 s.
_FIRST_S = 0.0001
_STEPS_PER_DOUBLING = 4
_BUCKETS = 80


class _Seen(NamedTuple):
    """Totals at a moment."""

    at: float
    statuses: collections.Counter[int]
    ids: int
    batches: int
    latencies: list[int]  # numbers of batches, by bucket


class Tally:
    """Totals since the process's start."""

    def __init__(self) -> None:
        self.answered = 0  # requests
        self._statuses = collections.Counter[int]()
        self._ids = 0
        self._batches = 0
        self._latencies = [0] * _BUCKETS
        self._seen: collections.deque[_Seen] = collections.deque()

    def batch(self, result: BatchResult) -> None:
        self.answered += result.requests
        self._statuses[200 if result.stored else 503] += result.requests
        self._ids += result.ids
        self._batches += 1
        self._latencies[_bucket(result.took_s)] += 1

    def others(self, answered: Mapping[int, int]) -> None:
        """Add requests that were answered without the store, by status."""
        self.answered += sum(answered.values())
        self._statuses.update(answered)

    def traffic(self, now: float) -> Traffic:
        """That of the last SPAN_S, or of the time since the first call."""
        present = _Seen(now, self._statuses.copy(), self._ids, self._batches, self._latencies.copy())
        self._seen.append(present)
        while now - self._seen[0].at > SPAN_S and len(self._seen) > 2:
            self._seen.popleft()
        before = self._seen[0]
        span_s = now - before.at
        if span_s <= 0:
            return Traffic()
        batches = self._batches - before.batches
        latencies = [after - less for after, less in zip(self._latencies, before.latencies, strict=True)]
        return Traffic(
            by_status={
                str(status): round(count / span_s, 1)
                for status, count in sorted((present.statuses - before.statuses).items())
            },
            ids_per_s=round((self._ids - before.ids) / span_s, 1),
            batch_ids=round((self._ids - before.ids) / batches, 1) if batches else None,
            commit_p50_ms=_quantile_ms(latencies, 0.5) if batches else None,
            commit_p99_ms=_quantile_ms(latencies, 0.99) if batches else None,
        )


def _bucket(took_s: float) -> int:
    if took_s <= _FIRST_S:
        return 0
    return min(math.ceil(_STEPS_PER_DOUBLING * math.log2(took_s / _FIRST_S)), _BUCKETS - 1)


def _quantile_ms(latencies: list[int], share: float) -> float:
    """The upper bound of the bucket that the share of all batches stayed within."""
    wanted = share * sum(latencies)
    reached = itertools.accumulate(latencies)
    bucket = next(index for index, count in enumerate(reached) if count >= wanted)
    return float(f"{1000 * _FIRST_S * 2 ** (bucket / _STEPS_PER_DOUBLING):.3g}")
