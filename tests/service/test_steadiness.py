"""What a service on a bare machine goes through: signals, terminals, pipes that nobody reads, watchdogs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.servers import RedisServer, free_port
from kit.serving import PATIENT, WORKERS, Serving
from kit.waiting import LIMIT_S, eventually, long_window, until


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """The other end of NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(LIMIT_S)
        yield channel


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    """A terminal: its one end, and the path of the other."""
    end, other = os.openpty()
    path = os.ttyname(other)
    yield end, path
    for descriptor in (end, other):
        with contextlib.suppress(OSError):
            os.close(descriptor)


async def all_have_begun(serving: Serving) -> None:
    """Wait until each process has tied itself to the supervisor.

    The callback process, at niceness 19, may be long in coming to that, and nobody waits for it.
    """

    def begun(pid: int) -> bool:
        """After that, faulthandler catches what would end it."""
        said = Path(f"/proc/{pid}/status").read_text()
        caught = re.search(r"^SigCgt:\t(\w+)$", said, re.MULTILINE)
        return pid == serving.pid or bool(caught and int(caught[1], 16) >> signal.SIGSEGV - 1 & 1)

    # The supervisor, its workers, and the callback process.
    await until(lambda: len(found := serving.processes()) == WORKERS + 2 and all(map(begun, found)))


async def test_hung_worker_without_a_supervisor(any_server: RedisServer) -> None:
    """A worker that stands still does not outlive a supervisor that is killed: the port is free at once."""
    flags = ("--redis-url", any_server.url, "--port", str(free_port()), *PATIENT)
    with Serving(*flags, without=("--port",)) as serving:
        await all_have_begun(serving)
        os.kill(serving.workers()[0], signal.SIGSTOP)
        os.kill(serving.callback_process(), signal.SIGSTOP)
        serving.kill()
        await until(lambda: not serving.processes())
        await eventually(serving.is_refused, bool)
        await asyncio.to_thread(serving.start)
        assert await serving.hit() == 200
        serving.stop()


async def test_signals_of_no_use(any_server: RedisServer) -> None:
    """SIGUSR1 and SIGUSR2 kill no process, and SIGHUP no worker."""
    with Serving("--redis-url", any_server.url, *PATIENT, window=long_window()) as serving:
        await all_have_begun(serving)
        before = serving.processes()
        for pid in before:
            os.kill(pid, signal.SIGUSR1)
            os.kill(pid, signal.SIGUSR2)
        for pid in serving.workers():
            os.kill(pid, signal.SIGHUP)
        assert await serving.hit() == 200
        assert serving.processes() == before
        serving.stop()


def beneath(path: str, *command: str) -> tuple[str, ...]:
    """A command that runs what follows in a session of its own with this controlling terminal."""
    # The first terminal that a session's leader opens becomes its own. All that a test run under nohup starts
    # ignores SIGHUP, if that is not undone.
    inner = " ".join(("exec", *command, '"$@"'))
    return ("setsid", "env", "--default-signal=HUP", "sh", "-c", f"exec 3<>{path}; {inner}", "sh")


async def test_terminal_that_is_closed(any_server: RedisServer, terminal: tuple[int, str]) -> None:
    """idagg ends with its terminal, as every program does; a signal before that replaces the workers."""
    end, path = terminal
    with Serving("--redis-url", any_server.url, prefix=beneath(path)) as serving:
        os.kill(serving.pid, signal.SIGHUP)
        await until(lambda: "all workers are replaced" in serving.said)
        os.close(end)
        await until(lambda: not serving.processes())
        assert serving.said.count("replacing the workers") == 1


async def test_nohup(any_server: RedisServer, terminal: tuple[int, str]) -> None:
    """With nohup it outlives the terminal."""
    end, path = terminal
    with Serving("--redis-url", any_server.url, *PATIENT, prefix=beneath(path, "nohup")) as serving:
        os.close(end)
        os.kill(serving.pid, signal.SIGHUP)
        await asyncio.sleep(0.5)  # longer than it takes to judge
        assert await serving.hit() == 200
        assert "replacing the workers" not in serving.said
        serving.stop()


async def test_log_that_nobody_reads(any_server: RedisServer, tmp_path: Path) -> None:
    """Where standard error is a full pipe, requests are answered, faults are mended, and SIGTERM ends it."""
    os.mkfifo(tmp_path / "stderr")
    pipe = os.open(tmp_path / "stderr", os.O_RDWR | os.O_NONBLOCK)
    try:
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(pipe, bytes(4096))
        prefix = ("sh", "-c", f'exec "$@" 2>{tmp_path}/stderr', "sh")
        flags = ("--redis-url", any_server.url, *PATIENT)
        with Serving(*flags, prefix=prefix, window=long_window()) as serving:
            os.set_blocking(pipe, True)
            victim = serving.workers()[0]
            os.kill(victim, signal.SIGKILL)
            await serving.replaces(victim)
            assert await serving.hit() == 200
            async with asyncio.timeout(LIMIT_S):
                await asyncio.to_thread(serving.stop)
    finally:
        os.close(pipe)


def is_fed(systemd: socket.socket, *, within_s: float) -> bool:
    """Whether the watchdog is told so in that time, whatever the status line says meanwhile."""
    give_up_at = time.monotonic() + within_s
    while (left_s := give_up_at - time.monotonic()) > 0:
        systemd.settimeout(left_s)
        with contextlib.suppress(TimeoutError):
            if systemd.recv(1024) == b"WATCHDOG=1":
                return True
    return False


async def test_watchdog(any_server: RedisServer, systemd: socket.socket) -> None:
    """systemd is told that all is well, until a worker has not been heard of for too long."""
    environment = {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "2000000"}
    tuned = {"idagg.run.supervisor.SILENT_S": 1, "idagg.run.child.HUNG_S": 300}
    flags = ("--redis-url", any_server.url)
    with Serving(*flags, environment=environment, tuned=tuned, window=long_window()) as serving:
        assert await asyncio.to_thread(is_fed, systemd, within_s=LIMIT_S)
        any_server.freeze()
        before = serving.workers()
        os.kill(before[0], signal.SIGKILL)
        # It hears nothing from the store, and says nothing for some seconds; then it says nothing at all.
        (successor,) = await until(lambda: set(serving.workers()) - set(before))
        os.kill(successor, signal.SIGSTOP)
        async with asyncio.timeout(LIMIT_S):
            while await asyncio.to_thread(is_fed, systemd, within_s=2):
                pass
        any_server.thaw()
        os.kill(successor, signal.SIGCONT)
        assert await asyncio.to_thread(is_fed, systemd, within_s=LIMIT_S)
        serving.stop()


async def test_starts_that_fail(any_server: RedisServer, systemd: socket.socket, tmp_path: Path) -> None:
    """Under a service manager the first failure is told at once, and further ones wait before they end."""
    environment = {"NOTIFY_SOCKET": systemd.getsockname(), "RUNTIME_DIRECTORY": str(tmp_path)}
    with Serving("--redis-url", any_server.url) as first:
        flags = ("--redis-url", any_server.url, "--port", str(first.port))
        with contextlib.closing(Serving(*flags, environment=environment)) as second:
            code, said = await asyncio.to_thread(second.ends)
            assert (code, said.count("cannot listen on")) == (3, 1)
            assert "the next start" not in said
            code, said = await asyncio.to_thread(second.ends)
            assert (code, said.count("cannot listen on")) == (3, 1)
            assert "the next start is not before 1 s" in said
        assert systemd.recv(1024).startswith(b"STATUS=cannot listen on")
        first.stop()
        with Serving("--redis-url", any_server.url, environment=environment) as third:
            assert not (tmp_path / "failed-starts").exists()
            third.stop()


async def test_metrics_that_cannot_be_read(any_server: RedisServer) -> None:
    """They are left out, counted and logged, and all others are served; a dead worker comes back."""
    with Serving("--redis-url", any_server.url, window=long_window()) as serving:
        (folder,) = (serving.folder / "tmp").glob("idagg-*/metrics")
        assert (await serving.figures())["idagg_metrics_left_out"] == 0
        (folder / "counter_77.db").write_bytes(b"")  # of nobody: one whose file shrinks is killed for it
        (folder / "gauge_max_77.db").write_bytes(b"theirs" * 1000)
        figures = await serving.figures()
        assert figures["idagg_metrics_left_out"] == 2
        assert "idagg_requests_total{200}" in figures
        await until(lambda: "/metrics leaves out counter_77.db, gauge_max_77.db in" in serving.said)
        shutil.rmtree(folder)
        assert (await serving.figures())["idagg_metrics_left_out"] == len(serving.workers()) + 1
        victim = serving.workers()[0]
        os.kill(victim, signal.SIGKILL)
        await serving.replaces(victim)
        assert (await serving.figures())["idagg_metrics_left_out"] == len(serving.workers())
        serving.stop()


@pytest.mark.parametrize("small_disk", ["3m"], indirect=True)
async def test_no_room_for_metrics(any_server: RedisServer, small_disk: Path) -> None:
    """A full disk there kills no worker: those that have no files there yet run without metrics."""
    flags = ("--redis-url", any_server.url, *PATIENT)
    environment = {"RUNTIME_DIRECTORY": str(small_disk)}
    with Serving(*flags, environment=environment, window=long_window()) as serving:
        with (small_disk / "filling").open("wb") as file:
            room = os.statvfs(small_disk)
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize)
        before = serving.workers()
        os.kill(serving.pid, signal.SIGHUP)  # successors run beside those that they replace
        await until(lambda: "all workers are replaced" in serving.said)
        await until(lambda: not set(before) & set(serving.workers()))
        assert await serving.hit() == 200
        await until(lambda: "a process runs without metrics: No space left on device" in serving.said)
        serving.stop()
