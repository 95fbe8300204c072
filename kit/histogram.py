"""Durations by the million in constant memory."""

from __future__ import annotations

import array
import dataclasses
from collections.abc import Iterable

# A duration keeps its 8 highest bits, so it is known to better than 1%. The longest is 67 s.
_BITS = 8
_HALF = 1 << (_BITS - 1)
_LONGEST_US = (1 << 26) - 1
_BUCKETS = (26 - _BITS + 2) * _HALF


@dataclasses.dataclass(frozen=True)
class Summary:
    p50_ms: float
    p99_ms: float
    p99_9_ms: float
    max_ms: float


class Histogram:
    """Counts of durations in µs, in buckets as HdrHistogram has them: linear within each power of two."""

    def __init__(self) -> None:
        self.max_us = 0
        self._counts = array.array("I", bytes(4 * _BUCKETS))

    def add(self, us: int) -> None:
        if us > self.max_us:
            self.max_us = us
        us = min(us, _LONGEST_US)
        shift = max(us.bit_length() - _BITS, 0)
        self._counts[shift * _HALF + (us >> shift)] += 1

    @classmethod
    def sum(cls, parts: Iterable[Histogram]) -> Histogram:
        whole = cls()
        for part in parts:
            whole.max_us = max(whole.max_us, part.max_us)
            for bucket, count in enumerate(part._counts):
                if count:
                    whole._counts[bucket] += count
        return whole

    def __len__(self) -> int:
        return sum(self._counts)

    def percentile_ms(self, percent: float) -> float:
        """The longest that any of this share of the durations may have been; 0 where there are none."""
        wanted = percent / 100 * len(self)
        seen = 0
        for bucket, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                shift = max(bucket // _HALF - 1, 0)
                return min((bucket - shift * _HALF + 1 << shift) - 1, self.max_us) / 1000
        return 0

    def summary(self) -> Summary:
        return Summary(
            self.percentile_ms(50), self.percentile_ms(99), self.percentile_ms(99.9), self.max_us / 1000
        )
