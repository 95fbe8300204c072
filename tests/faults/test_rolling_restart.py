"""Row 4 of the fault matrix: a reload replaces every process, and no caller notices.

The supervisor keeps its process id and executes the program that is installed now. Then it replaces the
workers one by one.
"""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path

import pytest

from kit.faults import ANSWER_S, GIVEN_AWAY_MS, STEADY, Handovers
from kit.figures import Row
from kit.oracle import Load, epoch_s, held, lines, together
from kit.servers import RedisServer
from kit.serving import PATIENT, Serving
from kit.waiting import LIMIT_S, eventually, long_window, next_window, until

# What a module that is imported before idagg's own does: to every program, or to workers alone.
BROKEN = {
    "raise SystemExit('half')": r"the new program died \(exit code 1\): SystemExit: half",
    "import os; os.environ['AIOHTTP_NO_EXTENSIONS'] = '1'": "aiohttp runs without its C parser: .*",
    "import time; time.sleep(60)": "the new program did not load within 10 s",
}
BROKEN_WORKERS = {
    "signal.setitimer(signal.ITIMER_REAL, 3)": r"the new worker died \(SIGALRM\)",
    "print('another version', flush=True)": r"the new worker died \(SIGKILL\)",
}


def hang_up(serving: Serving) -> None:
    os.kill(serving.pid, signal.SIGHUP)


async def says(serving: Serving, text: str, *, times: int = 1) -> None:
    await until(lambda: serving.said.count(text) >= times, within_s=60)


@pytest.mark.fault("4", "SIGHUP, and two more in the midst of it")
async def test_4_rolling_restart(any_server: RedisServer, row: Row) -> None:
    """Nobody is reset or fails: not who keeps a connection, and not who opens one for each request. Signals
    that come in the midst of it are one more."""
    tuned = {"idagg.run.restart.YOUNG_S": 0.2}
    flags = ("--redis-url", any_server.url, *row.patient)
    with Serving(*flags, tuned=tuned, workers_have=STEADY, window=1) as serving:
        before = serving.workers()
        async with (
            Load(serving, callers=8) as keeping,
            Load(serving, callers=4, fields="Upgrade: h2c\r\n") as handed_over,
            Load(serving, callers=4, fresh=True) as opening,
            Load(serving, callers=4, fields="Connection: close\r\n") as closing,
            Handovers(any_server.url) as handovers,
        ):
            loads = (keeping, handed_over, opening, closing)
            since = await next_window(1)
            async for injection in row.inject(1):
                hang_up(serving)
                await says(serving, "replacing the workers one by one", times=2 * injection + 1)
                hang_up(serving)
                hang_up(serving)
                await says(serving, "all workers are replaced", times=2 * injection + 2)
            # If we stood still between the signals, there is one reload more.
            await until(lambda: len(now := serving.workers()) == 2 and not set(before) & set(now))
            await serving.ready()
            for load in loads:
                await load.goes_on(100)
        for load in loads:
            assert (load.failed, load.unknown, load.trouble_at) == (set(), set(), [])
            assert row.late(load, ANSWER_S) == []
        told = together(*loads)
        last = int(epoch_s(max(await serving.delivered())))
        expected = held(told, since, last)
        assert row.verdict(told, lines(serving), expected=expected, answer_s=ANSWER_S) == []
        assert min(handovers.left_ms) > GIVEN_AWAY_MS
        names, figures = ("idagg_requests_total{200}", "idagg_leader"), [len(told.ok), 1]
        await eventually(serving.figures, lambda seen: [seen[name] for name in names] == figures)
        serving.stop()
        times = serving.said.count("replacing the workers")
        assert 2 * row.injections <= times <= (3 if row.patience > 1 else 2) * row.injections


@pytest.mark.parametrize("whom", ["every program", "workers"])
async def test_build_that_does_not_serve(any_server: RedisServer, tmp_path: Path, whom: str) -> None:
    """The workers stay as they are, and the next attempt is as good as the first."""
    broken = BROKEN
    if whom == "workers":
        only = "import signal, sys\nif 'idagg.run.worker' in sys.orig_argv:\n    "
        broken = {only + line: f"worker-0 .* are not replaced: {why}" for line, why in BROKEN_WORKERS.items()}
    first = tmp_path / "sitecustomize.py"
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    with Serving(
        *("--redis-url", any_server.url, *PATIENT),
        tuned={
            "idagg.run.restart.YOUNG_S": 5,
            "idagg.run.reload.REHEARSAL_S": 30 if whom == "workers" else 10,
        },
        environment={"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        window=long_window(),
    ) as serving:
        before = serving.workers()
        async with Load(serving) as load:
            for number, (line, reason) in enumerate(broken.items(), 1):
                first.write_text(line)
                hang_up(serving)
                await says(serving, "the reload failed, idagg serves on as before: ", times=number)
                assert re.search(rf"serves on as before: {reason}$", serving.said, re.MULTILINE)
                await until(lambda: serving.workers() == before)
                await serving.ready()
                failed = "idagg_reloads_total{failed}"
                await eventually(serving.figures, lambda figures: figures[failed] == number)
                await load.goes_on()
        assert (load.failed, load.unknown, load.trouble_at) == (set(), set(), [])
        serving.stop()


async def test_successor_that_does_not_reach_the_store(any_server: RedisServer) -> None:
    """It would not do better than who is there; when the store is back, the workers are replaced."""
    with Serving("--redis-url", any_server.url, tuned={"idagg.run.restart.YOUNG_S": 0.2}) as serving:
        before = serving.workers()
        any_server.kill()
        hang_up(serving)
        await says(serving, "worker-0 and all later ones are not replaced: the new worker is not ready: ")
        await until(lambda: serving.workers() == before)
        any_server.start()
        await serving.ready()
        hang_up(serving)
        await says(serving, "all workers are replaced")
        serving.stop()


async def test_stopped_in_the_midst(any_server: RedisServer) -> None:
    """SIGTERM ends those who serve, and who is to serve."""
    with Serving("--redis-url", any_server.url, tuned={"idagg.run.restart.YOUNG_S": 30}) as serving:
        hang_up(serving)
        await until(lambda: len(serving.workers()) == 3)
        serving.stop()
        assert "Traceback" not in serving.said


async def test_systemd_is_told(any_server: RedisServer, tmp_path: Path) -> None:
    """It hears when the replacing begins and when it is over."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(LIMIT_S)
        with Serving(
            *("--redis-url", any_server.url),
            tuned={"idagg.run.restart.YOUNG_S": 0.0},
            environment={"NOTIFY_SOCKET": channel.getsockname()},
        ) as serving:

            def state() -> bytes:
                """The next one, but for what the status line says."""
                return next(said for said in iter(lambda: channel.recv(1024), b"") if said[:7] != b"STATUS=")

            assert state() == b"READY=1\nSTATUS=2 workers listen"
            hang_up(serving)
            assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=[0-9]+", state())
            assert state() == b"READY=1\nSTATUS=2 workers listen"
            any_server.kill()
            hang_up(serving)
            assert state().startswith(b"RELOADING=1\n")
            assert state().startswith(b"READY=1\nSTATUS=the reload failed, idagg serves on as before: ")
            serving.stop()
            assert state() == b"STOPPING=1"
