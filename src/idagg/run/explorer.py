"""``/openapi.json``, and ``/api``, a readable page of it: Swagger UI, if it is installed."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import orjson
from aiohttp import web

from idagg.run.operations import Operation
from idagg.run.problems import ProblemError

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>idagg: its API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/api/explorer/swagger-ui.css">
</head>
<body>
<div id="page"></div>
<script src="/api/explorer/swagger-ui-bundle.js"></script>
<script src="/api/explorer/start.js"></script>
</body>
</html>
"""
_START = (
    'SwaggerUIBundle({url: "/openapi.json", dom_id: "#page", validatorUrl: null, withCredentials: true});\n'
)
# It sets style attributes, and has images in its style sheet.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}


class Explorer:
    """Serves the description of these operations."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._operations = operations
        self._body: bytes | None = None

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/openapi.json", self._document),
            web.get("/api", self._page),
            web.get("/api/explorer/{file}", self._file),
        ]

    async def _document(self, request: web.Request) -> web.Response:
        if self._body is None:
            # Here: most supervisors are never asked, and it takes 1.7 MB of their memory.
            from idagg.run.openapi import document

            self._body = orjson.dumps(document(self._operations))
        return web.Response(body=self._body, content_type="application/json")

    async def _page(self, request: web.Request) -> web.Response:
        _files()
        return web.Response(
            text=_PAGE, content_type="text/html", headers={"Content-Security-Policy": _POLICY}
        )

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info["file"]
        if name == "start.js":
            return web.Response(text=_START, content_type="text/javascript")
        if name not in _TYPES:
            raise web.HTTPNotFound
        # Not aiohttp's FileResponse, which sends itself, and cannot be bounded as other answers are.
        body = await asyncio.to_thread((_files() / name).read_bytes)
        return web.Response(body=body, content_type=_TYPES[name])


def _files() -> Path:
    """Swagger UI's. Its package for Flask is kept up to date, and is not imported here."""
    try:
        package = importlib.metadata.distribution("flask-swagger-ui")
    except importlib.metadata.PackageNotFoundError:
        raise ProblemError(
            404, "the page of the API is not installed: pip install 'idagg[explorer]'; /openapi.json is there"
        ) from None
    return Path(str(package.locate_file("flask_swagger_ui/dist")))
