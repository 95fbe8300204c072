"""The route of a message in RabbitMQ: through the default exchange to a queue, or to the user's exchange.

Permissions are tested without a lasting effect. RabbitMQ checks permissions before it checks a message or a
declaration. So if it returns an unroutable message, or refuses one for its invalid form, the permission is
there.
"""

from __future__ import annotations

import dataclasses
import secrets

import aiormq
from aiormq.abc import AbstractChannel, AbstractConnection, ArgumentsType
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    PublishError,
)

from idagg.errors import BrokerAwayError


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """Where messages are published. If ``exchange`` is "", the default one, a missing queue is declared."""

    queue: str
    queue_type: str = "quorum"
    exchange: str = ""
    routing_key: str = ""

    @property
    def key(self) -> str:
        return self.routing_key or self.queue

    def unroutable(self) -> str:
        return f"RabbitMQ's exchange {self.exchange} routes the key {self.key} to no queue: bind a queue"

    async def open(self, connection: AbstractConnection) -> AbstractChannel:
        """Find or declare what messages go to, and open a channel to publish. Raises BrokerAwayError."""
        if self.exchange:
            await self._find_exchange(connection)
        elif not await self._has_queue(connection):
            await self._declare(connection, {})
        return await self._may_write(connection)

    async def check(self, connection: AbstractConnection) -> str:
        """Describe what ``open`` would find or do, without declaring anything. Raises BrokerAwayError."""
        if self.exchange:
            await self._find_exchange(connection)
            found = (
                f"exchange {self.exchange} is there and may be written to; "
                f"whether {self.key} is routed to a queue shows at the first message"
            )
        elif await self._has_queue(connection):
            found = f"queue {self.queue} is there and may be written to"
        else:
            # With permission, RabbitMQ refuses this argument; without, it refuses the declaration.
            await self._declare(connection, {"x-max-length-bytes": -1})
            found = f"queue {self.queue} will be declared, durable and of type {self.queue_type}"
        await self._may_write(connection)
        return found

    async def _has_queue(self, connection: AbstractConnection) -> bool:
        """Whether the queue exists, of any type. No permission is needed to ask."""
        channel = await connection.channel()
        try:
            await channel.queue_declare(self.queue, passive=True)
        except ChannelNotFoundEntity:
            return False
        await channel.close()
        return True

    async def _find_exchange(self, connection: AbstractConnection) -> None:
        channel = await connection.channel()
        try:
            await channel.exchange_declare(exchange=self.exchange, passive=True)
        except ChannelNotFoundEntity as error:
            raise BrokerAwayError(
                f"RabbitMQ has no exchange {self.exchange}: declare it, or change --amqp-exchange"
            ) from error
        await channel.close()

    async def _declare(self, connection: AbstractConnection, unfit: dict[str, int]) -> None:
        """Declare the queue. With ``unfit`` arguments RabbitMQ refuses it: this tests the permission only."""
        channel = await connection.channel()
        arguments: ArgumentsType = {"x-queue-type": self.queue_type, **unfit}
        try:
            await channel.queue_declare(self.queue, durable=True, arguments=arguments)
        except ChannelAccessRefused as error:
            raise BrokerAwayError(
                f"RabbitMQ has no queue {self.queue} and does not let this user declare it: declare it, "
                f"or grant the user configure on {self.queue} ({_reply(error)})"
            ) from error
        except ChannelPreconditionFailed:
            if not unfit:
                raise
        else:
            await channel.close()

    async def _may_write(self, connection: AbstractConnection) -> AbstractChannel:
        channel = await connection.channel()
        try:
            if not self.exchange:
                # No queue has this name, so RabbitMQ returns the message.
                nowhere = f"idagg-check-{secrets.token_hex(8)}"
                await channel.basic_publish(b"", routing_key=nowhere, mandatory=True)
            else:
                # No routing key is certain to be unroutable: a fanout exchange takes all of them.
                unfit = aiormq.spec.Basic.Properties(expiration="-1")
                await channel.basic_publish(
                    b"", exchange=self.exchange, routing_key=self.key, properties=unfit
                )
        except ChannelAccessRefused as error:
            where = self.exchange or "amq.default, which is the default exchange"
            raise BrokerAwayError(
                f"RabbitMQ takes no message from this user: grant it write on {where} ({_reply(error)})"
            ) from error
        except PublishError:
            return channel
        except ChannelPreconditionFailed:
            if not self.exchange:
                raise
            return await connection.channel()
        return channel


def _reply(error: ChannelAccessRefused) -> str:
    return str(error.args[-1]).removeprefix("ACCESS_REFUSED - ")
