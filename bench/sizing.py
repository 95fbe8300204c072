"""What a rate takes: the costs of each step, measured; a simulation with them; real runs beside it."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import math
import multiprocessing
import os
import random
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any, NamedTuple

import numpy as np  # type: ignore[import-not-found]  # comes with the bench, not with the tools that check types
import uvloop

from bench import load
from bench.model import Costs, Outcome, Plan
from bench.samples import Findings
from bench.service import Idagg, Store
from bench.simulate import FSYNC_SLEEPS, cold_share, simulate
from bench.tools import idle_s, numbers, say
from bench.traffic import Traffic
from idagg.accept.commit import linger_s
from idagg.store.client import Client
from idagg.store.hits import HitStore
from kit.generator import Result, drive
from kit.processes import Usage
from kit.waiting import first_window

_WARM_UP_IDS, _LOAD_IDS = 100_000_000, 500_000_000
_OPENING_S = 6
_PACED_CONNECTIONS, _RATE = 64, 10_000
_SETTLE_S = 0.5
# Of Redis' costs, each kind of batch for so long.
_ROUNDS_S = 0.7
_FSYNCS, _WARM_UP_ROUNDS, _TURNS, _PINGS = 500, 20, 100_000, 5000
# So many batches in one turn of Redis' event loop, which are written in so long.
_TOGETHER, _WRITTEN_S = 16, 0.002
_SOLVED_IN = 14
# A cost that is twice what was known before is as wrong as a plan that is this much off.
_TRUST = 0.1
_SIMULATED_CLOSED_S, _SIMULATED_PACED_S = 0.5, 2
_SEEDS = 5

# For the table, by rate: VMs, workers on each, shards. If one VM is down, the others can take it all.
_SIZES = {
    10_000: (2, 1, 1),
    30_000: (2, 2, 1),
    100_000: (2, 4, 1),
    200_000: (4, 4, 1),
    300_000: (6, 4, 2),
    500_000: (8, 4, 3),
    1_000_000: (16, 4, 8),
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
    add("--sizing-workers", type=numbers, default=[1, 2, 4], help="default: %(default)s")
    add("--sizing-shards", type=numbers, default=[1, 2, 4], help="default: %(default)s")
    add("--sizing-replicas", type=numbers, default=[0, 1], help="0, 1 or both; default: %(default)s")
    add("--sizing-connections", type=numbers, default=[64, 512], help="default: %(default)s")
    add("--sizing-rounds", type=int, default=9, help="default: %(default)s")


def measure(found: Findings, options: argparse.Namespace) -> None:
    """Costs are those that the runs without replicas show. All others are held out."""
    if os.geteuid() or len(os.sched_getaffinity(0)) < 2:
        found.troubles.append("sizing was left out: it takes root, for the class SCHED_FIFO, and two cores")
        return
    alone: list[Costs] = []
    seen: dict[Plan, list[_Seen]] = {}
    services = list(itertools.product(options.sizing_workers, options.sizing_shards, options.sizing_replicas))
    for number in range(1, options.sizing_rounds + 1):
        alone.append(_measured(options.cache))
        # What the machine does beside, for a minute or ten, is not to hit the same plans each time.
        for service in random.Random(number).sample(services, len(services)):
            for one in _runs(*service, options):
                seen.setdefault(one.plan, []).append(one)
        say(f"round {number} of {options.sizing_rounds}: done")
    real = {plan: _undisturbed(seen[plan]) for plan in sorted(seen, key=dataclasses.astuple)}
    costs = _solved(real, _typical(alone))
    for name, cost in dataclasses.asdict(costs).items():
        cost_s = median(cost) if isinstance(cost, tuple) else cost
        if name != "varies":
            found.add("costs", name.removesuffix("_s"), {"µs": cost_s * 1e6})
    say(f"sigma of a turn's cost: {costs.varies:.2f}")
    for one, said in zip(real.values(), _all(costs, list(real)), strict=True):
        _compare(found, one, said)
    for rate, (machines, workers, shards) in _SIZES.items():
        say(str(found.add("sizing", rate, _size(rate, machines, workers, shards, costs))))


class _Seen(NamedTuple):
    """A real run. ``others`` is how many cores others used meanwhile."""

    plan: Plan
    outcome: Outcome
    others: float


def _undisturbed(runs: Sequence[_Seen]) -> _Seen:
    """The better quartile of each figure: what else happens on the machine only makes it worse."""

    def better(name: str) -> float:
        values: list[float] = [getattr(one.outcome, name) for one in runs]
        if len(values) == 1:
            return values[0]
        low, middle, high = quantiles(values, method="inclusive")
        return high if name == "rate" else middle if name == "ids_per_batch" else low

    outcome = Outcome(**{name: better(name) for name in _TITLES})
    return _Seen(runs[0].plan, outcome, median(one.others for one in runs))


_TITLES = {
    "rate": "requests/s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "ids_per_batch": "ids/batch",
    "server_us": "server µs",
    "redis_us": "Redis µs",
    "client_us": "load µs",
}


def _compare(found: Findings, seen: _Seen, said: Outcome) -> None:
    plan, figures = seen.plan, dict[str, float]()
    for name, title in _TITLES.items():
        is_value, is_said = getattr(seen.outcome, name), getattr(said, name)
        figures |= {title: is_value, f"÷ {title}": is_said / is_value}
    what = "model, open loop" if plan.rate else "model, closed loop"
    row = f"{plan.workers} workers, {plan.shards} shards, {int(plan.with_wait)} replicas, {plan.connections}"
    say(str(found.add(what, row, figures | {"others' cores": seen.others})))


def _all(costs: Costs, plans: Sequence[Plan]) -> list[Outcome]:
    """As ``_outcomes``, of plans of real runs."""
    seconds = [_SIMULATED_PACED_S if plan.rate else _SIMULATED_CLOSED_S for plan in plans]
    pairs = zip(plans, seconds, strict=True)
    return _outcomes(costs, [dataclasses.replace(plan, seconds=length) for plan, length in pairs])


def _outcomes(costs: Costs, plans: Sequence[Plan]) -> list[Outcome]:
    """The median of each figure over seeds: which connections share a worker is chance."""
    seeds = range(1, 1 + _SEEDS)
    jobs = [dataclasses.replace(plan, seed=seed) for plan in plans for seed in seeds]
    with multiprocessing.get_context("spawn").Pool() as pool:
        said = pool.map(partial(_simulated, costs), jobs)
    return [_median(said[first : first + _SEEDS]) for first in range(0, len(said), _SEEDS)]


def _median(said: Sequence[Outcome]) -> Outcome:
    names = [field.name for field in dataclasses.fields(Outcome)]
    return Outcome(**{name: median(getattr(one, name) for one in said) for name in names})


def _simulated(costs: Costs, plan: Plan) -> Outcome:
    return simulate(plan, costs)


# Real runs


def _runs(workers: int, shards: int, replicas: int, options: argparse.Namespace) -> Iterator[_Seen]:
    """The closed loop with each number of connections; with one shard also at a constant rate."""
    plan = Plan(workers, shards, servers=1, with_wait=bool(replicas), linger_s=linger_s(workers))
    first_ids = itertools.count(_WARM_UP_IDS, load.ids(1))
    with _started(plan, options.cache) as (service, replica):
        for connections in options.sizing_connections:
            one = dataclasses.replace(plan, connections=connections)
            _closed(service, replica, one, next(first_ids))  # it warms up
            yield _closed(service, replica, one, next(first_ids))
        if shards == 1:
            paced = dataclasses.replace(plan, connections=_PACED_CONNECTIONS, rate=_RATE)
            yield _open(service, replica, paced)


@contextmanager
def _alone_on(core: int) -> Iterator[None]:
    """What is started meanwhile has this core, and no slices of time: the simulation knows none.

    Real time is for root. It leaves others 5% of the core.
    """
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, cores)


@contextmanager
def _started(plan: Plan, cache: Path) -> Iterator[tuple[Idagg, Store | None]]:
    """idagg and its Redis on one core; all others are left to the load."""
    *others, core = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        with _alone_on(core):
            # Not in /tmp, which may be memory, where an fsync costs nothing.
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=cache, prefix="sizing-")))
            store, replica = stack.enter_context(_stores(folder, plan.with_wait))
            flags = {"--workers": plan.workers, "--shards": plan.shards, "--replicas": int(plan.with_wait)}
            words = (str(word) for flag in flags.items() for word in flag)
            service = Idagg(folder, *words, store=store, window_s=3600, first="/readyz")
            stack.enter_context(service)
        os.sched_setaffinity(0, others)
        stack.callback(os.sched_setaffinity, 0, [*others, core])
        yield service, replica


@contextmanager
def _stores(folder: Path, with_replica: bool) -> Iterator[tuple[Store, Store | None]]:
    with ExitStack() as stack:
        store = stack.enter_context(Store(folder, tcp=True))
        replica = stack.enter_context(Store(folder, tcp=True)) if with_replica else None
        if replica is not None:
            replica.ask("REPLICAOF", "127.0.0.1", store.port)
            while replica.ask("INFO", "replication")["master_link_status"] != "up":
                time.sleep(0.01)
        yield store, replica


def _closed(service: Idagg, replica: Store | None, plan: Plan, first_id: int) -> _Seen:
    traffic = Traffic("sizing", connections=plan.connections)
    before = _usage(service, replica)
    did = load.drive(service.port, traffic, first_id=first_id, seconds=1)
    spent = _usage(service, replica) - before
    outcome = Outcome(
        rate=did.accepted / did.seconds,
        p50_ms=did.p50_ms,
        p99_ms=did.p99_ms,
        ids_per_batch=did.accepted / spent.batches,
        server_us=spent.server_s / did.accepted * 1e6,
        redis_us=spent.redis_s / did.accepted * 1e6,
        client_us=did.cpu_s / did.accepted * 1e6,
    )
    return _Seen(plan, outcome, spent.others(did.cpu_s))


def _open(service: Idagg, replica: Store | None, plan: Plan) -> _Seen:
    """The second of two seconds. CPU and batches are those of a second that begins 0.5 s earlier."""
    start_s = first_window(1, after_s=_OPENING_S)
    offer = partial(
        drive,
        service.port,
        rate=plan.rate,
        seconds=2,
        connections=plan.connections,
        first_id=_LOAD_IDS,
        start_s=start_s,
    )
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        running = pool.apply_async(offer)
        time.sleep(max(0, start_s + _SETTLE_S - time.time()))
        before = _usage(service, replica)
        time.sleep(1)
        spent = _usage(service, replica) - before
        result: Result = running.get(30)
    requests = plan.rate * spent.took_s
    client_s = result.usage.cpu_s / result.ok
    latencies = result.seconds[1].summary()
    outcome = Outcome(
        rate=plan.rate - result.failed[1],
        p50_ms=latencies.p50_ms,
        p99_ms=latencies.p99_ms,
        ids_per_batch=requests / spent.batches,
        server_us=spent.server_s / requests * 1e6,
        redis_us=spent.redis_s / requests * 1e6,
        client_us=client_s * 1e6,
    )
    return _Seen(plan, outcome, spent.others(client_s * requests))


class _Used(NamedTuple):
    at_s: float
    server_s: float
    redis_s: float
    batches: float
    idle_s: float

    def __sub__(self, earlier: _Used) -> _Used:
        return _Used(*(now - then for now, then in zip(self, earlier, strict=True)))

    @property
    def took_s(self) -> float:
        return self.at_s

    def others(self, client_s: float) -> float:
        """Cores that neither we used, nor the load, nor nobody."""
        used_s = (os.cpu_count() or 1) * self.took_s - self.idle_s
        return max(0, used_s - self.server_s - self.redis_s - client_s) / self.took_s


def _usage(service: Idagg, replica: Store | None) -> _Used:
    store = service.redis
    batches = store.ask("INFO", "commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]
    redis_s = sum(Usage.of(one.pid).cpu_s for one in (store, replica) if one is not None)
    return _Used(time.monotonic(), Usage.of(service.pid).cpu_s, redis_s, int(batches), idle_s())


# Costs


# How often a request of a plan has each cost, as the simulation says.
_Often = Mapping[str, Callable[[Plan, Outcome], float]]
_OF_SERVER: _Often = {
    "request_s": lambda _, said: 1,
    "shard_s": lambda plan, _: plan.shards > 1,
    "cold_s": lambda plan, _: cold_share(plan),
    "batch_s": lambda _, said: 1 / said.ids_per_batch,
    "refill_s": lambda _, said: said.server_refills,
}
_OF_REDIS: _Often = {
    "id_s": lambda _, said: 1,
    "script_s": lambda _, said: 1 / said.ids_per_batch,
    "redis_turn_s": lambda _, said: said.redis_turns,
}
_OF_CLIENT: _Often = {
    "client_request_s": lambda _, said: 1,
    "woken_s": lambda _, said: said.client_wakes,
}


def _solved(real: Mapping[Plan, _Seen], measured: Costs) -> Costs:
    """The costs with which the simulation spends what real runs without replicas did: by least squares.

    How many turns there are for each request, only the simulation knows, and that depends on the costs. So
    this goes round some times. How much costs vary is what gives these plans, on average, their p99 for their
    p50. Runs with replicas, and those at a constant rate, are not asked.
    """
    plans = [plan for plan in real if not plan.with_wait and not plan.rate]
    costs = known = _without_wakes(measured, measured.woken_s)
    for _ in range(_SOLVED_IN):
        said = dict(zip(plans, _all(costs, plans), strict=True))
        missing_tail = fmean(math.log(_tail(real[plan].outcome) / _tail(said[plan])) for plan in plans)
        changed: dict[str, Any] = {"varies": max(0.0, costs.varies + missing_tail / 2)}
        for figure, often in (
            ("server_us", _OF_SERVER),
            ("redis_us", _OF_REDIS),
            ("client_us", _OF_CLIENT),
        ):
            spent_us = [(getattr(real[plan].outcome, figure), getattr(said[plan], figure)) for plan in plans]
            times = [[share(*item) for share in often.values()] for item in said.items()]
            now, before = ([getattr(of, name) for name in often] for of in (costs, known))
            changed |= zip(often, _better(np.array(now), np.array(before), times, spent_us), strict=True)
        known = _without_wakes(measured, changed["woken_s"])
        # With a replica, too, an id costs more than when it was measured by itself.
        dearer = changed["id_s"] / measured.id_s
        changed |= {
            "wait_turn_s": known.wait_turn_s,
            "wait_id_s": known.wait_id_s * dearer,
            "replica_turn_s": known.replica_turn_s,
            "replica_id_s": known.replica_id_s * dearer,
        }
        costs = dataclasses.replace(costs, **changed)
    return costs


def _without_wakes(measured: Costs, woken_s: float) -> Costs:
    """Turns of Redis less the wakes that were in them when they were measured: those are a cost by itself."""
    turn_s = (1 + FSYNC_SLEEPS) * woken_s
    return dataclasses.replace(
        measured,
        redis_turn_s=max(0, measured.redis_turn_s - turn_s),
        wait_turn_s=max(0, measured.wait_turn_s - woken_s),
        replica_turn_s=max(0, measured.replica_turn_s - turn_s),
    )


def _better(
    now: Any, before: Any, times: Sequence[Sequence[float]], spent_us: Sequence[tuple[float, float]]
) -> list[float]:
    """Costs nearer to those with which each plan spends what it did: in proportion, as are distances from
    what was known before. Half of the way, since a cost changes how many others come."""
    real_us, said_us = np.array(spent_us).T
    rows = np.array(times) * 1e6 / real_us[:, None]
    before = np.maximum(before, 1e-6)  # too little to be seen
    known = np.diag(_TRUST / before)
    wanted = np.concatenate([1 - said_us / real_us, _TRUST * (1 - now / before)])
    more, *_ = np.linalg.lstsq(np.vstack([rows, known]), wanted, rcond=None)
    return [float(cost) for cost in np.maximum(now + more / 2, 0)]


def _tail(outcome: Outcome) -> float:
    return outcome.p99_ms / outcome.p50_ms


def _typical(measured: Sequence[Costs]) -> Costs:
    """All fsyncs, and the median of each cost."""
    fsyncs_s = tuple(sorted(itertools.chain.from_iterable(costs.fsyncs_s for costs in measured)))
    costs: dict[str, Any] = {
        field.name: median(getattr(costs, field.name) for costs in measured)
        for field in dataclasses.fields(Costs)
        if field.name != "fsyncs_s"
    }
    return Costs(fsyncs_s=fsyncs_s, **costs)


def _measured(cache: Path) -> Costs:
    """What can be measured by itself, and a guess of the rest. Wakes are in the turns of Redis, too."""
    alone, waiting = (_batches(cache, with_replica=with_replica) for with_replica in (False, True))
    redis, waits, replica = _parts(alone.primary), _parts(waiting.primary), _parts(waiting.replica)
    return Costs(
        turn_s=uvloop.run(_turn_s()),
        request_s=8e-6,
        shard_s=0.5e-6,
        cold_s=0.5e-6,
        batch_s=25e-6,
        refill_s=90e-6,
        redis_turn_s=redis.turn_s,
        script_s=redis.batch_s,
        id_s=redis.id_s,
        fsyncs_s=_fsyncs_s(cache),
        wait_turn_s=max(0, waits.turn_s - redis.turn_s),
        wait_s=max(0, waits.batch_s - redis.batch_s),
        wait_id_s=max(0, waits.id_s - redis.id_s),
        replica_turn_s=replica.turn_s,
        replica_batch_s=replica.batch_s,
        replica_id_s=replica.id_s,
        varies=0.4,
        client_turn_s=1e-6,  # wrk's own, in C; a system call
        client_request_s=8e-6,
        **_wakes(),
    )


class _Parts(NamedTuple):
    turn_s: float
    batch_s: float
    id_s: float


# Ids in a batch, and batches at once.
_KINDS = ((1, 1), (256, 1), (1, _TOGETHER))


def _parts(rounds_s: Sequence[float]) -> _Parts:
    """From rounds of each kind."""
    alone_s, large_s, together_s = rounds_s
    id_s = (large_s - alone_s) / (_KINDS[1][0] - 1)
    batch_s = (together_s - alone_s) / (_TOGETHER - 1) - id_s
    return _Parts(max(0, alone_s - batch_s - id_s), max(0, batch_s), max(0, id_s))


class _Rounds(NamedTuple):
    """CPU of a round of each kind: of Redis, and of its replica."""

    primary: list[float]
    replica: list[float]


def _batches(cache: Path, *, with_replica: bool) -> _Rounds:
    with (
        tempfile.TemporaryDirectory(dir=cache, prefix="sizing-") as folder,
        _stores(Path(folder), with_replica) as (store, replica),
    ):
        spent = [
            uvloop.run(_round_s(store, replica, place, ids, at_once))
            for place, (ids, at_once) in enumerate(_KINDS, 1)
        ]
    return _Rounds(*map(list, zip(*spent, strict=True)))


async def _round_s(store: Store, replica: Store | None, place: int, ids: int, at_once: int) -> list[float]:
    """CPU of Redis, and of its replica, for batches that arrive at once, on a connection each."""
    clients = [Client(store.url, replicas=0 if replica is None else 1) for _ in range(at_once)]
    workers = [HitStore(client, namespace="idagg", window_s=86_400, exact_limit=10**9) for client in clients]
    next_id = itertools.count(place * _WARM_UP_IDS)

    def spent() -> tuple[float, float]:
        return _cpu_s(store.pid), _cpu_s(replica.pid) if replica else 0.0

    rounds = 0
    for seq in itertools.count(1):
        if seq == _WARM_UP_ROUNDS:
            before, ends_s = spent(), time.monotonic() + _ROUNDS_S
        elif seq > _WARM_UP_ROUNDS:
            rounds += 1
            if time.monotonic() >= ends_s:
                break
        adding = asyncio.gather(
            *(worker.add(seq, [b"%d" % next(next_id) for _ in range(ids)]) for worker in workers)
        )
        if at_once > 1:  # it finds all of them when it goes on
            store.freeze()
            await asyncio.sleep(_WRITTEN_S)
            store.thaw()
        await adding
    after = spent()
    for client in clients:
        await client.close()
    return [(now - then) / rounds for now, then in zip(after, before, strict=True)]


def _cpu_s(pid: int) -> float:
    """Of the main thread, which with Redis makes the fsyncs, too; to the nanosecond."""
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


async def _turn_s() -> float:
    """A turn of the event loop with one callback, and nothing to read."""
    loop = asyncio.get_running_loop()
    ends = loop.create_future()
    left = _TURNS

    def again() -> None:
        nonlocal left
        left -= 1
        if left:
            loop.call_soon(again)
        else:
            ends.set_result(None)

    ours, _theirs = socket.socketpair()
    loop.add_reader(ours, lambda: None)  # else it would not look for anything
    before_s = time.thread_time()
    again()
    await ends
    spent_s = time.thread_time() - before_s
    loop.remove_reader(ours)
    return spent_s / _TURNS


class _Pings(NamedTuple):
    """Of a byte to another process and back: CPU of our sending, of all that we do; the time it takes."""

    send_s: float
    cpu_s: float
    took_s: float


def _wakes() -> dict[str, float]:
    """What it costs to wake a process on an idle core, to be woken there, and to be next on a core."""
    cores = sorted(os.sched_getaffinity(0))
    awake, apart, together = _pings(None), _pings((cores[0], cores[-1])), _pings((cores[0], cores[0]))
    call_s = max(0, apart.send_s - awake.send_s)
    return {
        "call_s": call_s,
        "woken_s": max(0, apart.cpu_s - awake.cpu_s - call_s),
        "sleep_s": max(0, apart.took_s / 2 - apart.cpu_s),
        "switch_s": max(0, together.cpu_s - awake.cpu_s),
    }


def _pings(cores: tuple[int, int] | None) -> _Pings:
    """With a process on the second core, or with ourselves."""
    ours, theirs = socket.socketpair()
    if cores is not None:
        echo = multiprocessing.get_context("fork").Process(target=_echo, args=(theirs, cores[1]), daemon=True)
        echo.start()
        theirs.close()
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores[:1])
    send_s, began_s, before_s = 0.0, time.monotonic(), time.thread_time()
    for _ in range(_PINGS):
        send_s -= time.thread_time()
        ours.send(b"x")
        send_s += time.thread_time()
        (theirs if cores is None else ours).recv(1)
    pings = _Pings(
        send_s / _PINGS, (time.thread_time() - before_s) / _PINGS, (time.monotonic() - began_s) / _PINGS
    )
    if cores is not None:
        os.sched_setaffinity(0, before)
    ours.close()
    return pings


def _echo(wire: socket.socket, core: int) -> None:
    os.sched_setaffinity(0, {core})
    while byte := wire.recv(1):
        wire.send(byte)


# The table


def _size(rate: int, machines: int, workers: int, shards: int, costs: Costs) -> dict[str, float]:
    """Each process has a core of its own, and the clients are not ours."""
    plan = Plan(
        workers * machines,
        shards,
        connections=_MAX_CONNECTIONS,
        rate=rate,
        seconds=max(_SIMULATED_S, _SIMULATED_REQUESTS / rate),
        one_core=False,
        net_s=_NET_S,
        linger_s=linger_s(workers),
    )
    (outcome,) = _outcomes(costs, [plan])
    slow_fsyncs_s = tuple(fsync_s + _SLOW_DISK_S for fsync_s in costs.fsyncs_s)
    (slow,) = _outcomes(dataclasses.replace(costs, fsyncs_s=slow_fsyncs_s), [plan])
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
