"""RabbitMQ: one connection kept alive beside the work, and messages that count once they are confirmed.

aiormq does not reconnect, waits for ever on a broker that falls silent, and reports a lost connection as a
``CancelledError`` that nobody asked for. So every call to it goes through ``_bounded``, and a connection that
has failed once is thrown away.
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
    """What window records are published to.

    ``ready`` is set while there is a connection that RabbitMQ lets us publish on; ``trouble`` says in words
    why there is none, or why it takes no messages.
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
        self._tried = asyncio.Event()  # to connect, to each host, however it ended
        # aiormq heeds the first of two, so a heartbeat of the user's own wins.
        self._urls = [
            f"{one}{'&' if '?' in one else '?'}heartbeat={_HEARTBEAT_S}" for one in one_per_host(url)
        ]
        self._route = route
        self._body = body
        self._namespace = namespace
        self._publish_timeout_s = publish_timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._channel: AbstractChannel | None = None
        self._lost = asyncio.Event()  # wakes the keeper
        self._pause_s = _FIRST_PAUSE_S
        self._said_trouble = False
        self._keeper: asyncio.Task[None] | None = None

    @property
    def trouble(self) -> str | None:
        return self._away_for or self._refused_for

    def start(self) -> None:
        """Connect, and keep connected until ``close``."""
        self._keeper = asyncio.create_task(self._keep(), name="idagg.broker")

    async def close(self) -> None:
        self._channel = None
        self.ready.clear()
        self._away_for = "the connection to RabbitMQ is closed"
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
                        message_type="idagg.window",
                        app_id="idagg",
                    ),
                ),
                self._publish_timeout_s,
            )
        except BrokerAwayError as error:
            unroutable = isinstance(error.__cause__, PublishError)
            if unroutable and self._route.exchange:
                error = BrokerAwayError(self._route.unroutable())
            # A queue that has gone is declared anew, by a new connection; what else refuses a message goes on
            # refusing it there.
            elif unroutable or not isinstance(error.__cause__, DeliveryError):
                self._away(str(error))
                self._say()
                raise
            self._refused_for = str(error)
            self._say()
            raise error from error.__cause__
        # Only this proves that the trouble is over: some last while connecting goes well.
        self._refused_for = None
        self._pause_s = _FIRST_PAUSE_S
        self._say()

    async def check(self) -> str:
        """How the broker is, in words. Raises BrokerAwayError where no host of it can be used."""
        reached, unreached = "", []
        for url in self._urls:
            try:
                async with self._connection(url) as connection:
                    reached = await _bounded(self._route.check(connection), self._connect_timeout_s)
            except BrokerAwayError as error:
                unreached.append(self._at(url, error))
        if not reached:
            raise BrokerAwayError("; ".join(unreached))
        return "; ".join((f"reached, {reached}", *unreached))

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
        """Where another host is still to be tried, nobody needs to hear of this one."""
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
            with contextlib.suppress(BrokerAwayError):  # it is of no more use, whatever became of it
                await _bounded(connection.close(), self._connect_timeout_s)

    def _at(self, url: str, error: BrokerAwayError) -> str:
        """The error in words, and of which host it is, if there are several."""
        if len(self._urls) == 1:
            return str(error)
        place = URL(url)
        return f"{place.host}{f':{place.explicit_port}' if place.explicit_port else ''}: {error}"

    async def _sit_out_block(self, connection: AbstractConnection) -> None:
        """While an alarm lasts, keep a connection that RabbitMQ has blocked.

        It would accept a new one, and block that at its first message.
        """
        unblocked = asyncio.ensure_future(connection.ready())
        either = (unblocked, connection.closing)
        try:
            done, _ = await asyncio.wait(either, timeout=0, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                self._away("RabbitMQ blocks publishers; it is short of memory or disk")
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

    def _away(self, trouble: str) -> None:
        self._channel = None
        self.ready.clear()
        self._away_for = trouble
        self._lost.set()

    def _say(self) -> None:
        """Once when trouble begins, and once when a message has gone through again."""
        if self.trouble and not self._said_trouble:
            self._said_trouble = True
            _log.warning("RabbitMQ gets no messages for now, the log file has the windows: %s", self.trouble)
        elif self._said_trouble and not self.trouble:
            self._said_trouble = False
            _log.info("RabbitMQ gets messages again")


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
        case InvalidFrameError() if "OpenOk" in str(error):  # all that aiormq tells of the refusal
            return "RabbitMQ refused the virtual host: it is missing, or this user has no permission there"
        case PublishError():
            return "RabbitMQ has no such queue any more"
        case DeliveryError():
            return "the queue refused the message; it may be full"
        case ssl.SSLCertVerificationError():
            return (
                f"RabbitMQ's certificate cannot be trusted: {error.verify_message} "
                "(cafile in the query of --amqp-url names a private CA)"
            )
        case ConnectionError(errno=int(number)):
            return f"RabbitMQ cannot be reached: {os.strerror(number)}"
        case _:
            return f"RabbitMQ cannot be used: {error.args[-1] if error.args else type(error).__name__}"
