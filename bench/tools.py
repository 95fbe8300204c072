"""What the bench needs besides Python: installed where it may be, named where not."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path


def need(*programs: str) -> None:
    """Make sure of programs, each in the Debian package of its name, and of python3-venv."""
    # Debian keeps nginx where only root's PATH leads.
    os.environ["PATH"] += ":/usr/sbin"
    missing = [program for program in programs if not shutil.which(program)]
    if not importlib.util.find_spec("ensurepip"):
        missing.append("python3-venv")
    if not missing:
        return
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    if os.geteuid() or not shutil.which("apt-get"):
        sys.exit(f"The bench needs {', '.join(missing)}. On Debian: sudo {' '.join(install)}")
    say(f"installing {', '.join(missing)} with apt-get")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update"], stdout=subprocess.DEVNULL, check=True)
    subprocess.run(install, stdout=subprocess.DEVNULL, env=quiet, check=True)


def environment(folder: Path, *requirements: str) -> str:
    """The Python of a virtual environment that holds ``requirements``, made at the first call."""
    python = folder / "bin" / "python"
    if not python.exists():
        say(f"installing {' '.join(requirements)} into {folder}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    # Costs a second and no network when all of it is there.
    subprocess.run([python, "-m", "pip", "install", "-qq", *requirements], check=True)
    return str(python)


def machine() -> dict[str, str]:
    """What a reader of the figures wants to know of where they come from."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "processor": model[1] if model else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "nginx": _first_line("nginx", "-v"),
        "redis": _first_line("redis-server", "--version"),
        "wrk": _first_line("wrk", "--version"),
        "commit": _first_line("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"),
    }


def _first_line(*command: str) -> str:
    if not shutil.which(command[0]):
        return "unknown"
    # wrk prints its version and calls that a failure; nginx prints it as an error.
    output = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return output.stdout.partition("\n")[0]


def say(progress: str) -> None:
    print(progress, file=sys.stderr, flush=True)
