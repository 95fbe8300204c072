from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from bench.model import Costs, Plan
from bench.simulate import simulate

# Each is a power of two of a millisecond, so that sums tell their parts.
COSTS = Costs(
    turn_s=0.001,
    request_s=0.002,
    batch_s=0.004,
    redis_turn_s=0.008,
    script_s=0.016,
    id_s=0.032,
    fsyncs_s=(0.064,),
    wait_turn_s=0.12,
    wait_s=0.005,
    wait_id_s=0.003,
    replica_turn_s=0.25,
    replica_batch_s=0.006,
    replica_id_s=0.512,
    call_s=0.0,
    woken_s=0.0,
    switch_s=0.0,
    shard_s=0.0,
    refill_s=0.0,
    cold_s=0.0,
    varies=0.0,
    sleep_s=0.0,
    client_turn_s=0.0,
    client_request_s=0.0,
)
NET_S = 0.0625
LONE = Plan(workers=1, connections=1, one_core=False, net_s=NET_S, seconds=60, linger_s=0)
# About what was measured.
USUAL = Costs(
    turn_s=1e-6,
    request_s=7e-6,
    batch_s=60e-6,
    redis_turn_s=66e-6,
    script_s=18e-6,
    id_s=1.2e-6,
    fsyncs_s=(80e-6, 90e-6, 100e-6, 300e-6),
    wait_turn_s=20e-6,
    wait_s=4e-6,
    wait_id_s=0.2e-6,
    replica_turn_s=50e-6,
    replica_batch_s=5e-6,
    replica_id_s=1e-6,
    call_s=6e-6,
    woken_s=11e-6,
    switch_s=3e-6,
    shard_s=0.5e-6,
    refill_s=50e-6,
    cold_s=1e-6,
    varies=0.2,
    sleep_s=3e-6,
    client_turn_s=1e-6,
    client_request_s=8e-6,
)
CLOSED = Plan(workers=1, seconds=0.2)


def test_a_lone_request_takes_what_its_steps_take() -> None:
    """Two turns of the worker, the request, the batch, Redis' turn with script, id and fsync, both ways."""
    outcome = simulate(LONE, COSTS)
    took_s = 2 * 0.001 + 0.002 + 0.004 + 0.008 + 0.016 + 0.032 + 0.064 + 2 * NET_S
    assert outcome.p50_ms == pytest.approx(took_s * 1e3)
    assert outcome.ids_per_batch == 1
    assert outcome.server_us == pytest.approx(8000, rel=0.01)  # one may be under way at the end
    assert outcome.redis_us == pytest.approx(56_000, rel=0.01)


def test_wait_adds_what_the_replica_takes() -> None:
    """Its own turn and fsync, both ways between the two, and the primary's part."""
    more_s = 0.128 + 2 * NET_S + 0.256 + 0.512 + 0.064
    waits = simulate(dataclasses.replace(LONE, with_wait=True), COSTS)
    assert waits.p50_ms - simulate(LONE, COSTS).p50_ms == pytest.approx(more_s * 1e3)


def test_the_same_plan_has_the_same_outcome() -> None:
    assert simulate(CLOSED, USUAL) == simulate(CLOSED, USUAL)
    assert simulate(CLOSED, USUAL) != simulate(dataclasses.replace(CLOSED, seed=2), USUAL)


def test_a_rate_below_the_limit_is_answered() -> None:
    """All that is offered, whatever the number of shards and workers."""
    for workers, shards in ((1, 1), (4, 1), (2, 4)):
        plan = Plan(workers, shards, connections=64, rate=10_000, seconds=0.5)
        assert simulate(plan, USUAL).rate == pytest.approx(10_000, rel=0.01)


def test_cores_are_the_limit_of_the_closed_loop() -> None:
    """Clients, workers and shards use no more than there are, and nearly all of them."""
    outcome = simulate(CLOSED, USUAL)
    used = outcome.rate * (outcome.server_us + outcome.redis_us + outcome.client_us) / 1e6
    assert 1.6 < used <= 2.01


def test_connections_are_in_flight_all_the_time() -> None:
    """Little's law, with the median in place of the mean."""
    outcome = simulate(CLOSED, USUAL)
    assert outcome.rate * outcome.p50_ms / 1e3 == pytest.approx(512, rel=0.2)


def test_more_workers_and_more_shards_make_smaller_batches() -> None:
    sizes = [
        simulate(dataclasses.replace(CLOSED, workers=workers, shards=shards), USUAL).ids_per_batch
        for workers, shards in ((1, 1), (2, 1), (4, 1), (4, 4))
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 10 * sizes[-1]


def test_one_fsync_serves_all_batches_that_are_there() -> None:
    """Sixteen workers with few ids each do not cost Redis a turn for each batch."""
    costs = dataclasses.replace(USUAL, fsyncs_s=(0.003,))
    outcome = simulate(Plan(16, connections=16, one_core=False, seconds=2, linger_s=0), costs)
    assert outcome.redis_us < ((66 + 4 * 11) / 4 + 18 + 6) / outcome.ids_per_batch + 1.2


def test_a_linger_keeps_clients_together() -> None:
    """Without one they split into groups that take turns, each with smaller batches."""
    plan = dataclasses.replace(CLOSED, connections=64)
    without = simulate(dataclasses.replace(plan, linger_s=0), USUAL)
    assert simulate(plan, USUAL).ids_per_batch > 1.5 * without.ids_per_batch


def test_a_slow_disk_shows_in_the_latency() -> None:
    plan = Plan(workers=1, connections=64, rate=5000)
    slow = simulate(plan, dataclasses.replace(USUAL, fsyncs_s=(0.01,)))
    assert slow.p50_ms > 10 > simulate(plan, USUAL).p99_ms
    assert math.isclose(slow.rate, 5000, rel_tol=0.02)


def test_who_shares_a_core_waits_for_it() -> None:
    shared, apart = (
        simulate(dataclasses.replace(CLOSED, workers=4, one_core=one_core), USUAL)
        for one_core in (True, False)
    )
    used = shared.rate * (shared.server_us + shared.redis_us) / 1e6
    assert 0.8 < used <= 1.01
    assert apart.rate > 2 * shared.rate
    assert apart.p99_ms < shared.p99_ms / 2


def test_many_connections_are_in_no_cache() -> None:
    """A request costs more. With a core for each worker, only the worker's own connections count."""
    costs = dataclasses.replace(USUAL, cold_s=21e-6)
    for connections, one_core, is_more in ((64, True, False), (512, True, True), (512, False, False)):
        plan = dataclasses.replace(CLOSED, workers=8, connections=connections, one_core=one_core)
        more_us = simulate(plan, costs).server_us - simulate(plan, USUAL).server_us
        assert (more_us > 10) is is_more


def test_others_empty_the_cache_the_longer_they_have_the_core() -> None:
    """Not in proportion: 16 times the others' work is less than 16 times the cost. Alone, there is none."""
    costs = dataclasses.replace(USUAL, refill_s=0.0)
    more_us = []  # for each batch
    for connections, one_core in ((32, True), (512, True), (512, False)):
        plan = dataclasses.replace(CLOSED, workers=8, connections=connections, one_core=one_core)
        warm, emptied = simulate(plan, costs), simulate(plan, USUAL)
        more_us.append(emptied.server_us * emptied.ids_per_batch - warm.server_us * warm.ids_per_batch)
    few, many, alone = more_us
    assert 2 * few < many < 16 * few
    assert abs(alone) < few / 4


def test_several_shards_cost_a_request_more() -> None:
    costs = dataclasses.replace(COSTS, shard_s=1.0)
    one, two = (simulate(dataclasses.replace(LONE, shards=shards), costs) for shards in (1, 2))
    assert two.p50_ms - one.p50_ms == pytest.approx(1e3)


def test_the_answer_before_that_of_wait_costs_a_turn() -> None:
    """It is read by itself, while the replica is waited for."""
    waits, alone = (simulate(dataclasses.replace(LONE, with_wait=w), COSTS) for w in (True, False))
    assert waits.server_us - alone.server_us == pytest.approx(1000 + 4000 / 6, rel=0.05)


def test_nothing_is_sent_before_it_is_due() -> None:
    """Where nothing else takes time, a request waits for a tick: 0 to 0.4 ms, since five are due in each."""
    costs: dict[str, Any] = dict.fromkeys(dataclasses.asdict(COSTS), 0.0) | {"fsyncs_s": (0.0,)}
    outcome = simulate(Plan(1, connections=8, rate=10_000, linger_s=0), Costs(**costs))
    assert 0.2 <= outcome.p50_ms < 0.25
    assert 0.4 <= outcome.p99_ms < 0.45


def test_those_answered_last_wait_for_another_batch() -> None:
    """Whoever is answered last comes back when the linger is over, for the batch after the next; not if it is
    long."""
    short, long = (simulate(dataclasses.replace(CLOSED, linger_s=s), USUAL) for s in (0.001, 0.008))
    assert 0.5 * 512 < short.ids_per_batch < 0.9 * 512
    assert long.ids_per_batch > 0.95 * 512


def test_shards_share_a_redis_or_have_one_each() -> None:
    """With one each, they divide its work."""
    plan = Plan(1, 4, one_core=False, connections=64, seconds=0.1)
    together, apart = (simulate(dataclasses.replace(plan, servers=number), USUAL) for number in (1, 4))
    assert together.busiest_redis > 2 * apart.busiest_redis


def test_clients_elsewhere_cost_nothing() -> None:
    """However many requests they send: a machine that has to be sized is not slowed down by its clients."""
    plan = Plan(8, one_core=False, connections=512, rate=200_000, seconds=0.02)
    outcome = simulate(plan, USUAL)
    assert outcome.client_us == 0
    assert outcome.p99_ms < 5
