"""``idagg counts``: records of windows, or the estimate of a range, as a table, as CSV or as JSON."""

from __future__ import annotations

import collections
import datetime
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pydantic import ValidationError

from idagg.ask import times
from idagg.ask.client import Client
from idagg.errors import Exit, NoAnswerError
from idagg.read.counts import Estimated, Window
from idagg.sources import SettingsError

WINDOWS = "/api/v1/windows"
ESTIMATE = "/api/v1/estimate"
# Windows that are shown if nothing says which.
LAST = 60
# Missing stretches that are printed for a person.
GAPS = 10
# Windows of one answer: some 300 KB, made within some 10 ms.
PAGE = 1000

_NEXT = re.compile(r'<[^>]*[?&]cursor=([\w-]+)[^>]*>; *rel="?next', re.ASCII)

Tell = Callable[..., None]


class Asked(NamedTuple):
    """The arguments of the command, as they were typed."""

    since: str | None
    until: str | None
    limit: int | None
    form: str
    estimate: bool


def run(client: Client, asked: Asked, tell: Tell) -> int:
    span = _span(asked, datetime.datetime.now(datetime.UTC))
    if asked.estimate:
        _tell_estimate(client, span, asked.form, tell)
        return Exit.OK
    limit = asked.limit or (LAST if asked.since is None else None)
    shown = {"csv": _as_csv, "json": _as_json}.get(asked.form, _as_table)
    for lines in shown(client, span, limit):
        if lines:
            tell(*lines)
    return Exit.OK


def _span(asked: Asked, now: datetime.datetime) -> dict[str, str]:
    """The range, as the API has it. Raises SettingsError."""
    if asked.limit is not None and (asked.estimate or asked.limit < 1):
        raise SettingsError(["--limit is for windows, and is 1 or more"])
    if asked.estimate and asked.since is None:
        raise SettingsError(["--estimate needs --from: the range whose ids it counts"])
    found = {}
    for name, text in (("from", asked.since), ("to", asked.until)):
        if text is not None:
            try:
                found[name] = times.iso(times.moment(text, now))
            except ValueError as error:
                raise SettingsError([f"--{name}: {error}"]) from None
    return found


class _Page(NamedTuple):
    rows: list[Any]
    cursor: str | None
    note: str | None = None


def _pages(
    client: Client, span: dict[str, str], limit: int | None, kind: str, read: Callable[..., _Page]
) -> Iterator[list[Any]]:
    """The rows, page by page, oldest first. With ``limit`` they are the newest ones, and come together."""
    query = {**span, "order": "oldest" if limit is None else "newest"}
    newest: collections.deque[Any] = collections.deque()
    while True:
        wanted = PAGE if limit is None else min(PAGE, limit - len(newest))
        answer = client.get(WINDOWS, query | {"limit": str(wanted)}, kind)
        try:
            page = read(answer.body, answer.fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise NoAnswerError(
                f"{client.url} answers with counts that this version of idagg cannot read: use the version "
                "that runs there"
            ) from error
        # Without --from, nobody has asked for the windows before the oldest record.
        if page.note and "cursor" not in query and ("from" in query or not page.rows):
            sys.stderr.write(f"idagg: {page.note}\n")
        if limit is None:
            yield page.rows
        else:
            newest.extendleft(page.rows)
        if page.cursor is None or not page.rows or (limit is not None and len(newest) >= limit):
            break
        query["cursor"] = page.cursor
    if limit is not None:
        yield list(newest)


def _json_page(body: bytes, _: object) -> _Page:
    given = json.loads(body)
    begin = given.get("records_begin")
    note = f"no record is kept of windows before {begin}" if begin else None
    if not given["windows"]:
        note = "no record is kept of a window in this range"
    return _Page(given["windows"], given["next_cursor"], note)


def _as_json(client: Client, span: dict[str, str], limit: int | None) -> Iterator[list[str]]:
    """One array, a window a line."""
    yield ["["]
    held: str | None = None  # the last one has no comma
    for page in _pages(client, span, limit, "application/json", _json_page):
        lines = [json.dumps(row) for row in page]
        if lines:
            yield [f"{line}," for line in ([] if held is None else [held]) + lines[:-1]]
            held = lines[-1]
    yield ["]"] if held is None else [held, "]"]


def _as_csv(client: Client, span: dict[str, str], limit: int | None) -> Iterator[list[str]]:
    """As the API has it, with one head, also where there is no window."""
    heads: list[str] = []

    def read(body: bytes, fields: Any) -> _Page:
        head, *rows = body.decode().splitlines()
        heads.append(head)
        found = _NEXT.search(fields.get("link", ""))
        note = None
        if len(heads) == 1 and (not rows or rows[0].partition(",")[0] > span.get("from", "9")):
            # Something may be missing, and CSV has no place to say so.
            note = _json_page(client.get(WINDOWS, span | {"limit": "1"}).body, None).note
        return _Page(rows, found[1] if found else None, note)

    is_first = True
    for page in _pages(client, span, limit, "text/csv", read):
        yield [*heads[:is_first], *page]
        is_first = False


def _as_table(client: Client, span: dict[str, str], limit: int | None) -> Iterator[list[str]]:
    is_first = True
    for page in _pages(client, span, limit, "application/json", _json_page):
        try:
            lines = [_line(Window.model_validate(row)) for row in page]
        except ValidationError as error:
            raise NoAnswerError(
                f"{client.url} answers with counts that this version of idagg cannot read: use the version "
                "that runs there"
            ) from error
        if is_first and lines:
            lines.insert(0, f"{'window (UTC)':20}  {'unique ids':>14}  {'hits':>14}  exact     delivered")
            is_first = False
        yield lines


def _line(window: Window) -> str:
    exact = "yes" if window.exact else "suspect" if window.suspect else "estimate"
    return (
        f"{times.iso(window.window_start)}  {window.unique_ids:14,}  {window.hits:14,}  {exact:8}  "
        f"{_delivered(window)}"
    )


def _delivered(window: Window) -> str:
    if window.delivered_to is None:
        return "pending"
    sink: str = window.delivered_to
    if window.delivered_at is None:
        return sink
    at = window.delivered_at.astimezone(datetime.UTC)
    is_same_day = at.date() == window.window_start.astimezone(datetime.UTC).date()
    return f"{sink} {at:%H:%M:%S}" if is_same_day else f"{sink} {times.iso(at)}"


def _tell_estimate(client: Client, span: dict[str, str], form: str, tell: Tell) -> None:
    body = client.get(ESTIMATE, span).body
    if form == "json":
        tell(body.decode())
        return
    try:
        found = Estimated.model_validate_json(body)
    except ValidationError as error:
        raise NoAnswerError(
            f"{client.url} answers with an estimate that this version of idagg cannot read: use the version "
            "that runs there"
        ) from error
    begin, end = times.iso(found.from_), times.iso(found.to)
    if form == "csv":
        tell(
            "from,to,unique_ids,standard_error,missing_s",
            f"{begin},{end},{found.unique_ids},{found.standard_error:g},{found.missing_s}",
        )
        return
    tell(
        f"range       {begin} to {end}",
        f"unique ids  {found.unique_ids:,}, an estimate; its standard error is {found.standard_error:.2%}",
        f"covered     {_coverage(found)}",
        *(f"missing     {times.iso(one.from_)} to {times.iso(one.to)}" for one in found.missing[:GAPS]),
        *([f"missing     {len(found.missing) - GAPS:,} more: --format json"] if found.missing[GAPS:] else []),
    )


def _coverage(found: Estimated) -> str:
    """How much of the range the number is of: an open window and an expired sketch are not in it."""
    kinds = [kind for kind in ("day", "hour", "window") if any(part.sketch == kind for part in found.covered)]
    if not kinds:
        return "nothing: no sketch of the range is kept"
    but = f" but {times.lasting(found.missing_s)}" if found.missing_s else ""
    return f"all of the range{but}, by sketches of {' and '.join(f'{kind}s' for kind in kinds)}"
