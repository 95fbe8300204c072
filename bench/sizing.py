"""What a rate takes: the costs of each step, measured; a simulation with them; real runs beside it."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import linear_regression
from typing import Any

import uvloop

from bench import load
from bench.model import Costs, Outcome, Plan
from bench.samples import Findings
from bench.service import Idagg, Store, idagg
from bench.simulate import simulate
from bench.tools import numbers, say
from bench.traffic import Traffic
from idagg.accept.commit import linger_s
from idagg.store.client import Client
from idagg.store.hits import HitStore
from kit.generator import Result, drive
from kit.histogram import Histogram
from kit.processes import Usage
from kit.waiting import first_window

_WARM_UP_IDS, _LOAD_IDS = 100_000_000, 500_000_000
_OPENING_S = 2
_CONNECTIONS, _FEW_CONNECTIONS, _RATE = 256, 64, 10_000
# The connections of the runs of one worker from which costs are taken.
_SOLVED_AT = (16, 64, 256)
_SETTLE_S = 0.5
# Of Redis' costs, each kind of batch for so long.
_ROUNDS_S = 1.0
_FSYNCS, _WARM_UP_ROUNDS = 500, 20
# So many batches in one turn of Redis' event loop: what they send fits what it reads at once.
_TOGETHER = 16
_SOLVED_IN = 16

# For the table, by rate: VMs, workers on each, shards. If one VM is down, the others can take it all.
_SIZES = {
    10_000: (2, 1, 1),
    30_000: (2, 2, 1),
    100_000: (2, 4, 1),
    200_000: (4, 4, 1),
    300_000: (6, 4, 2),
    500_000: (8, 4, 3),
    1_000_000: (16, 4, 6),
}
_SIMULATED_REQUESTS, _SIMULATED_S = 40_000, 0.1
_MAX_CONNECTIONS = 2048
# Between VMs of one zone; and what a disk that is reached over the network takes longer for an fsync.
_NET_S, _SLOW_DISK_S = 0.0001, 0.001
# Bytes: of an id of 9 digits in the exact set, and in the log, which has it twice (SADD, PFADD); of a batch
# in the log. Measured.
_SET_BYTES, _LOG_ID_BYTES, _LOG_BATCH_BYTES = 57, 30, 211
_DAY_S, _GB = 86_400, 1e9


def add_options(group: argparse._ArgumentGroup, *, quick: bool) -> None:
    add = group.add_argument
    add("--sizing-workers", type=numbers, default=[1, 2, 3, 4], help="default: %(default)s")
    add("--sizing-shards", type=numbers, default=[1], help="default: %(default)s")
    add("--sizing-seconds", type=int, default=3, help="of each load, default: %(default)s")


def measure(found: Findings, options: argparse.Namespace) -> None:
    closed, paced = _costs(found, options)
    if not closed.request_s or not closed.redis_turn_s:
        found.troubles.append(
            "sizing: a request or a turn of Redis seems to cost nothing, so others were busy"
        )
    for shards in options.sizing_shards:
        for workers in options.sizing_workers:
            plan = Plan(workers, shards, servers=1, connections=_CONNECTIONS, linger_s=linger_s(workers))
            _compare(found, "model, closed loop", plan, closed, options)
            plan = dataclasses.replace(plan, connections=_FEW_CONNECTIONS, rate=_RATE, seconds=3)
            _compare(found, "model, open loop", plan, paced, options)
    for rate, (machines, workers, shards) in _SIZES.items():
        say(str(found.add("sizing", rate, _size(rate, machines, workers, shards, paced))))


def _compare(found: Findings, what: str, plan: Plan, costs: Costs, options: argparse.Namespace) -> None:
    real, simulated = _run(plan, options), simulate(plan, costs)
    figures: dict[str, float] = {}
    for name, title in _TITLES.items():
        is_value, is_said = getattr(real, name), getattr(simulated, name)
        figures |= {title: is_value, f"÷ {title}": is_said / is_value}
    row = f"{plan.workers} workers, {plan.shards} shards"
    say(str(found.add(what, row, figures)))


_TITLES = {
    "rate": "requests/s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "ids_per_batch": "ids/batch",
    "server_us": "server µs",
    "redis_us": "Redis µs",
}


# Real runs


def _run(plan: Plan, options: argparse.Namespace) -> Outcome:
    with _started(plan, options) as service:
        return _open(service, plan, options) if plan.rate else _closed(service, plan, options)


@contextmanager
def _started(plan: Plan, options: argparse.Namespace) -> Iterator[Idagg]:
    # Not in /tmp, which may be memory, where an fsync costs nothing.
    flags = ("--shards", str(plan.shards)) if plan.shards > 1 else ()
    with (
        tempfile.TemporaryDirectory(dir=options.cache, prefix="sizing-") as folder,
        idagg(Path(folder), *flags, workers=plan.workers) as service,
    ):
        yield service


def _closed(service: Idagg, plan: Plan, options: argparse.Namespace) -> Outcome:
    traffic = Traffic("sizing", connections=plan.connections)
    load.drive(service.port, traffic, first_id=_WARM_UP_IDS, seconds=1)
    before = _batches(service.redis)
    did, figures = load.cost(
        service.running,
        lambda: load.drive(service.port, traffic, first_id=_LOAD_IDS, seconds=options.sizing_seconds),
    )
    return Outcome(
        rate=figures["requests/s"],
        p50_ms=figures["p50 ms"],
        p99_ms=figures["p99 ms"],
        ids_per_batch=did.accepted / (_batches(service.redis) - before),
        server_us=figures["server µs"],
        redis_us=figures["Redis µs"],
        client_us=did.cpu_s / did.accepted * 1e6,
    )


def _open(service: Idagg, plan: Plan, options: argparse.Namespace) -> Outcome:
    """CPU is that of the time between the first requests and the last."""
    seconds = options.sizing_seconds
    start_s = first_window(1, after_s=_OPENING_S)
    offer = partial(
        drive,
        service.port,
        rate=plan.rate,
        seconds=seconds,
        connections=plan.connections,
        first_id=_LOAD_IDS,
        start_s=start_s,
    )
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        running = pool.apply_async(offer)
        time.sleep(max(0, start_s + _SETTLE_S - time.time()))
        began_s, before = time.monotonic(), _usage(service)
        time.sleep(seconds - 2 * _SETTLE_S)
        after, took_s = _usage(service), time.monotonic() - began_s
        result: Result = running.get(seconds + 30)
    latencies = Histogram.sum(result.seconds).summary()
    server_s, redis_s, batches = (now - then for now, then in zip(after, before, strict=True))
    requests = plan.rate * took_s
    return Outcome(
        rate=result.ok / seconds,
        p50_ms=latencies.p50_ms,
        p99_ms=latencies.p99_ms,
        ids_per_batch=requests / batches,
        server_us=server_s / requests * 1e6,
        redis_us=redis_s / requests * 1e6,
        client_us=result.usage.cpu_s / result.ok * 1e6,
    )


def _usage(service: Idagg) -> tuple[float, float, int]:
    pids = service.pid, service.redis.pid
    return Usage.of(pids[0]).cpu_s, Usage.of(pids[1]).cpu_s, _batches(service.redis)


def _batches(store: Store) -> int:
    """Scripts that it has run; those of the leader are few."""
    return int(store.ask("INFO", "commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])


# Costs


def _costs(found: Findings, options: argparse.Namespace) -> tuple[Costs, Costs]:
    """Of the closed and of the open loop, whose load generators differ."""
    script_s, batch_s = _batch_costs(options.cache)
    # Other fields are solved for.
    costs = Costs(
        turn_s=15e-6,
        request_s=7e-6,
        batch_s=batch_s,
        redis_turn_s=100e-6,
        script_s=script_s,
        id_s=1.5e-6,
        fsyncs_s=_fsyncs_s(options.cache),
        wait_s=script_s / 2,
        acknowledge_s=30e-6,
        replicated_batch_s=script_s,
        replicated_id_s=1.5e-6,
        switch_s=10e-6,
        client_turn_s=8e-6,
        client_request_s=7e-6,
    )
    closed_plans = [Plan(1, connections=number) for number in _SOLVED_AT]
    crowded_plan = Plan(max(options.sizing_workers), connections=_CONNECTIONS)
    closed = _solved(
        [(plan, _run(plan, options)) for plan in closed_plans],
        (crowded_plan, _run(crowded_plan, options)),
        costs,
    )
    client_us = _run(Plan(1, connections=_FEW_CONNECTIONS, rate=_RATE), options).client_us
    for name, cost in dataclasses.asdict(closed).items():
        if isinstance(cost, float):
            found.add("costs", name.removesuffix("_s"), {"µs": cost * 1e6})
    return closed, dataclasses.replace(closed, client_turn_s=0, client_request_s=client_us / 1e6)


_Seen = tuple[Plan, Outcome]


def _solved(alone: Sequence[_Seen], crowded: _Seen, costs: Costs) -> Costs:
    """The costs with which the simulation spends what real runs did, of one worker and of several.

    A request costs something, and a turn of the loop does. How many turns there are for each request, only
    the simulation knows, and that depends on the costs. So this goes round some times.
    """
    real = [outcome for _, outcome in alone]
    for _ in range(_SOLVED_IN):
        said = [simulate(plan, costs) for plan, _ in alone]
        server = _line(
            [one.turns for one in said],
            [is_us.server_us - one.server_us for is_us, one in zip(real, said, strict=True)],
        )
        redis = _line(
            [one.redis_turns for one in said],
            [is_us.redis_us - one.redis_us for is_us, one in zip(real, said, strict=True)],
        )
        client = _line(
            [one.client_turns for one in said],
            [is_us.client_us - one.client_us for is_us, one in zip(real, said, strict=True)],
        )
        busy = simulate(crowded[0], costs)
        switch_us = (crowded[1].server_us - busy.server_us) / max(busy.switches, 0.01)
        more_us = {
            "turn_s": server[0],
            "request_s": server[1],
            "redis_turn_s": redis[0],
            "id_s": redis[1],
            "replicated_id_s": redis[1],
            "client_turn_s": client[0],
            "client_request_s": client[1],
            "switch_s": switch_us / 2,
        }
        # Half of what is missing, since each cost changes how often others arise. None is less than nothing.
        changed: dict[str, Any] = {
            name: max(0.0, getattr(costs, name) + us / 2e6) for name, us in more_us.items()
        }
        costs = dataclasses.replace(costs, **changed)
    return costs


def _line(turns: Sequence[float], missing_us: Sequence[float]) -> tuple[float, float]:
    """What a turn costs more, and what a request does."""
    slope, intercept = linear_regression(turns, missing_us)
    return slope, intercept


def _batch_costs(cache: Path) -> tuple[float, float]:
    """What a batch costs Redis, beside its turn and its ids, and what it costs the worker that sends it."""
    with tempfile.TemporaryDirectory(dir=cache, prefix="sizing-") as folder, Store(Path(folder)) as store:
        (alone_s, batch_s), (large_s, _), (together_s, _) = (
            uvloop.run(_round_s(store, place, ids, at_once))
            for place, (ids, at_once) in enumerate(((1, 1), (256, 1), (1, _TOGETHER)), 1)
        )
    id_s = (large_s - alone_s) / 255
    return (together_s - alone_s) / (_TOGETHER - 1) - id_s, batch_s


async def _round_s(store: Store, place: int, ids: int, at_once: int) -> tuple[float, float]:
    """CPU of Redis, and of this process, for batches that arrive in one piece."""
    client = Client(store.url)
    workers = [
        HitStore(client, namespace="idagg", window_s=86_400, exact_limit=10**9) for _ in range(at_once)
    ]
    next_id = itertools.count(place * _WARM_UP_IDS)
    rounds = 0
    for seq in itertools.count(1):
        if seq == _WARM_UP_ROUNDS:
            before_s, own_s = _main_thread_s(store.pid), time.thread_time()
            ends_s = time.monotonic() + _ROUNDS_S
        elif seq > _WARM_UP_ROUNDS:
            rounds += 1
            if time.monotonic() >= ends_s:
                break
        await asyncio.gather(*(w.add(seq, [b"%d" % next(next_id) for _ in range(ids)]) for w in workers))
    spent_s = _main_thread_s(store.pid) - before_s, time.thread_time() - own_s
    await client.close()
    return spent_s[0] / rounds, spent_s[1] / rounds


def _main_thread_s(pid: int) -> float:
    """Which makes the fsyncs, too; to the nanosecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _fsyncs_s(cache: Path) -> tuple[float, ...]:
    """How long this disk is waited for, in order."""
    waits_s = []
    with tempfile.TemporaryFile(dir=cache, buffering=0) as file:
        for _ in range(_FSYNCS):
            file.write(b"x" * _LOG_BATCH_BYTES)
            began_s, before_s = time.monotonic(), time.thread_time()
            os.fdatasync(file.fileno())
            waits_s.append(time.monotonic() - began_s - (time.thread_time() - before_s))
    return tuple(sorted(waits_s))


# The table


def _size(rate: int, machines: int, workers: int, shards: int, costs: Costs) -> dict[str, float]:
    """Each process has a core of its own, and the clients are not ours."""
    plan = Plan(
        workers * machines,
        shards,
        connections=_MAX_CONNECTIONS,
        rate=rate,
        seconds=max(_SIMULATED_S, _SIMULATED_REQUESTS / rate),
        cores=0,
        net_s=_NET_S,
        linger_s=linger_s(workers),
    )
    outcome = simulate(plan, costs)
    slow_fsyncs_s = tuple(fsync_s + _SLOW_DISK_S for fsync_s in costs.fsyncs_s)
    slow = simulate(plan, dataclasses.replace(costs, fsyncs_s=slow_fsyncs_s))
    log_bytes = rate * (_LOG_ID_BYTES + _LOG_BATCH_BYTES / outcome.ids_per_batch)
    return {
        "VMs": machines,
        "workers each": workers,
        "shards": shards,
        "a worker's core, %": rate / machines / workers * outcome.server_us / 1e4,
        "a Redis' core, %": outcome.busiest_redis * 100,
        # At the boundary there are the ids of two windows.
        "Redis' memory, GB": 2 * 60 * rate * _SET_BYTES / _GB,
        "AOF, GB a day": log_bytes * _DAY_S / _GB,
        "p50 ms": outcome.p50_ms,
        "p99 ms": outcome.p99_ms,
        "p50 ms, slow disk": slow.p50_ms,
        "p99 ms, slow disk": slow.p99_ms,
    }
