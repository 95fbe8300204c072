"""What the simulation is given, plans and costs, and what it says of a plan."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Costs:
    """What each step takes, in seconds of CPU where nothing else is said. ``bench.sizing`` measures them."""

    # A worker. A turn is one of its event loop. A request is read and judged, then answered, and written.
    turn_s: float
    request_s: float
    batch_s: float
    cold_s: float  # to begin on a core where others ran until nothing was left in its caches
    # A Redis. One turn of its event loop takes all batches that are there, and ends with one fsync.
    redis_turn_s: float
    script_s: float
    id_s: float
    fsyncs_s: tuple[float, ...]  # waits for the disk, as likely each as any other
    # With WAIT: what the primary does more for a batch, and the replica for a turn with batches, and an id.
    wait_s: float
    replica_turn_s: float
    replica_id_s: float
    # Of any process: to wake another one on an idle core; to begin on a core that was idle, or that was
    # another's. ``sleep_s`` is no CPU: how long an idle core takes to begin.
    call_s: float
    woken_s: float
    switch_s: float
    sleep_s: float
    # The load generator, where it shares the cores: a turn of its loop, and a request with its answer.
    client_turn_s: float
    client_request_s: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """Who takes part.

    ``rate`` is that of the open loop, in all; 0 is the closed loop. All processes share ``cores``; with 0
    each has a core of its own, and the clients cost nothing. ``net_s`` is the way from a worker to a Redis,
    or from one Redis to another. ``servers`` is how many Redis the shards are on; 0: each has its own.
    """

    workers: int
    shards: int = 1
    servers: int = 0
    with_wait: bool = False
    connections: int = 512
    rate: float = 0
    seconds: float = 1
    cores: int = 2
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
    # Only of a simulation, for each request: turns of its event loop, and how often caches were cold.
    redis_turns: float = 0
    server_colds: float = 0
    redis_colds: float = 0
    client_colds: float = 0
    busiest_redis: float = 0  # share of a core
