"""The embedded store's data on disk: its server's append-only file (AOF), in one or more parts."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

# Servers before 7.0 have the one file only.
_MANIFEST = "appendonlydir/appendonly.aof.manifest"
_SINGLE = "appendonly.aof"
# The checksum at the end of a snapshot, which a single file may be. It can have zeros itself.
_CHECKSUM_BYTES = 8
_BLOCK = 1 << 20
# A snapshot of a large window is read in seconds.
_CHECK_S = 60.0

# What a server logs when it cannot read its data.
_UNREADABLE = re.compile(
    r"Can't handle RDB format|Wrong signature|RDB CRC error|Bad file format|Unexpected end of file|"
    r"Internal error in RDB|Invalid AOF manifest|AOF .*(?:doesn't exist|isn't found)|Corrupt|"
    r"Unknown command .* reading the append only file|Unrecoverable error reading"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Cut:
    """Zero bytes that were cut off, and where the file is kept as it was."""

    file: Path
    zeros: int
    kept: Path


def cut_zeros(data: Path) -> Cut | None:
    """Cut the zero bytes off the newest part; None if it has none. Raises OSError.

    After a power cut, a file system may show a file with its new length and without its new bytes. A server
    refuses such a file. A command that ends too soon it drops by itself, so no more than the zeros has to go.
    """
    file = _newest(data)
    if file is None:
        return None
    size = file.stat().st_size
    end = _end(file, size)
    if size - end <= (_CHECKSUM_BYTES if file.name == _SINGLE else 0):
        return None
    kept = data / f"{file.name}.{int(time.time())}"
    with file.open("rb+") as damaged:
        with kept.open("xb") as copy:
            shutil.copyfileobj(damaged, copy, _BLOCK)
            copy.flush()
            os.fsync(copy.fileno())
        damaged.truncate(end)
        os.fsync(damaged.fileno())
    return Cut(file, size - end, kept)


def _newest(data: Path) -> Path | None:
    """The file that was written to last."""
    try:
        manifest = (data / _MANIFEST).read_text(errors="replace")
    except OSError:
        single = data / _SINGLE
        return single if single.is_file() else None
    parts = re.findall(r"^file (\S+) seq (\d+) type i", manifest, re.MULTILINE)
    if not parts:
        return None
    file = data / "appendonlydir" / max(parts, key=lambda part: int(part[1]))[0]
    return file if file.is_file() else None


def _end(file: Path, size: int) -> int:
    """Where the zeros at the end begin."""
    with file.open("rb") as parts:
        end = size
        while end:
            start = max(0, end - _BLOCK)
            parts.seek(start)
            block = parts.read(end - start)
            if left := block.rstrip(b"\0"):
                # A lone asterisk is the one beginning of a command that servers call bad, not cut short.
                return start + len(left) - left.endswith(b"*")
            end = start
    return 0


def writer(data: Path) -> tuple[str, tuple[int, ...]] | None:
    """The product and version that wrote the snapshot in the data, ``("Valkey", (9, 1, 2))``."""
    base = _snapshot(data)
    if base is None:
        return None
    with base.open("rb") as file:
        head = file.read(200)
    found = re.search(rb"(valkey|redis)-ver.([0-9.]+)", head, re.DOTALL)
    return (found[1].decode().capitalize(), _version(found[2].decode())) if found else None


def _snapshot(data: Path) -> Path | None:
    try:
        manifest = (data / _MANIFEST).read_text(errors="replace")
    except OSError:
        single = data / _SINGLE
        return single if single.is_file() else None
    part = re.search(r"^file (\S+) seq \d+ type b", manifest, re.MULTILINE)
    base = data / "appendonlydir" / part[1] if part else None
    return base if base is not None and base.is_file() else None


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part)


def trouble(data: Path, program: str, name: str) -> str | None:
    """Why the server ``name`` cannot read the snapshot in the data; None if it can, or there is none."""
    wrong = _snapshot_error(data, program)
    return None if wrong is None else _sentence(data, name, wrong, None)


def explained(data: Path, program: str, name: str, said: str) -> str | None:
    """Why the data cannot be read, from what its server logged; None if it did not say so."""
    lines = [line for line in said.splitlines() if _UNREADABLE.search(line)]
    if not lines:
        return None
    newest = _newest(data)
    can_be_cut = newest is not None and newest.name != _SINGLE and _snapshot_error(data, program) is None
    mend = f"bash -c 'exec -a redis-check-aof {program} --fix {newest}'" if can_be_cut else None
    return _sentence(data, name, re.sub(r"^.*? [#*] ", "", lines[-1]), mend)


def _sentence(data: Path, name: str, wrong: str, mend: str | None) -> str:
    product, _, version = name.partition(" ")
    wrote = writer(data)
    if wrote and (wrote[0] != product or wrote[1] > _version(version)):
        by = f"{wrote[0]} {'.'.join(map(str, wrote[1]))}"
        return (
            f"the data in {data} was written by {by}, and {name}, which is here, cannot read it: "
            f"install {by} or newer; the data is untouched"
        )
    cut = f"; or stop idagg and cut off the damage and what follows it with {mend}" if mend else ""
    return (
        f"the data in {data} is damaged ({wrong}): put a backup in its place, or move this folder away to "
        f"begin anew without the windows that were not delivered{cut}"
    )


def _snapshot_error(data: Path, program: str) -> str | None:
    """What is wrong with the snapshot; None if nothing is, or there is none of its own.

    Each server is its own checker, if it is called by that name.
    """
    base = _snapshot(data)
    if base is None or base.name == _SINGLE:
        return None
    try:
        checker = subprocess.run(
            ["redis-check-rdb", base],  # noqa: S607  only a name: `executable` is what runs
            executable=program,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_CHECK_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):  # it cannot be run now, or the snapshot is too large for it
        return None
    if checker.returncode == 0:
        return None
    _, _, said = checker.stdout.partition("RDB ERROR DETECTED ---\n")
    return re.sub(r"^\[.*?\] ", "", said.partition("\n")[0]) or "its checker does not say why"
