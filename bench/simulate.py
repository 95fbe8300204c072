"""A discrete-event simulation of the way of an id: clients, workers, shards, and the cores that they share.

It is given what each step costs (``model.Costs``), and it knows how group commit works: for each shard a
worker has one batch under way, ids collect meanwhile, and a linger lets the clients come that were just
answered. Sizes of batches, latencies and throughput are its results. It is pure: the same plan has the same
outcome.

A process is an event loop. In each turn it takes what has come, up to a time slice, and uses a core for what
that costs. Then others see the effects. Processes that are ready get a free core in the order in which they
became ready, and keep it until they have nothing to do, or for a time slice.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from bench.model import Costs, Outcome, Plan

# So many requests, or answers, until others see what was done. Smaller slices change little.
_SLICE = 8
# How long a process keeps its core while others are ready: Linux' base slice on two cores.
_TIME_SLICE_S = 0.0014
# How often the open loop sends what is due: as kit/generator.py does; as many clients by themselves would.
_TICK_S, _FINE_TICK_S = 0.0005, 0.00005
# The part of the run that does not count, since queues are empty at its start.
_WARM_UP = 0.2


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


class _Turn(NamedTuple):
    """CPU; then, for ``blocked_s``, neither a core nor other work, as in an fsync; then effects."""

    cpu_s: float
    effects: Callable[[], None]
    blocked_s: float = 0


class _Process:
    """Sleeps, waits for a core, or has one."""

    def __init__(self, clock: _Clock, cores: _Cores) -> None:
        self.clock = clock
        self._cores = cores
        self._sleeps = True
        self._runs_since_s = 0.0
        self.cpu_s = 0.0
        self.turns = 0

    def wake(self) -> None:
        if self._sleeps:
            self._sleeps = False
            self._cores.enter(self)

    def next_turn(self) -> _Turn | None:
        """None: there is nothing to do."""
        raise NotImplementedError

    def begins(self, switch_s: float) -> bool:
        """Whether it uses the core that it was given, after another one if ``switch_s`` is not 0."""
        self._runs_since_s = self.clock.now
        return self._goes_on(switch_s)

    def _goes_on(self, switch_s: float = 0) -> bool:
        turn = self.next_turn()
        if turn is None:
            self._sleeps = True
            return False
        cpu_s = turn.cpu_s + switch_s
        self.cpu_s += cpu_s
        self.clock.after(cpu_s, lambda: self._has_run(turn))
        return True

    def _has_run(self, turn: _Turn) -> None:
        if turn.blocked_s:
            self.clock.after(turn.blocked_s, lambda: self._is_unblocked(turn))
            self._cores.leave(self)
            return
        turn.effects()
        if self.clock.now - self._runs_since_s >= _TIME_SLICE_S:
            self._cores.enter(self)
            self._cores.leave(self)
        elif not self._goes_on():
            self._cores.leave(self)

    def _is_unblocked(self, turn: _Turn) -> None:
        turn.effects()
        self._cores.enter(self)


class _Cores:
    """A core that another process had before costs ``switch_s``: its caches are full of that one's data."""

    def __init__(self, count: int, switch_s: float) -> None:
        self._switch_s = switch_s
        self.switches = 0
        self._free: list[_Process | None] = [None] * count  # by who had them last
        self._ready: collections.deque[_Process] = collections.deque()

    def enter(self, process: _Process) -> None:
        self._ready.append(process)
        self._fill()

    def leave(self, process: _Process) -> None:
        self._free.append(process)
        self._fill()

    def _fill(self) -> None:
        while self._free and self._ready:
            process = self._ready.popleft()
            last = self._free.pop(self._free.index(process) if process in self._free else 0)
            if process.begins(0 if last is process else self._switch_s):
                self.switches += last is not process
            else:
                self._free.append(last)


class _Request:
    __slots__ = ("connection", "due_s", "shard")

    def __init__(self, connection: int, due_s: float, shard: int) -> None:
        self.connection = connection
        self.due_s = due_s
        self.shard = shard


class _Batch(NamedTuple):
    commit: _Commit
    requests: list[_Request]


def _ids(batches: Sequence[_Batch]) -> int:
    return sum(len(batch.requests) for batch in batches)


class _Redis(_Process):
    def __init__(self, clock: _Clock, cores: _Cores, plan: Plan, costs: Costs) -> None:
        super().__init__(clock, cores)
        self._net_s, self._costs = plan.net_s, costs
        self._random = random.Random(plan.seed)
        self._came: list[_Batch] = []

    def take(self, batches: Sequence[_Batch]) -> None:
        self._came += batches
        self.wake()

    def _all(self) -> list[_Batch]:
        came, self._came = self._came, []
        return came

    def _fsync_s(self) -> float:
        return self._random.choice(self._costs.fsyncs_s)

    def _sends(self, action: Callable[[], None]) -> None:
        self.clock.after(self._net_s, action)


class _Primary(_Redis):
    """It has shards. Its replica, where there is one, must have a batch before the batch is answered."""

    def __init__(self, clock: _Clock, cores: _Cores, plan: Plan, costs: Costs) -> None:
        super().__init__(clock, cores, plan, costs)
        self.replica: _Replica | None = None
        self._acknowledged: list[_Batch] = []
        self.batches = 0
        self.ids = 0

    def acknowledge(self, batches: Sequence[_Batch]) -> None:
        self._acknowledged += batches
        self.wake()

    def next_turn(self) -> _Turn | None:
        costs, replica = self._costs, self.replica
        if self._acknowledged:
            acknowledged, self._acknowledged = self._acknowledged, []
            return _Turn(costs.acknowledge_s, lambda: self._answer(acknowledged))
        if not self._came:
            return None
        batches = self._all()
        self.turns += 1
        self.batches += len(batches)
        self.ids += _ids(batches)
        cpu_s = costs.redis_turn_s + len(batches) * costs.script_s + _ids(batches) * costs.id_s
        if replica is None:
            return _Turn(cpu_s, lambda: self._answer(batches), self._fsync_s())
        cpu_s += len(batches) * costs.wait_s
        return _Turn(cpu_s, lambda: self._sends(lambda: replica.take(batches)), self._fsync_s())

    def _answer(self, batches: Sequence[_Batch]) -> None:
        for batch in batches:
            self._sends(partial(batch.commit.answered, batch.requests))


class _Replica(_Redis):
    def __init__(self, clock: _Clock, cores: _Cores, plan: Plan, costs: Costs, primary: _Primary) -> None:
        super().__init__(clock, cores, plan, costs)
        self._primary = primary

    def next_turn(self) -> _Turn | None:
        if not self._came:
            return None
        batches, costs = self._all(), self._costs
        cpu_s = (
            costs.redis_turn_s
            + len(batches) * costs.replicated_batch_s
            + _ids(batches) * costs.replicated_id_s
        )
        # Its answer leaves at the end of the turn, after its fsync.
        return _Turn(cpu_s, lambda: self._sends(lambda: self._primary.acknowledge(batches)), self._fsync_s())


class _Crowd:
    """The clients that several group commits of a worker wait for together, as ``idagg.accept.commit``."""

    def __init__(self, worker: _Worker, linger_s: float) -> None:
        self._worker, self._linger_s = worker, linger_s
        self._lingers: object | None = None
        self.missing = 0

    def answered(self, clients: int) -> None:
        self.missing += clients
        if self._lingers is None:
            self._lingers = linger = object()
            self._worker.clock.after(self._linger_s, lambda: self._end_linger(linger))

    def back(self) -> None:
        if self.missing:
            self.missing -= 1
            if not self.missing:
                self._lingers = None

    def _end_linger(self, linger: object) -> None:
        if self._lingers is linger:
            self._lingers = None
            self.missing = 0
            self._worker.has_some_due()


class _Commit:
    """Group commit of a worker to a shard, as ``idagg.accept.commit``."""

    def __init__(self, worker: _Worker, server: _Primary, plan: Plan, crowd: _Crowd | None) -> None:
        self._worker, self._server, self._plan, self._crowd = worker, server, plan, crowd
        self._open: list[_Request] = []
        self._is_under_way = False
        self._lingers: object | None = None
        self._expected = 0
        self._answered: list[_Request] = []

    @property
    def is_due(self) -> bool:
        if self._is_under_way or not self._open:
            return False
        if self._crowd is not None:
            return not self._crowd.missing
        return self._lingers is None or len(self._open) >= self._expected

    def add(self, request: _Request) -> None:
        self._open.append(request)
        if self._crowd is not None:
            self._crowd.back()

    def send(self) -> None:
        self._lingers = None
        self._is_under_way = True
        batch, self._open = _Batch(self, self._open), []
        self._worker.clock.after(self._plan.net_s, lambda: self._server.take([batch]))

    def answered(self, requests: list[_Request]) -> None:
        """The store has answered. The worker finds out in its next turn."""
        self._answered = requests
        self._worker.hears_of(self)

    def end(self) -> list[_Request]:
        """Let those come who are answered now, for a while."""
        self._is_under_way = False
        if self._crowd is not None:
            self._crowd.answered(len(self._answered))
            return self._answered
        self._expected = len(self._open) + len(self._answered)
        self._lingers = linger = object()
        self._worker.clock.after(self._plan.linger_s, lambda: self._end_linger(linger))
        return self._answered

    def _end_linger(self, linger: object) -> None:
        if self._lingers is linger:
            self._lingers = None
            if self._open:
                self._worker.has_due(self)


class _Worker(_Process):
    def __init__(
        self,
        clock: _Clock,
        cores: _Cores,
        plan: Plan,
        costs: Costs,
        servers: Sequence[_Primary],
        clients: _Clients,
    ) -> None:
        super().__init__(clock, cores)
        self._costs, self._clients = costs, clients
        crowd = _Crowd(self, plan.linger_s) if plan.shards > 1 else None
        self._commits = [
            _Commit(self, servers[shard % len(servers)], plan, crowd) for shard in range(plan.shards)
        ]
        self._came: collections.deque[_Request] = collections.deque()
        self._ended: collections.deque[_Commit] = collections.deque()
        self._due: collections.deque[_Commit] = collections.deque()
        self._unanswered: list[_Request] = []  # the rest of a batch that is larger than a slice
        self._ready = 0  # requests that this turn of the loop still has to read

    def take(self, requests: Sequence[_Request]) -> None:
        self._came += requests
        self.wake()

    def hears_of(self, commit: _Commit) -> None:
        self._ended.append(commit)
        self.wake()

    def has_due(self, commit: _Commit) -> None:
        self._due.append(commit)
        self.wake()

    def has_some_due(self) -> None:
        self._due += (commit for commit in self._commits if commit.is_due)
        self.wake()

    def next_turn(self) -> _Turn | None:
        costs = self._costs
        if self._unanswered:
            return self._answers(0)
        if self._ready:
            return self._reads(0)
        if not self._ended and not self._came and not self._due:
            return None
        self.turns += 1
        self._ready = len(self._came)
        if self._ended:
            self._unanswered = self._ended.popleft().end()
            return self._answers(costs.turn_s + costs.batch_s / 2)
        if self._ready:
            return self._reads(costs.turn_s)
        due = list(self._due)
        self._due.clear()
        return _Turn(costs.turn_s + len(due) * costs.batch_s / 2, lambda: self._sends(due))

    def _answers(self, cpu_s: float) -> _Turn:
        part, self._unanswered = self._unanswered[:_SLICE], self._unanswered[_SLICE:]
        cpu_s += len(part) * self._costs.request_s / 2
        return _Turn(cpu_s, lambda: self._clients.read(part))

    def _reads(self, cpu_s: float) -> _Turn:
        """What was ready when the turn began; then batches leave."""
        taken = [self._came.popleft() for _ in range(min(_SLICE, self._ready))]
        self._ready -= len(taken)
        for request in taken:
            self._commits[request.shard].add(request)
        due = [] if self._ready else [commit for commit in self._commits if commit.is_due]
        cpu_s += len(taken) * self._costs.request_s / 2 + len(due) * self._costs.batch_s / 2
        return _Turn(cpu_s, lambda: self._sends(due))

    @staticmethod
    def _sends(due: Sequence[_Commit]) -> None:
        for commit in due:
            if commit.is_due:
                commit.send()


class _Clients(_Process):
    """The load generator. In the closed loop a connection sends its next request when it has its answer."""

    def __init__(self, clock: _Clock, cores: _Cores, plan: Plan, costs: Costs) -> None:
        super().__init__(clock, cores)
        self._plan, self._costs = plan, costs
        self._random = random.Random(plan.seed)
        self._workers: list[_Worker] = []  # by connection
        self._answered: collections.deque[_Request] = collections.deque()
        self._unsent: collections.deque[_Request] = collections.deque()
        self._sent = 0
        self._ready = 0  # of those, how many this turn of the loop still has
        self.latencies_s: list[float] = []

    def start(self, workers: Sequence[_Worker]) -> None:
        # The kernel spreads connections over the workers' sockets by a hash.
        self._workers = [self._random.choice(workers) for _ in range(self._plan.connections)]
        if self._plan.rate:
            self._tick()
        else:
            self._unsent += (self._request(number, 0) for number in range(self._plan.connections))
            self.wake()

    def read(self, answered: Sequence[_Request]) -> None:
        self._answered += answered
        self.wake()

    def next_turn(self) -> _Turn | None:
        cpu_s = 0.0
        if not self._ready:
            self._ready = len(self._answered) + len(self._unsent)
            self.turns += 1
            cpu_s = self._costs.client_turn_s
        answered = [self._answered.popleft() for _ in range(min(_SLICE, len(self._answered)))]
        if not self._plan.rate:
            self._unsent += (self._request(request.connection, self.clock.now) for request in answered)
        sent = [self._unsent.popleft() for _ in range(min(_SLICE, len(self._unsent)))]
        if not answered and not sent:
            self._ready = 0
            return None
        self._ready = max(0, self._ready - max(len(answered), len(sent)))
        cpu_s += (len(answered) + len(sent)) * self._costs.client_request_s / 2
        return _Turn(cpu_s if self._plan.cores else 0, lambda: self._done(answered, sent))

    def _done(self, answered: Sequence[_Request], sent: Sequence[_Request]) -> None:
        now = self.clock.now
        self.latencies_s += (now - request.due_s for request in answered)
        by_worker: dict[_Worker, list[_Request]] = {}
        for request in sent:
            by_worker.setdefault(self._workers[request.connection], []).append(request)
        for worker, requests in by_worker.items():
            worker.take(requests)

    def _request(self, connection: int, due_s: float) -> _Request:
        return _Request(connection, due_s, self._random.randrange(self._plan.shards))

    def _tick(self) -> None:
        plan = self._plan
        tick_s = _TICK_S if plan.cores else _FINE_TICK_S
        for number in range(self._sent, int((self.clock.now + tick_s / 2) * plan.rate) + 1):
            self._unsent.append(self._request(number % plan.connections, number / plan.rate))
            self._sent = number + 1
        self.clock.after(tick_s, self._tick)
        self.wake()


def simulate(plan: Plan, costs: Costs) -> Outcome:
    clock = _Clock()
    shared = _Cores(plan.cores, costs.switch_s)

    def cores() -> _Cores:
        return shared if plan.cores else _Cores(1, 0)

    servers = [_Primary(clock, cores(), plan, costs) for _ in range(plan.servers or plan.shards)]
    if plan.with_wait:
        for server in servers:
            server.replica = _Replica(clock, cores(), plan, costs, server)
    clients = _Clients(clock, cores(), plan, costs)
    workers = [_Worker(clock, cores(), plan, costs, servers, clients) for _ in range(plan.workers)]

    def spent() -> list[float]:
        return [
            sum(worker.cpu_s for worker in workers),
            sum(worker.turns for worker in workers),
            sum(server.cpu_s + (server.replica.cpu_s if server.replica else 0) for server in servers),
            sum(server.batches for server in servers),
            sum(server.ids for server in servers),
            clients.cpu_s,
            clients.turns,
            sum(server.turns for server in servers),
            shared.switches,
        ]

    clients.start(workers)
    clock.run(plan.seconds * _WARM_UP)
    before, redis_s = spent(), [server.cpu_s for server in servers]
    clients.latencies_s.clear()
    clock.run(plan.seconds)
    server_s, turns, store_s, batches, ids, client_s, client_turns, redis_turns, switches = (
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
        turns=turns / ids,
        client_turns=client_turns / ids,
        redis_turns=redis_turns / ids,
        switches=switches / ids,
        busiest_redis=max(server.cpu_s - then for server, then in zip(servers, redis_s, strict=True))
        / counted_s,
    )
