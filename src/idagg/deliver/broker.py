"""RabbitMQ: one connection kept alive beside the work, and messages that count once they are confirmed.

aiormq does not reconnect, waits for ever on a broker that falls silent, and reports a lost connection as a
``CancelledError`` that nobody asked for. So every call to it goes through ``_bounded``, and a connection that
has failed once is thrown away.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import random
from collections.abc import AsyncIterator
from typing import Literal

import aiormq
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import (
    ChannelNotFoundEntity,
    DeliveryError,
    ProbableAuthenticationError,
    PublishError,
)

from idagg.errors import BrokerAwayError
from idagg.window import Record

_log = logging.getLogger("idagg.broker")
# It tells of each failed attempt; Broker tells of the trouble, once.
logging.getLogger("aiormq").setLevel(logging.CRITICAL + 1)

# A silent broker is given up after 3 * (5 + 1) s where nothing is published (aiormq's own rule).
_HEARTBEAT_S = 5
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 3.0


class Broker:
    """The queue that window records go to.

    ``ready`` is set while there is a connection; ``trouble`` says in words why there is none.
    """

    def __init__(
        self,
        url: str,
        queue: str,
        *,
        body: Literal["json", "text"],
        namespace: str,
        publish_timeout_s: float = 2.0,
        connect_timeout_s: float = 2.0,
    ) -> None:
        self.ready = asyncio.Event()
        self.trouble: str | None = "There is no connection to RabbitMQ yet."
        # aiormq heeds the first of two, so a heartbeat of the user's own wins.
        self._url = f"{url}{'&' if '?' in url else '?'}heartbeat={_HEARTBEAT_S}"
        self._queue = queue
        self._body = body
        self._namespace = namespace
        self._publish_timeout_s = publish_timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._channel: AbstractChannel | None = None
        self._lost = asyncio.Event()  # wakes the keeper
        self._pause_s = _FIRST_PAUSE_S
        self._said_away = False
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connect, and keep connected until ``close``."""
        self._keeper = asyncio.create_task(self._keep(), name="idagg.broker")

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])

    async def publish(self, record: Record) -> None:
        """Return once the broker has taken charge of the message; call it from one task at a time.

        Raises BrokerAwayError otherwise, at once where there is no connection.
        """
        channel = self._channel
        if channel is None:
            raise BrokerAwayError(self.trouble)
        text = self._body == "text"
        try:
            async with _bounded(self._publish_timeout_s):
                await channel.basic_publish(
                    str(record.unique_ids).encode() if text else record.as_json(),
                    routing_key=self._queue,
                    mandatory=True,
                    properties=aiormq.spec.Basic.Properties(
                        content_type="text/plain" if text else "application/json",
                        headers={"epoch": record.epoch},
                        delivery_mode=2,
                        message_id=record.message_id(self._namespace),
                        timestamp=datetime.datetime.fromtimestamp(record.end_s, datetime.UTC),
                        message_type="idagg.window",
                        app_id="idagg",
                    ),
                )
        except BrokerAwayError as error:
            # A queue that refuses a message goes on refusing it on a new connection.
            if type(error.__cause__) is not DeliveryError:
                self._away(str(error))
            raise
        self._pause_s = _FIRST_PAUSE_S

    async def check(self) -> bool:
        """Whether the queue exists; raises BrokerAwayError where RabbitMQ or the queue cannot be used."""
        async with self._connection() as connection, _bounded(self._connect_timeout_s):
            return await self._find_queue(connection) is not None

    async def _keep(self) -> None:
        try:
            while True:
                try:
                    async with self._connection() as connection:
                        async with _bounded(self._connect_timeout_s):
                            channel = await self._find_queue(connection) or await self._make_queue(connection)
                        self._back(channel)
                        await self._lost.wait()
                        await self._sit_out_block(connection)
                except BrokerAwayError as error:
                    self._away(str(error))
                await asyncio.sleep(self._pause_s * random.uniform(0.5, 1))  # noqa: S311  jitter
                self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        finally:
            self._channel = None
            self.ready.clear()
            self.trouble = "The connection to RabbitMQ is closed."

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[AbstractConnection]:
        connection = aiormq.Connection(self._url)
        try:
            async with _bounded(self._connect_timeout_s):
                await connection.connect()
            yield connection
        finally:
            with contextlib.suppress(BrokerAwayError):  # it is of no more use, whatever became of it
                async with _bounded(self._connect_timeout_s):
                    await connection.close()

    async def _find_queue(self, connection: AbstractConnection) -> AbstractChannel | None:
        """A channel on which the queue was seen, of whatever type, or None where there is none."""
        channel = await connection.channel()
        try:
            await channel.queue_declare(self._queue, passive=True)
        except ChannelNotFoundEntity:
            return None
        return channel

    async def _make_queue(self, connection: AbstractConnection) -> AbstractChannel:
        channel = await connection.channel()
        await channel.queue_declare(self._queue, durable=True, arguments={"x-queue-type": "quorum"})
        return channel

    async def _sit_out_block(self, connection: AbstractConnection) -> None:
        """While an alarm lasts, keep a connection that RabbitMQ has blocked.

        It would accept a new one, and say nothing until a message on it hangs in its turn.
        """
        unblocked = asyncio.ensure_future(connection.ready())
        either = (unblocked, connection.closing)
        try:
            done, _ = await asyncio.wait(either, timeout=0, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                self._away("RabbitMQ blocks publishers; it is short of memory or disk.")
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            unblocked.cancel()

    def _back(self, channel: AbstractChannel) -> None:
        def closed(closing: asyncio.Future[None]) -> None:
            if self._channel is channel:
                self._away(_in_words(closing.exception()))

        channel.closing.add_done_callback(closed)
        self._channel = channel
        self._lost.clear()
        self.trouble = None
        self._said_away = False
        self.ready.set()
        _log.info("Connected to RabbitMQ; messages go to the queue %s.", self._queue)

    def _away(self, trouble: str) -> None:
        self._channel = None
        self.ready.clear()
        self.trouble = trouble
        self._lost.set()
        if not self._said_away:
            self._said_away = True
            _log.warning("No messages go to RabbitMQ until it can be used again: %s", trouble)


@contextlib.asynccontextmanager
async def _bounded(timeout_s: float) -> AsyncIterator[None]:
    """Bound the calls to aiormq inside, and turn what goes wrong with them into BrokerAwayError."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        raise BrokerAwayError(f"RabbitMQ did not answer within {timeout_s:g} s.") from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise BrokerAwayError(_in_words(error)) from error
    except Exception as error:  # beside its own, aiormq lets through what a garbled frame happens to raise
        raise BrokerAwayError(_in_words(error)) from error


def _in_words(error: BaseException | None) -> str:
    match error:
        case None | asyncio.CancelledError():
            return "The connection to RabbitMQ was lost."
        case ProbableAuthenticationError():
            return "RabbitMQ refused the user name or the password."
        case PublishError():
            return "RabbitMQ has no such queue any more."
        case DeliveryError():
            return "The queue refused the message; it may be full."
        case _:
            return f"RabbitMQ cannot be used: {error.args[-1] if error.args else type(error).__name__}."
