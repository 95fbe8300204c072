"""The API of the admin listener: counts, read back."""

from __future__ import annotations

import base64
import datetime
import hashlib
import urllib.parse

import orjson
from aiohttp import web

from idagg.errors import UnfitError
from idagg.read import listing
from idagg.read.counts import Estimated, OpenWindow, Window, Windows
from idagg.read.query import (
    BadParameterError,
    NoQuery,
    Place,
    RangeQuery,
    WindowsQuery,
    clip,
    moment,
)
from idagg.run.operations import CSV, JSON, Operation
from idagg.run.problems import ProblemError
from idagg.run.reading import Asked, Reading, View
from idagg.window import iso

# What stays as it is may be kept by its reader, and by no shared cache.
_FINAL = "private, no-cache"


class Api:
    """Serves counts of the namespace."""

    def __init__(self, asked: Asked, reading: Reading) -> None:
        self._asked = asked
        self._reading = reading

    def operations(self) -> list[Operation]:
        found = [
            Operation(
                "/api/v1/windows",
                self._windows,
                "windows",
                "Sealed windows that begin in a range",
                {JSON: Windows, CSV: str},
                WindowsQuery,
                "`Link` names the next page, too. An answer whose windows are all delivered, and whose range "
                "is in the past, has an `ETag`.",
                problems=(503,),
                etag=True,
            ),
            Operation(
                "/api/v1/windows/current",
                self._current,
                "current",
                "The open window, so far",
                {JSON: OpenWindow},
                description="404: no window was opened in this namespace yet.",
                problems=(404, 503),
            ),
            Operation(
                "/api/v1/windows/{start}",
                self._window,
                "window",
                "The sealed window with this start",
                {JSON: Window},
                description="404: no record of such a window is kept.",
                problems=(404, 503),
                in_path={
                    "start": "The window's start: ISO 8601 with a zone, or Unix seconds, of 9 or 10 digits"
                },
                etag=True,
            ),
        ]
        found.append(
            Operation(
                "/api/v1/estimate",
                self._estimate,
                "estimate",
                "Unique ids over a range, estimated",
                {JSON: Estimated},
                RangeQuery,
                "An id that is in several windows of the range counts once.",
                problems=(503,),
            )
        )
        return found

    async def _windows(self, request: web.Request, query: WindowsQuery, media: str) -> web.Response:
        async with self._reading.view() as view:
            asked = clip(query, await _now_s(view))
            from_s, to_s = asked.from_s, asked.to_s
            if query.cursor is not None:
                if query.cursor.order != query.order:
                    raise BadParameterError("cursor", f"the cursor is of order={query.cursor.order}")
                from_s, to_s = listing.beginning(query.cursor, from_s, to_s)
            page = await listing.read(
                view.kept,
                from_s,
                to_s,
                limit=query.limit,
                order=query.order,
                namespace=self._asked.settings.namespace,
                as_csv_=media == CSV,
            )
            begin_s = await view.kept.begin_s()
        cursor = None if page.next_s is None else str(Place(query.order, page.next_s))
        if media == CSV:
            body = listing.csv_head() + b"".join(page.rows)
        else:
            head = {
                "order": query.order,
                "to": iso(asked.to_s),
                "clipped": asked.clipped,
                "next_cursor": cursor,
                "records_begin": None if begin_s is None or asked.from_s >= begin_s else iso(begin_s),
            }
            body = orjson.dumps(head)[:-1] + b',"windows":[' + b",".join(page.rows) + b"]}"
        is_past = query.to is not None and query.to <= asked.to_s and not asked.clipped
        answer = _answer(request, body, media, is_final=page.is_final and is_past and bool(page.rows))
        answer.headers["Vary"] = "Accept"
        if cursor is not None:
            given = {**request.query, "cursor": cursor}
            answer.headers["Link"] = f'<{request.path}?{urllib.parse.urlencode(given)}>; rel="next"'
        return answer

    async def _window(self, request: web.Request, query: NoQuery, media: str) -> web.Response:
        try:
            start_s = moment(request.match_info["start"])
        except UnfitError as error:
            raise BadParameterError("start", f"start cannot be read: {error}") from None
        async with self._reading.view() as view:
            found = await view.kept.one(start_s)
        if found is None:
            raise ProblemError(404, f"no record of a window that starts at {iso(start_s)} is kept")
        body = orjson.dumps(listing.row(found, self._asked.settings.namespace))
        return _answer(request, body, media, is_final=found.sink is not None)

    async def _current(self, request: web.Request, query: NoQuery, media: str) -> web.Response:
        async with self._reading.view() as view:
            look = await view.windows.now()
            if look.shards > 1:
                look = await view.windows.now(look.shards)
        if not look.start_s:
            raise ProblemError(
                404, "no window was opened in this namespace yet: no id has come, and none leads"
            )
        model = OpenWindow(
            window_start=_utc(look.start_s),
            window_end=_utc(look.end_s),
            unique_ids=look.ids,
            as_of=_utc(round(look.now_s, 3)),
        )
        return _answer(request, model.model_dump_json().encode(), media)

    async def _estimate(self, request: web.Request, query: RangeQuery, media: str) -> web.Response:
        async with self._reading.view() as view:
            asked = clip(query, await _now_s(view))
            found = await view.estimates.estimate(asked.from_s, asked.to_s)
        body = {
            "unique_ids": found.unique_ids,
            "standard_error": found.standard_error,
            "from": iso(asked.from_s),
            "to": iso(asked.to_s),
            "clipped": asked.clipped,
            "covered": [
                {"from": iso(one.from_s), "to": iso(one.to_s), "sketch": one.kind} for one in found.covered
            ],
            "missing": [{"from": iso(one.from_s), "to": iso(one.to_s)} for one in found.missing],
            "missing_s": sum(one.to_s - one.from_s for one in found.missing),
        }
        return _answer(request, orjson.dumps(body), media)


async def _now_s(view: View) -> int:
    """The store's clock."""
    return int((await view.windows.now()).now_s)


def _utc(epoch_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(epoch_s, datetime.UTC)


def _answer(request: web.Request, body: bytes, media: str, *, is_final: bool = False) -> web.Response:
    """``is_final``: the same request has the same answer later, and so it has an ETag."""
    if not is_final:
        return web.Response(body=body, content_type=media)
    digest = base64.urlsafe_b64encode(hashlib.blake2b(body, digest_size=12).digest()).decode()
    known = request.if_none_match
    is_known = known is not None and any(tag.value in (digest, "*") for tag in known)
    answer = web.Response(status=304) if is_known else web.Response(body=body, content_type=media)
    answer.etag = digest
    answer.headers["Cache-Control"] = _FINAL
    return answer
