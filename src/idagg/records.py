"""What idagg delivers, as Python objects, for its consumers and for their tests.

This module is the public part of the package. It needs nothing but the standard library, and reads neither
files nor sockets. Fields that a later version adds are ignored.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import hmac
import itertools
import json
import re
import time
from collections.abc import Iterable, Sequence
from typing import Literal, NoReturn, Protocol

from idagg.signing import Signer, signature, signing_key

__all__ = [
    "ROLLUPS",
    "TOLERANCE_S",
    "WINDOW",
    "Callback",
    "CallbackLine",
    "Headers",
    "ParseError",
    "Period",
    "Rollup",
    "RollupLine",
    "VerificationError",
    "Window",
    "WindowLine",
    "callback_headers",
    "parse_callback",
    "parse_line",
    "parse_message",
    "parse_rollup",
    "verify_callback",
]

WINDOW = "idagg.window"
"""The ``type`` of a window's message."""

Period = Literal["hour", "day"]
"""What a roll-up is of, in UTC."""

ROLLUPS = ("idagg.hour", "idagg.day")
"""The ``type`` of messages of hours and of days, which ``--rollups`` sends."""

TOLERANCE_S = 300.0
"""Age up to which a callback is accepted, and error of clocks, as in the libraries of Standard Webhooks."""

_PERIODS: dict[str, Period] = {"hour": "hour", "day": "day"}
_NAMED = re.compile(r"([A-Za-z0-9._-]{1,64}):([0-9]{1,12})")
_NAMED_ROLLUP = re.compile(r"[A-Za-z0-9._-]{1,64}:(hour|day):([0-9]{1,12})")
_WEBHOOK_ID = re.compile(r"(.+):[0-9a-f]{16}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{3})?Z")
_FIELD = re.compile(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|[^\s"]+)(?: |\Z)')
_JSON = re.compile(r'".*"|[0-9]{1,20}|true|false')  # 007 is none
_NO_RECORD = "is no record of idagg"


class ParseError(ValueError):
    """The message, callback or line is none of idagg's, or of a kind that this version does not know."""


class VerificationError(ValueError):
    """The callback is not proven to be idagg's: answer it with 401, and do not use it."""


class Headers(Protocol):
    """The header fields of a request: a ``dict``, or what a web framework has in its place."""

    def items(self) -> Iterable[tuple[str, str]]: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """The count of a window, from a message or a callback.

    ``message_id`` is the same at every delivery: drop a record whose id you have seen. ``exact`` is false if
    ``unique_ids`` is an estimate, or if ``suspect`` is true: Redis had then lost writes.
    """

    message_id: str
    window_start: datetime.datetime
    window_end: datetime.datetime
    unique_ids: int
    estimate: int
    hits: int
    exact: bool
    suspect: bool = False

    def body(self) -> bytes:
        """The JSON that idagg would send for it."""
        fields = {
            "window_start": _iso(self.window_start),
            "window_end": _iso(self.window_end),
            "unique_ids": self.unique_ids,
            "estimate": self.estimate,
            "hits": self.hits,
            "exact": self.exact,
        }
        return json.dumps(fields | ({"suspect": True} if self.suspect else {})).encode()


@dataclasses.dataclass(frozen=True, slots=True)
class Callback:
    """A callback. ``webhook_id`` is the same at every attempt; ``attempted`` is the time of this one.

    Drop a callback whose ``webhook_id`` you have seen.
    """

    webhook_id: str
    attempted: datetime.datetime
    record: Window


@dataclasses.dataclass(frozen=True, slots=True)
class Rollup:
    """The estimate of an hour or a day (UTC), from a message, with ``--rollups``.

    Its fields have other names than a `Window`'s: the ids of an hour are no sum of its windows' ids.
    ``unique_ids`` has a standard error of 0.81%. It is too low if ``suspect`` is true. ``message_id`` is the
    same at every delivery.
    """

    message_id: str
    period: Period
    start: datetime.datetime
    end: datetime.datetime
    unique_ids: int
    hits: int
    suspect: bool = False

    def body(self) -> bytes:
        """The JSON that idagg would send for it."""
        fields = {
            "window_start": _iso(self.start),
            "window_end": _iso(self.end),
            "unique_ids": self.unique_ids,
            "estimate": self.unique_ids,
            "hits": self.hits,
            "exact": False,
        }
        return json.dumps(fields | ({"suspect": True} if self.suspect else {})).encode()


@dataclasses.dataclass(frozen=True, slots=True)
class WindowLine:
    """A line of the log file with ``event=window``: the count of a window.

    ``message_id`` is that of the window's message: a window that is in the queue and in the log file has one
    id. ``reason`` says why RabbitMQ did not get the message in time, if it is configured.
    """

    time: datetime.datetime
    level: str
    message_id: str
    window_start: datetime.datetime
    unique_ids: int
    estimate: int
    hits: int
    exact: bool
    suspect: bool = False
    reason: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class RollupLine:
    """A line of the log file with ``event=rollup``: the estimate of an hour or a day, as in `Rollup`.

    ``message_id`` is that of its message. ``reason`` is as in `WindowLine`.
    """

    time: datetime.datetime
    level: str
    message_id: str
    period: Period
    start: datetime.datetime
    unique_ids: int
    hits: int
    suspect: bool = False
    reason: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class CallbackLine:
    """A line of the log file with ``event=callback``: how a callback ended.

    ``status`` is that of the answer; if there was none, ``error`` says why. If ``url`` is None,
    ``--callback-limit`` was reached for ``address``, and ``endpoints`` were not called.
    """

    time: datetime.datetime
    level: str
    window_start: datetime.datetime
    url: str | None
    status: int | None
    error: str | None
    attempts: int
    ms: int
    location: str | None = None
    address: str | None = None
    endpoints: int | None = None
    silenced_s: int | None = None


def parse_message(body: bytes, message_id: str | None, message_type: str | None = WINDOW) -> Window:
    """Read a window's message: its body and its properties ``message_id`` and ``type``. Raises ParseError.

    If ``type`` is one of `ROLLUPS`, `parse_rollup` reads it. With ``--amqp-body text`` the body is the bare
    number, which ``int(body)`` reads.
    """
    if message_type in ROLLUPS:
        raise ParseError(
            f"a message of type {message_type!r} {_NO_RECORD} of a window: parse_rollup reads it"
        )
    if message_type != WINDOW:
        raise ParseError(f"a message of type {message_type!r} {_NO_RECORD} that this version knows")
    return _window(body, message_id)


def parse_rollup(body: bytes, message_id: str | None, message_type: str | None) -> Rollup:
    """Read the message of an hour or a day, as `parse_message` does that of a window. Raises ParseError."""
    if message_type not in ROLLUPS:
        raise ParseError(f"a message of type {message_type!r} {_NO_RECORD} of an hour or a day")
    named = _NAMED_ROLLUP.fullmatch(message_id or "")
    if message_id is None or named is None or message_type != f"idagg.{named[1]}":
        raise ParseError(f"the message {_NO_RECORD}: its type is {message_type!r}, and its id {message_id!r}")
    fields, start = _body(body, message_id, int(named[2]))
    return Rollup(
        message_id=message_id,
        period=_PERIODS[named[1]],
        start=start,
        end=fields.moment("window_end"),
        unique_ids=fields.number("unique_ids"),
        hits=fields.number("hits"),
        suspect=fields.truth("suspect", False),
    )


def parse_callback(body: bytes, headers: Headers) -> Callback:
    """Read a callback without verifying it. Raises ParseError.

    Anybody who reaches your endpoint can have sent it: use `verify_callback` if idagg has a secret.
    """
    try:
        fields = _webhook_fields(headers)
    except VerificationError as error:
        raise ParseError(f"the callback {_NO_RECORD}: {error}") from None
    return _callback(body, fields["id"], int(fields["timestamp"]))


def verify_callback(
    body: bytes,
    headers: Headers,
    secret: str | Sequence[str],
    *,
    now_s: float | None = None,
    tolerance_s: float = TOLERANCE_S,
) -> Callback:
    """Verify a callback's signature and time (Standard Webhooks), then read it.

    ``body`` is the request's body as it came, byte for byte. ``secret`` is that of ``--callback-secret``, or
    several, in a list or separated by commas: one of them has to be the right one. ``now_s`` is Unix time,
    for tests. Raises VerificationError. Raises ParseError if a verified body is no record, and ValueError if
    a secret is none.
    """
    secrets = secret.split(",") if isinstance(secret, str) else secret
    keys = [signing_key(text.strip()) for text in secrets]
    if not keys:
        raise ValueError("without a secret nothing can be verified")
    fields = _webhook_fields(headers)
    webhook_id, timestamp = fields["id"], int(fields["timestamp"])
    away_s = timestamp - (time.time() if now_s is None else now_s)
    if abs(away_s) > tolerance_s:
        raise VerificationError(
            f"the attempt was made {abs(away_s):.0f} s {'before' if away_s < 0 else 'after'} now, by this "
            f"machine's clock; the limit is {tolerance_s:g} s"
        )
    if "signature" not in fields:
        raise VerificationError("it has no webhook-signature: idagg signs with --callback-secret")
    expected = [signature(key, webhook_id, timestamp, body).encode() for key in keys]
    signatures = fields["signature"].encode(errors="replace").split()
    matches = 0
    for given, own in itertools.product(signatures, expected):  # all, so that the time tells nothing
        matches += hmac.compare_digest(given, own)
    if not matches:
        raise VerificationError("its signature is of another secret, or of another body")
    return _callback(body, webhook_id, timestamp)


def callback_headers(
    record: Window, endpoint: str, secret: str | Sequence[str], *, now_s: float | None = None
) -> dict[str, str]:
    """The header fields of a signed callback, for the test of a receiver. Its body is `Window.body`."""
    secrets = secret.split(",") if isinstance(secret, str) else secret
    digest = hashlib.sha256(endpoint.encode()).hexdigest()[:16]
    timestamp = int(time.time() if now_s is None else now_s)
    return {
        "content-type": "application/json",
        **Signer(secrets).headers(f"{record.message_id}:{digest}", timestamp, record.body()),
    }


def parse_line(line: str, namespace: str = "idagg") -> WindowLine | RollupLine | CallbackLine:
    """Read a whole line of the log file. Raises ParseError.

    ``namespace`` is that of ``--namespace``: the line does not have it, and message ids begin with it.
    """
    fields = _Fields(_logfmt(line), "the line")
    event = fields.text("event")
    if event == "window":
        start = fields.moment("window")
        fields.whole()
        return WindowLine(
            time=fields.moment("time"),
            level=fields.text("level"),
            message_id=f"{namespace}:{_epoch_s(start)}",
            window_start=start,
            unique_ids=fields.number("unique_ids"),
            estimate=fields.number("estimate"),
            hits=fields.number("hits"),
            exact=fields.truth("exact"),
            suspect=fields.truth("suspect", False),
            reason=fields.text_if("reason"),
        )
    if event == "rollup":
        start, period = fields.moment("start"), fields.period("period")
        fields.whole()
        return RollupLine(
            time=fields.moment("time"),
            level=fields.text("level"),
            message_id=f"{namespace}:{period}:{_epoch_s(start)}",
            period=period,
            start=start,
            unique_ids=fields.number("unique_ids"),
            hits=fields.number("hits"),
            suspect=fields.truth("suspect", False),
            reason=fields.text_if("reason"),
        )
    if event == "callback":
        return CallbackLine(
            time=fields.moment("time"),
            level=fields.text("level"),
            window_start=fields.moment("window"),
            url=fields.text_if("url"),
            status=fields.number_if("status"),
            error=fields.text_if("error"),
            attempts=fields.number("attempts"),
            ms=fields.number("ms"),
            location=fields.text_if("location"),
            address=fields.text_if("address"),
            endpoints=fields.number_if("endpoints"),
            silenced_s=fields.number_if("silenced"),
        )
    raise ParseError(f"a line with event={event} {_NO_RECORD} that this version knows")


class _Fields:
    """Fields by name, each read as what it has to be."""

    def __init__(self, values: dict[str, object], what: str) -> None:
        self._values = values
        self._what = what

    def text(self, name: str) -> str:
        value = self._values.get(name)
        return value if isinstance(value, str) else self.fail(name)

    def text_if(self, name: str) -> str | None:
        return self.text(name) if name in self._values else None

    def number(self, name: str) -> int:
        value = self._values.get(name)
        return value if type(value) is int and value >= 0 else self.fail(name)  # True is an int, too

    def number_if(self, name: str) -> int | None:
        return self.number(name) if name in self._values else None

    def truth(self, name: str, default: bool | None = None) -> bool:
        value = self._values.get(name, default)
        return value if isinstance(value, bool) else self.fail(name)

    def moment(self, name: str) -> datetime.datetime:
        text = self.text(name)
        try:
            return datetime.datetime.fromisoformat(text) if _TIME.fullmatch(text) else self.fail(name)
        except ValueError:  # a thirteenth month
            self.fail(name)

    def period(self, name: str) -> Period:
        return _PERIODS.get(self.text(name)) or self.fail(name)

    def whole(self) -> None:
        """Fail if the line of a count was cut short: only ``reason`` comes after ``sink``."""
        if self.text("sink") != "log":
            self.fail("sink")

    def fail(self, name: str) -> NoReturn:
        raise ParseError(f"{self._what} {_NO_RECORD}: {name} is {self._values.get(name)!r}")


def _window(body: bytes, message_id: str | None) -> Window:
    named = _NAMED.fullmatch(message_id or "")
    if message_id is None or named is None:
        raise ParseError(f"the message {_NO_RECORD}: its id is {message_id!r}")
    fields, start = _body(body, message_id, int(named[2]))
    return Window(
        message_id=message_id,
        window_start=start,
        window_end=fields.moment("window_end"),
        unique_ids=fields.number("unique_ids"),
        estimate=fields.number("estimate"),
        hits=fields.number("hits"),
        exact=fields.truth("exact"),
        suspect=fields.truth("suspect", False),
    )


def _body(body: bytes, message_id: str, start_s: int) -> tuple[_Fields, datetime.datetime]:
    """The fields of a message's body, and its start, which is also in its id."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):  # ten thousand brackets
        raise ParseError(f"the body {_NO_RECORD}: it is not JSON") from None
    if not isinstance(values, dict):
        raise ParseError(f"the body {_NO_RECORD}: it is not an object")
    fields = _Fields(values, "the body")
    start = fields.moment("window_start")
    if _epoch_s(start) != start_s:
        raise ParseError(f"the message {_NO_RECORD}: its id is {message_id!r}, and its window another one")
    return fields, start


def _callback(body: bytes, webhook_id: str, timestamp: int) -> Callback:
    named = _WEBHOOK_ID.fullmatch(webhook_id)
    if named is None:
        raise ParseError(f"the callback {_NO_RECORD}: its webhook-id is {webhook_id!r}")
    attempted = datetime.datetime.fromtimestamp(timestamp, datetime.UTC)
    return Callback(webhook_id, attempted, _window(body, named[1]))


def _webhook_fields(headers: Headers) -> dict[str, str]:
    """The fields ``webhook-…``, without that prefix, whatever case their names are in."""
    found: dict[str, str] = {}
    for name, value in headers.items():
        if (name := name.lower()).startswith("webhook-"):
            if name in found:
                raise VerificationError(f"{name} comes twice")
            found[name] = value
    fields = {name.removeprefix("webhook-"): value for name, value in found.items()}
    if not re.fullmatch(r"[!-~]+", fields.get("id", "")):
        raise VerificationError("its webhook-id is missing, or is none")
    if not re.fullmatch(r"[0-9]{1,11}", fields.get("timestamp", "")):
        raise VerificationError("its webhook-timestamp is missing, or is no number of seconds")
    return fields


def _logfmt(line: str) -> dict[str, object]:
    line = line.rstrip("\r\n")
    values: dict[str, object] = {}
    at = 0
    while at < len(line):
        found = _FIELD.match(line, at)
        if found is None or found[1] in values:
            raise ParseError(f"the line {_NO_RECORD}: its fields end at character {at}")
        name, value = found.groups()
        try:
            values[name] = json.loads(value) if _JSON.fullmatch(value) else value
        except ValueError:
            raise ParseError(f"the line {_NO_RECORD}: {name} is no JSON string") from None
        at = found.end()
    return values


def _iso(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _epoch_s(moment: datetime.datetime) -> int:
    return int(moment.timestamp())
