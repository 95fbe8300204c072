"""Consumers as others write them: they declare the queue as docs/consumers.rst says, and get the messages."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aio_pika
import aiormq
import kombu
import pika
import pytest
from pika.exceptions import ChannelClosedByBroker

from idagg.deliver.amqp_route import Route
from idagg.deliver.broker import Broker
from idagg.window import Record
from kit.servers import RabbitServer
from kit.waiting import LIMIT_S

RECORD = Record(
    start_s=1795344780, length_s=60, unique_ids=4000, estimate=3988, hits=10000, exact=True, epoch=7
)


async def by_pika(url: str, queue: str, queue_type: str) -> tuple[bytes, str | None]:
    """Body and message id of the first message, acknowledged."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.queue_declare(queue, durable=True, arguments={"x-queue-type": queue_type})
    method, properties, body = next(channel.consume(queue, inactivity_timeout=LIMIT_S))
    channel.basic_ack(method.delivery_tag)
    connection.close()
    return body, properties.message_id


async def by_aio_pika(url: str, queue: str, queue_type: str) -> tuple[bytes, str | None]:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        declared = await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": queue_type})
        async with declared.iterator(timeout=LIMIT_S) as messages:
            async for message in messages:
                async with message.process():
                    return message.body, message.message_id
    raise AssertionError


async def by_kombu(url: str, queue: str, queue_type: str) -> tuple[bytes, str | None]:
    declared = kombu.Queue(queue, durable=True, queue_arguments={"x-queue-type": queue_type})
    got: list[tuple[bytes, str]] = []

    def take(message: Any) -> None:
        got.append((bytes(message.body), message.properties["message_id"]))
        message.ack()

    with kombu.Connection(url) as connection, connection.Consumer(declared, on_message=take):
        while not got:  # a call may read what is no message
            connection.drain_events(timeout=LIMIT_S)
    return got[0]


@pytest.fixture(params=["quorum", "classic"])
async def made(request: pytest.FixtureRequest, rabbit: RabbitServer) -> AsyncIterator[tuple[str, str]]:
    """A queue of this type that idagg has declared and published to, once for each consumer."""
    queue = f"test-{uuid.uuid4()}"
    broker = Broker(
        *(rabbit.url, Route(queue, request.param)),
        body="json",
        namespace="idagg",
        publish_timeout_s=15,
        connect_timeout_s=15,
    )
    broker.start()
    for _ in range(4):
        await broker.publish(RECORD)
    await broker.close()
    yield queue, request.param
    async with aiormq.connect(rabbit.url) as connection:
        await (await connection.channel()).queue_delete(queue)


async def test_consumers(rabbit: RabbitServer, made: tuple[str, str]) -> None:
    """Each declares what is there as it is, and gets the record under its message id."""
    url = f"{rabbit.url}%2F"  # as kombu and pika have it
    for consume in (by_pika, by_aio_pika, by_kombu):
        body, message_id = await consume(url, *made)
        assert (json.loads(body)["unique_ids"], message_id) == (4000, "idagg:1795344780")


async def test_the_declaration_of_the_system_that_this_replaces(
    rabbit: RabbitServer, made: tuple[str, str]
) -> None:
    """Without a type it meets 406 where idagg was there first, unless that was told to make a classic one."""
    queue, queue_type = made
    connection = pika.BlockingConnection(pika.URLParameters(f"{rabbit.url}%2F"))
    channel = connection.channel()
    if queue_type == "classic":
        assert channel.queue_declare(queue, durable=True).method.message_count == 4
    else:
        with pytest.raises(ChannelClosedByBroker, match="inequivalent arg 'x-queue-type'") as raised:
            channel.queue_declare(queue, durable=True)
        assert raised.value.reply_code == 406
    connection.close()
