"""What is done to idagg and to what it depends on, one thing at a time."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from random import Random

import aiormq

from idagg.store.client import Client
from kit.oracle import Consumer
from kit.proxy import Proxy
from kit.servers import RabbitServer, RedisServer, Server
from kit.serving import Serving
from kit.waiting import until

_FROZEN_S, _AWAY_S = 3, 6
# What systemd waits before it starts a unit again that died, by deploy/idagg.service.
_RESTART_S = 1


@dataclasses.dataclass(frozen=True)
class Scene:
    serving: Serving
    redis: RedisServer
    rabbit: RabbitServer
    queue: str
    consumer: Consumer
    store_line: Proxy
    broker_line: Proxy


Fault = Callable[[Scene, Random], Awaitable[None]]


async def worker_killed(scene: Scene, random: Random) -> None:
    await _kill(scene.serving, random.choice(scene.serving.workers()))


async def leader_killed(scene: Scene, random: Random) -> None:
    slot = scene.serving.leader()
    (leader,) = (pid for pid in scene.serving.workers() if _slot(pid) == slot)
    await _kill(scene.serving, leader)


async def supervisor_killed(scene: Scene, random: Random) -> None:
    scene.serving.kill()
    await until(lambda: not scene.serving.processes(), within_s=20)
    await asyncio.sleep(_RESTART_S)
    await asyncio.to_thread(scene.serving.start)


async def stopped_and_started(scene: Scene, random: Random) -> None:
    await asyncio.to_thread(scene.serving.stop)
    await asyncio.to_thread(scene.serving.start)


async def redis_killed(scene: Scene, random: Random) -> None:
    scene.redis.kill()
    await asyncio.to_thread(scene.redis.start)


async def redis_frozen(scene: Scene, random: Random) -> None:
    await _freeze(scene.redis, _FROZEN_S)


async def scripts_forgotten(scene: Scene, random: Random) -> None:
    client = Client(scene.redis.url, timeout_s=5)
    try:
        await client.command("SCRIPT", "FLUSH")
    finally:
        await client.close()


async def store_replies_lost(scene: Scene, random: Random) -> None:
    for _ in range(5):
        scene.store_line.swallowed.clear()
        scene.store_line.drop_replies = 1
        await scene.store_line.swallowed.wait()


async def rabbitmq_stopped(scene: Scene, random: Random) -> None:
    await asyncio.to_thread(scene.rabbit.ctl, "stop_app")
    try:
        await asyncio.sleep(_AWAY_S)
    finally:
        await asyncio.to_thread(scene.rabbit.ctl, "start_app")


async def rabbitmq_frozen(scene: Scene, random: Random) -> None:
    await _freeze(scene.rabbit, _AWAY_S)


async def _freeze(server: Server, for_s: float) -> None:
    server.freeze()
    try:
        await asyncio.sleep(for_s)
    finally:
        server.thaw()


async def queue_deleted(scene: Scene, random: Random) -> None:
    """With no message in it: those would be lost, and not by idagg."""
    async with aiormq.connect(scene.rabbit.url) as connection:
        channel = await connection.channel()
        await scene.consumer.take()  # the next comes when a window ends, and faults keep away from that
        await channel.queue_delete(scene.queue)


async def rabbitmq_reply_lost(scene: Scene, random: Random) -> None:
    scene.broker_line.swallowed.clear()
    scene.broker_line.drop_replies = 1
    await scene.broker_line.swallowed.wait()


# Who calls then has nobody to ask for a while.
DEADLY = {"worker killed", "leader killed", "supervisor killed", "stopped and started"}
# By whether callers may notice.
NOTICED: dict[str, Fault] = {
    fault.__name__.replace("_", " "): fault
    for fault in (
        worker_killed,
        leader_killed,
        supervisor_killed,
        stopped_and_started,
        redis_killed,
        redis_frozen,
    )
}
UNNOTICED: dict[str, Fault] = {
    fault.__name__.replace("_", " "): fault
    for fault in (
        scripts_forgotten,
        store_replies_lost,
        rabbitmq_stopped,
        rabbitmq_frozen,
        queue_deleted,
        rabbitmq_reply_lost,
    )
}


def in_random_order(random: Random) -> Iterator[tuple[str, Fault]]:
    """Without end; each comes once before any comes again."""
    while True:
        faults = [*NOTICED.items(), *UNNOTICED.items()]
        random.shuffle(faults)
        yield from faults


async def _kill(serving: Serving, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    await serving.replaces(pid)


def _slot(pid: int) -> int:
    """A worker keeps its figures in files that are named after its slot."""
    found = re.search(r"_(\d+)\.db", Path(f"/proc/{pid}/maps").read_text())
    return int(found[1]) if found else -1
