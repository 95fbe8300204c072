"""Row 36 of the fault matrix: faults of a RabbitMQ cluster's nodes, which are hosts in one URL."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from random import Random

import pytest

from idagg.window import iso
from kit.faults import ANSWER_S, RABBITMQ_BACK_S, STEADY, arrived, beside, confirmed, in_time, unconfirmed
from kit.figures import Row
from kit.oracle import Delivery, Load, epoch_s, held, lines
from kit.proxy import Proxy
from kit.rabbit_cluster import ClusterConsumer, RabbitCluster
from kit.servers import RabbitServer
from kit.serving import Serving
from kit.waiting import eventually, next_window, until

# Until a node that was killed is a member of its queue again.
WHOLE_S = 90.0
# A silent node is down after TICK_S and more, and each host takes idagg some seconds to give up.
RABBITMQ_CLUSTER_BACK_S = 120.0
# A publish begins so soon after its window's end.
PUBLISHES_S = 0.02
DELIVERED = "idagg_windows_delivered_total{broker}"


@pytest.fixture(scope="module")
def started_cluster() -> Iterator[RabbitCluster]:
    with RabbitCluster() as started:
        yield started


@pytest.fixture
def cluster(started_cluster: RabbitCluster) -> RabbitCluster:
    """The module's, with all its nodes; a test brings back those that it froze or cut off."""
    if started_cluster.away:
        started_cluster.repair()
    return started_cluster


def flags(queue: str, *ports: int) -> tuple[str, ...]:
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    return ("--amqp-url", f"amqp://guest:guest@{hosts}/", "--amqp-queue", queue)


async def comes_back(row: Row, serving: Serving, since_s: float) -> None:
    """RabbitMQ takes messages: the next window is delivered by it, and nothing is pending."""
    # The queue is not asked: RabbitMQ may hang for long on who reads from one without a leader.
    before = (await serving.figures()).get(DELIVERED, 0)
    await eventually(
        serving.figures,
        lambda figures: (
            figures.get(DELIVERED, 0) > before
            and figures["idagg_pending{deliveries}"] == figures["idagg_pending{messages}"] == 0
        ),
        within_s=RABBITMQ_CLUSTER_BACK_S,
    )
    row.recovered(time.monotonic() - since_s)


async def is_whole(cluster: RabbitCluster, queue: str) -> None:
    async def ask() -> bool:
        return await asyncio.to_thread(cluster.is_whole, queue)

    await eventually(ask, bool, within_s=WHOLE_S)


async def all_queued(
    row: Row, serving: Serving, load: Load, consumer: ClusterConsumer, *, since: int
) -> list[Delivery]:
    """Each window from this one on is in the queue in the end, under one count; returns the deliveries."""
    deliveries = await arrived(serving, consumer)
    last = int(epoch_s(max(delivery.window for delivery in deliveries)))
    expected = held(load, since, last)
    assert row.verdict(load, deliveries, expected=expected, answer_s=ANSWER_S) == []
    assert {*expected} - (await consumer.counts()).keys() == set()
    return deliveries


@pytest.mark.parametrize(
    "times",
    [
        pytest.param(
            1,
            marks=pytest.mark.fault(
                "36", "node of the queue's leader killed in mid-publish", recovery_must_s=5.0
            ),
        ),
        pytest.param(
            20,
            marks=[
                pytest.mark.slow,
                pytest.mark.fault(
                    "36", "node of the queue's leader killed in mid-publish 20 times", recovery_must_s=5.0
                ),
            ],
        ),
    ],
)
async def test_36_leaders_node_killed(
    cluster: RabbitCluster, rabbit_queue: str, times: int, seed: int, row: Row
) -> None:
    """A message whose confirm is lost comes again, the same; other hosts take messages while it is down."""
    random = Random(seed)
    consumer = ClusterConsumer(cluster, rabbit_queue)
    async with contextlib.AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(Proxy(node.port)) for node in cluster.nodes]
        ports = (proxy.port for proxy in proxies)
        started = Serving(*flags(rabbit_queue, *ports), window=1, workers_have=STEADY)
        serving = await stack.enter_async_context(beside(started))
        repeated = []
        async with Load(serving, callers=4) as load:
            await eventually(consumer.take, bool, within_s=RABBITMQ_BACK_S)
            since = await next_window(1)
            async for injection in row.inject(times):
                if cluster.away:
                    await asyncio.to_thread(cluster.repair)
                await is_whole(cluster, rabbit_queue)
                leader = await asyncio.to_thread(cluster.leader, rabbit_queue)
                if injection % 2 == 0:
                    # The queue has the message, the confirm does not arrive.
                    repeated.append(await unconfirmed(serving, consumer, *proxies))
                    cluster.kill(leader)
                    for proxy in proxies:
                        proxy.refuse = True
                        proxy.stall_replies = proxy.refuse = False
                else:
                    await confirmed(serving, consumer)
                    await next_window(1)
                    await asyncio.sleep(random.uniform(0, PUBLISHES_S))
                    cluster.kill(leader)
                await comes_back(row, serving, time.monotonic())
        deliveries = await all_queued(row, serving, load, consumer, since=since)
        messages = await consumer.deliveries()
        assert min((messages.count(delivery) for delivery in repeated), default=2) >= 2
        assert {*repeated} <= {*deliveries}
        await asyncio.to_thread(serving.stop)


@pytest.mark.slow
@pytest.mark.fault("36", "two of three nodes down for 3 windows", recovery_must_s=10.0)
async def test_36_two_of_three_nodes_down(cluster: RabbitCluster, rabbit_queue: str, row: Row) -> None:
    """What is left takes no message: each window has its line in time, and counts as no message."""
    consumer = ClusterConsumer(cluster, rabbit_queue)
    with Serving(*flags(rabbit_queue, *(node.port for node in cluster.nodes)), window=1) as serving:
        async with Load(serving, callers=4) as load:
            await eventually(consumer.take, bool, within_s=RABBITMQ_BACK_S)
            since = await next_window(1)
            async for _ in row.inject(1):
                await confirmed(serving, consumer)
                leader = await asyncio.to_thread(cluster.leader, rabbit_queue)
                down = [leader, next(node for node in cluster.nodes if node is not leader)]
                known = len(lines(serving))
                for node in down:
                    cluster.kill(node)
                await until(lambda: len(lines(serving)) > known)
                before = await eventually(
                    serving.figures, lambda figures: figures["idagg_pending{messages}"] > 0
                )
                starts = [await next_window(1) for _ in range(3)]
                await until(lambda: iso(starts[-1]) in serving.counts())
                after = await serving.figures()
                assert after[DELIVERED] == before[DELIVERED]
                assert after["idagg_pending{messages}"] > before["idagg_pending{messages}"]
                assert all(
                    "RabbitMQ" in line["reason"]
                    for line in in_time(serving, starts, within_s=row.within_s(3))
                )
                await asyncio.to_thread(cluster.start, *down)
                await comes_back(row, serving, time.monotonic())
        await all_queued(row, serving, load, consumer, since=since)
        serving.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "mend"),
    [
        pytest.param(
            RabbitCluster.cut_off,
            RabbitCluster.mend,
            marks=pytest.mark.fault(
                "36", "node of the queue's leader cut off from the other two", recovery_must_s=5.0
            ),
            id="cut off",
        ),
        pytest.param(
            RabbitCluster.freeze,
            RabbitCluster.thaw,
            marks=pytest.mark.fault("36", "node of the queue's leader silent", recovery_must_s=20.0),
            id="silent",
        ),
    ],
)
async def test_36_leaders_node_away(
    cluster: RabbitCluster,
    rabbit_queue: str,
    harm: Callable[[RabbitCluster, RabbitServer], None],
    mend: Callable[[RabbitCluster, RabbitServer], None],
    row: Row,
) -> None:
    """The other two take messages while it is away, once they have another leader."""
    consumer = ClusterConsumer(cluster, rabbit_queue)
    with Serving(*flags(rabbit_queue, *(node.port for node in cluster.nodes)), window=1) as serving:
        async with Load(serving, callers=4) as load:
            await eventually(consumer.take, bool, within_s=RABBITMQ_BACK_S)
            since = await next_window(1)
            async for _ in row.inject(1):
                await confirmed(serving, consumer)
                leader = await asyncio.to_thread(cluster.leader, rabbit_queue)
                await next_window(1)
                since_s = time.monotonic()
                await asyncio.to_thread(harm, cluster, leader)
                try:
                    await comes_back(row, serving, since_s)
                finally:
                    await asyncio.to_thread(mend, cluster, leader)
                await is_whole(cluster, rabbit_queue)
        await all_queued(row, serving, load, consumer, since=since)
        serving.stop()
