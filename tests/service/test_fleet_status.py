"""What machines tell of each other: /api/v1/status and /api/v1/events of real instances."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from typing import Any, cast

import orjson

from kit.oracle import epoch_s
from kit.servers import RedisServer, free_port
from kit.serving import Serving
from kit.waiting import LIMIT_S, eventually, long_window
from kit.wire import connect


async def status(serving: Serving) -> dict[str, Any]:
    wire = await connect(serving.admin_port)
    try:
        await wire.send(b"GET /api/v1/status HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        answer = await wire.answer()
    finally:
        wire.close()
    assert answer is not None
    assert answer.status == 200
    return cast(dict[str, Any], orjson.loads(answer.body))


def machines(seen: dict[str, Any]) -> set[str]:
    return {machine["id"] for machine in seen["machines"]}


async def test_machines_agree_when_the_leader_dies(any_server: RedisServer) -> None:
    """Both show the same leader and machines; a killed one's successor is shown in time; one that stops in
    order is gone at once."""
    flags = ("--redis-url", any_server.url)
    tuned = {"idagg.run.fleet.PATIENCE_S": 15}  # for which one that stops tries to tell the others
    with (
        Serving(*flags, tuned=tuned) as first,
        Serving(*flags, tuned=tuned) as second,
        Serving(*flags, tuned=tuned) as third,
    ):
        everyone = [first, second, third]
        seen = await eventually(
            lambda: asyncio.gather(*map(status, everyone)),
            lambda seen: (
                len({orjson.dumps([one["leader"], *sorted(machines(one))]) for one in seen}) == 1
                and len(machines(seen[0])) == 3
                and seen[0]["leader"] is not None
            ),
        )
        leader = seen[0]["leader"]
        dead = next(
            one for one, state in zip(everyone, seen, strict=True) if state["machine"] == leader["machine"]
        )
        left = [serving for serving in everyone if serving is not dead]
        os.kill(dead.pid, signal.SIGKILL)
        later = await eventually(
            lambda: asyncio.gather(*map(status, left)),
            lambda seen: (
                seen[0]["leader"] is not None
                and seen[0]["leader"] == seen[1]["leader"]
                and seen[0]["leader"]["epoch"] > leader["epoch"]
            ),
        )
        assert later[0]["leader"]["machine"] in {one["machine"] for one in later}
        left[1].stop()
        await eventually(lambda: status(left[0]), lambda seen: later[1]["machine"] not in machines(seen))
        left[0].stop()


async def test_a_machine_that_dies_is_missed(any_server: RedisServer) -> None:
    """It stays in the list, silent, and `idagg status` fails for that; one that is started in its place takes
    its place in the list, and takes none of another's on the same host."""
    tuned = {"idagg.run.fleet.PUBLISH_S": 0.5, "idagg.read.fleet.SILENT_S": 2}
    flags = ("--redis-url", any_server.url, "--admin-port", str(free_port()))
    with (
        Serving("--redis-url", any_server.url, tuned=tuned) as first,
        Serving(*flags, tuned=tuned, without=("--admin-port",)) as second,
    ):
        await eventually(lambda: status(first), lambda seen: len(machines(seen)) == 2)
        dead = (await status(second))["machine"]
        second.kill()
        seen = await eventually(
            lambda: status(first),
            lambda seen: [one["id"] for one in seen["machines"] if one["silent_since"]] == [dead],
        )
        assert len(machines(seen)) == 2
        asked = (
            sys.executable,
            "-m",
            "idagg",
            "status",
            "--admin-url",
            f"http://127.0.0.1:{first.admin_port}",
        )
        done = await eventually(
            lambda: asyncio.to_thread(
                subprocess.run, asked, capture_output=True, text=True, timeout=60, check=False
            ),
            lambda done: "counting:     1 of 2 machines, 1 silent\n" in done.stdout,
        )
        assert done.returncode == 1
        found = re.search(r": silent since (\S+), for ", done.stdout)
        assert found
        # Each answer reckons it anew, of ages in tenths of a second.
        assert abs(epoch_s(found[1]) - epoch_s(seen["machines"][1]["silent_since"])) < 2
        await asyncio.to_thread(second.start)
        own = {(await status(serving))["machine"] for serving in (first, second)}
        seen = await eventually(lambda: status(first), lambda seen: dead not in machines(seen))
        await eventually(lambda: status(first), lambda seen: machines(seen) == own)
        second.stop()
        first.stop()


async def test_a_killed_worker_is_shown(any_server: RedisServer) -> None:
    """In the status and in the log's words, before it runs again."""
    tuned = {f"idagg.run.restart.{name}": 30 for name in ("YOUNG_S", "FIRST_DELAY_S", "LONGEST_DELAY_S")}
    with Serving("--redis-url", any_server.url, tuned=tuned, window=long_window()) as serving:
        victim = serving.workers()[0]
        os.kill(victim, signal.SIGKILL)
        await eventually(
            lambda: status(serving),
            lambda seen: (
                any("died (SIGKILL)" in line["text"] for line in seen["recent"])
                and victim not in {worker["pid"] for worker in seen["machines"][0]["workers"]}
            ),
        )
        # A worker's own lines come with its heartbeats: here that of a store that keeps nothing.
        await eventually(
            lambda: status(serving),
            lambda seen: any(line["process"] in ("worker-0", "worker-1") for line in seen["recent"]),
        )
        serving.stop()


async def test_a_store_that_is_away(any_server: RedisServer) -> None:
    """The others are shown as they were seen last, and it is said since when; it ends with the outage."""
    flags = ("--redis-url", any_server.url)
    with Serving(*flags) as first, Serving(*flags) as second:
        before = await eventually(
            lambda: status(first), lambda seen: len(machines(seen)) == 2 and not seen["stale"]
        )
        any_server.freeze()
        try:
            stale = await eventually(lambda: status(first), lambda seen: seen["stale"])
            assert machines(stale) == machines(before)
            assert stale["stale"]["text"]
            assert before["now"] <= stale["now"]
        finally:
            any_server.thaw()
        await eventually(lambda: status(first), lambda seen: not seen["stale"])
        first.stop()
        second.stop()


async def test_listeners_do_not_delay_a_stop(any_server: RedisServer) -> None:
    """Their streams end properly."""
    with Serving("--redis-url", any_server.url) as serving:
        wire = await connect(serving.admin_port)
        await wire.send(b"GET /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        answer = await wire.answer()
        assert answer is not None
        assert answer.headers["Content-Type"] == "text/event-stream"
        await asyncio.to_thread(serving.stop)  # nobody is killed, as too slow, for that
        said = b""
        async with asyncio.timeout(LIMIT_S):
            while data := await asyncio.get_running_loop().sock_recv(wire.socket, 65_536):
                said += data
        assert said.endswith(b"0\r\n\r\n")  # an end, and no cut: an event ends otherwise
        wire.close()
