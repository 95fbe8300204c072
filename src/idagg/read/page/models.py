"""The texts of the status page, as its template binds them.

The fields of these classes are the names in ``page.html``. A boolean is an attribute that is there or not.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

State = Literal["good", "warning", "bad"]


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Reason:
    """One trouble, and the machines that have it."""

    part: str
    text: str
    where: str
    since: str


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """Whether it counts."""

    state: State
    title: str
    sentence: str
    reasons: list[Reason]


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """A number that is seen first, and the lines below it."""

    count: str
    lines: list[Text]


@dataclasses.dataclass(frozen=True, slots=True)
class Current(Figure):
    """The open window; seconds of it that have passed, of how many."""

    passed_s: str
    length_s: str


@dataclasses.dataclass(frozen=True, slots=True)
class Late(Figure):
    state: State


@dataclasses.dataclass(frozen=True, slots=True)
class Answers:
    """Requests of one status."""

    status: str
    meaning: str
    rate: str


@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    top: str
    half: str


@dataclasses.dataclass(frozen=True, slots=True)
class Lane:
    """Windows with the same mark; ``none`` of the plot have it."""

    none: bool
    marks: str


@dataclasses.dataclass(frozen=True, slots=True)
class Plot:
    """The paths are those of ``plot``."""

    label: str
    none: bool
    some: bool
    first: str
    unique: Scale
    exact_bars: str
    inexact_bars: str
    current_bar: str
    estimates: str
    hits: Scale
    hits_bars: str
    inexact: Lane
    suspect: Lane
    late: Lane
    missing: Lane
    times: list[Text]
    readouts: list[str]
    current_readout: str
    windows: list[Window]


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """A row of the table."""

    start: str
    unique_ids: str
    estimate: str
    hits: str
    kind: str
    delivered: str


@dataclasses.dataclass(frozen=True, slots=True)
class Pending:
    name: str
    count: str
    state: State
    about: str


@dataclasses.dataclass(frozen=True, slots=True)
class Worker:
    name: str
    state: State
    about: str
    pid: str
    heartbeat: str
    rate: str
    ids: str
    batch: str
    p50: str
    p99: str


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    key: str
    name: str
    state: State
    about: str
    leads: str
    is_follower: bool
    version: str
    running: str
    rate: str
    heartbeat: str
    facts: str
    table: str
    is_open: bool
    workers: list[Worker]


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """Of the log."""

    time: str
    level: str
    where: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """``build`` names the template: a page of another one loads itself again."""

    build: str
    title: str
    namespace: str
    machine: str
    as_of: str
    verdict: Verdict
    last: Figure
    current: Current
    late: Late
    requests: Figure
    plot: Plot
    answers: list[Answers]
    latency: str
    pending: list[Pending]
    leader: str
    machines: list[Machine]
    recent: list[Line]
    some_recent: bool
