"""The fault matrix: each row's fault, in real processes, and the oracle's verdict on what came of it.

Those that take long are marked ``slow``: ``tox run -e faults`` runs them, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import aiormq
import pytest
from aiohttp import web

import oracle
from idagg import failpoints
from idagg.store.client import Client
from idagg.store.windows import WindowStore
from idagg.window import iso
from oracle import Consumer, Delivery, Load, Size, epoch_s, grid, lines, open_windows
from proxy import Proxy
from servers import RabbitServer, RedisServer, libfaketime
from serving import Serving, connect, eventually, long_window, next_window, request, send, until

# What an answer may take, as the machine is shared: at the default deadline, and at a shorter one.
ANSWER_S = 2.5
SOON = ("--deadline", "1")
SOON_S = 1.5
# What it may take whom a dead worker leaves in its backlog: until the next one listens.
SUCCESSOR_S = 4.0
RECOVERS_S = 3.0


@pytest.fixture
def durable_server() -> Iterator[RedisServer]:
    """A store that has on disk what it has acknowledged."""
    with RedisServer(appendonly="yes", appendfsync="always") as server:
        yield server


@contextlib.asynccontextmanager
async def beside(serving: Serving) -> AsyncIterator[Serving]:
    """Started and ended while our loop goes on, for the proxies in it."""
    try:
        await asyncio.to_thread(serving.start)
        yield serving
    finally:
        await asyncio.to_thread(serving.close)


@contextlib.asynccontextmanager
async def store_client(url: str) -> AsyncIterator[Client]:
    client = Client(url, timeout_s=5)
    try:
        yield client
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def nobody_seals(url: str, window: int) -> AsyncIterator[None]:
    """We hold the leader's lock, so that windows stay open and can be compared id by id."""
    async with store_client(url) as client:
        windows = WindowStore(client, namespace="idagg", window_s=window, exact_limit=10**7)
        assert (await windows.lead("test", lease_ms=600_000)).epoch == 1
        yield
        await windows.resign("test")


async def tells(serving: Serving, text: str, *, times: int = 1) -> None:
    """Wait until it has said so."""
    await until(lambda: serving.said.count(text) >= times)


async def lease_runs_out(url: str) -> None:
    """At once; that a successor waits for it is another test's."""
    async with store_client(url) as client:
        await client.command("PEXPIRE", "{idagg:0}:lock", 1)


async def sealed(
    serving: Serving, load: Load, *, since: int | None = None, answer_s: float = ANSWER_S
) -> list[str]:
    """The verdict where windows go to the log file, all complete from the one that began at ``since``."""
    last = max(await serving.delivered())
    expected = [] if since is None else grid(since, int(epoch_s(last)), serving.window)
    return oracle.verdict(load, lines(serving), expected=expected, answer_s=answer_s)


async def arrived(serving: Serving, consumer: Consumer) -> list[Delivery]:
    """All deliveries, once the queue has every window as far as the one that is open now."""
    now_s = int(time.time())
    present = iso(now_s - now_s % serving.window)
    await eventually(consumer.counts, lambda counts: max(counts, default="") >= present, within_s=20)
    queued = await eventually(
        consumer.deliveries,
        lambda found: {line.window for line in lines(serving)} <= {delivery.window for delivery in found},
        within_s=20,
    )
    return [*queued, *lines(serving)]


def in_time(serving: Serving, starts: list[int], *, within_s: float) -> list[dict[str, str]]:
    """The lines of these windows; each was written soon after its window's end."""
    found = [line for line in serving.records("window") if line["window"] in map(iso, starts)]
    assert {line["window"] for line in found} == set(map(iso, starts))
    for line in found:
        assert 0 <= epoch_s(line["time"]) - epoch_s(line["window"]) - serving.window < within_s
    return found


async def test_1_workers_killed(any_server: RedisServer) -> None:
    """Workers die in turn, the leader among them: every ok id is in the store, and others take over."""
    with Serving("--redis-url", any_server.url, window=long_window()) as serving:
        async with Load(serving) as load:
            for number in range(4):
                victim = serving.workers()[number % 2]
                os.kill(victim, signal.SIGKILL)
                await serving.replaces(victim)
                since_s = time.monotonic()
                await load.goes_on()
                assert oracle.not_recovered(load, since_s, within_s=RECOVERS_S) == []
        assert oracle.wrong_ids(load, await open_windows(any_server.url)) == []
        assert load.failed == set()
        assert oracle.late(load, SUCCESSOR_S) == []  # those in a dead worker's backlog wait for the next
        serving.stop()


@pytest.mark.slow
async def test_2_worker_hung(any_server: RedisServer) -> None:
    """A worker that stands still is replaced by the watchdog; whom it held up may come again."""
    tuned = {"idagg.run.supervisor.HUNG_S": 2.0}
    with Serving("--redis-url", any_server.url, window=long_window(), tuned=tuned) as serving:
        async with Load(serving) as load:
            for number in range(2):
                victim = serving.workers()[number]
                os.kill(victim, signal.SIGSTOP)
                await serving.replaces(victim)
                since_s = time.monotonic()
                await load.goes_on()
                assert oracle.not_recovered(load, since_s, within_s=RECOVERS_S) == []
        assert oracle.wrong_ids(load, await open_windows(any_server.url)) == []
        assert oracle.late(load, 3 + SUCCESSOR_S) == []
        serving.stop()


async def test_3_supervisor_killed() -> None:
    """Nobody stays behind, and a new instance on the same port and folder delivers the rest."""
    with Serving(window=1) as serving:
        async with Load(serving) as load:
            serving.kill()
            await until(lambda: not serving.processes(), within_s=10)
            with pytest.raises(ConnectionRefusedError):
                await connect(serving.port)
        serving.flags = ("--port", str(serving.port))
        serving.start()
        assert await sealed(serving, load) == []
        serving.stop()


async def test_leader_killed(any_server: RedisServer) -> None:
    """The leader dies: another leads once the lease has run out, and no window is lost or counted anew."""
    with Serving("--redis-url", any_server.url) as serving:
        async with Load(serving) as load:
            since = await next_window(2)
            os.kill(serving.workers()[serving.leader()], signal.SIGKILL)
            await until(lambda: "leading: epoch 2" in serving.said, within_s=6)
            await load.goes_on()
        assert await sealed(serving, load, since=since, answer_s=SUCCESSOR_S) == []
        assert (await serving.figures())["idagg_leader"] == 1
        serving.stop()


@pytest.mark.parametrize("place", [place for place in failpoints.PLACES if place != "callback"])
async def test_5_to_9_leader_killed_between_two_steps(
    any_server: RedisServer, rabbit: RabbitServer, rabbit_queue: str, tmp_path: Path, place: str
) -> None:
    """Twice: the successor delivers the window; what comes twice has the same id and the same count."""
    armed = tmp_path / "armed"
    flags = ("--redis-url", any_server.url, "--amqp-url", rabbit.url, "--amqp-queue", rabbit_queue)
    environment = {failpoints.VARIABLE: f"{place}=kill@{armed}"}
    consumer = Consumer(rabbit, rabbit_queue)
    with Serving(*flags, window=1, environment=environment) as serving:
        async with Load(serving, callers=8) as load:
            await eventually(consumer.take, bool)
            since = await next_window(1)
            for deaths in (1, 2):
                await tells(serving, f"leading: epoch {deaths}")
                armed.touch()
                await tells(serving, "died (SIGKILL)", times=deaths)
                await lease_runs_out(any_server.url)
                await load.goes_on()
        deliveries = await arrived(serving, consumer)
        last = int(epoch_s(max(delivery.window for delivery in deliveries)))
        assert oracle.verdict(load, deliveries, expected=grid(since, last, 1), answer_s=SUCCESSOR_S) == []
        repeats = len(deliveries) - len({delivery.message_id for delivery in deliveries})
        assert (repeats >= 2) == (place in ("after-confirm", "before-mark"))
        serving.stop()


async def test_7_leader_killed_before_the_confirm(
    any_server: RedisServer, rabbit: RabbitServer, rabbit_queue: str
) -> None:
    """RabbitMQ has the message, and the leader dies before it hears of that: it comes again, the same."""
    consumer = Consumer(rabbit, rabbit_queue)
    async with Proxy(rabbit.port) as proxy:
        flags = ("--redis-url", any_server.url, "--amqp-url", proxy.amqp_url, "--amqp-queue", rabbit_queue)
        async with beside(Serving(*flags, window=1)) as serving:
            async with Load(serving, callers=8) as load:
                await eventually(consumer.take, bool)
                await consumer.one_more()
                proxy.stall_replies = True
                unconfirmed = await consumer.one_more()
                os.kill(serving.workers()[serving.leader()], signal.SIGKILL)
                await until(lambda: "died (SIGKILL)" in serving.said)
                proxy.stall_replies = False
                await lease_runs_out(any_server.url)
                await load.goes_on()
            deliveries = await arrived(serving, consumer)
            assert oracle.verdict(load, deliveries, answer_s=SUCCESSOR_S) == []
            assert deliveries.count(unconfirmed) == 2
            await asyncio.to_thread(serving.stop)


@pytest.mark.parametrize("place", ["before-seal", "before-mark"])
async def test_10_zombie_leader(any_server: RedisServer, tmp_path: Path, place: str) -> None:
    """A leader that was stopped between two steps, and wakes when another leads, is refused the next one."""
    armed = tmp_path / "armed"
    environment = {failpoints.VARIABLE: f"{place}=stall@{armed}"}
    with Serving("--redis-url", any_server.url, window=1, environment=environment) as serving:
        async with Load(serving, callers=8) as load:
            since = await next_window(1)
            zombie = serving.workers()[serving.leader()]
            armed.touch()
            await until(lambda: state_of(zombie) == "T")
            await lease_runs_out(any_server.url)
            await until(lambda: "leading: epoch 2" in serving.said)
            known = len(lines(serving))
            await until(lambda: len(lines(serving)) > known)
            os.kill(zombie, signal.SIGCONT)
            await until(lambda: "not leading any more: epoch 1 has ended" in serving.said)
            await load.goes_on()
        last = int(epoch_s(max(await serving.delivered())))
        found = lines(serving)
        # Whom a stopped process holds up cannot be answered in time.
        assert oracle.verdict(load, found, expected=grid(since, last, 1), answer_s=5) == []
        # What the zombie wrote, and did not mark.
        assert len(found) - len(set(found)) == (1 if place == "before-mark" else 0)
        async with store_client(any_server.url) as client:
            assert "errorstat_FENCED" in await client.command("INFO", "errorstats")
        serving.stop()


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.slow
async def test_11_redis_killed_everysec() -> None:
    """Redis with `appendfsync everysec` loses no more than what got its ok in the last 2 s."""
    with (
        RedisServer(appendonly="yes", appendfsync="everysec") as server,
        Serving("--redis-url", server.url, *SOON, window=long_window()) as serving,
    ):
        async with Load(serving, callers=32) as load:
            lately = 0
            for _ in range(5):
                server.kill()
                lately += sum(at > time.monotonic() - 2 for at in load.ok_at)
                await load.fails()
                await asyncio.to_thread(server.start)
                since_s = time.monotonic()
                await load.goes_on()
                assert oracle.not_recovered(load, since_s, within_s=RECOVERS_S) == []
        windows = await open_windows(server.url)
        lost = load.ok - set().union(*windows.values())
        assert len(lost) <= lately
        load.ok -= lost
        assert oracle.wrong_ids(load, windows) == []
        assert oracle.late(load, SOON_S) == []
        serving.stop()


async def test_12_embedded_store_killed() -> None:
    """The embedded store dies: it is started again, and has every id that got its ok."""
    with Serving(window=1) as serving:
        async with Load(serving) as load:
            for number in range(1, 4):
                os.kill(serving.store(), signal.SIGKILL)
                await tells(serving, "the embedded store died (SIGKILL)", times=number)
                since_s = time.monotonic()
                await load.goes_on()
                assert oracle.not_recovered(load, since_s, within_s=RECOVERS_S) == []
        assert await sealed(serving, load) == []
        serving.stop()


async def test_12_redis_killed(durable_server: RedisServer) -> None:
    """Redis with `appendfsync always` dies and comes back: every id that got its ok is there, and once."""
    flags = ("--redis-url", durable_server.url, *SOON)
    with Serving(*flags, window=long_window()) as serving:
        async with Load(serving, callers=32) as load:
            for _ in range(5):
                durable_server.kill()
                await load.fails()
                await asyncio.to_thread(durable_server.start)
                since_s = time.monotonic()
                await load.goes_on()
                assert oracle.not_recovered(load, since_s, within_s=RECOVERS_S) == []
        assert oracle.wrong_ids(load, await open_windows(durable_server.url)) == []
        assert oracle.late(load, SOON_S) == []
        assert load.unknown == set()
        serving.stop()


async def test_13_redis_frozen_over_boundaries(any_server: RedisServer) -> None:
    """Every request is answered within its deadline, 503; no id is in two windows; it recovers by itself."""
    async with nobody_seals(any_server.url, 1):
        with Serving("--redis-url", any_server.url, *SOON, window=1) as serving:
            async with Load(serving, callers=32) as load:
                for _ in range(2):
                    any_server.freeze()
                    try:
                        await load.fails(64)
                        answer = await eventually(serving.health, lambda answer: answer.status == 503)
                        assert answer.body.startswith(b"failed\nstore: ")
                        assert (await serving.ask("/readyz")).status == 503
                    finally:
                        any_server.thaw()
                    since_s = time.monotonic()
                    await load.goes_on()
                    assert oracle.not_recovered(load, since_s, within_s=RECOVERS_S) == []
                    await serving.ready()
            assert load.unknown == set()
            assert oracle.late(load, SOON_S) == []
            assert oracle.wrong_ids(load, await open_windows(any_server.url)) == []
            serving.stop()


async def test_14_replies_lost(any_server: RedisServer) -> None:
    """The script ran and its reply was lost, at times until another window has begun: it is not run again."""
    async with (
        Proxy(str(any_server.socket)) as proxy,
        nobody_seals(any_server.url, 1),
        beside(Serving("--redis-url", proxy.url, window=1)) as serving,
    ):
        async with Load(serving) as load:
            for _ in range(20):
                proxy.swallowed.clear()
                proxy.drop_replies = 1
                await asyncio.wait_for(proxy.swallowed.wait(), 5)
                await load.goes_on(50)
            for _ in range(3):
                proxy.stall_replies = True
                await next_window(1)
                proxy.refuse = True
                proxy.stall_replies = proxy.refuse = False
                await load.goes_on(50)
        assert (load.failed, load.unknown) == (set(), set())
        windows = await open_windows(any_server.url)
        assert oracle.wrong_ids(load, windows) == []
        async with store_client(any_server.url) as client:
            hits = [await client.command("HGET", f"{{idagg:0}}:w:{start}", "hits") for start in windows]
        assert sum(map(int, hits)) == len(load.ok)
        await asyncio.to_thread(serving.stop)


async def test_15_scripts_forgotten(any_server: RedisServer) -> None:
    """`SCRIPT FLUSH` under load: nobody notices."""
    with Serving("--redis-url", any_server.url, window=1) as serving:
        async with Load(serving) as load, store_client(any_server.url) as client:
            since = await next_window(1)
            for _ in range(20):
                await client.command("SCRIPT", "FLUSH")
                await load.goes_on(100)
        assert (load.failed, load.unknown) == (set(), set())
        assert await sealed(serving, load, since=since) == []
        serving.stop()


async def test_16_redis_out_of_memory(any_server: RedisServer) -> None:
    """Full, it answers `failed` and never a false ok; it counts again once there is room."""
    flags = ("--redis-url", any_server.url, *SOON)
    with Serving(*flags, window=long_window()) as serving:
        async with Load(serving) as load, store_client(any_server.url) as client:
            for _ in range(3):
                info = (await client.command("INFO", "memory"))["used_memory"]
                await client.command("CONFIG", "SET", "maxmemory", int(info) + 50_000)
                await load.fails(100)
                await client.command("CONFIG", "SET", "maxmemory", 0)
                since_s = time.monotonic()
                await load.goes_on()
                assert oracle.not_recovered(load, since_s, within_s=RECOVERS_S) == []
        windows = await open_windows(any_server.url)
        assert oracle.wrong_ids(load, windows) == []
        (found,) = windows.values()
        assert found == load.ok
        assert oracle.late(load, SOON_S) == []
        serving.stop()


@pytest.mark.parametrize("windows", [3, pytest.param(60, marks=pytest.mark.slow)])
async def test_19_rabbitmq_stopped(rabbit: RabbitServer, rabbit_queue: str, windows: int) -> None:
    """Each window has its line at once, with the reason, and its message, of the same count, later."""
    consumer = Consumer(rabbit, rabbit_queue)
    with Serving("--amqp-url", rabbit.url, "--amqp-queue", rabbit_queue, window=1) as serving:
        async with Load(serving, callers=4) as load:
            await eventually(consumer.take, bool)
            leader = serving.workers()[serving.leader()]
            before = Size.of(leader)
            await asyncio.to_thread(rabbit.ctl, "stop_app")  # all but its Erlang node, which is slow to start
            try:
                starts = [await next_window(1) for _ in range(windows)]
                await until(lambda: iso(starts[-1]) in serving.counts())
            finally:
                await asyncio.to_thread(rabbit.ctl, "start_app")
            assert all("RabbitMQ" in line["reason"] for line in in_time(serving, starts, within_s=1))
            assert oracle.grown(before, Size.of(leader), memory_kib=16_384, descriptors=4, threads=8) == []
        deliveries = await arrived(serving, consumer)
        expected = grid(starts[0], starts[-1], 1)
        assert oracle.verdict(load, deliveries, expected=expected, answer_s=ANSWER_S) == []
        assert {*expected} <= (await consumer.counts()).keys()
        serving.stop()


async def test_20_rabbitmq_killed_in_mid_publish(rabbit_queue: str) -> None:
    """What was not confirmed is in the log at once, and comes again, the same, when RabbitMQ is back."""
    with RabbitServer() as rabbit:
        consumer = Consumer(rabbit, rabbit_queue)
        async with Proxy(rabbit.port) as proxy:
            flags = ("--amqp-url", proxy.amqp_url, "--amqp-queue", rabbit_queue)
            async with beside(Serving(*flags, window=1)) as serving:
                async with Load(serving, callers=4) as load:
                    await eventually(consumer.take, bool)
                    await consumer.one_more()
                    proxy.stall_replies = True
                    unconfirmed = await consumer.one_more()
                    rabbit.kill()
                    proxy.refuse = True  # with what it held back
                    proxy.stall_replies = proxy.refuse = False
                    await until(lambda: unconfirmed.window in serving.counts())
                    await asyncio.to_thread(rabbit.start)
                deliveries = await arrived(serving, consumer)
                assert oracle.verdict(load, deliveries, answer_s=ANSWER_S) == []
                assert deliveries.count(unconfirmed) == 3  # two messages and a line
                await asyncio.to_thread(serving.stop)


def freeze(rabbit: RabbitServer) -> None:
    rabbit.freeze()


def thaw(rabbit: RabbitServer) -> None:
    rabbit.thaw()


def block(rabbit: RabbitServer) -> None:
    rabbit.ctl("set_vm_memory_high_watermark", "0")


def unblock(rabbit: RabbitServer) -> None:
    rabbit.ctl("set_vm_memory_high_watermark", "0.4")


@pytest.mark.parametrize(
    ("silence", "end"), [(freeze, thaw), (block, unblock)], ids=["21-silent", "22-blocked"]
)
async def test_21_22_rabbitmq_silent(
    rabbit: RabbitServer,
    rabbit_queue: str,
    silence: Callable[[RabbitServer], None],
    end: Callable[[RabbitServer], None],
) -> None:
    """Each window has its line in time, while the broker says nothing; its message comes afterwards."""
    consumer = Consumer(rabbit, rabbit_queue)
    with Serving("--amqp-url", rabbit.url, "--amqp-queue", rabbit_queue, window=1) as serving:
        async with Load(serving, callers=4) as load:
            await eventually(consumer.take, bool)
            await asyncio.to_thread(silence, rabbit)
            try:
                starts = [await next_window(1) for _ in range(3)]
                await until(lambda: iso(starts[-1]) in serving.counts())
            finally:
                await asyncio.to_thread(end, rabbit)
            assert all("RabbitMQ" in line["reason"] for line in in_time(serving, starts, within_s=3))
        deliveries = await arrived(serving, consumer)
        expected = grid(starts[0], starts[-1], 1)
        assert oracle.verdict(load, deliveries, expected=expected, answer_s=ANSWER_S) == []
        assert {*expected} <= (await consumer.counts()).keys()
        serving.stop()


async def test_23_queue_deleted(rabbit: RabbitServer, rabbit_queue: str) -> None:
    """What found no queue is in the log, and goes to the queue once that is there again."""
    consumer = Consumer(rabbit, rabbit_queue)
    with Serving("--amqp-url", rabbit.url, "--amqp-queue", rabbit_queue, window=1) as serving:
        async with Load(serving, callers=4) as load:
            await eventually(consumer.take, bool)
            await consumer.one_more()  # none that was not taken goes with the queue
            async with aiormq.connect(rabbit.url) as connection:
                await (await connection.channel()).queue_delete(rabbit_queue)
            await until(lambda: lines(serving))
            assert "no such queue" in serving.records("window")[0]["reason"]
        deliveries = await arrived(serving, consumer)
        assert oracle.verdict(load, deliveries, answer_s=ANSWER_S) == []
        assert lines(serving)[0].window in await consumer.counts()
        serving.stop()


async def test_23_queue_full(rabbit: RabbitServer, rabbit_queue: str) -> None:
    """What a queue refuses is in the log and never counts as delivered, until the queue has taken it."""
    consumer = Consumer(rabbit, rabbit_queue)
    full = '{"max-length": 1, "overflow": "reject-publish"}'
    async with aiormq.connect(rabbit.url) as connection:
        # A classic one: a quorum queue of RabbitMQ 3.10 goes on refusing when its limit has gone.
        await (await connection.channel()).queue_declare(rabbit_queue, durable=True)
    with Serving("--amqp-url", rabbit.url, "--amqp-queue", rabbit_queue, window=1) as serving:
        async with Load(serving, callers=4) as load:
            await eventually(consumer.take, bool)
            await asyncio.to_thread(
                rabbit.ctl, "set_policy", rabbit_queue, f"^{rabbit_queue}$", full, "--apply-to", "queues"
            )
            try:
                await until(lambda: len(lines(serving)) >= 3)
                assert all("refused" in line["reason"] for line in serving.records("window"))
                before = await serving.figures()
                await until(lambda: len(lines(serving)) >= 5)
                after = await serving.figures()
                sent = "idagg_windows_delivered_total{broker}"
                assert after[sent] == before[sent]
                assert after["idagg_outbox_windows{message}"] > before["idagg_outbox_windows{message}"] > 0
            finally:
                await asyncio.to_thread(rabbit.ctl, "clear_policy", rabbit_queue)
        deliveries = await arrived(serving, consumer)
        assert oracle.verdict(load, deliveries, answer_s=ANSWER_S) == []
        assert {delivery.window for delivery in lines(serving)} <= (await consumer.counts()).keys()
        serving.stop()


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Of the size that the test says; it needs root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


def fill(disk: Path, *, room: int = 0) -> Path:
    """But for some room; returns the file to remove."""
    with contextlib.suppress(OSError), (disk / "full").open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    os.truncate(disk / "full", (disk / "full").stat().st_size - room)
    return disk / "full"


def fill_page(log_file: Path) -> None:
    """A line that ends where the log file's last page does: the page has its room on a full disk, too."""
    with log_file.open("ab", buffering=0) as file:
        filler = b"time=0 event=filler x="
        file.write(filler.ljust(-(file.tell() + 1) % 4096, b"x") + b"\n")


@pytest.mark.parametrize("small_disk", ["64k"], indirect=True)
async def test_25_log_disk_full(small_disk: Path) -> None:
    """Windows stay owed while the log file's disk is full; no line is torn; all are there afterwards."""
    serving = Serving(window=1)
    serving.log_file = small_disk / "counts.log"
    with serving:
        async with Load(serving, callers=4) as load:
            since = await next_window(1)
            await until(lambda: iso(since) in serving.counts())
            full = fill(small_disk)
            fill_page(serving.log_file)
            await tells(serving, "windows stay owed, trying again: ")
            assert "No space left on device" in serving.said
            known = lines(serving)
            await eventually(serving.figures, lambda figures: figures["idagg_outbox_windows{sink}"] >= 3)
            assert lines(serving) == known
            full.unlink()
            await tells(serving, "windows are delivered again")
        assert await sealed(serving, load, since=since) == []
        serving.stop()


async def test_26_callbacks_that_hang(any_server: RedisServer) -> None:
    """Endpoints that never answer, answer without end, or redirect for ever hold up nothing else."""
    calls: set[str] = set()
    over = asyncio.Event()

    async def tarpit(request: web.Request) -> web.Response:
        calls.add("tarpit")
        await over.wait()
        return web.Response()

    async def endless(request: web.Request) -> web.StreamResponse:
        calls.add("endless")
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while not over.is_set():
                await response.write(b"x" * 65536)
        return response

    async def loop(request: web.Request) -> web.Response:
        calls.add("loop")
        return web.Response(status=302, headers={"Location": request.path_qs})

    async with hooks(tarpit, endless, loop) as base:
        flags = ("--redis-url", any_server.url, "--callback-allow", "127.0.0.1")
        with Serving(*flags, window=1) as serving:
            try:
                before = [Size.of(pid) for pid in serving.workers()]
                async with Load(serving, callers=4) as load:
                    since = await next_window(1)
                    for number in range(4):
                        for name in ("tarpit", "endless", "loop"):
                            query = f"&endpoint={base}/{name}/{number}"
                            await send(serving, range(-number * 50, -number * 50 - 20, -1), query=query)
                            load.ok.update(range(-number * 50, -number * 50 - 20, -1))
                        await next_window(1)
                    await until(lambda: calls == {"tarpit", "endless", "loop"})
                last = int(epoch_s(max(await serving.delivered())))
                in_time(serving, list(range(since, last + 1)), within_s=1)
                assert oracle.missing(lines(serving), grid(since, last, 1)) == []
                assert oracle.changed(lines(serving)) == []
                assert oracle.late(load, ANSWER_S) == []
                for size, pid in zip(before, serving.workers(), strict=True):
                    after = Size.of(pid)
                    # An attempt is a descriptor, or two as it begins; four run at a time to a host.
                    assert oracle.grown(size, after, memory_kib=32_768, descriptors=24, threads=16) == []
            finally:
                over.set()
            serving.stop()


async def test_callback_repeated_by_the_successor(any_server: RedisServer, tmp_path: Path) -> None:
    """A leader that dies after a call and before its mark: the successor calls again, under the same id."""
    calls: list[tuple[str, str, bytes]] = []

    async def hook(request: web.Request) -> web.Response:
        calls.append((request.path_qs, request.headers["webhook-id"], await request.read()))
        return web.Response()

    armed = tmp_path / "armed"
    armed.touch()
    async with hooks(hook) as base:
        flags = ("--redis-url", any_server.url, "--callback-allow", "127.0.0.1")
        environment = {failpoints.VARIABLE: f"callback=kill@{armed}"}
        with Serving(*flags, window=1, environment=environment) as serving:
            await next_window(1)
            await send(serving, range(100), query=f"&endpoint={base}/hook/1")
            await until(lambda: "died (SIGKILL)" in serving.said)
            await lease_runs_out(any_server.url)
            await until(lambda: len(calls) > 1)
            assert calls[0] == calls[1]
            await until(lambda: serving.records("callback"))
            serving.stop()


@contextlib.asynccontextmanager
async def hooks(*handlers: Callable[[web.Request], object]) -> AsyncIterator[str]:
    """A server where each handler is called by its name; yields its URL."""
    app = web.Application()
    for handler in handlers:
        app.router.add_route("*", f"/{handler.__name__}/{{tail:.*}}", handler)  # type: ignore[arg-type]  # it is one
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_28_clients_vanish(any_server: RedisServer) -> None:
    """Clients that vanish by the thousand, in mid-request or before the answer, are no matter to others."""
    with Serving("--redis-url", any_server.url, window=long_window()) as serving:
        workers = serving.workers()
        whole = request(1)
        async with Load(serving) as load:
            load.unknown.add(1)
            before = [Size.of(pid) for pid in workers]
            for sent in (whole, whole[:30], b"", whole + whole[:30], b"POST / HTTP/1.1\r\n") * 500:
                wire = await connect(serving.port)
                if sent:
                    await wire.send(sent)
                wire.reset()
            await load.goes_on()
            await until(
                lambda: (
                    not any(
                        oracle.grown(size, Size.of(pid), memory_kib=16_384, descriptors=4)
                        for size, pid in zip(before, workers, strict=True)
                    )
                )
            )
        assert (load.failed, load.unknown) == (set(), {1})
        assert oracle.late(load, ANSWER_S) == []
        assert oracle.wrong_ids(load, await open_windows(any_server.url)) == []
        assert serving.workers() == workers
        serving.stop()


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", ["8m"], indirect=True)
async def test_17_redis_disk_full(small_disk: Path) -> None:
    """Redis cannot write its log: no false ok, and all is there once there is room and Redis is back."""
    with (
        RedisServer(appendonly="yes", appendfsync="always", dir=str(small_disk)) as server,
        Serving("--redis-url", server.url, *SOON, window=long_window()) as serving,
    ):
        async with Load(serving) as load:
            for _ in range(3):
                full = fill(small_disk, room=65_536)
                await load.fails(32)
                full.unlink()
                await asyncio.to_thread(server.kill)  # as a rule it has ended itself
                await asyncio.to_thread(server.start)
                since_s = time.monotonic()
                await load.goes_on()
                assert oracle.not_recovered(load, since_s, within_s=RECOVERS_S) == []
        assert oracle.wrong_ids(load, await open_windows(server.url)) == []
        assert oracle.late(load, SOON_S) == []
        serving.stop()


class SteppedServer(RedisServer):
    """A Valkey on a host whose clock is off, and steps. (Debian's Redis does not start under libfaketime.)"""

    def step(self, off_s: int) -> None:
        new = self.folder / "clock.new"
        new.write_text(f"{off_s:+d}s\n")
        new.rename(self.folder / "clock")

    def _environment(self) -> dict[str, str]:
        self.step(0)
        return {
            "LD_PRELOAD": str(libfaketime()),
            "FAKETIME_TIMESTAMP_FILE": str(self.folder / "clock"),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


@pytest.mark.slow
async def test_18_clock_of_redis_stepped() -> None:
    """The store's clock steps by 90 s, both ways: sealed windows stay sealed, and nothing is lost."""
    with SteppedServer() as server, Serving("--redis-url", server.url, window=1) as serving:
        async with Load(serving) as load:
            for off_s in (-90, 90, 0, -90, 0):
                await next_window(1)
                known = lines(serving)
                server.step(off_s)
                await load.goes_on()
                assert lines(serving)[: len(known)] == known
        assert (load.failed, load.unknown) == (set(), set())
        server.step(200)
        await until(lambda: max(serving.counts()) > iso(int(time.time()) + 195), within_s=15)
        assert oracle.verdict(load, lines(serving), answer_s=ANSWER_S) == []
        serving.stop()


@pytest.mark.slow
async def test_27_endpoints_without_number(any_server: RedisServer) -> None:
    """Of 100,000 endpoints in a window 10,000 are called; the others are told of, and all ids count."""
    with Serving("--redis-url", any_server.url, window=40) as serving:
        before = [Size.of(pid) for pid in serving.workers()]
        start = await next_window(40)
        async with Load(serving, callers=64, query="&endpoint=http://10.0.0.1/{}") as load:
            while len(load.ok) < 100_000:
                await load.goes_on(1000)
        assert time.time() < start + 40, "too slow for one window"
        await until(lambda: iso(start) in serving.counts(), within_s=45)
        await until(lambda: len(serving.records("callback")) == 10_000, within_s=60)
        assert {line["error"] for line in serving.records("callback")} == {"blocked"}
        figures = await serving.figures()
        assert figures["idagg_endpoints_dropped_total"] == len(load.ok) - 10_000
        assert oracle.verdict(load, lines(serving), expected=[iso(start)], answer_s=ANSWER_S) == []
        for size, pid in zip(before, serving.workers(), strict=True):
            after = Size.of(pid)
            assert oracle.grown(size, after, memory_kib=65_536, descriptors=8, threads=110) == []
        serving.stop()
