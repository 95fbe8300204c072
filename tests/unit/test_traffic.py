"""What a worker did in the last seconds."""

from __future__ import annotations

import pytest

from idagg.batch import BatchResult
from idagg.run.messages import Traffic
from idagg.run.traffic import SPAN_S, Tally


def test_rates_are_those_of_the_last_seconds() -> None:
    tally = Tally()
    tally.batch(BatchResult(requests=1000, ids=900, repeats=0, stored=True, took_s=0.001))
    assert tally.traffic(100.0) == Traffic()  # of no time
    tally.batch(BatchResult(requests=30, ids=20, repeats=0, stored=True, took_s=0.001))
    tally.others({400: 5})
    assert tally.traffic(101.0).by_status == {"200": 30.0, "400": 5.0}
    tally.batch(BatchResult(requests=20, ids=10, repeats=0, stored=False, took_s=0.001))
    later = tally.traffic(102.0)
    assert later.by_status == {"200": 15.0, "400": 2.5, "503": 10.0}
    assert (later.ids_per_s, later.batch_ids) == (15.0, 15.0)
    assert tally.answered == 1055
    # What was before that is forgotten.
    assert tally.traffic(102.0 + SPAN_S).by_status == {}
    assert tally.traffic(103.0 + SPAN_S) == Traffic()


@pytest.mark.parametrize("took_s", [0.0, 0.00005, 0.0007, 0.001, 0.025, 1.9, 10.0, 5000.0])
def test_commit_latency(took_s: float) -> None:
    """A quantile is at most a fifth too large, up to 90 s; it is never too small but for that."""
    tally = Tally()
    tally.traffic(1.0)
    for _ in range(98):
        tally.batch(BatchResult(requests=1, ids=1, repeats=0, stored=True, took_s=0.002))
    for _ in range(2):
        tally.batch(BatchResult(requests=1, ids=1, repeats=0, stored=True, took_s=took_s))
    seen = tally.traffic(2.0)
    assert seen.commit_p50_ms is not None
    assert seen.commit_p99_ms is not None
    assert 2.0 <= seen.commit_p50_ms < 2.4
    if took_s > 0.002:
        assert 0.999 * min(took_s * 1000, 80_000) <= seen.commit_p99_ms <= 1.2 * took_s * 1000
