"""The whole way, from a GET to a delivered count: real processes, real servers, real faults."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from idagg.run.worker import MAX_FILES
from idagg.store.client import Client
from idagg.window import iso
from kit.listeners import counted
from kit.oracle import Consumer, Load, epoch_s
from kit.servers import RabbitServer, RedisServer, free_port
from kit.serving import PATIENT, Figures, Serving, in_one_window, send
from kit.waiting import LIMIT_S, eventually, long_window, next_window, until
from kit.wire import connect

# Of a check: those that it would look at may be another program's.
NO_PORTS = ("--port", "0", "--admin-port", "0")
# A request's deadline.
DEADLINE_S = 1.0


# What a window's line may take on a machine that stands still at times.
LATE_S = 20.0


def of(start: int, lines: list[dict[str, str]]) -> list[dict[str, str]]:
    """Those of this window."""
    return [line for line in lines if line["window"] == iso(start)]


@pytest.fixture(scope="module")
def store() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def serving(store: RedisServer) -> Iterator[Serving]:
    """One for tests that leave it as it is; its window stays open."""
    with Serving("--redis-url", store.url, *PATIENT, window=long_window()) as serving:
        yield serving


async def test_counts_go_to_the_log_and_to_endpoints() -> None:
    """1,000 distinct ids among 3,000 requests make one line, soon, and a call that is logged."""
    calls = []

    async def hook(request: web.Request) -> web.Response:
        calls.append((request.path_qs, await request.json()))
        return web.Response(status=202)

    app = web.Application()
    app.router.add_post("/hook", hook)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook?a=b"
        with Serving("--callback-allow", "127.0.0.1", *PATIENT, window=2) as serving:
            query = f"&endpoint={url.replace('?', '%3F').replace('&', '%26')}"
            start = await in_one_window(serving, [*range(1000)] * 3, query=query)
            await until(lambda: iso(start) in serving.counts())
            (call,) = await until(lambda: of(start, serving.records("callback")), within_s=120)
            figures = await eventually(
                serving.figures, lambda figures: figures["idagg_callbacks_total{ok}"] >= 1
            )
            await asyncio.to_thread(serving.stop)  # it may be calling for another window
            line = of(start, serving.records("window"))[0]  # it comes again if the disk stood still
            assert len(of(start, serving.records("callback"))) == 1
    finally:
        await runner.cleanup()

    assert (line["unique_ids"], line["hits"]) == ("1000", "3000")
    assert (line["exact"], line["sink"], "reason" in line) == ("true", "log", False)
    assert 0 <= epoch_s(line["time"]) - start - 2 < LATE_S
    record = {
        "window_start": iso(start),
        "window_end": iso(start + 2),
        "unique_ids": 1000,
        "estimate": int(line["estimate"]),
        "hits": 3000,
        "exact": True,
    }
    assert [call for call in calls if call[1]["window_start"] == iso(start)] == [
        ("/hook?a=b&count=1000", record)
    ]
    assert (call["window"], call["url"], call["status"], call["attempts"]) == (iso(start), url, "202", "1")
    assert figures["idagg_windows_delivered_total{log}"] >= 1


async def test_repeats_count_in_each_window_once() -> None:
    """Workers answer them from memory, and the first of a window is none, however soon it comes."""
    with Serving(*PATIENT, window=2) as serving:
        hits = 0
        expected: dict[str, int] = {}
        for _ in range(2):
            is_slow = True  # for two windows
            while is_slow:
                start = await next_window(2)
                is_first = True
                while is_first or time.time() < start + 1.4:
                    await send(serving, range(50))
                    hits += 50
                    is_first = False
                is_slow = await next_window(2) != start + 2
                await send(serving, range(50))
                hits += 50
                is_slow = is_slow or time.time() >= start + 4
            expected |= {iso(start): 50, iso(start + 2): 50}
        await until(lambda: iso(start + 2) in serving.counts())
        figures = await eventually(
            serving.figures, lambda figures: figures["idagg_requests_total{200}"] == hits
        )
        serving.stop()
        assert {window: serving.counts()[window] for window in expected} == expected
        by_window = {line["window"]: int(line["hits"]) for line in serving.records("window")}
        assert sum(by_window.values()) == hits
        assert 0 < figures["idagg_repeats_total"] < hits


async def test_a_store_that_forgot_is_told_again() -> None:
    """What a worker knows to be stored is not known any more once the connection to the store was lost."""
    with (
        RedisServer() as server,
        Serving("--redis-url", server.url, *PATIENT, window=long_window()) as serving,
    ):
        for _ in range(3):
            await send(serving, range(50))
        await eventually(serving.figures, lambda figures: figures.get("idagg_repeats_total", 0) > 0)
        server.restart()
        assert await counted(server.url) == set()
        await send(serving, range(50))
        assert await counted(server.url) == {b"%d" % number for number in range(50)}
        serving.stop()


async def test_counts_go_to_rabbitmq(rabbit: RabbitServer, rabbit_queue: str) -> None:
    """With a broker, a window is one message, with the properties that are promised, and no line."""
    consumer = Consumer(rabbit, rabbit_queue)
    flags = ("--amqp-url", rabbit.url, "--amqp-queue", rabbit_queue, "--namespace", "ns")
    patient = ("--amqp-connect-timeout", "30", "--amqp-publish-timeout", "10")
    with Serving(*flags, *patient, *PATIENT) as serving:
        start = await in_one_window(serving, range(500))
        await eventually(consumer.counts, lambda counts: iso(start) in counts)
        serving.stop()
        assert iso(start) not in serving.counts()
    taken = [(message, json.loads(message.body)) for message in await consumer.take()]
    (message, record), *_ = (pair for pair in taken if pair[1]["window_start"] == iso(start))
    assert record["window_end"] == iso(start + 2)
    assert (record["unique_ids"], record["hits"], record["exact"]) == (500, 500, True)
    properties = message.header.properties
    assert {name: value for name, value in properties if value and name != "headers"} == {
        "content_type": "application/json",
        "delivery_mode": 2,
        "message_id": f"ns:{start}",
        "timestamp": datetime.datetime.fromtimestamp(start + 2, datetime.UTC),
        "message_type": "idagg.window",
        "app_id": "idagg",
    }


async def test_rabbitmq_unreachable_at_the_start() -> None:
    """It says so, counts and delivers to the log; it is ready, and tells of the broker where asked."""
    url = f"amqp://guest:hunter2@127.0.0.1:{free_port()}"
    with Serving("--amqp-url", url, *PATIENT, window=1) as serving:
        await serving.counts_again()
        await until(
            lambda: "RabbitMQ takes no messages for now, the log file gets the counts: " in serving.said
        )
        await until(lambda: any("RabbitMQ" in line["reason"] for line in serving.records("window")))
        await eventually(serving.health, lambda answer: b"broker: " in answer.body and answer.status == 200)
        leaders = serving.said.count(" INFO leading: epoch ")  # another, where one stood still for long
        assert 1 <= serving.said.count("RabbitMQ cannot be reached") <= leaders, "told by more than one"
        assert "hunter2" not in serving.said + serving.log_file.read_text()
        serving.stop()


async def test_stopped_under_load() -> None:
    """SIGTERM: what was taken is answered, the end is 0, and a successor delivers the rest."""
    with Serving(*PATIENT, window=1) as serving:
        async with Load(serving) as load:
            await asyncio.to_thread(serving.stop)
        assert load.failed == set()
        serving.start()
        assert sum((await serving.delivered()).values()) == len(load.ok)  # whoever was counted was told
        serving.stop()


async def test_redis_unreachable_at_the_start() -> None:
    """It says so, answers 503, and counts once Redis is there; no worker needs a hit to see that."""
    server = RedisServer()
    flags = ("--redis-url", server.url, "--deadline", str(DEADLINE_S))
    with contextlib.closing(server), Serving(*flags) as serving:
        await until(lambda: f"Redis at {server.socket} cannot be reached" in serving.said)
        assert set(await asyncio.gather(*(serving.hit() for _ in range(16)))) == {503}
        server.start()
        await serving.counts_again()
        await serving.ready()
        serving.stop()


async def test_redis_with_another_password() -> None:
    """It says so, answers 503, and counts once Redis takes the password; which it shows to nobody."""
    server = RedisServer(requirepass="swordfish")
    flags = ("--redis-url", server.url.replace("swordfish", "hunter2"), "--deadline", str(DEADLINE_S))
    with server, Serving(*flags) as serving:
        await until(lambda: "password" in serving.said)
        assert await serving.hit() == 503
        client = Client(server.url, timeout_s=LIMIT_S)
        await client.command("CONFIG", "SET", "requirepass", "hunter2")
        await client.close()
        await serving.counts_again()
        assert "hunter2" not in serving.said
        serving.stop()


async def test_second_instance() -> None:
    """On a port or a state folder in use it ends with 3 and one sentence, and the first goes on."""
    with Serving(*PATIENT) as first:
        patience = {"idagg.store.embedded.PATIENCE_S": 0.3}
        for flags, sentence in (
            (("--port", str(first.port)), f"cannot listen on 127.0.0.1:{first.port}: "),
            (("--admin-port", str(first.admin_port)), f"cannot listen on 127.0.0.1:{first.admin_port}: "),
            (("--state-dir", str(first.state)), f"another idagg keeps its data in {first.state}"),
        ):
            with contextlib.closing(Serving(*flags, tuned=patience)) as second:
                code, said = await asyncio.to_thread(second.ends)
            assert (code, said.count("\n")) == (3, 1)
            assert said.startswith(f"idagg: {sentence}")
        assert await first.hit() == 200
        first.stop()


@pytest.mark.parametrize("small_disk", ["8m"], indirect=True)
async def test_full_disk_at_the_start(small_disk: Path) -> None:
    """Where the embedded store has no room, idagg answers 503, says why, and counts once there is room."""
    filling = small_disk / "filling"
    with filling.open("wb") as file:
        room = os.statvfs(small_disk)
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize)
    with Serving("--state-dir", str(small_disk / "state")) as serving:
        assert await serving.hit() == 503
        answer = await serving.health()
        assert answer.status == 503
        assert re.search(rb"^store: .*No space left on device", answer.body, re.MULTILINE)
        filling.unlink()
        await serving.counts_again()
        await serving.ready()
        await until(lambda: "store: works again" in serving.said)
        told = re.findall(r" WARNING store: (.*)", serving.said)
        # A start that was under way when there was room again may have had another reason.
        assert told
        assert len(told) == len({*told})
        serving.stop()


async def test_files_of_the_working_folder_are_not_imported() -> None:
    """No process runs a file of the working folder in place of a library."""
    serving = Serving(*PATIENT)
    for name in ("hiredis", "queue", "secrets", "uvloop", "aiohttp"):
        (serving.folder / f"{name}.py").write_text("raise SystemExit('imported from the working folder')")
    with serving:
        await serving.ready()
        assert await serving.hit() == 200
        assert "working folder" not in serving.said
        serving.stop()


async def test_another_window_length() -> None:
    """Started again with other windows, it counts in the open one until its end, then in its own, and loses
    nothing."""
    with Serving(*PATIENT, window=5) as serving:

        def counts() -> dict[str, int]:
            """From the window on that has all of the first ids: on a slow machine, some are in one before."""
            return {window: count for window, count in serving.counts().items() if window >= iso(start)}

        start = await in_one_window(serving, range(100))
        serving.stop()
        serving.window = 2
        serving.start()
        await send(serving, range(200, 300))
        await until(lambda: iso(start) in counts())
        await send(serving, range(400, 500))
        await until(lambda: sum(counts().values()) >= 300)
        first, *others = sorted(window for window, count in counts().items() if count)
        # Where the start took longer than the rest of the window, it missed that, or some of it.
        assert first == iso(start)
        assert 100 <= counts()[first] <= 200
        assert min(others) >= iso(start + 5)
        assert sum(counts().values()) == 300
        serving.stop()


async def test_another_exact_limit(any_server: RedisServer) -> None:
    """Whose limit is not that of the others counts nothing, and says so wherever one looks."""
    url = ("--redis-url", any_server.url)
    with (
        Serving(*url, *PATIENT, window=1) as first,
        Serving(*url, *PATIENT, "--exact-limit", "10", window=1) as other,
    ):
        answer = await eventually(other.health, lambda answer: b"--exact-limit" in answer.body)
        assert answer.status == 503
        assert b"exactly up to 10000000 ids for another running instance" in answer.body
        differing = "idagg_differing_workers"
        await eventually(other.figures, lambda figures: figures[differing] == len(other.workers()))
        await eventually(first.figures, lambda figures: figures[differing] == 0)
        assert (await other.hit(), await first.hit()) == (503, 200)
        other.stop()
        first.stop()


async def test_metrics(serving: Serving) -> None:
    """`/metrics` has what is promised, added up over the workers, and only the admin listener has it."""
    before = await serving.figures()
    await send(serving, range(500), connections=32)
    for _ in range(3):
        assert (await serving.ask("/api/verve/accept?id=x")).status == 400
    status = "idagg_requests_total{{{}}}".format
    # Some move once a second, and each a moment after the answers.
    expected = {status(200): 500, status(400): 3, status(503): 0, "idagg_batch_size_sum": 500}
    batches, answers = "idagg_batch_size_count", "idagg_store_seconds_count"

    async def moved() -> Figures:
        after = await serving.figures()
        return Figures({name: after[name] - before.get(name, 0) for name in after})

    found = await eventually(
        moved,
        lambda found: (
            all(found[name] >= count for name, count in expected.items()) and found[answers] == found[batches]
        ),
    )
    assert {name: found[name] for name in expected} == expected
    assert found[batches] > 0
    after = await eventually(
        serving.figures,
        lambda after: (
            after["idagg_leader"] == 1
            and after["idagg_pending{deliveries}"] == after["idagg_pending{messages}"] == 0
        ),
    )
    assert "idagg_flush_lag_seconds_count" in after
    assert "idagg_last_sealed_window_seconds" not in after  # none is: no 0 that could be taken for one
    public = await serving.ask("/metrics")
    assert (public.status, public.body) == (404, b"failed")


REFUSED = {
    404: b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n",
    405: b"PUT /api/verve/accept HTTP/1.1\r\nHost: x\r\n\r\n",
    413: b"GET /api/verve/accept?id=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n",
    414: b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    417: b"GET /livez HTTP/1.1\r\nHost: x\r\nExpect: \xa4\r\n\r\n",
    431: b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 9000 + b"\r\n\r\n",
    501: b"POST /api/verve/accept HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    505: b"PRI * HTTP/2.0\r\n\r\n",
}


async def test_every_request_is_in_the_metrics(serving: Serving) -> None:
    """By its status, whatever refused it; and connections that are open, and requests handed off."""
    before = await serving.figures()
    wires = []
    for status, request in REFUSED.items():
        wires.append(wire := await connect(serving.port))
        await wire.send(request)
        answer = await wire.answer()
        assert answer is not None
        assert (answer.status, answer.headers["Cache-Control"]) == (status, "no-store")
    names = {f"idagg_requests_total{{{status}}}" for status in REFUSED} | {"idagg_handed_off_total{method}"}
    await eventually(
        serving.figures,
        lambda after: after["idagg_in_flight"] == 0 and all(after[name] > before[name] for name in names),
    )
    kept = [await connect(serving.port) for _ in range(3)]
    for wire in kept:
        await wire.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    await eventually(serving.figures, lambda now: now["idagg_connections"] >= 3)
    for wire in [*wires, *kept]:
        wire.close()
    await eventually(serving.figures, lambda now: now["idagg_connections"] == 0)


async def test_nonsense_on_the_admin_listener(serving: Serving) -> None:
    """It is refused with problem details, whatever it is, and is no trouble to tell of."""
    for status, request in REFUSED.items():
        if status == 417:  # what a client expects does not matter where no body is read
            continue
        wire = await connect(serving.admin_port)
        await wire.send(request + (b"SM\r\n\r\n" if status == 505 else b""))  # the whole preface of HTTP/2
        try:
            answer = await wire.answer()
        finally:
            wire.close()
        assert answer is not None, request
        assert 400 <= answer.status < 500
        assert answer.headers["Cache-Control"] == "no-store"
        assert json.loads(answer.body)["status"] == answer.status
        assert answer.headers["Content-Type"] == "application/problem+json"
    assert "Traceback" not in serving.said


@pytest.mark.parametrize("admin", [False, True])
async def test_health(serving: Serving, admin: bool) -> None:
    """Both listeners tell load balancers whether it lives and whether it counts."""
    for path in ("/livez", "/readyz"):
        answer = await serving.ask(path, admin=admin)
        assert (answer.status, answer.body) == (200, b"ok")
    assert (await serving.ask("/api/verve/accept?id=1", admin=True)).status == 404


def test_descriptors(serving: Serving) -> None:
    """A shell's 1,024 is not what bounds the connections of a worker."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for worker in serving.workers():
        soft, _ = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        assert soft >= min(hard, MAX_FILES)


async def test_pipeline(serving: Serving, store: RedisServer) -> None:
    """10,000 requests in one write are each answered ok, in a row, and counted."""
    numbers = range(5_000_000, 5_010_000)
    await send(serving, numbers, connections=1)
    assert set(numbers) <= set(map(int, await counted(store.url)))


@pytest.mark.parametrize(
    ("options", "worth"),
    [
        ({"appendonly": "no"}, "can be lost"),
        ({"appendfsync": "everysec"}, "of the last 2 s can be lost"),
        ({"appendfsync": "always"}, "is on disk"),
        ({"appendfsync": "always", "no_appendfsync_on_rewrite": "yes"}, "of a rewrite's time can be lost"),
    ],
)
def test_check_says_what_an_ok_is_worth(options: dict[str, str], worth: str, tmp_path: Path) -> None:
    """As Redis' settings make it."""
    with RedisServer("redis", tcp=False, **{"appendonly": "yes"} | options) as server:
        done = subprocess.run(
            [sys.executable, "-m", "idagg", "check", "--redis-url", server.url, *NO_PORTS],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0
    assert worth in done.stdout.splitlines()[0]


@pytest.mark.parametrize("log_folder", ["", "missing"])
def test_check(
    any_server: RedisServer, rabbit: RabbitServer, rabbit_queue: str, tmp_path: Path, log_folder: str
) -> None:
    """`idagg check` has a line for each dependency, and its code says whether all are well."""
    well, dead = not log_folder, f"127.0.0.1:{free_port()}"
    urls = (
        (any_server.url, f"amqp://{dead},127.0.0.1:{rabbit.port}")
        if well
        else (f"unix://{tmp_path}/s", f"amqp://{dead}")
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "idagg", "check", "--redis-url", urls[0], "--amqp-url", urls[1]),
            *("--amqp-queue", rabbit_queue, "--log-file", tmp_path / log_folder / "a.log", *NO_PORTS),
            *("--amqp-connect-timeout", "30"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0 if well else 1, "")
    verdict = "ok      " if well else "failed  "
    lines = [line for line in done.stdout.splitlines() if not line.startswith("warning ")]
    assert [line.partition(": ")[0] for line in lines] == [
        *(f"{verdict}{part}" for part in ("store", "broker", "log file")),
        "ok      listeners",
    ]
    warning = f"warning broker: {dead}: RabbitMQ cannot be reached: Connection refused"
    assert (warning in done.stdout.splitlines()) == well
    assert list(tmp_path.iterdir()) == []
