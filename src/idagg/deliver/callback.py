"""Callbacks: a window's count is POSTed to the endpoints that asked for it.

`Schedule` decides, without I/O or clock, whose turn it is; `Callbacks` carries that out. Only attempts run
in tasks, and only those hold a slot: a call that waits for its turn or for a retry is an entry in a queue.
What an attempt came to goes back to the one coroutine that asked, which logs it and marks it done, so an
error there ends that delivery and no other.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import concurrent.futures
import dataclasses
import functools
import hashlib
import hmac
import os
import random
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from idagg import __version__
from idagg.deliver.guard import BlockedAddressError, Guard
from idagg.deliver.schedule import Schedule
from idagg.window import Record

_BLOCKED = "blocked"
_EXPIRED = "gave up: deadline"
_INVALID = "invalid URL"

# "Later" in so many words: request time-out, too early (RFC 8470), too many requests; and all of 5xx.
_RETRIED = frozenset({408, 425, 429, *range(500, 600)})

# Each has a descriptor, of which a process has 1,024 by default, and about 15 KiB.
_CONCURRENCY = 500

# aiohttp dials n addresses up to n²/2 times before it gives up, and a name's owner chooses n.
_ADDRESSES = 8

# A mark is a durable write of the store's, so those that ended during one share the next; but what is not
# marked when the leader dies is called again.
_MARKED_AT_ONCE = 100


class CallbackLog(Protocol):
    """Where each endpoint's outcome is written: either a status or an error."""

    async def callback(
        self, *, window_s: int, url: str, status: int | None, attempts: int, ms: int, error: str | None
    ) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class _Outcome:
    """What an attempt came to: a status or an error."""

    status: int | None = None
    error: str | None = None
    ms: int = 0

    @property
    def again(self) -> bool:
        """Whether another attempt may come to more."""
        return self.status in _RETRIED if self.error is None else self.error not in (_BLOCKED, _INVALID)

    @property
    def result(self) -> str:
        if self.status is not None:
            return "ok" if 200 <= self.status < 300 else "refused"
        return {_BLOCKED: "blocked", _EXPIRED: "expired"}.get(self.error or "", "error")


@dataclasses.dataclass(eq=False, slots=True)
class _Delivery:
    """One run of `Callbacks.deliver`."""

    record: Record
    body: bytes
    deadline: float
    tasks: set[asyncio.Task[_Outcome]] = dataclasses.field(default_factory=set)
    ended: asyncio.Queue[_Call] = dataclasses.field(default_factory=asyncio.Queue)
    over: bool = False


@dataclasses.dataclass(eq=False, slots=True)
class _Call:
    """One endpoint of a delivery; its outcome is that of its last attempt."""

    delivery: _Delivery
    endpoint: str
    host: str
    attempts: int = 0
    outcome: _Outcome = _Outcome(error=_EXPIRED)


class Callbacks:
    """Calls endpoints, many at a time and yet few of one host, for any number of deliveries at once.

    ``on_result`` hears of each endpoint once: ok (2xx), refused (another status), error, blocked, expired.
    """

    def __init__(
        self,
        *,
        guard: Guard,
        log: CallbackLog,
        namespace: str,
        secret: str | None = None,
        concurrency: int = _CONCURRENCY,
        per_host: int = 4,
        fresh: int = 100,
        fresh_s: float = 0.25,
        timeout_s: float = 10.0,
        attempts: int = 3,
        backoff_s: float = 1.0,
        on_result: Callable[[str], None] = lambda result: None,
    ) -> None:
        self._guard = guard
        self._log = log
        self._namespace = namespace
        self._key = None if secret is None else signing_key(secret)
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._backoff_s = backoff_s
        self._on_result = on_result
        self._schedule = Schedule[_Call](
            concurrency=concurrency, per_host=per_host, fresh=fresh, fresh_s=fresh_s
        )
        self._alarm: asyncio.TimerHandle | None = None
        self._sessions: dict[Guard, aiohttp.ClientSession] = {}
        # Names are resolved on threads of our own, one a slot: the loop's are few and serve the store and the
        # broker, too, and a dead name server holds a thread for longer than an attempt lasts.
        self._threads = concurrent.futures.ThreadPoolExecutor(concurrency, thread_name_prefix="callback-dns")

    async def deliver(
        self,
        record: Record,
        endpoints: Iterable[str],
        done: Callable[[Sequence[str]], Awaitable[None]],
        *,
        deadline: float,
    ) -> None:
        """POST ``record`` to each endpoint; as they end, log each once and await ``done`` of some together.

        At ``deadline``, in the loop's time, whatever has not ended ends as it stands. An error of the log or
        of ``done`` ends the delivery; an endpoint not marked done by then may have been called and logged.
        """
        loop = asyncio.get_running_loop()
        delivery = _Delivery(record, record.as_json(), deadline)
        calls = [_Call(delivery, endpoint, _authority(endpoint)) for endpoint in endpoints]
        for call in calls:
            self._schedule.add(call.host, call)
        if loop.time() >= deadline:
            self._expire(delivery)
        expiry = loop.call_at(deadline, self._expire, delivery)
        self._start_due()
        try:
            left = len(calls)
            while left:
                ended = [await delivery.ended.get()]
                while len(ended) < _MARKED_AT_ONCE and not delivery.ended.empty():
                    ended.append(delivery.ended.get_nowait())
                for call in ended:
                    await self._log.callback(
                        window_s=record.start_s,
                        url=call.endpoint,
                        status=call.outcome.status,
                        attempts=call.attempts,
                        ms=call.outcome.ms,
                        error=call.outcome.error,
                    )
                await done([call.endpoint for call in ended])
                for call in ended:
                    self._on_result(call.outcome.result)
                left -= len(ended)
        finally:
            expiry.cancel()
            delivery.over = True
            self._expire(delivery)
            for task in delivery.tasks:
                task.cancel()
            await asyncio.gather(*delivery.tasks, return_exceptions=True)

    async def close(self) -> None:
        """Close what is still open, once the deliveries have ended."""
        for session in self._sessions.values():
            await session.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _expire(self, delivery: _Delivery) -> None:
        """End the calls of ``delivery`` that are not on their way; those that are have their own time-out."""
        for call in self._schedule.withdraw(lambda call: call.delivery is delivery):
            delivery.ended.put_nowait(call)

    def _start_due(self) -> None:
        loop = asyncio.get_running_loop()
        while (call := self._schedule.take(loop.time())) is not None:
            call.attempts += 1
            task = loop.create_task(self._attempt(call))
            call.delivery.tasks.add(task)
            task.add_done_callback(functools.partial(self._attempted, call))
        if self._alarm:
            self._alarm.cancel()
        wakes_at = self._schedule.wakes_at()
        self._alarm = None if wakes_at is None else loop.call_at(wakes_at, self._start_due)

    def _attempted(self, call: _Call, task: asyncio.Task[_Outcome]) -> None:
        """Free the slot, which a task cancelled before its first step cannot, and end or retry the call."""
        delivery = call.delivery
        delivery.tasks.discard(task)
        self._schedule.release(call.host, call)
        if not delivery.over:
            call.outcome = _Outcome(error="cancelled") if task.cancelled() else task.result()
            pause_s = self._backoff_s * 2 ** (call.attempts - 1) * random.uniform(0.5, 1.5)  # noqa: S311 no secret
            retry_at = task.get_loop().time() + pause_s
            if call.outcome.again and call.attempts < self._attempts and retry_at < delivery.deadline:
                self._schedule.sleep(call.host, call, retry_at)
            else:
                delivery.ended.put_nowait(call)
        self._start_due()

    async def _attempt(self, call: _Call) -> _Outcome:
        loop = asyncio.get_running_loop()
        started = loop.time()
        limit = min(started + self._timeout_s, call.delivery.deadline)

        status = error = None
        try:
            async with asyncio.timeout_at(limit):
                status = await self._post(call)
        except TimeoutError:
            error = _EXPIRED if limit == call.delivery.deadline else "timeout"
        except Exception as exc:  # whatever a stranger's answer makes a library raise is this call's outcome
            error = _in_words(exc)
        return _Outcome(status, error, round((loop.time() - started) * 1000))

    async def _post(self, call: _Call) -> int:
        record, body = call.delivery.record, call.delivery.body
        url = with_count(call.endpoint, record.unique_ids)
        # The same over retries and leaders, another for each window and endpoint.
        webhook_id = (
            f"{record.message_id(self._namespace)}:{hashlib.sha256(call.endpoint.encode()).hexdigest()[:16]}"
        )
        timestamp = int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": f"idagg/{__version__}",
            "webhook-id": webhook_id,
            "webhook-timestamp": str(timestamp),
        }
        if self._key is not None:
            headers["webhook-signature"] = signature(self._key, webhook_id, timestamp, body)
        session = self._session(self._guard.for_host(url.raw_host or ""))
        response = await session.post(url, data=body, headers=headers, allow_redirects=False)
        response.close()  # not read: it may have no end
        return response.status

    def _session(self, guard: Guard) -> aiohttp.ClientSession:
        if guard not in self._sessions:
            self._sessions[guard] = aiohttp.ClientSession(
                # Each attempt has its own connection: a pooled one may have died since the last window.
                # aiohttp's DNS cache would shield lookups from cancellation, and they would pile up.
                connector=aiohttp.TCPConnector(
                    limit=0,
                    force_close=True,
                    use_dns_cache=False,
                    resolver=_Resolver(guard, self._threads),
                    socket_factory=guard.open_socket,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(),  # none: `_attempt` has one for the whole
                trust_env=False,
                auto_decompress=False,
            )
        return self._sessions[guard]


class _Resolver(AbstractResolver):
    """Resolves names to the addresses that the guard lets through.

    The guard's sockets enforce it, for literals too; but where several addresses fail, aiohttp reports one
    error without a type, so those to be refused are left out before it tries them.
    """

    def __init__(self, guard: Guard, threads: concurrent.futures.Executor) -> None:
        self._guard = guard
        self._threads = threads

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        lookup = functools.partial(
            socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
        found = await asyncio.get_running_loop().run_in_executor(self._threads, lookup)
        lawful = [info for info in found[:_ADDRESSES] if not self._guard.refusal(str(info[4][0]))]
        if not lawful:
            raise BlockedAddressError(f"{host} has no address that may be called")
        return [
            ResolveResult(hostname=host, host=str(address[0]), port=port, family=family, proto=proto, flags=0)
            for family, _, proto, _, address in lawful
        ]

    async def close(self) -> None:
        pass


def with_count(endpoint: str, count: int) -> URL:
    """``endpoint`` to the byte, with ``count`` at the end of its query and without its fragment."""
    url = endpoint.partition("#")[0]
    joint = "" if url.endswith("?") else "&" if "?" in url else "?"
    return URL(f"{url}{joint}count={count}", encoded=True)


def signing_key(secret: str) -> bytes:
    """The key in a Standard Webhooks secret (``whsec_`` and base64), or the bytes of any other."""
    encoded = secret.removeprefix("whsec_")
    try:
        key = secret.encode() if encoded == secret else base64.b64decode(encoded, validate=True)
    except binascii.Error:
        key = b""
    if not key:
        raise ValueError("the callback secret is empty or not base64 after its whsec_")
    return key


def signature(key: bytes, webhook_id: str, timestamp: int, body: bytes) -> str:
    """The ``webhook-signature`` of Standard Webhooks 1.0."""
    digest = hmac.digest(key, f"{webhook_id}.{timestamp}.".encode() + body, "sha256")
    return f"v1,{base64.b64encode(digest).decode()}"


def _authority(endpoint: str) -> str:
    """Host and port as ``endpoint`` writes them; to parse thousands of URLs at once would stall the loop."""
    return endpoint.partition("://")[2].partition("/")[0].partition("?")[0].partition("#")[0].lower()


def _in_words(exc: Exception) -> str:
    cause = exc.os_error if isinstance(exc, aiohttp.ClientConnectorError) else exc
    match cause:
        case BlockedAddressError():
            return _BLOCKED
        case TimeoutError():  # the kernel's own
            return "timeout"
        case socket.gaierror():
            return "name not resolved"
        case ssl.SSLCertVerificationError():
            return f"tls: {cause.verify_message}"
        case ssl.SSLError():
            return f"tls: {cause.reason or 'failed'}".replace("_", " ").lower()
        case ValueError():
            return _INVALID
        case aiohttp.ServerDisconnectedError():
            return "connection closed"
        case aiohttp.ClientResponseError():
            return "not an HTTP answer"
        case OSError(errno=int(number)):
            return os.strerror(number).lower()
        case OSError():
            return "connection failed"
    return type(cause).__name__
