"""What the simulation is given, plans and costs, and what it says of a plan."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Costs:
    """What each step takes, in seconds of CPU where nothing else is said. ``bench.sizing`` measures them."""

    # A worker. A turn is one of its event loop. A request is read and judged, then answered.
    turn_s: float
    request_s: float
    shard_s: float  # what a request costs more where there are several shards
    cold_s: float  # what it costs more if its connection is not in the core's cache any more
    batch_s: float
    refill_s: float  # to fill the core's cache again after others had the core for a millisecond
    # A Redis. One turn of its event loop takes all batches that are there, and ends with one fsync.
    redis_turn_s: float
    script_s: float
    id_s: float
    fsyncs_s: tuple[float, ...]  # waits for the disk, as likely each as any other
    # With WAIT: what the primary does more for a turn with batches, a batch, an id; what the replica does.
    wait_turn_s: float
    wait_s: float
    wait_id_s: float
    replica_turn_s: float
    replica_batch_s: float
    replica_id_s: float
    # Of any process: to wake another one on an idle core; to begin on a core that was idle, or that was
    # another's. ``sleep_s`` is no CPU: how long an idle core takes to begin.
    call_s: float
    woken_s: float
    switch_s: float
    sleep_s: float
    # How much a turn of an event loop costs more or less than usual: sigma of a log-normal distribution.
    varies: float
    # The load generator, where it is one of ours: a turn of its loop, and a request with its answer.
    client_turn_s: float
    client_request_s: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """Who takes part.

    ``rate`` is that of the open loop, in all; 0 is the closed loop. ``one_core``: workers and Redis share a
    core, and the clients have another one. Else each has a core of its own, and the clients cost nothing.
    ``net_s`` is the way from a worker to a Redis, or from one Redis to another. ``servers`` is how many Redis
    the shards are on; 0: each has its own.
    """

    workers: int
    shards: int = 1
    servers: int = 0
    with_wait: bool = False
    connections: int = 512
    rate: float = 0
    seconds: float = 1
    one_core: bool = True
    net_s: float = 0
    linger_s: float = 0.001
    seed: int = 1


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What is seen of a plan, simulated or measured. CPU is in µs for each request."""

    rate: float
    p50_ms: float
    p99_ms: float
    ids_per_batch: float
    server_us: float
    redis_us: float  # of primaries and replicas
    client_us: float = 0
    # Only of a simulation: for each request, turns of Redis' event loop, how often a worker filled its cache
    # again, and how often the load woke on an idle core; and a share of a core.
    redis_turns: float = 0
    server_refills: float = 0
    client_wakes: float = 0
    busiest_redis: float = 0
