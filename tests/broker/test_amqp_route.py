"""Queues, exchanges and permissions, with a real RabbitMQ."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator

import aiormq
import pytest
from aiormq.abc import AbstractChannel

from idagg.deliver.amqp_route import Route
from idagg.deliver.broker import Broker
from idagg.errors import BrokerAwayError
from idagg.in_force import InForce
from idagg.run import sinks
from idagg.settings import Settings
from idagg.window import Record
from kit.proxy import Proxy
from kit.servers import RabbitServer
from kit.waiting import LIMIT_S

RECORD = Record(
    start_s=1795344780, length_s=60, unique_ids=4000, estimate=3988, hits=10000, exact=True, epoch=7
)

# RabbitMQ, and this machine, may stand still for so long.
STILL_S = 15.0


@contextlib.asynccontextmanager
async def started(url: str, route: Route) -> AsyncIterator[Broker]:
    broker = made(url, route)
    broker.start()
    try:
        yield broker
    finally:
        await broker.close()


def made(url: str, route: Route) -> Broker:
    return Broker(
        url, route, body="text", namespace="test", publish_timeout_s=STILL_S, connect_timeout_s=STILL_S
    )


@pytest.fixture
async def admin(rabbit: RabbitServer) -> AsyncIterator[AbstractChannel]:
    async with aiormq.connect(rabbit.url) as connection:
        yield await connection.channel()


async def permit(rabbit: RabbitServer, *, configure: str, write: str) -> str:
    """A URL for a user with these permissions, as RabbitMQ's regular expressions."""
    name, change = f"user-{uuid.uuid4()}", "rabbit_auth_backend_internal"
    given = f'<<"{configure}">>, <<"{write}">>, <<"">>, <<"test">>'
    commands = (
        f'{change}:add_user(<<"{name}">>, <<"p">>, <<"test">>), '
        f'{change}:set_permissions(<<"{name}">>, <<"/">>, {given}).'
    )
    # rabbitmqctl takes most of a second for each of its own commands.
    await asyncio.to_thread(rabbit.ctl, "eval", commands)
    return f"amqp://{name}:p@127.0.0.1:{rabbit.port}/"


async def ready(broker: Broker) -> None:
    async with asyncio.timeout(LIMIT_S):
        await broker.ready.wait()
    assert broker.trouble is None


async def trouble(broker: Broker) -> str:
    """The trouble, after some more attempts that it has lasted through."""
    async with asyncio.timeout(LIMIT_S):
        while not broker.trouble:  # noqa: ASYNC110  what is awaited sets no event
            await asyncio.sleep(0.01)
    for _ in range(50):
        assert not broker.ready.is_set()
        await asyncio.sleep(0.01)
    assert broker.trouble
    return broker.trouble


async def body(admin: AbstractChannel, queue: str) -> bytes | None:
    message = await admin.basic_get(queue, no_ack=True)
    return message.body if message.delivery_tag else None


# Queues


@pytest.mark.parametrize("queue_type", ["quorum", "classic", "stream"])
async def test_the_type_of_a_queue_that_is_declared(
    rabbit: RabbitServer, rabbit_queue: str, admin: AbstractChannel, queue_type: str
) -> None:
    """It takes a message, too."""
    said, _ = await made(rabbit.url, Route(rabbit_queue, queue_type)).check()
    assert f"of type {queue_type}" in said
    async with started(rabbit.url, Route(rabbit_queue, queue_type)) as broker:
        await ready(broker)
        await broker.publish(RECORD)
    # Nobody may declare it otherwise.
    declared = await admin.queue_declare(rabbit_queue, durable=True, arguments={"x-queue-type": queue_type})
    assert declared.queue == rabbit_queue


async def test_what_the_settings_say(rabbit: RabbitServer, rabbit_queue: str) -> None:
    """They come to the broker whole: queue and type, exchange and key, both time limits."""

    def made_of(**given: object) -> Broker:
        broker = sinks.broker(
            Settings.model_validate(
                {"state_dir": "/x", "amqp_url": rabbit.url, "amqp_connect_timeout": STILL_S, **given}
            ).in_force()
        )
        assert broker
        return broker

    said, _ = await made_of(amqp_queue=rabbit_queue, amqp_queue_type="classic").check()
    assert said == f"reached, queue {rabbit_queue} will be declared, durable and of type classic"
    said, _ = await made_of(amqp_exchange="amq.topic", amqp_routing_key="some.key").check()
    assert said.startswith("reached, exchange amq.topic is there and may be written to; whether some.key ")
    assert sinks.broker(InForce()) is None
    async with Proxy(rabbit.port) as proxy:
        broker = made_of(
            amqp_url=proxy.amqp_url,
            amqp_queue=rabbit_queue,
            amqp_publish_timeout=0.2,
        )
        broker.start()
        await ready(broker)
        proxy.stall = True
        with pytest.raises(BrokerAwayError, match=r"did not answer within 0\.2 s"):
            await broker.publish(RECORD)
        with pytest.raises(BrokerAwayError, match=r"did not answer within 0\.1 s"):
            await made_of(amqp_url=proxy.amqp_url, amqp_connect_timeout=0.1).check()
        proxy.stall = False
        await broker.close()


# Permissions


async def test_a_user_that_may_make_no_queue(
    rabbit: RabbitServer, rabbit_queue: str, admin: AbstractChannel
) -> None:
    """It is told what to grant, and needs nothing once somebody else has made the queue."""
    url = await permit(rabbit, configure="^$", write=r"^amq\\.default$")
    sentence = (
        f"RabbitMQ has no queue {rabbit_queue} and does not let this user declare it: declare it, or grant "
        f"the user configure on {rabbit_queue} "
        f"(access to queue '{rabbit_queue}' in vhost '/' refused for user "
    )
    with pytest.raises(BrokerAwayError) as raised:
        await made(url, Route(rabbit_queue)).check()
    assert str(raised.value).startswith(sentence)
    async with started(url, Route(rabbit_queue)) as broker:
        assert (await trouble(broker)).startswith(sentence)
        await admin.queue_declare(rabbit_queue, durable=True)
        await ready(broker)
        await broker.publish(RECORD)
    assert await body(admin, rabbit_queue) == b"4000"
    said, _ = await made(url, Route(rabbit_queue)).check()
    assert "may be written to" in said


async def test_a_user_that_may_not_write(
    rabbit: RabbitServer, rabbit_queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told what to grant; it is well, and that is told, when a message has gone through, not before."""
    caplog.set_level(logging.INFO)
    url = await permit(rabbit, configure=".*", write="^not-it$")
    sentence = (
        "RabbitMQ takes no message from this user: "
        "grant it write on amq.default, which is the default exchange "
        "(access to exchange 'amq.default' in vhost '/' refused for user "
    )
    with pytest.raises(BrokerAwayError) as raised:
        await made(url, Route(rabbit_queue)).check()
    assert str(raised.value).startswith(sentence)
    async with started(url, Route(rabbit_queue)) as broker:
        assert (await trouble(broker)).startswith(sentence)
        with pytest.raises(BrokerAwayError, match="grant it write"):
            await broker.publish(RECORD)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert sentence in caplog.text
        name = url.partition("//")[2].partition(":")[0]
        await asyncio.to_thread(rabbit.ctl, "set_permissions", name, "", "^amq.default$", "")
        await ready(broker)
        assert len(caplog.records) == 1
        await broker.publish(RECORD)
        assert [record.message for record in caplog.records[1:]] == ["RabbitMQ takes messages again"]


# Exchanges


@pytest.fixture
async def exchange(admin: AbstractChannel, rabbit_queue: str) -> AsyncIterator[str]:
    """A fanout exchange that leads to no queue yet."""
    name = f"{rabbit_queue}-exchange"
    await admin.exchange_declare(exchange=name, exchange_type="fanout", durable=True)
    yield name
    await admin.exchange_delete(exchange=name)


async def test_an_exchange(
    rabbit: RabbitServer, rabbit_queue: str, admin: AbstractChannel, exchange: str
) -> None:
    """It is used as it is: what is looked at leaves no message, and no queue is made."""
    bound = f"{rabbit_queue}-bound"
    await admin.queue_declare(bound)
    await admin.queue_bind(bound, exchange)
    route = Route(rabbit_queue, exchange=exchange)
    url = await permit(rabbit, configure="^$", write="-exchange$")
    said, _ = await made(url, route).check()
    assert said.startswith(f"reached, exchange {exchange} is there and may be written to")
    async with started(url, route) as broker:
        await ready(broker)
        await broker.publish(RECORD)
    message = await admin.basic_get(bound, no_ack=True)
    assert (message.body, message.message_count, message.routing_key) == (b"4000", 0, rabbit_queue)
    async with aiormq.connect(rabbit.url) as connection:
        with pytest.raises(aiormq.exceptions.ChannelNotFoundEntity):
            await (await connection.channel()).queue_declare(rabbit_queue, passive=True)


async def test_a_routing_key(rabbit: RabbitServer, rabbit_queue: str, admin: AbstractChannel) -> None:
    await admin.queue_declare(rabbit_queue)
    await admin.queue_bind(rabbit_queue, "amq.topic", f"{rabbit_queue}.*")
    route = Route("another", exchange="amq.topic", routing_key=f"{rabbit_queue}.minute")
    async with started(rabbit.url, route) as broker:
        await ready(broker)
        await broker.publish(RECORD)
    message = await admin.basic_get(rabbit_queue, no_ack=True)
    assert (message.body, message.message_count) == (b"4000", 0)


async def test_an_exchange_that_leads_nowhere(
    rabbit: RabbitServer,
    rabbit_queue: str,
    admin: AbstractChannel,
    exchange: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A message that no queue took is not delivered; it is told once, and that it is over, once."""
    caplog.set_level(logging.INFO)
    sentence = f"RabbitMQ's exchange {exchange} routes the key key to no queue: bind a queue"
    async with started(rabbit.url, Route(rabbit_queue, exchange=exchange, routing_key="key")) as broker:
        await ready(broker)
        for _ in range(2):
            with pytest.raises(BrokerAwayError) as raised:
                await broker.publish(RECORD)
            assert str(raised.value) == broker.trouble == sentence
        assert broker.ready.is_set()
        await admin.queue_declare(rabbit_queue)
        await admin.queue_bind(rabbit_queue, exchange)
        await broker.publish(RECORD)
        assert broker.trouble is None
    assert await body(admin, rabbit_queue) == b"4000"
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_an_exchange_that_is_missing(rabbit: RabbitServer, rabbit_queue: str) -> None:
    route = Route(rabbit_queue, exchange=f"{rabbit_queue}-none")
    with pytest.raises(BrokerAwayError) as raised:
        await made(rabbit.url, route).check()
    assert str(raised.value) == (
        f"RabbitMQ has no exchange {rabbit_queue}-none: declare it, or change --amqp-exchange"
    )


async def test_an_exchange_that_may_not_be_written_to(
    rabbit: RabbitServer, rabbit_queue: str, exchange: str
) -> None:
    url = await permit(rabbit, configure="^$", write="^not-it$")
    with pytest.raises(BrokerAwayError, match=f"grant it write on {exchange} "):
        await made(url, Route(rabbit_queue, exchange=exchange)).check()
