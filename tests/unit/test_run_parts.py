"""The parts of the processes, each by itself."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import errno
import fcntl
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idagg.errors import CannotStartError
from idagg.run import callback_keeper, logs, reload, restart, sockets
from idagg.run.child import Child, Held
from idagg.run.logs import log_to_stderr
from idagg.run.messages import (
    Assignment,
    CallbackStart,
    Heartbeat,
    Lead,
    Leads,
    LogLine,
    Message,
    Traffic,
    WorkerStart,
)
from idagg.run.reload import Inherited, held_from, unchangeable
from idagg.run.restart import Restarts
from idagg.run.systemd import notify, watchdog_s
from idagg.settings import Settings
from idagg.spawn import died_of
from idagg.tasks import Tasks
from kit.servers import free_port

YOUNG = restart.YOUNG_S / 2
OLD = restart.YOUNG_S


def delays(*served: float) -> list[float | None]:
    restarts = Restarts()
    return [restarts.after(served_s) for served_s in served]


def test_another_address_with_the_same_port() -> None:
    """A reload can go from one address to all of them, and back: the port is this instance's own."""
    port = free_port()
    for before, after in ("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1"):
        with contextlib.ExitStack() as stack:
            for one in sockets.bind(before, port, 2):
                stack.enter_context(one)
            if before == "127.0.0.1":
                one.listen()
                with pytest.raises(CannotStartError, match="Address already in use"):
                    sockets.bind(after, port, 1)
            for another in sockets.bind(after, port, 2, is_ours=True):
                stack.enter_context(another)


def test_first_restart_is_immediate() -> None:
    """What waits in the backlog of a worker that died does not wait longer than it must."""
    assert delays(YOUNG) == delays(OLD) == [0.0]


def test_restarts_back_off_and_end() -> None:
    """A worker that dies young again and again is started ever later, and then no more."""
    *waits, last = delays(*[YOUNG] * restart.LIMIT)
    assert last is None
    assert waits == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]


def test_young_is_looked_up_with_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sets it for a run has it: it was bound when the module was imported."""
    monkeypatch.setattr(restart, "YOUNG_S", 3 * OLD)
    assert delays(2 * OLD, 2 * OLD) == [0.0, restart.FIRST_DELAY_S]


@given(st.lists(st.booleans(), max_size=60))
def test_restarts_forget(lives: list[bool]) -> None:
    """Only young deaths in a row count: one long life, and the next restart is as the first."""
    found = delays(*(YOUNG if young else OLD for young in lives))
    row = 0
    for young, delay_s in zip(lives, found, strict=True):
        row = row + 1 if young else 0
        assert (delay_s is None) == (row >= restart.LIMIT)
        assert (delay_s == 0) == (row <= 1)


@contextlib.contextmanager
def listening(host: str, port: int, count: int) -> Iterator[list[socket.socket]]:
    opened = sockets.listen(host, port, count)
    try:
        yield opened
    finally:
        for listener in opened:
            listener.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_listen(host: str) -> None:
    """Each worker's socket listens on the one address; port 0 is one free port for all."""
    with listening(host, 0, 3) as opened:
        ((found, port, *_),) = {listener.getsockname() for listener in opened}
        assert found == host
        assert port > 0
        with socket.create_connection((found, port), timeout=30):
            pass


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1"])
def test_second_listener(host: str) -> None:
    """A port that another instance listens on is refused in one sentence, and keeps nothing open."""
    port = free_port()
    with listening(host, port, 2):
        with pytest.raises(CannotStartError) as caught:
            sockets.listen(host, port, 2)
        assert str(caught.value) == (
            f"cannot listen on {sockets.shown(host, port)}: Address already in use; if another idagg runs "
            "there, stop it, or give another --host or --port"
        )
    with listening(host, port, 2):
        pass  # it is free again, although connections to it may be on their way out


def test_listen_on_every_address() -> None:
    """`::` takes IPv4, too, as 0.0.0.0 does alone, whatever the kernel's default is."""
    with listening("::", 0, 1) as (listener,):
        assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, listener.getsockname()[1]), timeout=30):
                pass


def test_listen_after_connections() -> None:
    """Connections that an instance has closed do not keep its successor from the port."""
    port = free_port()
    with (
        listening("127.0.0.1", port, 1) as (listener,),
        socket.create_connection(("127.0.0.1", port), timeout=30) as client,
    ):
        listener.setblocking(True)
        listener.accept()[0].close()  # the side that closes first waits in TIME_WAIT
        assert client.recv(1) == b""
    with listening("127.0.0.1", port, 1):
        pass


@pytest.mark.parametrize(
    ("host", "port", "sentence"),
    [
        ("no.such.host.invalid", 0, "--host no.such.host.invalid cannot be resolved: "),
        (
            "192.0.2.1",
            8000,
            "cannot listen on 192.0.2.1:8000: Cannot assign requested address; no interface of this machine ",
        ),
    ],
)
def test_cannot_listen(host: str, port: int, sentence: str) -> None:
    """What is wrong with an address is one sentence."""
    with pytest.raises(CannotStartError) as caught:
        sockets.listen(host, port, 1)
    assert str(caught.value).startswith(sentence)


SETTINGS = Settings(
    state_dir=Path("/x y/ä\n"),
    redis_url="redis://u:p%20w@r.example",
    amqp_url="amqp://u:hunter2@a.example",
    callback_allow=("10.0.0.0/8", "a.example"),
    callback_secret="whsec_" + "bmV3" * 8,
)
MESSAGES: list[Message] = [
    WorkerStart(SETTINGS.in_force(), "unix:///run/x", writer=5, stdout=9, slot=3, listener=7),
    CallbackStart(SETTINGS.in_force(), "unix:///run/x", writer=5, stdout=9),
    Heartbeat(),
    Heartbeat(7, 'Redis at "x"\nis away', "Ü", "full"),
    Heartbeat(7, pid=9, answered=5, skew_s=-0.5, late_s=0.0, lead=Lead(60, 5, 9, True, 3, 0, 1, 2, 0)),
    Heartbeat(traffic=Traffic({"200": 0.5}, 1.0), lines=[LogLine(1.5, "error", "Ü")], waiting={"timeout": 1}),
    Leads(7),
    Assignment([3, 5], drain_s=5.0),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_message(message: Message) -> None:
    """A message comes as it was sent, secrets too, on one line."""
    line = message.line()
    assert (line.count(b"\n"), line[-1:]) == (1, b"\n")
    assert type(message).parse(line) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_message_of_another_version(message: Message) -> None:
    """What a newer one has besides is passed over, in the settings as well."""
    given = orjson.loads(message.line()) | {"mood": "good"}
    if "settings" in given:
        given["settings"]["mood"] = "good"
    assert type(message).parse(orjson.dumps(given)) == message


def test_message_of_an_older_version() -> None:
    """What it does not say has its default."""
    assert Heartbeat.parse(b"{}") == Heartbeat(epoch=0, store=None, broker=None, delivery=None)
    older = orjson.loads(MESSAGES[0].line())
    del older["settings"]["callbacks"], older["settings"]["amqp_queue_type"]
    assert WorkerStart.parse(orjson.dumps(older)) == MESSAGES[0]


@pytest.mark.parametrize("line", [b"", b"[1]", b"1", b"{", b'{"slot": 1}', b"\xff"])
def test_no_message(line: bytes) -> None:
    """Anything else is an error that the supervisor and its processes expect."""
    with pytest.raises((TypeError, ValueError)):
        WorkerStart.parse(line)


@pytest.mark.parametrize("abstract", [False, True])
def test_notify(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd gets the states in one datagram, on a path or an abstract socket."""
    name = f"@{tmp_path}/notify" if abstract else f"{tmp_path}/notify"
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(name.replace("@", "\0"))
        channel.settimeout(30)
        notify("READY=1", "STATUS=2 workers listen")
        assert channel.recv(1024) == b"READY=1\nSTATUS=2 workers listen"


def test_notify_somebody_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service manager that reads nothing holds nothing up."""
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(f"{tmp_path}/notify")
        for _ in range(1000):  # the kernel keeps 512 at most
            notify("WATCHDOG=1")


@pytest.mark.parametrize("path", [None, "", "/nonexistent/notify", "@nobody-listens-here"])
def test_notify_nobody(path: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody listens nothing happens."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if path is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", path)
    notify("READY=1")


@pytest.mark.parametrize("is_journal", [False, True])
def test_log(is_journal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are in UTC, whatever zone the machine is in; the journal has its own."""
    monkeypatch.setattr(logs, "_LAST_S", 30)
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    with (tmp_path / "log").open("w+") as stderr:
        status = os.fstat(stderr.fileno())
        if is_journal:
            monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        monkeypatch.setattr(sys, "stderr", stderr)
        before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        log_to_stderr("worker-1")
        logging.getLogger("idagg.x").warning("a line\nof two")
        root.handlers[0].flush()
        stderr.seek(0)
        line = stderr.read()
    monkeypatch.undo()
    time.tzset()
    if is_journal:
        assert line == "<4>worker-1 WARNING a line\n<4>of two\n"
    else:
        stamp, _, rest = line.partition(" ")
        assert rest == "worker-1 WARNING a line\nof two\n"
        told = datetime.datetime.fromisoformat(stamp)
        assert before <= told <= datetime.datetime.now(datetime.UTC)


@given(st.integers(1, 9), st.lists(st.booleans(), min_size=1, max_size=6))
def test_every_listener_is_served_by_one(listeners: int, running: list[bool]) -> None:
    """By its own worker, if that runs; by none only if no worker runs."""
    numbers = list(range(10, 10 + listeners))
    shares = sockets.spread(numbers, [numbers if runs else None for runs in running])
    served = [number for share in shares for number in share]
    assert sorted(served) == (numbers if any(running) else [])
    for slot, (runs, share) in enumerate(zip(running, shares, strict=True)):
        assert not share or runs
        assert set(numbers[slot :: len(running)]) <= set(share) or not runs


def test_a_listener_is_served_by_who_holds_it() -> None:
    assert sockets.spread([3, 4], [[3, 4], None]) == [[3, 4], []]
    assert sockets.spread([3, 4], [[3], None]) == [[3], []]
    assert sockets.spread([3, 4, 5], [[3, 4, 5], [3, 4, 5]]) == [[3, 5], [4]]


def test_what_is_left_is_read(tmp_path: Path) -> None:
    """Also by another version: unknown fields are passed over, missing ones have their defaults."""
    settings = Settings(state_dir=tmp_path)
    child = Held("worker-0", 77, 0, 8, 9, [3, 4], 60.0, listens_since=1.5, last="{}", unread='{"a')
    left = Inherited(settings, "redis://r", "/m", [3], 5, [dataclasses.asdict(child), None])
    assert Inherited.parse(left.line()) == left
    newer = orjson.loads(left.line())
    newer["workers"][0]["mood"] = newer["weather"] = "fine"
    del newer["rest"], newer["version"]
    read = Inherited.parse(orjson.dumps(newer))
    assert read.workers[0] is not None
    assert (held_from(read.workers[0]), read.rest) == (child, [])
    assert sorted(left.descriptors()) == [3, 5, 8, 9]


def test_a_rehearsal_without_a_server_for_the_embedded_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The instance that runs serves on, instead of one that cannot start its store again."""

    def none_is_here() -> NoReturn:
        raise CannotStartError("there is no server")

    settings = Settings(state_dir=tmp_path, log_file=tmp_path / "log")
    monkeypatch.setattr(reload, "find_binary", none_is_here)
    with pytest.raises(CannotStartError, match="there is no server"):
        reload.rehearsal(settings, Inherited(settings, "unix://s", "/m", [3], 5, [None]))


async def test_the_callback_process_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has given the epoch up, if the store refused it once, and only then issued its number again."""
    told: list[bytes] = []
    child = SimpleNamespace(life=asyncio.get_running_loop().create_future(), served_s=1.0, send=told.append)
    children = SimpleNamespace(stopping=asyncio.Event(), settings=SETTINGS)
    for name, value in (("TELL_S", 0.0), ("TELL_AGAIN_S", 600.0)):
        monkeypatch.setattr(callback_keeper, name, value)
    workers: Any = SimpleNamespace(epoch=7)
    parts = Tasks(asyncio.Event())
    callback_keeper.CallbackKeeper(cast(Any, children), parts, workers, cast(Any, child)).begin()

    async def some_turns() -> None:
        for _ in range(50):
            await asyncio.sleep(0)

    await some_turns()
    assert told == [Leads(7).line()]
    monkeypatch.setattr(callback_keeper, "TELL_AGAIN_S", 0.0)
    await some_turns()
    assert len(told) > 3
    assert set(told) == {Leads(7).line()}
    await parts.end()


@pytest.mark.parametrize(
    ("old", "new", "flags"),
    [
        ({}, {"deadline": 1.0, "workers": 9, "port": 9}, []),
        ({}, {"window": 5, "exact_limit": 7}, ["--window", "--exact-limit"]),
        ({}, {"state_dir": Path("/other")}, ["--state-dir"]),
        ({}, {"redis_url": "redis://r"}, ["--redis-url"]),
        ({"redis_url": "redis://r"}, {"redis_url": None}, ["--redis-url"]),
        ({"redis_url": "redis://r"}, {"redis_url": "redis://:new@r", "state_dir": Path("/other")}, []),
    ],
)
def test_what_a_reload_does_not_change(
    old: dict[str, object], new: dict[str, object], flags: list[str]
) -> None:
    before = Settings.model_validate({"state_dir": Path("/s"), **old})
    after = Settings.model_validate({"state_dir": Path("/s"), **old, **new})
    assert unchangeable(before, after) == flags


def test_priorities() -> None:
    """Those of syslog(3)."""
    levels = (logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
    assert [logs.priority(level) for level in levels] == [2, 3, 4, 6, 7]


def test_log_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines past the limit are dropped and counted, and their number is written once somebody reads."""
    monkeypatch.setattr(logs, "MOST_LINES", 10)
    monkeypatch.setattr(logs, "_LAST_S", 0.01)
    reader, descriptor = os.pipe()
    os.set_blocking(descriptor, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(descriptor, bytes(4096))
    os.set_blocking(descriptor, True)
    handler = logs.Writer(descriptor)
    for number in range(100):
        handler.handle(logging.makeLogRecord({"msg": f"line {number}"}))
        while number == 0 and not handler._lines.empty():
            time.sleep(0.001)  # until the thread has it, and waits for the reader
    handler.flush()
    dropped = handler.take_dropped()
    assert dropped == 89
    assert handler.take_dropped() == 0
    said = b""
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while f"line {99 - dropped}\n".encode() not in said:
            said += pipe.read(1 << 20)
        handler.handle(logging.makeLogRecord({"msg": "the last line"}))
        while b"the last line" not in said:
            said += pipe.read(1 << 20)
    lines = said.lstrip(b"\0").decode().splitlines()
    told = f"{dropped} lines of this log were dropped: its reader was too slow"
    assert [line for line in lines if line != told] == [
        *(f"line {number}" for number in range(100 - dropped)),
        "the last line",
    ]
    assert told in lines


def test_log_at_the_end() -> None:
    """All lines are written before a process ends by itself."""
    script = (
        "import logging; from idagg.run import logs; logs._LAST_S = 60; logs.log_to_stderr('x')\n"
        "for number in range(1000): logging.info('line %d', number)"
    )
    done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, check=True)
    assert done.stderr.count(b"\n") == 1000


def test_log_whose_reader_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that cannot be written is dropped, and nothing is raised."""
    monkeypatch.setattr(logs, "_LAST_S", 30)
    reader, descriptor = os.pipe()
    os.close(reader)
    handler = logs.Writer(descriptor)
    handler.handle(logging.makeLogRecord({"msg": "a line"}))
    handler.flush()
    assert handler.take_dropped() == 1


def test_log_without_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is closed, nothing is logged."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(sys, "stderr", None)
    log_to_stderr("idagg")
    logging.getLogger("idagg.x").warning("a line")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "10000000"}, 10.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}, 10.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_watchdog(variables: dict[str, str], expected: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interval is that of the service manager, if it means this process."""
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert watchdog_s() == expected


async def test_settings_that_fit_in_no_pipe(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that would read half of them is not started; why is said."""
    control = fcntl.fcntl

    def refused(number: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETPIPE_SZ:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return control(number, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", refused)
    child = Child.start("worker-0", "idagg", b"x" * 200_000, bytes, writer=0, environment={})
    await child.life
    assert (child.code, child.died_of) == (None, "it could not be started")
    assert "fs.pipe-max-size" in caplog.text


@pytest.mark.parametrize(("code", "words"), [(0, "exit code 0"), (-9, "SIGKILL"), (-40, "signal 40")])
def test_what_a_process_died_of(code: int, words: str) -> None:
    """Most real-time signals have no name."""
    assert died_of(code) == words
