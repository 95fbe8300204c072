"""``idagg counts``: windows' records, as a table, as CSV or as JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from idagg.ask.client import Client

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
