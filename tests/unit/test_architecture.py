"""The one-way flow, as the imports tell it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import idagg
from idagg.store.scripts import OPENINGS

ROOT = Path(idagg.__file__).parent
PACKAGES = {"accept", "ask", "store", "flush", "deliver", "read", "run"}
# What each package imports of the others.
ARROWS = {
    "accept": {"store"},
    "ask": {"read"},
    "store": set[str](),
    "flush": {"store"},
    "deliver": set[str](),
    "read": {"store"},
    "run": {"accept", "store", "flush", "deliver", "read"},
}
MODULES = sorted(ROOT.rglob("*.py"))
SCRIPTS = sorted((ROOT / "store" / "lua").glob("*.lua"))


def package_of(path: Path) -> str:
    """The package that a module is in; "" for the top level."""
    return path.relative_to(ROOT).parts[0] if path.parent != ROOT else ""


def imports(tree: ast.AST) -> Iterator[str]:
    """All names of our own that a module imports, wherever in it it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "idagg")


def packages_imported(tree: ast.AST) -> set[str]:
    return {name.split(".")[1] for name in imports(tree) if "." in name} & PACKAGES


def test_every_package_is_known() -> None:
    """A new folder has to be given its place in the flow."""
    assert {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"} == PACKAGES


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    """A package imports only those that lie before it; the top level imports none, but for `cli` and
    `settings`, which do so lazily: `cli` runs `run` and `ask`, `settings` asks `store` what a URL says."""
    tree = ast.parse(path.read_text())
    package, found = package_of(path), packages_imported(tree)
    if package:
        assert found <= ARROWS[package] | {package}
    elif path.name == "cli.py":
        assert found == {"ask", "run"}
        assert not packages_imported(ast.Module([node for node in tree.body if not is_def(node)], []))
    elif path.name == "settings.py":
        assert found == {"store"}
        assert not packages_imported(ast.Module([node for node in tree.body if not is_def(node)], []))
    else:
        assert not found


def test_every_arrow_is_there() -> None:
    """The drawing has no arrow that nothing needs."""
    found: dict[str, set[str]] = {package: set() for package in PACKAGES}
    for path in MODULES:
        if package := package_of(path):
            found[package] |= packages_imported(ast.parse(path.read_text())) - {package}
    assert found == ARROWS


# What a process of default settings has no use for. Each of these takes 2 to 9 MB of its memory.
NOT_LOADED = {
    "idagg.run.supervisor": {"redis", "aiormq"},
    "idagg.run.worker": {"redis", "aiormq", "pydantic", "idagg.settings"},
    "idagg.run.callback_process": {"redis", "aiormq", "pydantic", "idagg.settings", "aiohttp"},
    "idagg.run.combiner_process": {"redis", "aiormq", "pydantic", "idagg.settings", "aiohttp"},
}
_LOADED = """
import sys
import {module}
from idagg.in_force import InForce
from idagg.run import sinks, stores
sinks.broker(InForce())
stores.servers("unix:///run/x.sock", InForce()).client("t")
stores.servers("redis://h", InForce()).client("t")
print(*sys.modules)
"""


@pytest.mark.parametrize("module", NOT_LOADED)
def test_a_process_loads_no_large_library_in_vain(module: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _LOADED.format(module=module)], capture_output=True, text=True, check=True
    )
    loaded = set(ended.stdout.split())
    assert module in loaded
    assert not loaded & NOT_LOADED[module]


def is_def(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_state_their_contract(path: Path) -> None:
    """Each script opens with what it does, what it is given and what it returns, and uses no other input."""
    head = []
    for line in (lines := path.read_text().splitlines()):
        if not line.startswith("--"):
            break
        head.append(line)
    assert len(head[0]) > len("-- ")
    assert head[0].endswith(".")
    if path.stem in {"prelude"}.union(*OPENINGS.values()):  # they open scripts, and are none
        return
    contract, code = "\n".join(head), "\n".join(lines[len(head) :])
    assert "-- Returns " in contract
    used = set(re.findall(r"ARGV\[\d+", code))
    assert used <= set(re.findall(r"ARGV\[\d+", contract)) | {"ARGV[1"}  # the fence tells of the first
