"""The process that calls endpoints: it is there, replaced, and no worker's trouble."""

from __future__ import annotations

import os
import re
import resource
import signal
from pathlib import Path

import aiohttp

from kit.servers import RedisServer
from kit.serving import PATIENT, Serving
from kit.waiting import eventually, long_window, until


async def has_another(serving: Serving, victim: int) -> int:
    def found() -> int | None:
        try:
            last = serving.callback_process()
        except ValueError:  # there is none
            return None
        return last if last != victim else None

    return await until(found)


def oom_score(pid: int) -> str:
    return Path(f"/proc/{pid}/oom_score_adj").read_text()


def autogroup(pid: int) -> str:
    """Of the kernel, which may do without."""
    found = Path(f"/proc/{pid}/autogroup")
    return found.read_text() if found.exists() else "nice 19\n"


async def accepts(serving: Serving, query: str) -> int:
    url = f"http://127.0.0.1:{serving.port}/api/verve/accept?{query}"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status


async def verbose(serving: Serving) -> tuple[int, str]:
    url = f"http://127.0.0.1:{serving.admin_port}/readyz?verbose"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


async def test_it_takes_a_back_seat(any_server: RedisServer) -> None:
    """Its priority, memory and descriptors are bounded, and the kernel ends it first."""
    with Serving("--redis-url", any_server.url, window=long_window()) as serving:
        pid = serving.callback_process()
        await until(lambda: os.getpriority(os.PRIO_PROCESS, pid) == 19)
        await until(lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] < 1024)
        assert resource.prlimit(pid, resource.RLIMIT_DATA)[0] == 1 << 30
        assert oom_score(pid) == "500\n"
        assert autogroup(pid).endswith("nice 19\n")
        ours = os.getpriority(os.PRIO_PROCESS, serving.pid)
        assert all(os.getpriority(os.PRIO_PROCESS, worker) == ours < 19 for worker in serving.workers())
        serving.stop()


async def test_it_is_replaced(any_server: RedisServer) -> None:
    """Killed or hung, it has a successor, and we are ready meanwhile; a reload replaces it in silence.

    On a busy machine, at its niceness, one may also be killed that has not come to its first heartbeat.
    """
    tuned = {"idagg.run.callback_keeper.CALLBACKS_HUNG_S": 8}
    with Serving("--redis-url", any_server.url, tuned=tuned, window=long_window()) as serving:

        def each_death_is_told_with_its_cause() -> bool:
            hung = serving.said.count("the callback process (pid ")
            return serving.said.count("the callback process died") == 1 + hung

        workers = serving.workers()
        killed = serving.callback_process()
        os.kill(killed, signal.SIGKILL)
        hung = await has_another(serving, killed)
        # The log has a thread of its own, and the successor may be there before the line is.
        await until(lambda: "the callback process died (SIGKILL), starting it again in 0 s" in serving.said)
        await eventually(lambda: verbose(serving), lambda found: found[0] == 200)
        os.kill(hung, signal.SIGSTOP)
        await has_another(serving, hung)
        killing = f"the callback process (pid {hung}) has sent no heartbeat for 8 s, killing it"
        await until(lambda: killing in serving.said)
        assert serving.workers() == workers
        await until(each_death_is_told_with_its_cause)
        last = serving.callback_process()
        os.kill(serving.pid, signal.SIGHUP)
        await until(lambda: "all workers are replaced" in serving.said)
        await has_another(serving, last)
        await until(each_death_is_told_with_its_cause)
        serving.stop()


async def test_one_that_cannot_run(any_server: RedisServer) -> None:
    """It is started ever later, which /readyz?verbose tells; hits are counted all the same."""
    broken: dict[str, float | str] = {"idagg.run.callback_keeper.CALLBACK_MODULE": "idagg.nonsense"}
    with Serving("--redis-url", any_server.url, *PATIENT, tuned=broken, window=long_window()) as serving:
        told = r"the callback process died \(exit code 1\), starting it again in (\S+) s"
        delays = await until(lambda: found if len(found := re.findall(told, serving.said)) >= 3 else None)
        assert delays[:3] == ["0", "0.1", "0.2"]
        said = "callbacks: the callback process has died: no endpoint is called until it runs again"
        await eventually(lambda: verbose(serving), lambda found: said in found[1] and found[0] == 200)
        assert await accepts(serving, "id=1&endpoint=http://a.example/") == 200
        serving.stop()


async def test_callbacks_off(any_server: RedisServer) -> None:
    """Nobody is called, no endpoint is kept nor missed, and there is no process for it."""
    with Serving("--redis-url", any_server.url, "--callbacks", "off", *PATIENT, window=1) as serving:
        assert await accepts(serving, "id=1&endpoint=http://a.example/") == 200
        assert await accepts(serving, "id=2&endpoint=nonsense") == 400
        record = await until(lambda: [r for r in serving.records("window") if r["unique_ids"] == "1"])
        assert record[0]["hits"] == "1"
        assert serving.processes() - {serving.pid, *serving.workers()} == set()
        figures = await serving.figures()
        assert figures["idagg_endpoints_dropped_total"] == 0
        assert serving.records("callback") == []
        serving.stop()
