"""What the bench needs besides Python's packages: installed where it may be, named where not."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from kit.machine import host, program_version

_CARGO, _RUSTC, _CRATES = "/usr/bin/cargo", "/usr/bin/rustc", "/usr/share/cargo/registry"
# By Debian package, a file that shows that it is there.
_DEBIAN = {
    "wrk": "/usr/bin/wrk",
    "redis-server": "/usr/bin/redis-server",
    "nginx": "/usr/sbin/nginx",
    "libnginx-mod-http-lua": "/usr/lib/nginx/modules/ngx_http_lua_module.so",
    "lua-nginx-redis": "/usr/share/lua/5.1/nginx/redis.lua",
    "golang-go": "/usr/bin/go",
    "golang-github-gomodule-redigo-dev": "/usr/share/gocode/src/github.com/gomodule/redigo",
    "cargo": _CARGO,
    "rustc": _RUSTC,
    "librust-hyper-dev": f"{_CRATES}/hyper-*",
    "librust-itoa-dev": f"{_CRATES}/itoa-*",
    "librust-tokio-dev": f"{_CRATES}/tokio-1*",
    "haproxy": "/usr/sbin/haproxy",
    "default-jdk-headless": "/usr/bin/javac",
}
_PYTHON = (
    "idagg",
    "aiohttp",
    "redis",
    "hiredis",
    "uvloop",
    "httptools",
    "fastapi",
    "uvicorn",
    "matplotlib",
    "numpy",
)

# How long it is watched what the machine does without us.
_LOOK_S = 2


def need() -> None:
    """Make sure of all that the servers and the load are made with."""
    # Debian keeps nginx where only root's PATH leads.
    os.environ["PATH"] += ":/usr/sbin"
    if absent := [name for name in _PYTHON if not _version(name)]:
        sys.exit(f"The bench needs {', '.join(absent)} from PyPI: run it with `tox -e bench`.")
    missing = [package for package, path in _DEBIAN.items() if not _exists(path)]
    if not missing:
        return
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    if os.geteuid() or not shutil.which("apt-get"):
        sys.exit(f"The bench needs {', '.join(missing)}. On Debian: sudo {' '.join(install)}")
    say(f"installing {', '.join(missing)} with apt-get")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update"], stdout=subprocess.DEVNULL, check=True)
    subprocess.run(install, stdout=subprocess.DEVNULL, env=quiet, check=True)


@functools.cache
def go_program(source: Path, cache: Path) -> str:
    """A Go program, built with Debian's libraries and nothing from the network."""
    program = cache / "go" / source.name
    offline = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOCACHE": str(cache / "go-build")}
    command = ["go", "build", "-o", str(program), "."]
    subprocess.run(command, cwd=source, env={**os.environ, **offline}, check=True)
    return str(program)


@functools.cache
def rust_program(source: Path, cache: Path) -> str:
    """A Rust program, built with Debian's compiler and crates and nothing from the network."""
    # Built from a copy: cargo writes beside it which versions it took.
    copy = cache / "rust" / source.name
    shutil.copytree(source, copy, dirs_exist_ok=True)
    (copy / "Cargo.lock").unlink(missing_ok=True)
    crates = ["source.crates-io.replace-with='debian'", f"source.debian.directory='{_CRATES}'"]
    command = [_CARGO, "build", "--release", "--offline", "--quiet"]
    command += [word for setting in crates for word in ("--config", setting)]
    target = cache / "rust" / "target"
    variables = {"CARGO_TARGET_DIR": str(target), "RUSTC": _RUSTC}
    subprocess.run(command, cwd=copy, env={**os.environ, **variables}, check=True)
    return str(target / "release" / "accept")


def machine(cache: Path) -> dict[str, str]:
    """What a reader of the figures wants to know of where they come from."""
    return {
        **host(cache),
        "nginx": program_version("nginx", "-v"),
        "go": program_version("go", "version"),
        "rust": program_version(_RUSTC, "--version"),
        "haproxy": program_version("haproxy", "-v"),
        "java": program_version("java", "-version"),
        "wrk": program_version("wrk", "--version"),
        "packages": ", ".join(f"{name} {_version(name)}" for name in _PYTHON),
    }


@dataclasses.dataclass(frozen=True)
class Unrest:
    """What the machine did before we did anything, or between our parts: the load average, which remembers a
    part that has just ended, and the cores that were busy then."""

    load_average: float
    busy_cores: float

    @classmethod
    def now(cls) -> Unrest:
        load_average, before, began = os.getloadavg()[0], idle_s(), time.monotonic()
        time.sleep(_LOOK_S)
        free = (idle_s() - before) / (time.monotonic() - began)
        return cls(load_average, max(0, (os.cpu_count() or 1) - free))

    def __str__(self) -> str:
        return f"load average {self.load_average:.2f}, {self.busy_cores:.2f} cores busy"


def idle_s() -> float:
    """Core seconds without work since the start of the machine."""
    fields = Path("/proc/stat").read_text().split(maxsplit=6)
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")


def _exists(pattern: str) -> bool:
    folder, name = pattern.rsplit("/", 1)
    return any(Path(folder).glob(name))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def say(progress: str) -> None:
    print(progress, file=sys.stderr, flush=True)


def reproducible(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run that another machine can have, too: without the places of files."""
    return {name: value for name, value in options.items() if not isinstance(value, Path)}


def names(known: Collection[str]) -> Callable[[str], list[str]]:
    """A type of option: some of these, separated by commas."""

    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := set(chosen) - set(known):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}")
        return chosen

    return parse


def numbers(text: str) -> list[int]:
    """A type of option: whole numbers, separated by commas."""
    return [int(number) for number in text.split(",")]
