"""How long it takes from the start of the process to the first ok."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.measure import free_port, running
from bench.servers import START, Server


def beside_redis(folder: Path, cache: Path) -> float:
    """Seconds, one worker, with a Redis that runs."""
    folder.mkdir()
    with START["idagg"](folder, cache) as server:
        return server.wait()


def embedded(folder: Path) -> float:
    """Seconds, one worker, its own store among what it starts."""
    folder.mkdir()
    port = free_port()
    command = [sys.executable, "-m", "idagg", "serve", "--workers=1", f"--state-dir={folder / 'state'}"]
    command += [f"--port={port}", f"--admin-port={free_port()}"]
    with running("idagg", command, folder) as process:
        return Server(process, port, folder).wait()
