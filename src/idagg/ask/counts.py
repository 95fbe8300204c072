"""``idagg counts``: windows' records, as a table, as CSV or as JSON."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from idagg.ask import times
from idagg.ask.client import Client, plain
from idagg.errors import Exit, NoAnswerError

WINDOWS = "/api/v1/windows"
ESTIMATE = "/api/v1/estimate"
# Windows that are shown if nothing says which.
LAST = 60
# Windows of one answer: some 200 KB.
PAGE = 1000

Tell = Callable[..., None]


class Asked(NamedTuple):
    """The arguments of the command, as they were typed."""

    since: str | None
    until: str | None
    limit: int | None
    form: str
    estimate: bool


def run(client: Client, asked: Asked, tell: Tell) -> int:
    raise NotImplementedError
