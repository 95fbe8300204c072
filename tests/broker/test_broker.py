from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import itertools
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiormq
import pytest
from aiormq.abc import AbstractChannel, DeliveredMessage

from idagg.deliver import amqp_dial
from idagg.deliver.amqp_route import Route
from idagg.deliver.broker import Broker
from idagg.errors import BrokerAwayError
from idagg.window import Record
from kit.proxy import Proxy
from kit.servers import PEM, RabbitServer, free_port
from kit.waiting import LIMIT_S, eventually, until

RECORD = Record(
    start_s=1795344780, length_s=60, unique_ids=4000, estimate=3988, hits=10000, exact=True, epoch=7
)


Connect = Callable[..., Broker]
# RabbitMQ, and this machine, may stand still for so long.
STILL_S = 15.0


def made(url: str, route: Route, **options: Any) -> Broker:
    patient = {"publish_timeout_s": STILL_S, "connect_timeout_s": STILL_S}
    return Broker(url, route, **{"body": "json", "namespace": "test", **patient, **options})


@pytest.fixture
async def connect(rabbit: RabbitServer, rabbit_queue: str) -> AsyncIterator[Connect]:
    """Start a broker; what is not said otherwise is the real one's."""
    brokers = []

    def start(url: str = rabbit.url, *, route: Route | None = None, **options: Any) -> Broker:
        broker = made(url, route or Route(rabbit_queue), **options)
        broker.start()
        brokers.append(broker)
        return broker

    yield start
    for broker in brokers:
        await broker.close()


@pytest.fixture
async def admin(rabbit: RabbitServer) -> AsyncIterator[AbstractChannel]:
    """A channel for what others do to the queue."""
    async with aiormq.connect(rabbit.url) as connection:
        yield await connection.channel()


async def ready(broker: Broker, within_s: float = LIMIT_S) -> None:
    async with asyncio.timeout(within_s):
        await broker.ready.wait()
    assert broker.trouble is None


@contextlib.contextmanager
def fails(match: str) -> Iterator[None]:
    start_s = time.monotonic()
    with pytest.raises(BrokerAwayError, match=match):
        yield
    assert time.monotonic() - start_s < LIMIT_S


async def fails_at_once(publish: Coroutine[Any, Any, None], match: str) -> None:
    """It waits for nobody: so many turns of the event loop are far below each timeout."""
    task = asyncio.create_task(publish)
    for _ in range(20):
        await asyncio.sleep(0)
    assert task.done()
    with pytest.raises(BrokerAwayError, match=match):
        await task


async def published(broker: Broker) -> None:
    """RabbitMQ that was silent or away just now may not confirm the first message within a short limit, or
    refuse it."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            with contextlib.suppress(BrokerAwayError):
                await broker.publish(RECORD)
                return
            await asyncio.sleep(0.05)
            await broker.ready.wait()


async def channels(rabbit: RabbitServer) -> set[str]:
    return {*(await asyncio.to_thread(rabbit.ctl, "list_channels", "pid")).splitlines()}


async def take(admin: AbstractChannel, queue: str) -> DeliveredMessage:
    return await admin.basic_get(queue, no_ack=True, timeout=LIMIT_S)


async def queue_facts(rabbit: RabbitServer, queue: str) -> list[str]:
    """Type and durability as RabbitMQ tells them."""
    table = await asyncio.to_thread(rabbit.ctl, "list_queues", "name", "type", "durable")
    return next((row[1:] for row in map(str.split, table.splitlines()) if row[0] == queue), [])


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [("json", "application/json", RECORD.as_json()), ("text", "text/plain", b"4000")],
)
async def test_message(
    connect: Connect, admin: AbstractChannel, rabbit_queue: str, body: str, content_type: str, expected: bytes
) -> None:
    """Body and properties are what docs/reference/message.rst promises."""
    await admin.queue_declare(rabbit_queue)  # a classic queue, which adds no header of its own
    broker = connect(body=body, namespace="ns")
    await ready(broker)
    await broker.publish(RECORD)
    message = await take(admin, rabbit_queue)
    assert message.body == expected
    properties = message.header.properties
    assert {name: value for name, value in properties if value} == {
        "content_type": content_type,
        "headers": {"epoch": 7},
        "delivery_mode": 2,
        "message_id": "ns:1795344780",
        "timestamp": datetime.datetime(2026, 11, 22, 10, 54, tzinfo=datetime.UTC),
        "message_type": "idagg.window",
        "app_id": "idagg",
    }


async def test_a_missing_queue_is_declared(connect: Connect, rabbit: RabbitServer, rabbit_queue: str) -> None:
    await ready(connect())
    assert await queue_facts(rabbit, rabbit_queue) == ["quorum", "true"]


async def test_an_existing_queue_is_used_as_it_is(
    connect: Connect, rabbit: RabbitServer, admin: AbstractChannel, rabbit_queue: str
) -> None:
    await admin.queue_declare(rabbit_queue, durable=False)
    broker = connect()
    await ready(broker)
    await broker.publish(RECORD)
    assert (await take(admin, rabbit_queue)).body == RECORD.as_json()
    assert await queue_facts(rabbit, rabbit_queue) == ["classic", "false"]


@pytest.mark.parametrize(("query", "expected_s"), [("", "5"), ("?heartbeat=9", "9")])
async def test_heartbeat(connect: Connect, rabbit: RabbitServer, query: str, expected_s: str) -> None:
    """It is a short one unless the URL sets another."""
    await ready(connect(rabbit.url + query))
    await eventually(  # those of earlier tests are on their way out
        lambda: asyncio.to_thread(rabbit.ctl, "list_connections", "timeout"),
        lambda told: told == f"timeout\n{expected_s}\n",
    )


async def test_restart(
    connect: Connect, rabbit: RabbitServer, rabbit_queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    """While RabbitMQ is away publish fails at once; when it is back, messages flow again by themselves."""
    broker = connect()
    await ready(broker)
    await broker.publish(RECORD)
    with caplog.at_level(logging.INFO):
        await asyncio.to_thread(rabbit.stop)
        # Until it has ended, there are other reasons.
        await until(lambda: "Connection refused" in str(broker.trouble))
        await fails_at_once(broker.publish(RECORD), "Connection refused")
        await asyncio.to_thread(rabbit.start)
        await ready(broker)
        await published(broker)
    async with aiormq.connect(rabbit.url) as connection:
        declared = await (await connection.channel()).queue_declare(rabbit_queue, passive=True)
    assert declared.message_count == 2
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_loss_of_the_connection_during_publish(
    connect: Connect, rabbit: RabbitServer, admin: AbstractChannel, rabbit_queue: str
) -> None:
    """It is told as a failure to publish, never as a cancellation; and the keeper sees it too."""
    # RabbitMQ 3.10 finds no leader for a quorum queue that was seconds old when it was killed.
    await admin.queue_declare(rabbit_queue, durable=True)
    broker = connect(publish_timeout_s=2 * LIMIT_S)
    await ready(broker)
    rabbit.freeze()
    publish = asyncio.create_task(broker.publish(RECORD))
    done, _ = await asyncio.wait({publish}, timeout=0.1)
    assert not done
    await asyncio.to_thread(rabbit.kill)
    with fails("connection"):
        await publish
    assert not broker.ready.is_set()
    await asyncio.to_thread(rabbit.start)
    await ready(broker)
    await broker.publish(RECORD)


async def test_silence_during_publish(connect: Connect, rabbit: RabbitServer) -> None:
    """A silent RabbitMQ costs one publish its timeout and the next ones nothing."""
    broker = connect(publish_timeout_s=0.3, connect_timeout_s=1.5)
    await ready(broker)
    rabbit.freeze()
    try:
        with fails(r"RabbitMQ did not answer within 0\.3 s"):
            await broker.publish(RECORD)
        await fails_at_once(broker.publish(RECORD), "RabbitMQ did not answer")
        await until(lambda: "1.5 s" in str(broker.trouble))  # it tries to connect
    finally:
        rabbit.thaw()
    await ready(broker)
    await published(broker)


async def test_silence_without_a_timeout(connect: Connect, rabbit: RabbitServer) -> None:
    """The heartbeat finds it, publishing or not; at one a second aiormq gives up after six."""
    url = f"{rabbit.url}?heartbeat=1"
    idle, busy = connect(url), connect(url, publish_timeout_s=2 * LIMIT_S)
    await ready(idle)
    await ready(busy)
    rabbit.freeze()
    try:
        with fails("connection to RabbitMQ was lost"):
            await busy.publish(RECORD)
        await until(lambda: not idle.ready.is_set())
    finally:
        rabbit.thaw()
    await ready(idle)


async def test_resource_alarm(
    connect: Connect, rabbit: RabbitServer, caplog: pytest.LogCaptureFixture
) -> None:
    """RabbitMQ that takes no messages for want of memory is told from one that is silent, and told once."""
    broker = connect(publish_timeout_s=0.5, connect_timeout_s=1.5)
    await ready(broker)
    await asyncio.to_thread(rabbit.ctl, "set_vm_memory_high_watermark", "0.000001")
    try:
        with fails("did not answer within"):
            async with asyncio.timeout(LIMIT_S):
                while True:  # the connection may hear of it a moment later
                    await broker.publish(RECORD)
        await until(lambda: "short of memory" in str(broker.trouble))
        with pytest.raises(TimeoutError):
            await ready(broker, within_s=1)
        await fails_at_once(broker.publish(RECORD), "short of memory")
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        late = connect(publish_timeout_s=0.5, connect_timeout_s=1.5)
        await until(lambda: "short of memory" in str(late.trouble))
    finally:
        await asyncio.to_thread(rabbit.ctl, "set_vm_memory_high_watermark", "0.4")
    for blocked in broker, late:
        await ready(blocked)
        await published(blocked)


async def test_deleted_queue(connect: Connect, admin: AbstractChannel, rabbit_queue: str) -> None:
    """A message that no queue took is no success; the queue is declared anew."""
    broker = connect()
    await ready(broker)
    await admin.queue_delete(rabbit_queue)
    with fails("no such queue"):
        await broker.publish(RECORD)
    assert not broker.ready.is_set()
    troubles = set()
    async with asyncio.timeout(LIMIT_S):
        while not broker.ready.is_set():
            troubles.add(broker.trouble)
            await asyncio.sleep(0)
    assert troubles == {"RabbitMQ has no such queue any more"}
    await broker.publish(RECORD)
    assert (await take(admin, rabbit_queue)).body == RECORD.as_json()


async def test_full_queue(
    connect: Connect, rabbit: RabbitServer, admin: AbstractChannel, rabbit_queue: str
) -> None:
    """A refusal is no success, and no reason to connect anew."""
    await admin.queue_declare(rabbit_queue, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    broker = connect()
    await ready(broker)
    await broker.publish(RECORD)
    # The admin's and the broker's, under a head; those of earlier tests are on their way out.
    before = await eventually(lambda: channels(rabbit), lambda found: len(found) == 3)
    with fails("refused the message"):
        await broker.publish(RECORD)
    assert broker.ready.is_set()
    # A quorum queue may refuse what comes by this channel alone, so another takes its place.
    await eventually(lambda: channels(rabbit), lambda after: len(after - before) == len(before - after) == 1)
    await admin.queue_purge(rabbit_queue)
    await broker.publish(RECORD)


async def test_wrong_password(
    connect: Connect, rabbit: RabbitServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason says so, and the password is told to nobody."""
    broker = connect(f"amqp://guest:geheim@127.0.0.1:{rabbit.port}/")
    await until(lambda: "password" in str(broker.trouble))
    await fails_at_once(broker.publish(RECORD), "refused the user name or the password")
    with fails("refused the user name or the password"):
        await broker.check()
    assert "refused the user name or the password" in caplog.text
    assert "geheim" not in caplog.text + str(broker.trouble)


async def test_unknown_virtual_host(connect: Connect, rabbit: RabbitServer) -> None:
    broker = connect(f"{rabbit.url}nowhere")
    await until(lambda: "virtual host" in str(broker.trouble))


async def test_nothing_listens(connect: Connect) -> None:
    """The first attempt to connect is waited for; what became of it is then told at once."""
    broker = connect(f"amqp://guest:guest@127.0.0.1:{free_port()}/")
    assert broker.trouble is None
    for _ in range(2):
        with fails("Connection refused"):
            await broker.publish(RECORD)


async def test_a_first_message_waits_for_the_connection(connect: Connect) -> None:
    """A window that ends while we connect for the first time is no reason for a line in the log file."""
    await connect().publish(RECORD)


async def test_many_failed_attempts_are_one_line(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    """What closes each connection, or speaks something else, is tried again and again, and told of once."""
    attempts_s: list[float] = []

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attempts_s.append(time.monotonic())
        if len(attempts_s) % 2:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        connect(f"amqp://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await until(lambda: len(attempts_s) == 5)
    assert len(caplog.records) == 1
    pauses_s = [later - earlier for earlier, later in itertools.pairwise(attempts_s)]
    assert all(pause_s > 0.05 * 2**n for n, pause_s in enumerate(pauses_s))


async def test_cancelled_publish(connect: Connect, rabbit: RabbitServer) -> None:
    """The caller is cancelled as it asked, and the connection is as good as before."""
    broker = connect()
    await ready(broker)
    tasks = asyncio.all_tasks()
    rabbit.freeze()
    try:
        publish = asyncio.create_task(broker.publish(RECORD))
        done, _ = await asyncio.wait({publish}, timeout=0.1)
        assert not done
        publish.cancel()
        await asyncio.wait({publish}, timeout=LIMIT_S)
        assert publish.cancelled()
        await until(lambda: asyncio.all_tasks() == tasks)
    finally:
        rabbit.thaw()
    assert broker.ready.is_set()
    assert broker.trouble is None
    await broker.publish(RECORD)


async def test_check(rabbit: RabbitServer, admin: AbstractChannel, rabbit_queue: str) -> None:
    """It says whether the queue exists, and makes none."""
    broker = made(rabbit.url, Route(rabbit_queue))
    for _ in range(2):
        said = await broker.check()
        assert said == (f"reached, queue {rabbit_queue} will be declared, durable and of type quorum", [])
    await admin.queue_declare(rabbit_queue)
    assert await broker.check() == (f"reached, queue {rabbit_queue} is there and may be written to", [])


async def test_check_of_a_silent_server(rabbit_queue: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"amqp://127.0.0.1:{listener.getsockname()[1]}"
        broker = Broker(url, Route(rabbit_queue), body="json", namespace="test", connect_timeout_s=0.3)
        with fails(r"RabbitMQ did not answer within 0\.3 s"):
            await broker.check()


async def test_check_of_a_silent_server_over_tls(tmp_path: Path, rabbit_queue: str) -> None:
    """One that says its part of the TLS handshake and then nothing, not even goodbye."""
    (tmp_path / "pem").write_text(PEM)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT_S)
        serving = asyncio.create_task(
            asyncio.to_thread(lambda: context.wrap_socket(listener.accept()[0], server_side=True))
        )
        url = f"amqps://127.0.0.1:{listener.getsockname()[1]}/?cafile={tmp_path}/pem"
        broker = Broker(url, Route(rabbit_queue), body="json", namespace="test", connect_timeout_s=1)
        with fails(r"RabbitMQ did not answer within 1 s"):
            await broker.check()
        with contextlib.suppress(OSError):  # it was left in the midst of it, on a machine that stood still
            (await serving).close()


async def test_close_leaves_nothing(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a task nor, for whoever publishes afterwards, a hope; and it is no trouble to report."""
    broker = connect()
    await ready(broker)
    await broker.close()
    await fails_at_once(broker.publish(RECORD), "is closed")
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    assert not caplog.records


async def test_close_at_any_moment_of_connecting(rabbit_queue: str) -> None:
    """aiormq at times swallows a cancellation while a connection fails; the broker closes all the same."""
    connected = asyncio.Event()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        connected.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        url = f"amqp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for number in range(200):
            connected.clear()
            broker = Broker(url, Route(rabbit_queue), body="json", namespace="test")
            broker.start()
            await connected.wait()
            for _ in range(number % 20):
                await asyncio.sleep(0)
            async with asyncio.timeout(LIMIT_S):
                await broker.close()


async def test_close_while_rabbitmq_is_silent(connect: Connect, rabbit: RabbitServer) -> None:
    broker = connect(connect_timeout_s=0.5)
    await ready(broker)
    rabbit.freeze()
    try:
        async with asyncio.timeout(LIMIT_S):
            await broker.close()
    finally:
        rabbit.thaw()


# Several hosts, several addresses, TLS


async def test_the_first_host_that_can_be_used(
    connect: Connect, rabbit: RabbitServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A first message waits until each host had its turn; nobody hears of one that another makes up for."""
    dead, refusing = free_port(), free_port()
    url = f"amqp://127.0.0.1:{dead},127.0.0.1:{refusing},127.0.0.1:{rabbit.port}/"
    broker = connect(url)
    await broker.publish(RECORD)
    assert broker.trouble is None
    assert not caplog.records
    said, unreached = await broker.check()
    assert said.startswith("reached, queue ")
    assert unreached == [
        f"127.0.0.1:{port}: RabbitMQ cannot be reached: Connection refused" for port in (dead, refusing)
    ]


async def test_the_next_host_when_one_is_lost(
    connect: Connect, rabbit: RabbitServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with Proxy(rabbit.port) as proxy:
        broker = connect(f"amqp://127.0.0.1:{proxy.port},127.0.0.1:{rabbit.port}/")
        await ready(broker)
        assert proxy.accepted == 1
        proxy.refuse = True
        await until(lambda: not broker.ready.is_set())
        await ready(broker)
        await broker.publish(RECORD)
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_no_host_can_be_used(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    """One warning, of the last; each is named to who checks."""
    ports = free_port(), free_port()
    broker = connect(",".join((f"amqp://127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}")))
    with fails(f"^127.0.0.1:{ports[1]}: RabbitMQ cannot be reached: Connection refused$"):
        await broker.publish(RECORD)
    with fails(f"^127.0.0.1:{ports[0]}: .*; 127.0.0.1:{ports[1]}: "):
        await broker.check()
    assert len(caplog.records) == 1


def resolved(*addresses: str) -> Callable[..., Any]:
    """A resolver by which every name has these."""

    async def resolve(_: str, port: int) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    return resolve


async def test_a_name_whose_first_address_is_dead(
    connect: Connect, rabbit: RabbitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next is tried soon, beside it: what answers nothing costs a quarter of a second."""
    with socket.create_server(("127.0.0.2", rabbit.port), backlog=0):
        fill = [socket.socket() for _ in range(3)]  # its backlog: what comes now is dropped
        for one in fill:
            one.setblocking(False)
            one.connect_ex(("127.0.0.2", rabbit.port))

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await asyncio.get_running_loop().create_connection(asyncio.Protocol, "127.0.0.2", rabbit.port)
        monkeypatch.setattr(amqp_dial, "addresses", resolved("127.0.0.2", "127.0.0.1"))
        await connect(f"amqp://guest:guest@two.example:{rabbit.port}/").publish(RECORD)
        for one in fill:
            one.close()


async def test_a_private_ca(
    connect: Connect, rabbit: RabbitServer, rabbit_queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ's certificate is trusted where the CA is named, for its own name; else it is told."""
    url = f"amqps://guest:guest@127.0.0.1:{rabbit.tls_port}/"
    await connect(f"{url}?cafile={rabbit.pem}").publish(RECORD)
    cadata = base64.b64encode(ssl.PEM_cert_to_DER_cert(PEM[PEM.index("-----BEGIN C") :])).decode()
    await connect(f"{url}?cadata={quote(cadata, safe='')}").publish(RECORD)
    monkeypatch.setattr(amqp_dial, "addresses", resolved("127.0.0.1"))
    for wrong, sentence in (
        (url, "RabbitMQ's certificate cannot be trusted: self-signed certificate .cafile in the query of"),
        (f"{url}?cafile=/nowhere", "a certificate that --amqp-url names cannot be read: No such file"),
        (
            f"amqps://two.example:{rabbit.tls_port}/?cafile={rabbit.pem}",
            "RabbitMQ's certificate cannot be trusted: Hostname mismatch",
        ),
    ):
        with fails(sentence):
            await made(wrong, Route(rabbit_queue)).check()


@pytest.mark.parametrize(("connect_timeout_s", "well"), [(0.2, False), (30, True)])
async def test_a_slow_handshake(
    connect: Connect, rabbit: RabbitServer, connect_timeout_s: float, well: bool
) -> None:
    """Through a VPN, or with a slow directory of users: it takes the time it needs, if it is given that."""
    async with Proxy(rabbit.port) as proxy:
        proxy.delay_s = 0.05  # of each reply
        broker = connect(proxy.amqp_url, connect_timeout_s=connect_timeout_s, publish_timeout_s=LIMIT_S)
        if well:
            await ready(broker)
            await broker.publish(RECORD)
        else:
            await until(lambda: broker.trouble)
            await fails_at_once(broker.publish(RECORD), r"did not answer within 0\.2 s")
