from __future__ import annotations

import array
import asyncio
import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import re
import resource
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from idagg.deliver.logfile import CallbackLine, LogFile, window_line
from idagg.errors import LogFileError
from idagg.window import Record
from kit.waiting import LIMIT_S, until

RECORD = Record(
    start_s=1795344780, length_s=60, unique_ids=4000, estimate=3988, hits=10000, exact=True, epoch=7
)
TIME_S = 1795344840.012

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # surrogates too
HOSTILE = 'a\r\nlevel=INFO event=window "unique_ids"=1\\ \x00\x1b[2J\x7f\x85\u2028\ud800\N{GRINNING FACE}\''


def log_file(path: Path) -> LogFile:
    """One that takes its time: a disk that others use, too, may take seconds for a line."""
    return LogFile(path, timeout_s=LIMIT_S)


def parse(line: str) -> dict[str, str]:
    field = re.compile(r'(\w+)=(?:("(?:[^"\\]|\\.)*")|([^ "=]*))(?: |$)')
    fields = {}
    position = 0
    while position < len(line):
        match = field.match(line, position)
        assert match, line[position:]
        name, quoted, bare = match.groups()
        assert name not in fields
        fields[name] = json.loads(quoted) if quoted else bare
        position = match.end()
    return fields


def same(one: str, other: str) -> bool:
    """Two lone surrogates that meet are one character to a JSON parser."""
    return one.encode("utf-16", "surrogatepass") == other.encode("utf-16", "surrogatepass")


def test_window_line() -> None:
    """The line is what docs/reference/log-file.rst promises."""
    assert window_line(RECORD, time_s=TIME_S) == (
        "time=2026-11-22T10:54:00.012Z level=INFO event=window window=2026-11-22T10:53:00Z"
        " unique_ids=4000 estimate=3988 hits=10000 exact=true sink=log"
    )
    suspect = RECORD._replace(exact=False, suspect=True)
    assert " exact=false suspect=true sink=log" in window_line(suspect, time_s=TIME_S)


def test_window_line_says_why_the_broker_did_not_get_it() -> None:
    line = window_line(RECORD, time_s=TIME_S, reason='no "answer"')
    assert line == window_line(RECORD, time_s=TIME_S) + r' reason="no \"answer\""'


CALLED = CallbackLine(window_s=RECORD.start_s, url="http://h/?a=b", status=200, error=None, attempts=1, ms=35)


@pytest.mark.parametrize(
    ("line", "level", "fields"),
    [
        (CALLED, "INFO", 'url="http://h/?a=b" status=200 attempts=1 ms=35'),
        (
            dataclasses.replace(CALLED, status=302, location="/a b"),
            "WARNING",
            'url="http://h/?a=b" status=302 location="/a b" attempts=1 ms=35',
        ),
        (
            dataclasses.replace(CALLED, status=410, silenced_s=86400),
            "WARNING",
            'url="http://h/?a=b" status=410 attempts=1 ms=35 silenced=86400',
        ),
        (
            dataclasses.replace(CALLED, status=503),
            "WARNING",
            'url="http://h/?a=b" status=503 attempts=1 ms=35',
        ),
        (
            dataclasses.replace(CALLED, status=None, error="gone"),
            "WARNING",
            'url="http://h/?a=b" error="gone" attempts=1 ms=35',
        ),
        (
            CallbackLine(RECORD.start_s, None, None, "limit", 0, 0, address="192.0.2.1", endpoints=13),
            "WARNING",
            'address="192.0.2.1" error="limit" endpoints=13 attempts=0 ms=0',
        ),
    ],
)
def test_callback_line(line: CallbackLine, level: str, fields: str) -> None:
    """Only 2xx is no warning; an error stands where the status would."""
    assert line.text(TIME_S) == (
        f"time=2026-11-22T10:54:00.012Z level={level} event=callback window=2026-11-22T10:53:00Z {fields}"
    )


async def test_lines_of_callbacks(tmp_path: Path) -> None:
    """Many are written at once, and none is no line."""
    path = tmp_path / "log"
    log = log_file(path)
    await log.callbacks([])
    await log.callbacks([CALLED, dataclasses.replace(CALLED, url="http://i/")])
    assert [parse(line)["url"] for line in path.read_text().splitlines()] == ["http://h/?a=b", "http://i/"]


@given(url=ANY_TEXT, error=ANY_TEXT)
@example(url=HOSTILE, error=HOSTILE)
def test_no_caller_forges_a_line_or_a_field(url: str, error: str) -> None:
    """Whatever is in it, a callback's line is one printable line, and a parser gets the values back."""
    line = CallbackLine(window_s=0, url=url, status=None, error=error, attempts=1, ms=2).text(TIME_S)
    assert line.isascii()
    assert line.isprintable()
    fields = parse(line)
    assert list(fields) == ["time", "level", "event", "window", "url", "error", "attempts", "ms"]
    assert same(fields["url"], url)
    assert same(fields["error"], error)


@given(reason=ANY_TEXT)
@example(reason=HOSTILE)
def test_no_reason_forges_a_line_or_a_field(reason: str) -> None:
    line = window_line(RECORD, time_s=TIME_S, reason=reason)
    assert line.isascii()
    assert line.isprintable()
    assert same(parse(line)["reason"], reason)


@pytest.mark.parametrize("durable", [False, True])
async def test_append(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "log"
    for line in "one", "two":
        await log_file(path).append(line, durable=durable)
    assert path.read_text() == "one\ntwo\n"


@pytest.mark.parametrize("durable", [False, True])
async def test_durable_means_that_file_and_folder_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").readlink()))
    path = tmp_path / "log"
    await log_file(path).append("one", durable=durable)
    assert synced == ([path, tmp_path] if durable else [])


async def test_rotation_needs_no_signal(tmp_path: Path) -> None:
    """After the file was renamed away, the next line is in a new one."""
    log = log_file(tmp_path / "log")
    await log.append("one", durable=False)
    (tmp_path / "log").rename(tmp_path / "log.1")
    await log.append("two", durable=False)
    assert (tmp_path / "log.1").read_text() == "one\n"
    assert (tmp_path / "log").read_text() == "two\n"


@contextlib.contextmanager
def room_for(size_bytes: int) -> Iterator[None]:
    """Writes stop short at that size of a file, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_no_torn_record_when_the_disk_is_full(tmp_path: Path) -> None:
    """A line that does not fit leaves nothing of itself, and the file goes on when there is room again."""
    log = log_file(tmp_path / "log")
    await log.append("one", durable=True)
    with room_for(size_bytes=7), pytest.raises(LogFileError) as raised:
        await log.append("does not fit", durable=True)
    assert str(raised.value) == f"the log file {tmp_path / 'log'} cannot be written: File too large"
    assert (tmp_path / "log").read_text() == "one\n"
    await log.append("two", durable=True)
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


async def test_no_record_when_it_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the error is raised the line is not there, so that writing it again does not double it."""

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    log = log_file(tmp_path / "log")
    await log.append("one", durable=True)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(LogFileError, match="Input/output error"):
        await log.append("two", durable=True)
    assert (tmp_path / "log").read_text() == "one\n"


async def test_a_line_torn_by_a_power_cut_stays_alone(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("one\ntor")
    await log_file(tmp_path / "log").append("two", durable=False)
    assert (tmp_path / "log").read_text() == "one\ntor\ntwo\n"


async def test_append_waits_for_the_lock_and_not_in_the_loop(tmp_path: Path) -> None:
    """Another process in the middle of a line is waited for, while the loop goes on."""
    log = log_file(tmp_path / "log")
    with (tmp_path / "log").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        append = asyncio.create_task(log.append("two", durable=False))
        done, _ = await asyncio.wait({append}, timeout=0.1)
        assert not done
        other.write("one\n")
    async with asyncio.timeout(LIMIT_S):
        await append
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


# What hangs


class Hang:
    """An fsync that returns when it is told to."""

    def __init__(self) -> None:
        self.begun = 0
        self.end = threading.Event()

    def __call__(self, _: int) -> None:
        self.begun += 1
        assert self.end.wait(timeout=300)


def threads_of_logs() -> int:
    return sum(thread.name == "idagg.logfile" for thread in threading.enumerate())


async def fails_within(log: LogFile, limit_s: float) -> str:
    start_s = time.monotonic()
    with pytest.raises(LogFileError) as raised:
        await log.append("lost", durable=True)
    assert time.monotonic() - start_s < limit_s
    return str(raised.value)


async def test_a_disk_that_hangs_costs_one_thread_and_nobodys_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first line fails in time, those behind it too, later ones at once; then lines are written again."""
    log = log_file(tmp_path / "log")
    await log.append("one", durable=True)
    log._timeout_s = 0.3
    threads = threads_of_logs()
    with monkeypatch.context() as patch:
        hang = Hang()
        patch.setattr(os, "fsync", hang)
        # One after the other they would take 60 s.
        told = await asyncio.gather(*(fails_within(log, LIMIT_S) for _ in range(200)))
        expected = f"the log file {tmp_path / 'log'} did not take a line within 0.3 s: "
        assert {*told} == {expected + "its disk, or the reader of its pipe, hangs"}
        begun_s = time.monotonic()
        for _ in range(1000):
            await fails_within(log, LIMIT_S)
        assert time.monotonic() - begun_s < LIMIT_S  # each with its limit, they would take 300 s
        with pytest.raises(LogFileError, match="did not take a line"):
            await log.check()
        assert hang.begun == 1
        assert threads_of_logs() == threads
        hang.end.set()
    log._timeout_s = LIMIT_S
    async with asyncio.timeout(LIMIT_S):
        while True:
            with contextlib.suppress(LogFileError):
                await log.append("two", durable=True)
                break
            await asyncio.sleep(0.01)
    # What hung was written in the end; what waited behind it, and was told as lost, was not.
    assert (tmp_path / "log").read_text() == "one\nlost\ntwo\n"


async def test_a_cancelled_line_that_hangs_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for a disk when all ends."""
    hang = Hang()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", hang)
        append = asyncio.create_task(log_file(tmp_path / "log").append("one", durable=True))
        await until(lambda: hang.begun)
        append.cancel()
        await asyncio.wait([append], timeout=LIMIT_S)
        assert append.cancelled()
        hang.end.set()


# Streams


async def test_a_pipe(tmp_path: Path) -> None:
    """Without a reader it is told so at once; with one, lines come whole, and no end between them."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    log = log_file(path)
    assert await fails_within(log, LIMIT_S) == f"the log file {path} cannot be written: nobody reads from it"
    with pytest.raises(LogFileError, match="nobody reads from it"):
        await log.check()
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    await log.check()
    await log.append("one", durable=True)
    assert os.read(reader, 99) == b"one\n"
    with pytest.raises(BlockingIOError):
        os.read(reader, 99)
    await log.append("two", durable=True)
    assert os.read(reader, 99) == b"two\n"
    os.close(reader)
    assert "Broken pipe" in await fails_within(log, LIMIT_S)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    await log.append("three", durable=True)
    assert os.read(reader, 99) == b"three\n"
    os.close(reader)


async def test_a_pipe_whose_reader_hangs(tmp_path: Path) -> None:
    """It is told in time, and lines go on, whole, when it reads again."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = log_file(path)
    await log.append("x" * 65_000, durable=False)
    log._timeout_s = 0.3
    async with asyncio.timeout(LIMIT_S):
        for _ in range(200):  # each with its limit, they would take 60 s
            with pytest.raises(LogFileError, match="the reader of its pipe, hangs"):
                await log.append("y" * 1000, durable=False)
    text = os.read(reader, 99_999)
    async with asyncio.timeout(LIMIT_S):
        while not text.endswith(b"y\n"):
            await asyncio.sleep(0.01)
            with contextlib.suppress(BlockingIOError):
                text += os.read(reader, 99_999)
    os.close(reader)
    assert text == b"x" * 65_000 + b"\n" + b"y" * 1000 + b"\n"


async def test_a_pipe_of_a_process_with_many_connections(tmp_path: Path) -> None:
    """A leader with as many as 1,024 waits for its reader as any other does."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        stack.callback(os.close, reader)
        while (last := os.dup(reader)) < 1024:
            stack.callback(os.close, last)
        stack.callback(os.close, last)
        log = log_file(path)
        log._timeout_s = 60
        under_way = asyncio.create_task(log.append("x" * 100_000, durable=False))
        text = b""
        async with asyncio.timeout(LIMIT_S):
            while not text.endswith(b"\n"):
                await asyncio.sleep(0.01)
                with contextlib.suppress(BlockingIOError):
                    text += os.read(reader, 99_999)
        await under_way
        assert text == b"x" * 100_000 + b"\n"


ONE_LINE = """
import asyncio, sys
from idagg.deliver.logfile import LogFile

async def main(path):
    log = LogFile(path, timeout_s=60)
    await log.check()
    for number in range(3):
        await log.append(str(number) * 100_000, durable=True)

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/stderr"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "file"])
def test_standard_streams(tmp_path: Path, name: str, kind: str) -> None:
    """Of whatever kind they are; a socket, as journald's, cannot be opened by its name."""
    if kind == "socket":
        (reading, writing) = (end.detach() for end in socket.socketpair())
    elif kind == "pipe":
        reading, writing = os.pipe()
    else:
        writing = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
        reading = os.open(tmp_path / "out", os.O_RDONLY)
    stdout, stderr = (None, writing) if name.endswith("err") else (writing, None)
    writer = subprocess.Popen([sys.executable, "-c", ONE_LINE, name], stdout=stdout, stderr=stderr)
    os.close(writing)
    if kind == "file":
        assert writer.wait(timeout=60) == 0
    with os.fdopen(reading, "rb") as stream:
        text = stream.read()
    assert writer.wait(timeout=60) == 0
    assert text == b"".join(b"%d" % number * 100_000 + b"\n" for number in range(3))


def waiting_bytes(descriptor: int) -> int:
    found = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, found)
    return found[0]


def test_a_stream_that_others_made_non_blocking() -> None:
    """Its reader may be slow all the same."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    writer = subprocess.Popen([sys.executable, "-c", ONE_LINE, "-"], stdout=writing)
    os.close(writing)
    capacity = fcntl.fcntl(reading, fcntl.F_GETPIPE_SZ)
    give_up_at = time.monotonic() + LIMIT_S
    while waiting_bytes(reading) < capacity:  # as much of its first line as there is room for
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    with os.fdopen(reading, "rb") as stream:
        assert len(stream.read()) == 300_003
    assert writer.wait(timeout=60) == 0


def test_processes_write_whole_lines_to_a_stream() -> None:
    """A pipe whose reader is slow takes a long line in pieces. Nobody else's line comes between them."""
    reading, writing = os.pipe()
    long = WRITER.replace("number * 100", "number * 1000")
    writers = [subprocess.Popen([sys.executable, "-c", long, "-", name], stdout=writing) for name in "abcd"]
    os.close(writing)
    half = fcntl.fcntl(reading, fcntl.F_GETPIPE_SZ) // 2  # it can be full with less than its size
    give_up_at = time.monotonic() + LIMIT_S
    while waiting_bytes(reading) < half:
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    text = b""
    while data := os.read(reading, 5000):
        text += data
    os.close(reading)
    assert [writer.wait(timeout=60) for writer in writers] == [0] * 4
    expected = [f"{name}-{number}-" + name * (number * 1000) for name in "abcd" for number in range(50)]
    assert sorted(text.decode().splitlines()) == sorted(expected)


WRITER = """
import asyncio, sys
from idagg.deliver.logfile import LogFile

async def main(path, name):
    log = LogFile(path, timeout_s=60)
    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(log.append(f"{name}-{number}-" + name * (number * 100), durable=False))

asyncio.run(main(*sys.argv[1:]))
"""


def test_many_processes_and_threads_write_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    names = "abcd"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, name]) for name in names]
    assert [writer.wait(timeout=60) for writer in writers] == [0] * len(names)
    expected = [f"{name}-{number}-" + name * (number * 100) for name in names for number in range(50)]
    assert sorted(path.read_text().splitlines()) == sorted(expected)


async def test_errors_name_the_file_and_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "log"
    with pytest.raises(LogFileError) as raised:
        await log_file(path).append("one", durable=False)
    assert str(raised.value) == f"the log file {path} cannot be written: No such file or directory"


async def test_check_makes_no_file(tmp_path: Path) -> None:
    """Who checks may be root, and the service could not write to root's file."""
    await log_file(tmp_path / "log").check()
    assert not (tmp_path / "log").exists()


async def test_check_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("one\n")
    await log_file(tmp_path / "log").check()
    assert (tmp_path / "log").read_text() == "one\n"


async def test_check_of_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(LogFileError, match="its folder is missing or not writable"):
        await log_file(tmp_path / "missing" / "log").check()


async def test_check_of_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(LogFileError, match="Is a directory"):
        await log_file(tmp_path).check()
