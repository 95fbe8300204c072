"""How long it takes from the start of the process to the first ok."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.service import Server, idagg
from kit.processes import running
from kit.servers import free_port


def beside_redis(folder: Path) -> float:
    """Seconds, one worker, with a Redis that runs."""
    with idagg(folder) as service:
        return service.wait()


def embedded(folder: Path) -> float:
    """Seconds, one worker, its own store among what it starts."""
    folder.mkdir()
    port = free_port()
    command = [sys.executable, "-m", "idagg", "serve", "--workers=1", f"--state-dir={folder / 'state'}"]
    command += [f"--port={port}", f"--admin-port={free_port()}"]
    with running("idagg", command, folder) as process:
        return Server(process, port, folder).wait()
