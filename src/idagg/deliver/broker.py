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
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Literal, TypeVar

import aiormq
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import (
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
    DeliveryError,
    InvalidFrameError,
    ProbableAuthenticationError,
    PublishError,
)

from idagg.errors import BrokerAwayError
from idagg.window import Record

T = TypeVar("T")

_log = logging.getLogger("idagg.broker")
# It tells of each failed attempt; Broker tells of the trouble, once.
logging.getLogger("aiormq").setLevel(logging.CRITICAL)

# A silent broker is given up after 3 * (5 + 1) s where nothing is published (aiormq's own rule).
_HEARTBEAT_S = 5
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 3.0


class Broker:
    """The queue that window records go to.

    ``ready`` is set while there is a connection to publish on; ``trouble`` says in words why there is none.
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
        self.trouble: str | None = None
        self._tried = asyncio.Event()  # to connect, once, however it ended
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
        self._channel = None
        self.ready.clear()
        self.trouble = "The connection to RabbitMQ is closed."
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait((self._keeper,))

    async def publish(self, record: Record) -> None:
        """Return once the broker has taken charge of the message; call it from one task at a time.

        Raises BrokerAwayError otherwise, at once where there is no connection; only the very
        first attempt to connect is waited for.
        """
        if not self._tried.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._connect_timeout_s):
                    await self._tried.wait()
        channel = self._channel
        if channel is None:
            raise BrokerAwayError(self.trouble or "There is no connection to RabbitMQ yet.")
        text = self._body == "text"
        try:
            await _bounded(
                channel.basic_publish(
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
                ),
                self._publish_timeout_s,
            )
        except BrokerAwayError as error:
            # A queue that refuses a message goes on refusing it on a new connection.
            if type(error.__cause__) is not DeliveryError:
                self._away(str(error))
            raise
        # Only this proves that the trouble is over: some last while connecting goes well.
        self._pause_s = _FIRST_PAUSE_S
        if self._said_away:
            self._said_away = False
            _log.info("Messages go to RabbitMQ again.")

    async def check(self) -> bool:
        """Whether the queue exists; raises BrokerAwayError where RabbitMQ or the queue cannot be used."""
        async with self._connection() as connection:
            return await _bounded(self._find_queue(connection), self._connect_timeout_s) is not None

    async def _keep(self) -> None:
        while True:
            try:
                async with self._connection() as connection:
                    self._back(await _bounded(self._open(connection), self._connect_timeout_s))
                    await self._lost.wait()
                    await self._sit_out_block(connection)
            except BrokerAwayError as error:
                self._away(str(error))
            await asyncio.sleep(self._pause_s * random.uniform(0.5, 1))  # noqa: S311  jitter
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[AbstractConnection]:
        connection = aiormq.Connection(self._url)
        try:
            await _bounded(connection.connect(), self._connect_timeout_s)
            yield connection
        finally:
            with contextlib.suppress(BrokerAwayError):  # it is of no more use, whatever became of it
                await _bounded(connection.close(), self._connect_timeout_s)

    async def _find_queue(self, connection: AbstractConnection) -> AbstractChannel | None:
        """A channel on which the queue was seen, of whatever type, or None where there is none."""
        channel = await connection.channel()
        try:
            await channel.queue_declare(self._queue, passive=True)
        except ChannelNotFoundEntity:
            return None
        return channel

    async def _open(self, connection: AbstractConnection) -> AbstractChannel:
        """A channel to publish on; the queue is there, declared by us where it was missing."""
        channel = await self._find_queue(connection)
        if channel is None:
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
        self._tried.set()
        self.trouble = None
        self.ready.set()

    def _away(self, trouble: str) -> None:
        self._channel = None
        self.ready.clear()
        self._tried.set()
        self.trouble = trouble
        self._lost.set()
        if not self._said_away:
            self._said_away = True
            _log.warning("No messages go to RabbitMQ for now: %s", trouble)


async def _bounded(call: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """What a call to aiormq returns; whatever else becomes of it is a BrokerAwayError, in time.

    A task of its own, because aiormq at times swallows a cancellation and at times raises one.
    """
    task = asyncio.create_task(call)
    task.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may be left to ask
    try:
        await asyncio.wait((task,), timeout=timeout_s)
    finally:
        task.cancel()
    if not task.done():
        raise BrokerAwayError(f"RabbitMQ did not answer within {timeout_s:g} s.")
    try:
        return task.result()
    except (Exception, asyncio.CancelledError) as error:
        raise BrokerAwayError(_in_words(error)) from error


def _in_words(error: BaseException | None) -> str:
    match error:
        case None | asyncio.CancelledError() | ChannelInvalidStateError():
            return "The connection to RabbitMQ was lost."
        case ProbableAuthenticationError():
            return "RabbitMQ refused the user name or the password."
        case InvalidFrameError() if "OpenOk" in str(error):  # all that aiormq tells of the refusal
            return "RabbitMQ refused the virtual host."
        case PublishError():
            return "RabbitMQ has no such queue any more."
        case DeliveryError():
            return "The queue refused the message; it may be full."
        case _:
            return f"RabbitMQ cannot be used: {error.args[-1] if error.args else type(error).__name__}."
