"""An operation of the API: its route, its checks, and what OpenAPI says of it, in one place."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aiohttp import web

from idagg.read.query import BadParameterError, NoQuery, Query, read
from idagg.run.problems import ProblemError

Serve = Callable[[web.Request, Any, str], Awaitable[web.StreamResponse]]
"""Answers a request: with its query, an instance of the operation's, in the media type that was chosen."""

JSON, CSV = "application/json", "text/csv"


@dataclasses.dataclass(frozen=True)
class Operation:
    """``answers`` has the model of each media type, the preferred one first. ``problems`` are statuses beside
    those that every operation may answer: 400, 401, 403, 405, 406, 500."""

    path: str
    serve: Serve
    id: str
    summary: str
    answers: Mapping[str, type]
    query: type[Query] = NoQuery
    description: str = ""
    problems: Sequence[int] = ()
    in_path: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Descriptions of the variables in the path"""
    etag: bool = False

    def route(self) -> web.RouteDef:
        return web.get(self.path, self._handle)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        media = chosen(request.headers.getall("Accept", []), list(self.answers))
        if media is None:
            raise ProblemError(
                406, f"this is there as {' and '.join(self.answers)}, and Accept takes neither"
            )
        given = {name: request.query.getall(name) for name in request.query}
        try:
            query = read(self.query, given)
            return await self.serve(request, query, media)
        except BadParameterError as error:
            raise ProblemError(400, str(error), parameter=error.parameter) from None


_RANGE = re.compile(r"\s*([\w!#$&^.+*-]+)/([\w!#$&^.+*-]+)\s*((?:;[^,]*)?)", re.ASCII)
_QUALITY = re.compile(r";\s*q\s*=\s*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)\s*(?:;|\Z)", re.IGNORECASE | re.ASCII)


def chosen(accept: Sequence[str], offers: Sequence[str]) -> str | None:
    """The offer that the Accept fields take, the first of equally good ones (RFC 9110 12.5.1). Parts of them
    that cannot be read are passed over."""
    if not "".join(accept).strip():
        return offers[0]
    ranges = []
    for part in ",".join(accept).split(","):
        found = _RANGE.fullmatch(part)
        if found:
            given = _QUALITY.search(found[3])
            ranges.append((found[1].lower(), found[2].lower(), float(given[1]) if given else 1.0))
    best: tuple[float, str] | None = None
    for offer in offers:
        kind, _, sub = offer.partition("/")
        matching = [
            ((a != "*") + (b != "*"), quality)
            for a, b, quality in ranges
            if (a, b) in ((kind, sub), (kind, "*"), ("*", "*"))
        ]
        quality = max(matching)[1] if matching else 0.0
        if quality and (best is None or quality > best[0]):
            best = quality, offer
    return best[1] if best else None
