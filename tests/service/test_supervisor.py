"""What the supervisor does about workers that do not do well, and what it tells systemd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.oracle import Load
from kit.servers import RedisServer, free_port
from kit.serving import PATIENT, Serving
from kit.waiting import LIMIT_S, StoodStill, eventually, long_window, until
from kit.wire import ids

# Long enough to ask it all that there is to ask meanwhile.
DRAIN_S = 6
# A try in which this process stood still for so long says nothing.
STILL_S = 0.3
TRIES = 5


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """The other end of NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(LIMIT_S)
        yield channel


async def test_crash_loop(any_server: RedisServer) -> None:
    """Workers that die as soon as they start end it with 4 and one sentence; nothing was promised."""
    broken: dict[str, float | str] = {"idagg.run.restart.LIMIT": 3, "PYTHONHOME": "/nonexistent"}
    with contextlib.closing(Serving("--redis-url", any_server.url, tuned=broken)) as serving:
        code, said = await asyncio.to_thread(serving.ends)
    assert code == 4
    (last,) = re.findall(r"idagg CRITICAL (.*)", said)
    assert re.fullmatch(r"worker-\d died 3 times in a row as soon as it had started: .*", last)
    assert "Traceback" not in said


async def test_an_error_that_nobody_expects(any_server: RedisServer) -> None:
    """In a part that the worker only waits for, too: it ends by it and another begins anew, rather than that
    counts are no longer published without a word."""
    broken: dict[str, float | str] = {"idagg.deliver.broker._LONGEST_PAUSE_S": "no number"}
    nobody = f"amqp://127.0.0.1:{free_port()}/"
    with Serving("--redis-url", any_server.url, "--amqp-url", nobody, workers_have=broken) as serving:
        await until(lambda: re.search(r"worker-\d died \(exit code 1\), starting it again", serving.said))
        assert re.search(r"^TypeError: '<' not supported", serving.said, re.MULTILINE)


async def test_worker_that_cannot_start(any_server: RedisServer) -> None:
    """A worker that can never work ends it with 3 at once, and both say why."""
    slow = {"AIOHTTP_NO_EXTENSIONS": "1"}
    serving = Serving("--redis-url", any_server.url, environment=slow)
    with contextlib.closing(serving):
        code, said = await asyncio.to_thread(serving.ends)
    assert code == 3
    assert "aiohttp runs without its C parser: unset AIOHTTP_NO_EXTENSIONS" in said
    assert re.search(r"^idagg: worker-\d cannot start: ", said, re.MULTILINE)


async def test_hung_worker(any_server: RedisServer) -> None:
    """A worker that has fallen silent is ended and replaced."""
    tuned = {"idagg.run.child.HUNG_S": 8}  # longer than the start of its successor takes
    with Serving("--redis-url", any_server.url, tuned=tuned, window=long_window()) as serving:
        victim, other = serving.workers()
        os.kill(victim, signal.SIGSTOP)
        await serving.replaces(victim)
        assert other in serving.workers()
        # The log has a thread of its own.
        await until(lambda: f"(pid {victim}) has sent no heartbeat for 8 s" in serving.said)
        serving.stop()


async def test_hung_processes_do_not_outlive_it() -> None:
    """A killed supervisor takes with it what hangs, the embedded store too; the next one has all ids."""
    with Serving(*PATIENT, window=long_window()) as serving:
        assert [await serving.hit() for _ in range(3)] == [200, 200, 200]
        hung = serving.processes() - {serving.pid}
        assert serving.store() in hung
        for pid in hung:
            os.kill(pid, signal.SIGSTOP)
        serving.kill()
        await until(lambda: not serving.processes())
        serving.start()
        await serving.ready()
        assert await serving.hit() == 200
        await eventually(serving.figures, lambda seen: seen["idagg_current_window_unique_ids"] == 4)
        serving.stop()


async def test_stood_still(any_server: RedisServer) -> None:
    """A supervisor that stood still, or its whole group, kills no worker for that when it goes on."""
    tuned = {"idagg.run.child.HUNG_S": 6}
    flags = ("--redis-url", any_server.url)
    with (
        Serving(*flags, tuned=tuned, window=long_window()) as alone,
        Serving(*flags, tuned=tuned, window=alone.window) as group,
    ):
        before = {serving: (serving.workers(), serving.said) for serving in (alone, group)}
        stopped = {alone.pid} | group.processes()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(7.5)  # longer than they wait for a heartbeat, with ASLEEP_S
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(1)
        for serving, (workers, said) in before.items():
            await serving.ready()
            assert serving.workers() == workers
            assert "killing it" not in serving.said.removeprefix(said)
            serving.stop()


async def test_stopped_while_a_worker_waits_to_be_started_again(any_server: RedisServer) -> None:
    """SIGTERM finds a slot empty: it is not filled any more, and the end is as orderly as any."""
    tuned = {f"idagg.run.restart.{name}": 300 for name in ("YOUNG_S", "FIRST_DELAY_S", "LONGEST_DELAY_S")}
    with Serving("--redis-url", any_server.url, tuned=tuned) as serving:
        before = serving.workers()
        os.kill(before[0], signal.SIGKILL)  # the first restart is immediate
        await serving.replaces(before[0])
        (successor,) = set(serving.workers()) - set(before)
        os.kill(successor, signal.SIGKILL)
        await until(lambda: serving.said.count("died (SIGKILL), starting it again") == 2)
        await asyncio.to_thread(serving.stop)  # which does not wait for so long
        assert "Traceback" not in serving.said


class Starting(Serving):
    """Its start is over when its workers' is not."""

    def _answers(self) -> bool:
        return bool(self.workers())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_while_it_starts(number: signal.Signals) -> None:
    """A signal that comes before the workers listen ends it just so, the embedded store with it."""
    with Starting() as serving:
        serving.stop(number)
        assert "Traceback" not in serving.said


async def test_systemd(any_server: RedisServer, systemd: socket.socket) -> None:
    """It tells systemd when every worker listens, and when it stops."""
    environment = {"NOTIFY_SOCKET": systemd.getsockname()}
    with Serving("--redis-url", any_server.url, environment=environment) as serving:
        assert systemd.recv(1024) == b"READY=1\nSTATUS=2 workers listen"
        assert (await serving.health()).status == 200
        serving.stop()
        systemd.settimeout(0)
        told = []
        with contextlib.suppress(BlockingIOError):
            while True:
                told.append(systemd.recv(1024))
        assert [said for said in told if not said.startswith(b"STATUS=")] == [b"STOPPING=1"]


async def test_drain(any_server: RedisServer) -> None:
    """At SIGTERM it is not ready at once, and goes on counting for so long; nobody fails or is reset."""
    flags = ("--redis-url", any_server.url, "--drain", f"{DRAIN_S}", *PATIENT)
    for number in range(TRIES):
        with Serving(*flags, window=1) as serving:
            async with StoodStill() as stood_still:
                try:
                    await drains(serving)
                except (AssertionError, OSError):
                    # It waits for callers for a second at last, not for those that stand still.
                    if stood_still.longest_s < STILL_S or number == TRIES - 1:
                        raise
                else:
                    break


async def drains(serving: Serving) -> None:
    async with Load(serving, callers=4) as keeping, Load(serving, callers=4, fresh=True) as opening:
        began_s = time.monotonic()
        os.kill(serving.pid, signal.SIGTERM)
        await eventually(lambda: serving.ask("/readyz"), lambda answer: answer.status == 503)
        health = await serving.health()
        assert (health.status, b"\ndrain: idagg stops here" in health.body) == (503, True)
        assert (await serving.ask("/livez")).status == 200
        assert await serving.hit() == 200
        answer = await eventually(
            lambda: serving.ask(f"/api/verve/accept?id={next(ids)}"),
            lambda answer: answer.headers["Connection"] == "close",
        )
        assert answer.status == 200
    for load in (keeping, opening):
        assert (load.failed, load.unknown, load.trouble_at) == (set(), set(), [])
    await until(lambda: not serving.processes())
    assert time.monotonic() >= began_s + DRAIN_S
    serving.stop()


async def test_drain_is_cut_short(any_server: RedisServer) -> None:
    """A second signal ends it."""
    with Serving("--redis-url", any_server.url, "--drain", "300") as serving:
        os.kill(serving.pid, signal.SIGTERM)
        await until(lambda: "stopping in 300 s" in serving.said)
        await asyncio.to_thread(serving.stop)  # which does not wait for so long
