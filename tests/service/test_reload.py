"""What a reload changes, what it refuses, and what it tells whom."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from idagg.run.combiner_keeper import MAX_ALONE
from kit.faults import worker
from kit.oracle import Load
from kit.servers import RedisServer, free_port
from kit.serving import PATIENT, Serving
from kit.waiting import LIMIT_S, eventually, long_window, until
from kit.wire import Wire, connect

# And a worker that is replaced waits for the last request of callers that stand still.
SOON = {"idagg.run.restart.YOUNG_S": 0.0, "idagg.run.workers.IDLE_S": 15}
OWN = "port = 0\nadmin_port = 0\ndeadline = 10\n"  # the longest: no request may fail


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """The settings file of ``serving``."""
    file = tmp_path / "idagg.toml"
    write(file, OWN + "workers = 2\n")
    return file


def write(file: Path, text: str) -> None:
    file.write_text(text)


@pytest.fixture
async def serving(any_server: RedisServer, settings: Path) -> AsyncIterator[Serving]:
    flags = ("--redis-url", any_server.url, "--config", str(settings))
    without = ("--workers", "--port", "--admin-port")
    with Serving(*flags, tuned=SOON, window=1, without=without) as serving:
        yield serving
        await asyncio.to_thread(serving.stop)


def environment_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text().split("\0")


async def reload(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "idagg", "reload", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


async def reloads(serving: Serving, *, workers: int = 2) -> None:
    done = await reload("--pid", str(serving.pid))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"reloaded: idagg \S+, {workers} workers listen\n", done.stdout)
    assert len(serving.workers()) == workers


async def fails(serving: Serving) -> str:
    """Reload in vain; returns the reason."""
    before = serving.workers()
    done = await reload("--pid", str(serving.pid))
    assert (done.returncode, done.stdout) == (1, "")
    sentence = re.fullmatch("idagg: (the reload failed, idagg serves on as before: (.*))\n", done.stderr)
    assert sentence, done.stderr
    await until(lambda: f"idagg ERROR {sentence[1]}\n" in serving.said)  # the log has a thread of its own
    assert (serving.workers(), await serving.hit()) == (before, 200)
    return sentence[2]


async def test_number_of_workers(serving: Serving, settings: Path) -> None:
    """More and fewer, while callers open connections: no listener is closed under them."""
    async with Load(serving, callers=4) as keeping, Load(serving, callers=4, fresh=True) as opening:
        for workers in (3, 1):
            write(settings, OWN + f"workers = {workers}\n")
            await reloads(serving, workers=workers)
            await opening.goes_on(200)
    for load in (keeping, opening):
        assert (load.failed, load.unknown, load.trouble_at) == (set(), set(), [])
    await eventually(serving.figures, lambda figures: figures["idagg_reloads_total{done}"] == 2)


@pytest.mark.slow
async def test_combiner(serving: Serving, settings: Path) -> None:
    """It comes with many workers, is replaced with them, and goes with them. No request fails for it."""
    combiners = []
    async with Load(serving, callers=4) as load:
        for workers in (MAX_ALONE + 1, MAX_ALONE + 1, 2):
            write(settings, OWN + f"workers = {workers}\n")
            await reloads(serving, workers=workers)
            await load.goes_on(200)
            combiners.append(serving.combiner())
    assert (load.failed, load.unknown) == (set(), set())
    first, second, none = combiners
    assert first
    assert second
    assert (first != second, none) == (True, None)
    assert "died" not in serving.said
    assert sum((await serving.delivered()).values()) == len(load.ok)


async def test_number_of_shards(serving: Serving, settings: Path) -> None:
    """It begins with a window once no worker has the old number. No id is lost or counted twice then, though
    a combiner carries the batches."""
    workers = MAX_ALONE + 1
    async with Load(serving, callers=8) as load:
        write(settings, OWN + f"workers = {workers}\nshards = 4\n")
        await reloads(serving, workers=workers)
        await until(lambda: serving.said.count("spread over 4 shards from now on") == workers)
        await load.goes_on(200)
    # Requests that are under way when it begins may be answered 503.
    assert (len(load.failed) < len(load.ok), load.unknown) == (True, set())
    assert len(load.ok) <= sum((await serving.delivered()).values()) <= len(load.sent)
    await eventually(serving.health, lambda answer: b"shards" not in answer.body)


async def test_settings_that_change_after_they_were_read(any_server: RedisServer, settings: Path) -> None:
    """Whoever asks for a reload has the settings of that moment, also if one has just begun."""
    tuned = SOON | {"idagg.run.supervisor.SIGNALLED_S": 3}
    flags = ("--redis-url", any_server.url, "--config", str(settings))
    without = ("--workers", "--port", "--admin-port")
    with Serving(*flags, tuned=tuned, window=1, without=without) as serving:
        asked = [asyncio.create_task(reload("--pid", str(serving.pid)))]
        await until(lambda: "the installed program checks itself" in serving.said)
        write(settings, OWN + "workers = 3\n")
        asked.append(asyncio.create_task(reload("--pid", str(serving.pid))))
        assert [(await one).returncode for one in asked] == [0, 0]
        assert len(serving.workers()) == 3
        await asyncio.to_thread(serving.stop)


async def test_addresses(serving: Serving, settings: Path) -> None:
    """Both listeners move; the old addresses are free afterwards."""
    old = serving.port, serving.admin_port
    serving.port, serving.admin_port = new = free_port(), free_port()
    write(settings, f"port = {new[0]}\nadmin_port = {new[1]}\ndeadline = 10\nworkers = 2\n")
    before = serving.pid, serving.callback_process()
    await reloads(serving)
    assert await serving.hit() == 200
    await serving.ready()
    assert before[0] == serving.pid
    assert before[1] != serving.callback_process()
    for serving.port in old:
        await eventually(serving.is_refused, bool)


@pytest.fixture
async def guarded(settings: Path) -> AsyncIterator[Serving]:
    """An idagg with a token."""
    write(settings, OWN + "workers = 2\nadmin_token = 'old-and-long-enough'\n")
    without = ("--workers", "--port", "--admin-port")
    with Serving("--config", str(settings), tuned=SOON, window=long_window(), without=without) as serving:
        yield serving
        await asyncio.to_thread(serving.stop)


async def test_open_streams(guarded: Serving, settings: Path) -> None:
    """They end as streams do, and their listeners can come back. The API is served all the while, by the same
    machine. A token that was rotated is asked for then."""
    serving = guarded
    old, new = ({"Authorization": f"Bearer {which}-and-long-enough"} for which in ("old", "new"))

    async def machine(fields: dict[str, str]) -> str:
        answer = await serving.ask("/api/v1/status", admin=True, fields=fields)
        return str(json.loads(answer.body)["machine"]) if answer.status == 200 else str(answer.status)

    before = await machine(old)
    streams = [await stream(serving, path, old) for path in ("/api/v1/events", "/page/events")]
    write(settings, OWN + "workers = 2\nadmin_token = 'new-and-long-enough'\n")
    is_over = asyncio.Event()
    asking = asyncio.create_task(served_until(is_over, serving))
    await reloads(serving)
    is_over.set()
    assert await asking > 0
    for wire in streams:
        assert (await rest(wire)).endswith(b"0\r\n\r\n")  # an end, and no cut: an event ends otherwise
        wire.close()
    assert (await machine(new), await machine(old)) == (before, "401")
    again = await stream(serving, "/api/v1/events", new)
    again.close()


async def stream(serving: Serving, path: str, fields: dict[str, str]) -> Wire:
    """An open one."""
    wire = await connect(serving.admin_port)
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    await wire.send(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}\r\n".encode())
    answer = await wire.answer()
    assert answer is not None
    assert answer.headers["Content-Type"] == "text/event-stream"
    return wire


async def rest(wire: Wire) -> bytes:
    said = b""
    async with asyncio.timeout(LIMIT_S):
        while data := await asyncio.get_running_loop().sock_recv(wire.socket, 65_536):
            said += data
    return said


async def served_until(is_over: asyncio.Event, serving: Serving) -> int:
    """How many requests the admin listener has answered. One in the very moment of the change may get no
    answer; the next one does. While the program is executed anew, answers take their time."""
    answered = failed = 0
    while not is_over.is_set():
        wire = await connect(serving.admin_port)
        try:
            await wire.send(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            answer = await wire.answer()
        finally:
            wire.close()
        if answer:
            assert answer.status == 200
            answered += 1
        else:
            failed += 1
            assert failed <= 2
        await asyncio.sleep(0.02)
    return answered


async def test_what_fails(serving: Serving, settings: Path) -> None:
    """Each reason in one sentence; afterwards a reload is as good as the first."""
    write(settings, "deadline = 'soon'\n")
    assert "deadline (file " in await fails(serving)
    write(settings, OWN + "workers = 2\nnamespace = 'other'\nexact_limit = 5\n")
    assert (await fails(serving)).startswith("--namespace, --exact-limit cannot be changed by a reload: ")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        write(settings, f"port = {taken.getsockname()[1]}\nadmin_port = 0\nworkers = 2\n")
        assert "Address already in use" in await fails(serving)
    write(settings, OWN + "workers = 2\n")
    await reloads(serving)


async def test_environment_of_the_unit(serving: Serving) -> None:
    """systemd names the process, and the settings of the unit are those of the reload; a shell's are not."""
    assert (await reload("--pid", str(serving.pid), IDAGG_WINDOW="7")).returncode == 0
    done = await reload(MAINPID=str(serving.pid), IDAGG_DEADLINE="no")
    assert (done.returncode, "deadline (environment IDAGG_DEADLINE)" in done.stderr) == (1, True)
    done = await reload(MAINPID=str(serving.pid), IDAGG_DEADLINE="1")
    assert done.returncode == 0
    assert "IDAGG_DEADLINE=1" in environment_of(serving.pid)


async def test_nobody_to_reload() -> None:
    done = await reload("--pid", "1")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("idagg: no idagg with process id 1 can be reached: ")


async def test_a_request_that_is_refused(serving: Serving) -> None:
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(f"\0idagg-{serving.pid}")
        channel.shutdown(socket.SHUT_WR)
        assert await asyncio.to_thread(channel.recv, 1) == b""
    said = f"a request at the control socket from user {os.geteuid()} is refused: it is closed\n"
    await until(lambda: said in serving.said)


async def test_stopped_during_a_reload(any_server: RedisServer) -> None:
    """`idagg reload` hears of it."""
    tuned = {"idagg.run.restart.YOUNG_S": 30}
    with Serving("--redis-url", any_server.url, tuned=tuned) as serving:
        waiting = asyncio.create_task(reload("--pid", str(serving.pid)))
        await until(lambda: len(serving.workers()) == 3)
        await asyncio.to_thread(serving.stop)
        done = await waiting
        assert (done.returncode, done.stderr) == (1, "idagg: idagg is being stopped\n")


async def test_embedded_store() -> None:
    """It stays as it is, and dies with the supervisor still."""
    with Serving(*PATIENT, tuned=SOON, window=long_window()) as serving:
        store = serving.store()
        async with Load(serving, callers=4) as load:
            for _ in range(2):
                assert (await reload("--pid", str(serving.pid))).returncode == 0
        assert (load.failed, load.unknown, serving.store()) == (set(), set(), store)
        os.kill(store, signal.SIGKILL)
        await until(lambda: "the embedded store died (SIGKILL)" in serving.said)
        await serving.counts_again()
        serving.kill()
        await until(lambda: not serving.processes())


async def test_killed_after_a_reload() -> None:
    """The kernel ends the store that an earlier program has started, and hung workers of this one."""
    with Serving(tuned=SOON, window=long_window()) as serving:
        store = serving.store()
        assert (await reload("--pid", str(serving.pid))).returncode == 0
        assert serving.store() == store
        for pid in serving.workers():
            os.kill(pid, signal.SIGSTOP)
        serving.kill()
        await until(lambda: not serving.processes())


async def test_a_dead_workers_listener(any_server: RedisServer) -> None:
    """While no successor runs, other workers accept the new connections of a dead worker."""
    tuned = {f"idagg.run.restart.{name}": 60 for name in ("YOUNG_S", "FIRST_DELAY_S", "LONGEST_DELAY_S")}
    with Serving("--redis-url", any_server.url, *PATIENT, tuned=tuned) as serving:
        victim = worker(serving, 0)
        os.kill(victim, signal.SIGKILL)
        await serving.replaces(victim)
        os.kill(worker(serving, 0), signal.SIGKILL)  # the first restart is immediate, this one is not
        await until(lambda: serving.said.count("worker-0 died (SIGKILL), starting it again") == 2)
        assert len(serving.workers()) == 1
        async with Load(serving, callers=8, fresh=True) as load:
            await load.goes_on(500)
        assert len(serving.workers()) == 1
        assert (load.failed, load.unknown, load.trouble_at) == (set(), set(), [])
        serving.stop()
