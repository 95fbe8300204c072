"""A discrete-event simulation of the way of an id: clients, workers, shards, and the cores that they share.

It is given what each step costs (``model.Costs``), and it knows how group commit works: for each shard a
worker has one batch under way, ids collect meanwhile, and a linger lets the clients come that were just
answered. Sizes of batches, latencies and throughput are its results. It is pure: the same plan has the same
outcome.

A process is an event loop. Each turn is a generator: it takes what has come, and yields what CPU its next
step takes, or for how long it sleeps, as in an fsync. Others see what a step did when its CPU is spent. Who
becomes ready first gets the core first, and keeps it until it has nothing to do. So does Linux in the class
SCHED_FIFO, in which the real runs are made. What a turn costs varies, by a factor that is log-normal.

A worker that begins again finds less in the core's cache, the longer others had the core. Until what it lost
is there again, each of its steps takes longer. How much others put into a cache grows as a power of the time
that they run (Thiébaut and Stone, "Footprints in the cache", 1987).
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from bench.model import Costs, Outcome, Plan

# How often an fsync sleeps: 3.3 times on ext4.
FSYNC_SLEEPS = 3
# Shares of a request's cost: until its id is in a batch; until its answer is written.
_READ, _WRITE = 0.38, 0.62
_CLIENT_READ = 0.45
# Shares of a batch's cost: until its answer is read; after its requests are answered; until it is sent.
_HEARD, _TOLD, _SENT = 1 / 3, 1 / 3, 1 / 3
# With WAIT the script's answer comes first, and by itself. What reading it costs, of a batch's.
_HALF_HEARD = 1 / 6
# A step of a process whose data is not in the cache takes so much longer, until that has cost what was lost.
_COLD = 3
_FOOTPRINT_GROWS = 0.6
# Of so many connections the worker's and the kernel's data stay in a core's cache: 1 MB, 10 kB each.
_HOT_CONNECTIONS = 100
# Resolution of the timers of a worker's event loop.
_TIMER_S = 0.001
# How often the open loop sends what is due: as kit/generator.py does; as many clients by themselves would.
_TICK_S, _FINE_TICK_S = 0.0005, 0.00005
# CPU of a turn of kit/generator.py, which is in Python, beside a turn of wrk.
_GENERATOR_TURN_S = 0.000009
# The part of the run that does not count, since queues are empty at its start.
_WARM_UP = 0.2


def cold_share(plan: Plan) -> float:
    """Of the requests, those whose connection is not in the core's cache any more."""
    connections = plan.connections if plan.one_core else plan.connections / plan.workers
    return max(0.0, 1 - _HOT_CONNECTIONS / connections)


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now + delay_s, next(self._numbers), action))

    def run(self, until_s: float) -> None:
        while self._due[0][0] <= until_s:
            self.now, _, action = heapq.heappop(self._due)
            action()


class _Sleep(NamedTuple):
    """Neither a core nor other work."""

    seconds: float


_Turn = Iterator[float | _Sleep]


class _Process:
    """Sleeps, waits for its core, or has it."""

    def __init__(self, clock: _Clock, core: _Core) -> None:
        self.clock = clock
        self.core = core
        self._sleeps = True
        self._turn: _Turn = iter(())
        self._varies = 1.0  # this turn
        self.owes_s = 0.0  # CPU for what its last step had the cores do
        self.cpu_s = 0.0
        self.turns = 0
        self.wakes = 0  # on an idle core
        self.refill_s = 0.0  # CPU, to fill the cache again after others had the core for a millisecond
        self.refills = 0.0  # in such costs
        self.left_at_s = 0.0  # CPU that its core had given until then
        self._cold_s = 0.0  # CPU that is left of them

    def turn(self) -> _Turn:
        raise NotImplementedError

    def has_work(self) -> bool:
        raise NotImplementedError

    def rests(self) -> None:
        """It has nothing to do now."""

    def wake(self, by: _Process | None = None) -> None:
        if self._sleeps:
            self._sleeps = False
            self.core.ready(self, by)

    def begin(self) -> None:
        """Another one had the core."""
        lost = ((self.core.given_s - self.left_at_s) * 1e3) ** _FOOTPRINT_GROWS
        self._cold_s += lost * self.refill_s
        self.refills += lost

    def spend(self, cpu_s: float) -> None:
        again_s = min(self._cold_s, _COLD * cpu_s)
        self._cold_s -= again_s
        cpu_s = (cpu_s + again_s + self.owes_s) * self._varies
        self.owes_s = 0.0
        self.cpu_s += cpu_s
        self.core.given_s += cpu_s
        self.clock.after(cpu_s, self._go_on)

    def _go_on(self) -> None:
        step = next(self._turn, None)
        while step is None:
            if not self.has_work():
                self._sleeps = True
                self.rests()
                self.core.leave(self)
                return
            self.turns += 1
            self._varies = self.core.varies()
            self._turn = self.turn()
            step = next(self._turn, None)
        if isinstance(step, _Sleep):
            self.clock.after(step.seconds, lambda: self.core.ready(self, None))
            self.core.leave(self)
        else:
            self.spend(step)


class _Core:
    """It is given in the order in which processes became ready, and kept until one has nothing to do."""

    def __init__(self, clock: _Clock, costs: Costs, chance: random.Random) -> None:
        self._clock, self._costs, self._chance = clock, costs, chance
        self._running: _Process | None = None
        self._last: _Process | None = None
        self._queue: deque[_Process] = deque()
        self.given_s = 0.0  # CPU, in all

    def ready(self, process: _Process, by: _Process | None) -> None:
        if self._running is not None:
            self._queue.append(process)
            return
        if by is not None:
            by.owes_s += self._costs.call_s
        process.wakes += 1
        process.owes_s += self._costs.woken_s
        self._give(process, self._costs.sleep_s)

    def varies(self) -> float:
        """Its mean is 1."""
        sigma = self._costs.varies
        return self._chance.lognormvariate(-sigma * sigma / 2, sigma)

    def leave(self, process: _Process) -> None:
        process.left_at_s = self.given_s
        self._running = None
        if self._queue:
            self._give(self._queue.popleft(), 0)

    def _give(self, process: _Process, wake_s: float) -> None:
        self._running = process
        if process is not self._last:
            self._last = process
            process.owes_s += self._costs.switch_s
            process.begin()
        self._clock.after(wake_s, lambda: process.spend(0))


class _Request:
    __slots__ = ("connection", "due_s", "is_answered", "shard")

    def __init__(self, connection: int, shard: int, due_s: float = 0) -> None:
        self.connection = connection
        self.shard = shard
        self.due_s = due_s
        self.is_answered = False


class _Batch(NamedTuple):
    commit: _Commit
    requests: list[_Request]


def _ids(batches: Sequence[_Batch]) -> int:
    return sum(len(batch.requests) for batch in batches)


class _Redis(_Process):
    def __init__(self, clock: _Clock, core: _Core, plan: Plan, costs: Costs) -> None:
        super().__init__(clock, core)
        self.costs, self._net_s = costs, plan.net_s
        self._random = random.Random(plan.seed)
        self.came: list[_Batch] = []

    def take(self, batches: Sequence[_Batch], by: _Process) -> None:
        self.came += batches
        self.wake(by)

    def has_work(self) -> bool:
        return bool(self.came)

    def fsync(self) -> _Turn:
        """It sleeps several times: until the data is written, and then until the journal is."""
        part = _Sleep(self._random.choice(self.costs.fsyncs_s) / FSYNC_SLEEPS)
        for _ in range(FSYNC_SLEEPS):
            yield part
            yield 0

    def sends(self, action: Callable[[], None]) -> None:
        self.clock.after(self._net_s, action)


class _Primary(_Redis):
    """It has shards. Its replica, where there is one, must have a batch before the batch is answered."""

    def __init__(self, clock: _Clock, core: _Core, plan: Plan, costs: Costs) -> None:
        super().__init__(clock, core, plan, costs)
        self.replica: _Replica | None = None
        self._acknowledged: list[_Batch] = []
        self.batches = 0
        self.ids = 0

    def acknowledge(self, batches: Sequence[_Batch]) -> None:
        self._acknowledged += batches
        self.wake(self.replica)

    def has_work(self) -> bool:
        return bool(self.came or self._acknowledged)

    def turn(self) -> _Turn:
        costs, replica = self.costs, self.replica
        batches, self.came = self.came, []
        answered, self._acknowledged = self._acknowledged, []
        if answered:
            yield (costs.wait_turn_s + len(answered) * costs.wait_s) / 2
        if batches:
            self.batches += len(batches)
            self.ids += _ids(batches)
            if replica is not None:
                yield (costs.wait_turn_s + len(batches) * costs.wait_s) / 2 + _ids(batches) * costs.wait_id_s
            yield costs.redis_turn_s + len(batches) * costs.script_s + _ids(batches) * costs.id_s
            # All that leaves waits for it.
            yield from self.fsync()
        if replica is not None and batches:
            self.sends(lambda: replica.take(batches, self))
            for batch in batches:
                self.sends(partial(batch.commit.half_answered, self))
        else:
            answered = answered + batches
        for batch in answered:
            self.sends(partial(batch.commit.answered, batch.requests))


class _Replica(_Redis):
    def __init__(self, clock: _Clock, core: _Core, plan: Plan, costs: Costs, primary: _Primary) -> None:
        super().__init__(clock, core, plan, costs)
        self._primary = primary

    def turn(self) -> _Turn:
        costs = self.costs
        batches, self.came = self.came, []
        yield (
            costs.replica_turn_s + len(batches) * costs.replica_batch_s + _ids(batches) * costs.replica_id_s
        )
        # Its answer leaves at the end of the turn.
        yield from self.fsync()
        self.sends(lambda: self._primary.acknowledge(batches))


class _Crowd:
    """The clients that several group commits of a worker wait for together, as ``idagg.accept.commit``."""

    def __init__(self, worker: _Worker, linger_s: float) -> None:
        self._worker, self._linger_s = worker, linger_s
        self.missing = 0

    def answered(self, clients: int) -> None:
        self.missing += clients
        self._worker.lingers(self.go, self._linger_s)

    def back(self) -> None:
        if self.missing:
            self.missing -= 1
            if not self.missing:
                self._worker.lingers_no_more(self.go)

    def go(self) -> None:
        self.missing = 0


class _Commit:
    """Group commit of a worker to a shard, as ``idagg.accept.commit``."""

    def __init__(self, worker: _Worker, server: _Primary, plan: Plan, crowd: _Crowd | None) -> None:
        self._worker, self._server, self._plan, self._crowd = worker, server, plan, crowd
        self._open: list[_Request] = []
        self._is_under_way = False
        self._expected = 0  # requests that end the linger
        self._answered: list[_Request] = []

    @property
    def is_due(self) -> bool:
        if self._is_under_way or not self._open:
            return False
        if self._crowd is not None:
            return not self._crowd.missing
        return len(self._open) >= self._expected

    def add(self, request: _Request) -> None:
        self._open.append(request)
        if self._crowd is not None:
            self._crowd.back()

    def send(self) -> None:
        self._worker.lingers_no_more(self.go)
        self._is_under_way = True
        batch, self._open = _Batch(self, self._open), []
        self._worker.clock.after(self._plan.net_s, lambda: self._server.take([batch], self._worker))

    def half_answered(self, by: _Primary) -> None:
        self._worker.hears_half(by)

    def answered(self, requests: list[_Request]) -> None:
        """The store has answered. The worker finds out in its next turn."""
        self._answered = requests
        self._worker.hears_of(self, self._server)

    def end(self) -> list[_Request]:
        self._is_under_way = False
        return self._answered

    def linger(self) -> None:
        """Let those come who have been answered, for a while."""
        if self._crowd is not None:
            self._crowd.answered(len(self._answered))
        elif self._plan.linger_s:
            self._expected = len(self._open) + len(self._answered)
            self._worker.lingers(self.go, self._plan.linger_s)

    def go(self) -> None:
        self._expected = 0


class _Worker(_Process):
    """A turn of uvloop: what can be read, timers, callbacks. Each answer is written at once."""

    def __init__(
        self,
        clock: _Clock,
        core: _Core,
        plan: Plan,
        costs: Costs,
        servers: Sequence[_Primary],
        clients: _Clients,
    ) -> None:
        super().__init__(clock, core)
        self._costs, self._clients = costs, clients
        self.refill_s = costs.refill_s
        self._request_s = costs.request_s + cold_share(plan) * costs.cold_s
        if plan.shards > 1:
            self._request_s += costs.shard_s
        crowd = _Crowd(self, plan.linger_s) if plan.shards > 1 else None
        self._commits = [
            _Commit(self, servers[shard % len(servers)], plan, crowd) for shard in range(plan.shards)
        ]
        self._came: list[_Request] = []
        self._ended: list[_Commit] = []
        self._halves = 0
        self._timers: dict[Callable[[], None], float] = {}

    def take(self, request: _Request) -> None:
        self._came.append(request)
        self.wake(self._clients)

    def hears_half(self, by: _Process) -> None:
        self._halves += 1
        self.wake(by)

    def hears_of(self, commit: _Commit, by: _Process) -> None:
        self._ended.append(commit)
        self.wake(by)

    def lingers(self, go: Callable[[], None], delay_s: float) -> None:
        self._timers.setdefault(go, self._time() + delay_s)

    def lingers_no_more(self, go: Callable[[], None]) -> None:
        self._timers.pop(go, None)

    def _time(self) -> float:
        """The loop's, which is in whole steps, rounded down."""
        return math.floor(self.clock.now / _TIMER_S) * _TIMER_S

    def _over(self) -> list[Callable[[], None]]:
        return [go for go, at_s in self._timers.items() if at_s < self._time() + _TIMER_S / 2]

    def has_work(self) -> bool:
        return bool(self._came or self._ended or self._halves or self._over())

    def rests(self) -> None:
        # It sleeps for the whole of the difference, from now.
        for at_s in self._timers.values():
            self.clock.after(at_s - self._time(), self._is_roused)

    def _is_roused(self) -> None:
        if self.has_work():
            self.wake()

    def turn(self) -> _Turn:
        costs = self._costs
        came, self._came = self._came, []
        ended, self._ended = self._ended, []
        halves, self._halves = self._halves, 0
        yield costs.turn_s + halves * _HALF_HEARD * costs.batch_s
        for request in came:
            yield _READ * self._request_s
            self._commits[request.shard].add(request)
        for go in self._over():
            del self._timers[go]
            go()
        for commit in ended:
            yield _HEARD * costs.batch_s
            for request in commit.end():
                yield _WRITE * self._request_s
                self._clients.read(request, self)
            yield _TOLD * costs.batch_s
            commit.linger()
        for commit in self._commits:
            if commit.is_due:
                yield _SENT * costs.batch_s
                commit.send()


class _Clients(_Process):
    """The load generator.

    In the closed loop it is wrk: in one turn of its loop a connection has its answer read, in the next one
    its next request written. In the open loop it sends what is due once a tick; the ticks of the workers'
    timers are others.
    """

    def __init__(self, clock: _Clock, core: _Core, plan: Plan, costs: Costs) -> None:
        super().__init__(clock, core)
        self._plan, self._costs = plan, costs
        self._random = random.Random(plan.seed)
        self._workers: list[_Worker] = []  # by connection
        self._ready: list[_Request] = []  # answered ones, and those to be sent
        self._turn_s = costs.client_turn_s + (_GENERATOR_TURN_S if plan.rate else 0)
        self._starts_s = self._random.random() * _TIMER_S
        self._ticks = itertools.count()
        self._sent = 0
        self.latencies_s: list[float] = []

    def start(self, workers: Sequence[_Worker]) -> None:
        # The kernel spreads connections over the workers' sockets by a hash.
        self._workers = [self._random.choice(workers) for _ in range(self._plan.connections)]
        if self._plan.rate:
            self.clock.after(self._starts_s, self._tick)
        else:
            self._ready += (self._request(number) for number in range(self._plan.connections))
            self.wake()

    def read(self, answered: _Request, by: _Process) -> None:
        answered.is_answered = True
        self._ready.append(answered)
        self.wake(by)

    def has_work(self) -> bool:
        return bool(self._ready)

    def turn(self) -> _Turn:
        ready, self._ready = self._ready, []
        yield self._turn_s
        for request in ready:
            share = _CLIENT_READ if request.is_answered else 1 - _CLIENT_READ
            yield share * self._costs.client_request_s
            self._done(request)

    def spend(self, cpu_s: float) -> None:
        if not self._plan.one_core:
            cpu_s = self.owes_s = 0.0
        super().spend(cpu_s)

    def _done(self, request: _Request) -> None:
        now = self.clock.now
        if request.is_answered:
            self.latencies_s.append(now - request.due_s)
            if not self._plan.rate:
                self._ready.append(self._request(request.connection))
            return
        if not self._plan.rate:
            request.due_s = now
        self._workers[request.connection].take(request)

    def _request(self, connection: int, due_s: float = 0) -> _Request:
        return _Request(connection, self._random.randrange(self._plan.shards), due_s)

    def _tick(self) -> None:
        plan = self._plan
        tick_s = _TICK_S if plan.one_core else _FINE_TICK_S
        due = int(next(self._ticks) * tick_s * plan.rate + 1e-6) + 1
        for number in range(self._sent, due):
            self._ready.append(self._request(number % plan.connections, self._starts_s + number / plan.rate))
        self._sent = due
        self.clock.after(tick_s, self._tick)
        self.wake()


def simulate(plan: Plan, costs: Costs) -> Outcome:
    clock = _Clock()
    chance = random.Random(plan.seed)
    shared = _Core(clock, costs, chance)

    def core() -> _Core:
        return shared if plan.one_core else _Core(clock, costs, chance)

    servers = [_Primary(clock, core(), plan, costs) for _ in range(plan.servers or plan.shards)]
    if plan.with_wait:
        for server in servers:
            server.replica = _Replica(clock, core(), plan, costs, server)
    clients = _Clients(clock, _Core(clock, costs, chance), plan, costs)
    workers = [_Worker(clock, core(), plan, costs, servers, clients) for _ in range(plan.workers)]

    def spent() -> list[float]:
        stores = servers + [server.replica for server in servers if server.replica is not None]
        batches, ids, turns = (
            sum(figures)
            for figures in zip(*((one.batches, one.ids, one.turns) for one in servers), strict=True)
        )
        return [
            batches,
            ids,
            turns,
            *(sum(one.cpu_s for one in kind) for kind in (workers, stores, [clients])),
            sum(one.refills for one in workers),
            clients.wakes,
        ]

    clients.start(workers)
    clock.run(plan.seconds * _WARM_UP)
    before, redis_s = spent(), [server.cpu_s for server in servers]
    clients.latencies_s.clear()
    clock.run(plan.seconds)
    batches, ids, turns, server_s, store_s, client_s, refills, wakes = (
        now - then for now, then in zip(spent(), before, strict=True)
    )
    counted_s = plan.seconds * (1 - _WARM_UP)
    latencies_ms = sorted(latency_s * 1e3 for latency_s in clients.latencies_s)
    return Outcome(
        rate=len(latencies_ms) / counted_s,
        p50_ms=latencies_ms[len(latencies_ms) // 2],
        p99_ms=latencies_ms[len(latencies_ms) * 99 // 100],
        ids_per_batch=ids / batches,
        server_us=server_s / ids * 1e6,
        redis_us=store_s / ids * 1e6,
        client_us=client_s / ids * 1e6,
        redis_turns=turns / ids,
        server_refills=refills / ids,
        client_wakes=wakes / ids,
        busiest_redis=max(server.cpu_s - then for server, then in zip(servers, redis_s, strict=True))
        / counted_s,
    )
