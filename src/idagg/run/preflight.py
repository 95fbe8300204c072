"""What ``idagg check`` looks at on this machine: whether `idagg serve` could start here, and count.

Each function returns what it has found, and raises CannotStartError if idagg would not start or not count. It
leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import shutil
import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from idagg.credentials import SECRETS
from idagg.errors import CannotStartError
from idagg.run import sockets
from idagg.settings import Settings

# Less room is told; it is filled in minutes to hours.
SCARCE_BYTES = 500e6
# Fewer connections a worker are told.
FEW_FILES = 4096
# A clock that is further off is told. Counts do not depend on it.
SKEW_S = 2.0
_LIVEZ = b"GET /livez HTTP/1.0\r\nHost: check\r\n\r\n"
_LIVEZ_TIMEOUT_S = 2.0


def listeners(settings: Settings) -> str:
    """The addresses are this machine's and free, or idagg itself listens there."""
    found = []
    for host, port, flags in (
        (settings.host, settings.port, "--host or --port"),
        (settings.admin_host, settings.admin_port, "--admin-host or --admin-port"),
    ):
        where = sockets.shown(host, port)
        try:
            for opened in sockets.bind(host, port, 1, flags=flags):
                opened.close()
        except CannotStartError:
            if not port or not is_idagg(host, port):
                raise
            found.append(f"idagg runs at {where}")
        else:
            found.append(f"{where} is free")
    return ", ".join(found)


def is_idagg(host: str, port: int) -> bool:
    """Whether what listens there answers as idagg does."""
    try:
        with socket.create_connection((host, port), _LIVEZ_TIMEOUT_S) as wire:
            wire.sendall(_LIVEZ)
            answer = b""
            while piece := wire.recv(4096):
                answer += piece
    except OSError:
        return False
    return answer.startswith((b"HTTP/1.0 200", b"HTTP/1.1 200")) and answer.endswith(b"\r\n\r\nok")


def state_folder(settings: Settings) -> str:
    """The embedded store's folder can be made and written, and no other idagg has it."""
    assert settings.state_dir is not None  # the settings see to that
    folder = settings.state_dir.absolute() / "store"
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise CannotStartError(
            f"the state folder {folder} cannot be {'written' if there == folder else 'made'}, and idagg does "
            f"not start: {there} is not writable for this user; mend that, or give another --state-dir"
        )
    free = shutil.disk_usage(there).free
    if not free:
        raise CannotStartError(f"the disk of {folder} is full, and no id can be stored: make room")
    if _is_locked(folder / "lock") and not is_idagg(settings.host, settings.port):
        raise CannotStartError(
            f"another idagg keeps its data in {folder}, and this one would not start: stop it, give another "
            "--state-dir, or share one Redis with --redis-url"
        )
    return f"{folder}, {free / 1e9:.1f} GB free"


def _is_locked(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def log_disk(settings: Settings) -> str | None:
    """Free space where the log file grows; None if it is no file on a disk."""
    folder = settings.log_file.absolute().parent
    with contextlib.suppress(OSError):
        if settings.log_file.exists() and not settings.log_file.is_file():
            return None
        free = shutil.disk_usage(folder).free
        if not free:
            raise CannotStartError(
                f"the disk of {settings.log_file} is full: windows stay pending unless RabbitMQ takes them; "
                "make room"
            )
        return f"{free / 1e9:.1f} GB free"
    return None


def warnings(
    settings: Settings, origin: Mapping[str, str], skew_s: float | None
) -> Iterator[tuple[str, str]]:
    """Parts and sentences: nothing here keeps idagg from counting now."""
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most_files != resource.RLIM_INFINITY and most_files < FEW_FILES:
        yield (
            "files",
            (
                f"a process may open {most_files} files, one for each connection; those beyond are answered "
                "503: raise LimitNOFILE"
            ),
        )
    if (backlog := _number("/proc/sys/net/core/somaxconn")) is not None and backlog < sockets.BACKLOG:
        yield (
            "kernel",
            f"net.core.somaxconn is {backlog}: bursts of new connections are dropped; set {sockets.BACKLOG}",
        )
    if settings.redis_url is None:
        if _number("/proc/sys/vm/overcommit_memory") == 0:
            yield (
                "kernel",
                (
                    "vm.overcommit_memory is 0: on a machine that is short of memory the embedded store "
                    "cannot rewrite its log, and the log grows; set 1"
                ),
            )
        if "[always]" in _text("/sys/kernel/mm/transparent_hugepage/enabled"):
            yield (
                "kernel",
                (
                    "transparent huge pages are always on: answers pause while the embedded store rewrites "
                    "its log; set madvise"
                ),
            )
        if 0 < _free(settings.state_dir) < SCARCE_BYTES:
            yield "state folder", "less than 500 MB are free, and on a full disk no id is stored: make room"
    if 0 < _free(settings.log_file.absolute().parent) < SCARCE_BYTES:
        yield "log file", "less than 500 MB are free, and on a full disk windows stay pending: make room"
    if skew_s is not None and abs(skew_s) > SKEW_S:
        yield (
            "clock",
            (
                f"this machine's clock is {skew_s:+.1f} s off that of Redis: windows follow the clock of "
                "Redis, log lines this one; look at the time service of both"
            ),
        )
    if settings.callbacks != "off" and "nameserver" not in _text("/etc/resolv.conf"):
        yield "names", "/etc/resolv.conf has no name server: endpoints with host names cannot be called"
    yield from (("secrets", sentence) for sentence in _secrets(settings, origin))


def _secrets(settings: Settings, origin: Mapping[str, str]) -> Iterator[str]:
    """Secrets that other users of this machine can read."""
    for name in SECRETS:
        value, where = getattr(settings, name), origin.get(name, "")
        if not value or ("url" in name and urlsplit(value).password is None):
            continue
        if where.startswith("flag"):
            yield f"{name} is a flag, which every user of this machine can read: give it as a credential"
        kind, _, path = where.partition(" ")
        if kind == "file":
            with contextlib.suppress(OSError):
                if Path(path).stat().st_mode & stat.S_IROTH:
                    yield (
                        f"{name} is in {path}, which every user of this machine can read: give it as a "
                        f"credential, or chmod o= {path}"
                    )


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: str) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _free(folder: Path | None) -> float:
    """0 where that cannot be told."""
    if folder is None:
        return 0
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    with contextlib.suppress(OSError):
        return shutil.disk_usage(there).free
    return 0
