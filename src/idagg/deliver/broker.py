"""RabbitMQ: a background task keeps one connection open; a message counts once it is confirmed.

aiormq does not reconnect, waits without limit for a silent broker, and reports a lost connection as a
``CancelledError`` although nothing was cancelled. So every call to it goes through ``_bounded``, and a
connection is discarded after its first failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import itertools
import logging
import os
import random
import ssl
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Literal, TypeVar

import aiormq
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import (
    ChannelInvalidStateError,
    ConnectionClosed,
    DeliveryError,
    InvalidFrameError,
    ProbableAuthenticationError,
    PublishError,
)
from yarl import URL

from idagg.amqp_url import one_per_host
from idagg.deliver.amqp_dial import Dial
from idagg.deliver.amqp_route import Route
from idagg.errors import BrokerAwayError
from idagg.window import Record, Rollup

T = TypeVar("T")

_log = logging.getLogger("idagg.broker")
# aiormq logs each failed attempt; Broker logs the trouble once.
logging.getLogger("aiormq").setLevel(logging.CRITICAL)

# If nothing is published, aiormq closes the connection to a silent broker after 3 * (5 + 1) s.
_HEARTBEAT_S = 5
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 3.0


class Broker:
    """The client that publishes window records to RabbitMQ.

    ``ready`` is set while there is a connection with permission to publish. ``trouble`` is the reason, in one
    sentence, why there is none, or why RabbitMQ refused the last message.
    """

    def __init__(
        self,
        url: str,
        route: Route,
        *,
        body: Literal["json", "text"],
        namespace: str,
        publish_timeout_s: float = 2.0,
        connect_timeout_s: float = 2.0,
    ) -> None:
        self.ready = asyncio.Event()
        self._away_for: str | None = None  # the trouble with the connection
        self._refused_for: str | None = None  # the trouble with the last message
        self._tried = asyncio.Event()  # set after the first attempt at every host, successful or not
        # aiormq obeys the first of two, so a heartbeat in the user's URL takes precedence.
        self._urls = [
            f"{one}{'&' if '?' in one else '?'}heartbeat={_HEARTBEAT_S}" for one in one_per_host(url)
        ]
        self._route = route
        self._body = body
        self._namespace = namespace
        self._publish_timeout_s = publish_timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._channel: AbstractChannel | None = None
        self._lost = asyncio.Event()  # wakes ``_keep``
        self._pause_s = _FIRST_PAUSE_S
        self._said_trouble = False
        self._keeper: asyncio.Task[None] | None = None

    @property
    def trouble(self) -> str | None:
        return self._away_for or self._refused_for

    def start(self) -> asyncio.Task[None]:
        """Connect, and reconnect after each loss, until ``close``. The task ends before only by an error that
        nobody expects."""
        self._keeper = asyncio.create_task(self._keep(), name="idagg.broker")
        return self._keeper

    async def close(self) -> None:
        self._channel = None
        self.ready.clear()
        self._away_for = "the connection to RabbitMQ is closed"
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait((self._keeper,))

    async def publish(self, record: Record | Rollup) -> None:
        """Publish a record and wait for RabbitMQ's confirmation. To be called by one task at a time.

        Raises BrokerAwayError if there is none in time. If there is no connection, it raises at once, except
        that it waits for the first attempt to connect.
        """
        if not self._tried.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(self._connect_timeout_s, self._publish_timeout_s)):
                    await self._tried.wait()
        channel = self._channel
        if channel is None:
            raise BrokerAwayError(self._away_for or "there is no connection to RabbitMQ yet")
        text = self._body == "text"
        try:
            await _bounded(
                channel.basic_publish(
                    str(record.unique_ids).encode() if text else record.as_json(),
                    exchange=self._route.exchange,
                    routing_key=self._route.key,
                    mandatory=True,
                    properties=aiormq.spec.Basic.Properties(
                        content_type="text/plain" if text else "application/json",
                        headers={"epoch": record.epoch},
                        delivery_mode=2,
                        message_id=record.message_id(self._namespace),
                        timestamp=datetime.datetime.fromtimestamp(record.end_s, datetime.UTC),
                        message_type=record.message_type,
                        app_id="idagg",
                    ),
                ),
                self._publish_timeout_s,
            )
        except BrokerAwayError as error:
            unroutable = isinstance(error.__cause__, PublishError)
            if unroutable and self._route.exchange:
                error = BrokerAwayError(self._route.unroutable())
            # If the queue is gone, a new connection declares it again. A full queue would refuse on a new
            # connection, too, so this one is kept.
            elif unroutable or not isinstance(error.__cause__, DeliveryError):
                self._away(str(error))
                self._say()
                raise
            else:
                await self._renew(channel)
            self._refused_for = str(error)
            self._say()
            raise error from error.__cause__
        # Only a confirmed message proves the end of the trouble: connecting can succeed while it lasts.
        self._refused_for = None
        self._pause_s = _FIRST_PAUSE_S
        self._say()

    async def check(self) -> tuple[str, list[str]]:
        """Describe the state of the route, and each host that cannot be used. Raises BrokerAwayError if none
        can."""
        reached, unreached = "", []
        for url in self._urls:
            try:
                async with self._connection(url) as connection:
                    reached = await _bounded(self._route.check(connection), self._connect_timeout_s)
            except BrokerAwayError as error:
                unreached.append(self._at(url, error))
        if not reached:
            raise BrokerAwayError("; ".join(unreached))
        return f"reached, {reached}", unreached

    async def _keep(self) -> None:
        for number in itertools.count(1):
            url = self._urls[(number - 1) % len(self._urls)]
            all_tried = number % len(self._urls) == 0
            try:
                async with self._connection(url) as connection:
                    try:
                        channel = await _bounded(self._route.open(connection), self._connect_timeout_s)
                        await self._sit_out_block(connection)
                        self._back(channel)
                        await self._lost.wait()
                    except BrokerAwayError as error:
                        self._cannot(url, error, tell=all_tried)
                    await self._sit_out_block(connection)
            except BrokerAwayError as error:
                self._cannot(url, error, tell=all_tried)
            pause_s = _FIRST_PAUSE_S
            if all_tried:
                pause_s = self._pause_s
                self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311  jitter

    def _cannot(self, url: str, error: BrokerAwayError, *, tell: bool) -> None:
        """Note the failure of one host. Log it (``tell``) only after all hosts have been tried."""
        self._away(self._at(url, error))
        if tell:
            self._tried.set()
            self._say()

    @contextlib.asynccontextmanager
    async def _connection(self, url: str) -> AsyncIterator[AbstractConnection]:
        connection = aiormq.Connection(url, transport_factory=Dial())
        try:
            await _bounded(connection.connect(), self._connect_timeout_s)
            yield connection
        finally:
            with contextlib.suppress(BrokerAwayError):  # the connection is discarded in any case
                await _bounded(connection.close(), self._connect_timeout_s)

    def _at(self, url: str, error: BrokerAwayError) -> str:
        """The error's text, with the host in front if there are several."""
        if len(self._urls) == 1:
            return str(error)
        place = URL(url)
        return f"{place.host}{f':{place.explicit_port}' if place.explicit_port else ''}: {error}"

    async def _sit_out_block(self, connection: AbstractConnection) -> None:
        """If RabbitMQ has blocked the connection, wait until it unblocks or closes it.

        A new connection would not help: RabbitMQ accepts it, and blocks it at its first message.
        """
        unblocked = asyncio.ensure_future(connection.ready())
        either = (unblocked, connection.closing)
        try:
            done, _ = await asyncio.wait(either, timeout=0, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                self._away("RabbitMQ blocks publishers: it is short of memory or disk space")
                self._tried.set()
                self._say()
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            unblocked.cancel()

    def _back(self, channel: AbstractChannel) -> None:
        def closed(closing: asyncio.Future[None]) -> None:
            if self._channel is channel:
                self._away(_in_words(closing.exception()))
                self._say()

        channel.closing.add_done_callback(closed)
        self._channel = channel
        self._lost.clear()
        self._tried.set()
        self._away_for = None
        self.ready.set()

    async def _renew(self, channel: AbstractChannel) -> None:
        """Replace the channel on which a queue has refused a message.

        A channel that first publishes while a quorum queue elects a leader asks the old leader's node for as
        long as that is down, and each message is refused meanwhile (seen with RabbitMQ 3.10). A new channel
        asks the new leader.
        """
        try:
            fresh = await _bounded(channel.connection.channel(), self._connect_timeout_s)
        except BrokerAwayError as error:
            self._away(str(error))
            return
        if self._channel is not channel:  # lost meanwhile
            return
        self._back(fresh)
        with contextlib.suppress(BrokerAwayError):
            await _bounded(channel.close(), self._connect_timeout_s)

    def _away(self, trouble: str) -> None:
        self._channel = None
        self.ready.clear()
        self._away_for = trouble
        self._lost.set()

    def _say(self) -> None:
        """Log once when trouble begins, and once when a message is confirmed again."""
        if self.trouble and not self._said_trouble:
            self._said_trouble = True
            _log.warning("RabbitMQ takes no messages for now, the log file gets the counts: %s", self.trouble)
        elif self._said_trouble and not self.trouble:
            self._said_trouble = False
            _log.info("RabbitMQ takes messages again")


async def _bounded(call: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """Run a call to aiormq for at most ``timeout_s``. Every failure becomes a BrokerAwayError.

    The call runs in its own task, because aiormq sometimes swallows a cancellation and sometimes raises one.
    """
    task = asyncio.create_task(call)
    task.add_done_callback(lambda task: task.cancelled() or task.exception())  # or asyncio logs it
    try:
        await asyncio.wait((task,), timeout=timeout_s)
    finally:
        task.cancel()
    if not task.done():
        raise BrokerAwayError(f"RabbitMQ did not answer within {timeout_s:g} s")
    try:
        return task.result()
    except BrokerAwayError:
        raise
    except (Exception, asyncio.CancelledError) as error:
        raise BrokerAwayError(_in_words(error)) from error


def _in_words(error: BaseException | None) -> str:
    match error:
        case None | asyncio.CancelledError() | ChannelInvalidStateError():
            return "the connection to RabbitMQ was lost"
        case ProbableAuthenticationError():
            return "RabbitMQ refused the user name or the password"
        case InvalidFrameError() if "OpenOk" in str(error):  # the only sign of this refusal in aiormq's error
            return "RabbitMQ refused the virtual host: it is missing, or this user has no permission there"
        case PublishError():
            return "RabbitMQ has no such queue any more"
        case DeliveryError():
            return "the queue refused the message; it may be full, or without a leader"
        case ssl.SSLCertVerificationError():
            return (
                f"RabbitMQ's certificate cannot be trusted: {error.verify_message} "
                "(cafile in the query of --amqp-url names a private CA)"
            )
        case ConnectionClosed():
            return f"RabbitMQ closed the connection: {error.args[-1] if error.args else 'without a reason'}"
        case ConnectionError(errno=int(number)):
            return f"RabbitMQ cannot be reached: {os.strerror(number)}"
        case _:
            return f"RabbitMQ cannot be used: {error.args[-1] if error.args else type(error).__name__}"
