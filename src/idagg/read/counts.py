"""What the API answers about counts. Pure; the models are the JSON documents themselves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from idagg.read.fleet import Model, Moment


class Window(Model):
    """A sealed window: its record, as it was delivered, and what became of it."""

    window_start: Moment
    window_end: Moment
    unique_ids: int = Field(ge=0)
    estimate: int = Field(ge=0)
    """The sketch's count. `unique_ids` equals it if `exact` is false"""
    hits: int = Field(ge=0)
    """Accepted requests, repeats included"""
    exact: bool
    suspect: bool = False
    """The store had lost writes: `unique_ids` is the larger of the ids found and the estimate"""
    message_id: str
    """The id of the window's message, the same in every delivery"""
    sealed: Literal[True] = True
    delivered_to: Literal["broker", "log"] | None
    """The first sink that took the count; null: its delivery is pending"""
    delivered_at: Moment | None
    """When that sink took it, by the store's clock"""


class Windows(Model):
    """A page of sealed windows that begin in a range."""

    windows: list[Window]
    order: Literal["newest", "oldest"]
    to: Moment
    """The end of the range, which no window of it reaches back from: the time of the answer, if `to` was
    left out or lies in the future"""
    clipped: bool
    """Whether `to` was in the future, and is the time of the answer instead"""
    next_cursor: str | None
    """`cursor` of the next page; null: this is the last one"""
    records_begin: Moment | None
    """The start of the oldest record that is kept, if the range begins before it; null if it does not, or if
    no record is kept"""


class OpenWindow(Model):
    """The window that ids are counted in now. It is not sealed: its count still grows."""

    window_start: Moment
    window_end: Moment
    unique_ids: int | None = Field(ge=0)
    """So far; null: a shard of the store cannot be asked"""
    sealed: Literal[False] = False
    as_of: Moment
    """By the store's clock"""


class Covered(Model):
    """A stretch whose sketches of one kind were merged."""

    from_: Moment = Field(alias="from")
    to: Moment
    sketch: Literal["window", "hour", "day"]


class Gap(Model):
    """A stretch of which the estimate knows nothing."""

    from_: Moment = Field(alias="from")
    to: Moment


class Estimated(Model):
    """Unique ids of a range, from sketches: an id that is in several windows of it counts once."""

    unique_ids: int = Field(ge=0)
    standard_error: float = Field(ge=0)
    """Relative: 0.0081 is 0.81 %. Two of three estimates are off by less than that"""
    from_: Moment = Field(alias="from")
    to: Moment
    clipped: bool
    """Whether `to` was in the future, and is the time of the answer instead"""
    covered: list[Covered]
    """The stretches that the estimate is of, in order"""
    missing: list[Gap] = Field(default_factory=list)
    """The rest of the range, in order. There is no window, or it is not sealed yet, or its sketch is not kept
    any more"""
    missing_s: int = Field(default=0, ge=0)
    """How many seconds of the range are missing. 0: the estimate is of the whole range"""
