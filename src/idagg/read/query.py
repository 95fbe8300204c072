"""What the API is asked: parameters, their forms and limits. Pure."""

from __future__ import annotations

import base64
import binascii
import datetime
import math
import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from idagg.errors import UnfitError

DEFAULT_LIMIT = 100
MAX_LIMIT = 10_000

Order = Literal["newest", "oldest"]

# From 1973 to 2286. What has fewer digits is a year, a month or a day: 2026, 202611, 20261125.
_UNIX_S = re.compile(r"[0-9]{9,10}")
_DIGITS = re.compile(r"[0-9]+")
# The last second that ISO 8601 and Python can write.
_LAST_S = 253_402_300_799
# A + that was not percent-encoded arrives as a space.
_LOST_PLUS = re.compile(r" (?=\d\d(:?\d\d)?$)")
_CURSOR = re.compile(r"1 (newest|oldest) ([0-9]{1,12})")
HOW = "write it with a zone, as 2026-11-22T10:53:00Z, or as Unix seconds, of 9 or 10 digits"


class BadParameterError(Exception):
    """A parameter that is not served. The text is a sentence for the client."""

    def __init__(self, parameter: str, why: str) -> None:
        super().__init__(why)
        self.parameter = parameter


def moment(text: str) -> int:
    """ISO 8601 with a zone, or Unix seconds → Unix seconds, rounded up. Raises UnfitError."""
    if _UNIX_S.fullmatch(text):
        return int(text)
    if _DIGITS.fullmatch(text):
        raise UnfitError(f"this is no time: {HOW}")
    try:
        found = datetime.datetime.fromisoformat(_LOST_PLUS.sub("+", text))
        if found.tzinfo is None:
            raise UnfitError(f"the time has no zone: {HOW}")
        seconds = math.ceil(found.timestamp())
    except UnfitError:
        raise
    except (ValueError, OverflowError) as error:
        raise UnfitError(f"this is no time: {HOW}") from error
    if not 0 <= seconds <= _LAST_S:
        raise UnfitError(f"this is before 1970 or after 9999: {HOW}")
    return seconds


def _moment(value: object) -> object:
    return moment(value) if isinstance(value, str) else value


def _limit(value: object) -> object:
    if isinstance(value, str):
        if not re.fullmatch(r"[0-9]{1,20}", value):
            raise UnfitError(f"it is a number from 1 to {MAX_LIMIT}")
        value = int(value)
    if isinstance(value, int) and not 1 <= value <= MAX_LIMIT:
        raise UnfitError(f"it is a number from 1 to {MAX_LIMIT}: for more windows, follow next_cursor")
    return value


class Place(NamedTuple):
    """Where a page begins: at the window with this start, and on in this order."""

    order: Order
    start_s: int

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(f"1 {self.order} {self.start_s}".encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read ``str`` of one. Raises UnfitError."""
        try:
            padded = text + "=" * (-len(text) % 4)
            found = _CURSOR.fullmatch(base64.b64decode(padded, b"-_", validate=True).decode())
        except (binascii.Error, ValueError):
            found = None
        place = None if found is None else cls("newest" if found[1] == "newest" else "oldest", int(found[2]))
        if place is None or str(place) != text:
            raise UnfitError("this is no cursor: take next_cursor of the page before, or leave it out")
        return place


def _place(value: object) -> object:
    return Place.parse(value) if isinstance(value, str) else value


_MOMENT_SCHEMA = {
    "type": "string",
    "examples": ["2026-11-22T10:53:00Z", "2026-11-22T11:53:00+01:00", "1795344780"],
}
Seconds = Annotated[int, BeforeValidator(_moment), WithJsonSchema(_MOMENT_SCHEMA)]
"""Unix time."""


class Query(BaseModel):
    """Base of all queries; a field's docstring is its description in OpenAPI."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class NoQuery(Query):
    """No parameter."""


class RangeQuery(Query):
    """A range of time."""

    from_: Seconds | None = Field(default=None, alias="from", examples=["2026-11-22T10:00:00Z"])
    """The begin of the range: windows that start at it or later. ISO 8601 with a zone, or Unix
    seconds, of 9 or 10 digits. Left out: everything that is kept"""
    to: Seconds | None = Field(default=None, examples=["1795345200"])
    """The end of the range: windows that start before it. Left out, or in the future: the time of the
    answer"""


class WindowsQuery(RangeQuery):
    """A page of windows of a range."""

    limit: Annotated[int, BeforeValidator(_limit)] = Field(default=DEFAULT_LIMIT, ge=1, le=MAX_LIMIT)
    """How many windows at most"""
    order: Order = "newest"
    """Which window comes first"""
    cursor: Annotated[Place | None, BeforeValidator(_place), WithJsonSchema({"type": "string"})] = None
    """`next_cursor` of the page before. It stays valid: it holds no state"""


def read(model: type[Query], given: dict[str, list[str]]) -> Query:
    """The query of its parameters. Raises BadParameterError for the first that is wrong."""
    for name, values in given.items():
        if len(values) > 1:
            raise BadParameterError(name, f"{name} is given {len(values)} times: give it once")
    try:
        return model.model_validate({name: values[0] for name, values in given.items()})
    except ValidationError as error:
        raise _bad(model, error.errors(include_url=False)[0]) from None


def _bad(model: type[Query], detail: Any) -> BadParameterError:
    name = str(detail["loc"][0])
    if detail["type"] == "extra_forbidden":
        known = [field.alias or name for name, field in model.model_fields.items()]
        there = f"there are {', '.join(known)}" if known else "this path has none"
        return BadParameterError(name, f"{name} is no parameter: {there}")
    reason = detail.get("ctx", {}).get("error")
    said = str(reason) if isinstance(reason, UnfitError) else str(detail["msg"]).lower()
    return BadParameterError(name, f"{name} cannot be read: {said}")


class Range(NamedTuple):
    """Seconds [from_s, to_s) of Unix time. ``clipped``: the end was in the future."""

    from_s: int
    to_s: int
    clipped: bool


def clip(query: RangeQuery, now_s: int) -> Range:
    """The range, up to now. Raises BadParameterError where nothing of it is in the past."""
    from_s = query.from_ or 0
    if query.to is not None and from_s >= query.to:
        raise BadParameterError("from", "from is not before to: exchange them, or move one")
    if from_s >= now_s and query.from_ is not None:
        raise BadParameterError("from", "from is in the future by the store's clock: nothing is counted yet")
    if query.to is None:
        return Range(from_s, now_s, clipped=False)
    return Range(from_s, min(query.to, now_s), clipped=query.to > now_s)
