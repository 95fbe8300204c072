"""The control socket: ``idagg reload`` asks the supervisor there for a reload, and waits for its result.

It is an abstract Unix socket named by the supervisor's process id, so it needs no folder. Only root and the
supervisor's own user may use it. Each side sends lines of JSON with named fields. Unknown ones are ignored.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import re
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import orjson

from idagg.errors import CannotStartError, Exit

log = logging.getLogger("idagg.supervisor")

_MAX_BYTES = 1 << 20
# Time that `idagg reload` has to send its line.
_REQUEST_S = 5.0
_NAME = re.compile(r"@idagg-(\d+)\Z")


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A connection of ``idagg reload``, and the environment that it brings; None: it brings none."""

    client: socket.socket
    environment: dict[str, str] | None = None

    def tell(self, sentence: str, *, exit_code: int | None = None) -> None:
        """Send one line; with an exit code, the last one."""
        line = orjson.dumps({"said": sentence} | ({} if exit_code is None else {"exit": exit_code}))
        with contextlib.suppress(OSError):  # it has gone, or does not read
            self.client.send(line + b"\n", socket.MSG_DONTWAIT)
        if exit_code is not None:
            self.client.close()


class Control:
    """The supervisor's side."""

    def __init__(self, on_request: Callable[[Request], None], inherited: int | None = None) -> None:
        self._on_request = on_request
        self._asking: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        try:
            self._listener = _listen() if inherited is None else socket.socket(fileno=inherited)
        except OSError as error:
            log.warning("`idagg reload` cannot reach this idagg (%s): send SIGHUP instead", error.strerror)
            return
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._arrivals)

    @property
    def descriptor(self) -> int | None:
        return None if self._listener is None else self._listener.fileno()

    def close(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for task in self._asking:
            task.cancel()

    def _arrivals(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(BlockingIOError, ConnectionError):
            client, _ = self._listener.accept()
            client.setblocking(False)
            task = asyncio.create_task(self._ask(client))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _ask(self, client: socket.socket) -> None:
        _, uid, _ = _peer(client)
        try:
            if uid not in (0, os.geteuid()):
                raise PermissionError
            async with asyncio.timeout(_REQUEST_S):
                line = b""
                while not line.endswith(b"\n") and len(line) < _MAX_BYTES:
                    data = await asyncio.get_running_loop().sock_recv(client, 65_536)
                    if not data:
                        raise ConnectionError
                    line += data
            environment = orjson.loads(line).get("environment")
        except (OSError, TimeoutError, ValueError, AttributeError) as error:
            log.warning("a request at the control socket from user %d is refused: %s", uid, error)
            client.close()
            return
        self._on_request(Request(client, environment))


def reload(pid: int | None, environ: Mapping[str, str]) -> int:
    """Run ``idagg reload``: ask the supervisor, and tell what it says. Raises CannotStartError.

    systemd starts an ExecReload= command with the unit's environment as it is now, and names the main process
    in MAINPID. Only then is the environment this idagg's, and is passed on.
    """
    is_units = pid is None and environ.get("MAINPID", "").isdecimal()
    if is_units:
        pid = int(environ["MAINPID"])
    elif pid is None:
        pid = _only_one()
    request: dict[str, object] = {}
    with socket.socket(socket.AF_UNIX) as channel:
        try:
            channel.connect(_address(pid))
        except OSError as error:
            raise CannotStartError(
                f"no idagg with process id {pid} can be reached: {error.strerror}; nothing is reloaded"
            ) from error
        if is_units:
            if _peer(channel)[0] != pid:  # the settings may contain secrets
                raise CannotStartError(f"another process answers for {pid}: nothing is reloaded")
            request["environment"] = {n: v for n, v in environ.items() if n.startswith("IDAGG_")}
        try:
            channel.sendall(orjson.dumps(request) + b"\n")
            with channel.makefile("rb") as lines:
                for line in lines:
                    said = orjson.loads(line)
                    code = said.get("exit")
                    aside = sys.stderr if code else sys.stdout
                    aside.write(f"idagg: {said['said']}\n" if code else f"{said['said']}\n")
                    aside.flush()
                    if code is not None:
                        return int(code)
        except OSError as error:
            raise CannotStartError(
                f"idagg with process id {pid} refuses a reload: {error.strerror}"
            ) from error
    sys.stderr.write("idagg: idagg ended, or refused, before the reload was over: look at its log\n")
    return Exit.TROUBLE


def _only_one() -> int:
    """The one supervisor on this machine. Raises CannotStartError."""
    names = (line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines())
    found = sorted({int(match[1]) for name in names if (match := _NAME.match(name))})
    if len(found) == 1:
        return found[0]
    if not found:
        raise CannotStartError("no idagg runs here: nothing is reloaded")
    several = ", ".join(map(str, found))
    raise CannotStartError(f"several idagg run here (process ids {several}): choose one with --pid")


def _address(pid: int) -> str:
    return f"\0idagg-{pid}"


def _listen() -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(_address(os.getpid()))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def _peer(channel: socket.socket) -> tuple[int, int, int]:
    """Process, user and group of the other end, unix(7)."""
    pid, uid, gid = struct.unpack("3i", channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid
