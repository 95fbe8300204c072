"""A RabbitMQ cluster of three real nodes for tests, which shares nothing with a RabbitMQ of the machine.

Three nodes start in 11 s and take 150 MB each.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import aiormq
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import AMQPException

from kit.groups import wait_for
from kit.oracle import Consumer
from kit.servers import RabbitServer

NODES = 3
# After so long, and a quarter of it more or less, a node that says nothing is down for the others. RabbitMQ's
# default is 60 s; a queue can hang for as long.
TICK_S = 8


class RabbitCluster:
    """Three nodes, each with ports, a folder and data of its own. Those without a majority pause."""

    def __init__(self) -> None:
        first = RabbitServer()
        self.nodes = [first, *(RabbitServer(beside=first) for _ in range(NODES - 1))]
        self.away: set[RabbitServer] = set()  # killed, frozen or cut off
        self._cookie = first.folder.name
        cookie = first.folder / ".erlang.cookie"
        cookie.write_text(self._cookie)
        cookie.chmod(0o400)
        for node in self.nodes:
            peers = dict.fromkeys((first.name, node.name))  # the first waits for nobody
            settings = [
                "cluster_formation.peer_discovery_backend = classic_config",
                *(f"cluster_formation.classic_config.nodes.{i} = {peer}" for i, peer in enumerate(peers)),
                "cluster_partition_handling = pause_minority",
                f"net_ticktime = {TICK_S}",
            ]
            with node.configuration.open("a") as file:
                file.writelines(f"{setting}\n" for setting in settings)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for node in self.nodes:  # the first has the epmd of all, and is closed last
                stack.callback(node.close)
            self.nodes[0].start()
            self.start(*self.nodes[1:])
            self.nodes[0].ctl("await_online_nodes", str(NODES))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def there(self) -> list[RabbitServer]:
        return [node for node in self.nodes if node not in self.away]

    def leader(self, queue: str) -> RabbitServer:
        """The node where the quorum queue has its leader."""

        def found() -> RabbitServer | None:
            name = self._column(queue, "leader")
            return next((node for node in self.nodes if node.name == name), None)

        return wait_for(found, what="the queue has no leader")

    def is_whole(self, queue: str) -> bool:
        """Whether the queue has a member on every node."""
        return all(node.name in self._column(queue, "online") for node in self.nodes)

    def kill(self, node: RabbitServer) -> None:
        self.away.add(node)
        node.kill()

    def freeze(self, node: RabbitServer) -> None:
        self.away.add(node)
        node.freeze()

    def thaw(self, node: RabbitServer) -> None:
        node.thaw()
        self.away.discard(node)

    def repair(self) -> None:
        """Start what was killed, and wait for all."""
        self.start(*self.away)
        self.nodes[0].ctl("await_online_nodes", str(NODES))

    def start(self, *nodes: RabbitServer) -> None:
        """All of these at once."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(RabbitServer.start, nodes))
        self.away.difference_update(nodes)

    def cut_off(self, node: RabbitServer) -> None:
        """From the other nodes, not from its clients: for it, they are strangers with a wrong cookie."""
        self.away.add(node)
        self._set_cookie_of_peers(node, "another", "erlang:disconnect_node(P)")

    def mend(self, node: RabbitServer) -> None:
        self._set_cookie_of_peers(node, self._cookie, "ok")
        self.away.discard(node)

    def _set_cookie_of_peers(self, node: RabbitServer, cookie: str, then: str) -> None:
        peers = ", ".join(f"'{peer.name}'" for peer in self.nodes if peer is not node)
        node.ctl("eval", f"[begin erlang:set_cookie(P, '{cookie}'), {then} end || P <- [{peers}]].")

    def _column(self, queue: str, column: str) -> str:
        """Of the queue; "" while the node that is asked is on its way up."""
        try:
            told = self.there[0].ctl("list_queues", "--no-table-headers", "name", column)
        except subprocess.CalledProcessError:
            return ""
        return dict(line.split("\t") for line in told.splitlines()).get(queue, "")


class ClusterConsumer(Consumer):
    """Takes messages from the first node that is there. What it could not acknowledge it gets again."""

    def __init__(self, cluster: RabbitCluster, queue: str) -> None:
        super().__init__(cluster.nodes[0], queue)
        self._cluster = cluster

    async def take(self) -> list[DeliveredMessage]:
        """All messages until now; none where the queue has no leader for the moment."""
        try:
            async with asyncio.timeout(3), aiormq.connect(self._cluster.there[0].url) as connection:
                channel = await connection.channel()
                while (message := await channel.basic_get(self._queue)).body:
                    assert message.delivery_tag is not None
                    self._taken.append(message)
                    await channel.basic_ack(message.delivery_tag)
        except (AMQPException, OSError, TimeoutError):
            pass
        return self._taken
