"""The status page of a real idagg, in Chromium."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from idagg.read.page.words import number
from kit.browser import tab
from kit.faults import worker
from kit.servers import RabbitServer
from kit.serving import PATIENT, Serving, in_one_window, send
from kit.waiting import eventually
from kit.wire import ids

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture
def serving() -> Iterator[Serving]:
    with Serving(*PATIENT, window=2) as serving:
        yield serving


def url(serving: Serving) -> str:
    return f"http://127.0.0.1:{serving.admin_port}/"


async def asked(serving: Serving, path: str) -> Any:
    """Once the store answers, which may stand still for a moment."""
    answer = await eventually(lambda: serving.ask(path, admin=True), lambda answer: answer.status != 503)
    assert answer.status == 200
    return json.loads(answer.body)


async def rows(page: Page) -> dict[str, list[str]]:
    """The table of windows, by their starts."""
    found: list[list[str]] = await page.locator("#readout + details tbody tr").evaluate_all(
        "(rows) => rows.map((row) => [...row.children].map((cell) => cell.textContent))"
    )
    return {start: cells for start, *cells in found}


async def test_its_numbers_are_those_of_the_api(browser: Browser, serving: Serving) -> None:
    """With a script and without: the windows, the last one, the one that is open, the leader, the workers."""
    await serving.ready()
    await in_one_window(serving, [next(ids) for _ in range(1234)])
    await serving.delivered()
    async with (
        tab(browser, url(serving)) as live,
        tab(browser, url(serving), java_script_enabled=False) as still,
    ):
        await send(serving, [next(ids) for _ in range(56)])
        await expect(live.locator("#readout + details")).to_contain_text(number(1234))

        async def differences(page: Page) -> list[object]:
            """Windows that both show are the same; who leads and who works may have changed just now."""
            answer = await asked(serving, "/api/v1/windows?limit=60")
            windows = {
                window["window_start"][11:19]: [
                    number(window[name]) for name in ("unique_ids", "estimate", "hits")
                ]
                for window in answer["windows"]
            }
            status = await asked(serving, "/api/v1/status")
            if page is still:
                await page.reload()
            shown = await rows(page)
            same = shown.keys() & windows.keys()
            assert {start: shown[start][:3] for start in same} == {start: windows[start] for start in same}
            leader = status["leader"] or {"worker": None, "name": None, "epoch": None}
            line = f"Leader: worker {leader['worker']} of {leader['name']}, epoch {leader['epoch']}."
            text = " ".join((await page.locator("body").text_content() or "").split())
            pids = [str(worker["pid"]) for machine in status["machines"] for worker in machine["workers"]]
            theirs = await page.locator(".machine td:nth-child(3)").all_inner_texts()
            return [*([] if same else ["windows"]), *([] if line in text else [line])] + (
                [] if theirs == pids else [theirs, pids]
            )

        for page in (live, still):
            await eventually(functools.partial(differences, page), lambda found: found == [])


async def test_a_killed_worker_is_shown(browser: Browser, serving: Serving) -> None:
    """And so is its successor."""
    await serving.ready()
    async with tab(browser, url(serving)) as page:
        await expect(page.locator("body")).to_have_attribute("data-stream", "live")
        await expect(page.locator(".verdict h2")).to_have_text("Counting")
        pid = worker(serving, 1)
        os.kill(pid, signal.SIGKILL)
        await expect(page.locator(".log")).to_contain_text("worker-1")
        await serving.replaces(pid)
        await expect(page.locator(".machine table")).to_contain_text(str(serving.workers()[-1]))
        await expect(page.locator(".verdict h2")).to_have_text("Counting")


async def test_a_stopped_broker_is_shown(browser: Browser, rabbit: RabbitServer, rabbit_queue: str) -> None:
    """With the log's words; and its return."""
    # RabbitMQ 3.10 finds no leader for a quorum queue that was seconds old when it was killed.
    queue = ("--amqp-queue", rabbit_queue, "--amqp-queue-type", "classic")
    flags = ("--amqp-url", rabbit.url, *queue)
    with Serving(*flags, window=2) as serving:
        await serving.ready()
        async with tab(browser, url(serving)) as page:
            await expect(page.locator(".plot tbody, #readout + details tbody")).to_contain_text(
                "RabbitMQ after"
            )
            rabbit.kill()
            try:
                await expect(page.locator(".verdict .reasons")).to_contain_text("broker RabbitMQ")
                await expect(page.locator(".verdict h2")).to_have_text("Counting, with trouble")
            finally:
                await asyncio.to_thread(rabbit.start)
            await expect(page.locator(".verdict h2")).to_have_text("Counting")


async def test_a_store_that_is_away_is_shown(browser: Browser, serving: Serving) -> None:
    """The page says that nothing is counted, and shows the windows that it last knew.

    A worker without requests notices when its lease is not renewed: 1.7 s and 5 s later.
    """
    await serving.ready()
    await in_one_window(serving, [next(ids) for _ in range(77)])
    await serving.delivered()
    async with tab(browser, url(serving)) as page:
        await expect(page.locator("#readout + details")).to_contain_text("77")
        os.kill(serving.store(), signal.SIGSTOP)
        try:
            hit = asyncio.create_task(serving.hit())
            await expect(page.locator(".verdict h2")).to_have_text("Not counting")
            assert await hit == 503
            assert any(cells[0] == "77" for cells in (await rows(page)).values())
        finally:
            os.kill(serving.store(), signal.SIGCONT)


async def test_the_browser_asks_for_the_token(browser: Browser) -> None:
    """With the token as the password of its own prompt, page and stream are served."""
    with Serving("--admin-token", "s3cret-and-long-enough") as serving:
        credentials = {"username": "", "password": "s3cret-and-long-enough"}
        async with tab(browser, url(serving), http_credentials=credentials) as page:
            await expect(page.locator("body")).to_have_attribute("data-stream", "live")
        for path in ("/", "/page/view", "/page/events"):
            answer = await serving.ask(path, admin=True)
            assert answer.status == 401
            assert "Basic" in " ".join(answer.headers.get_all("WWW-Authenticate", []))


@pytest.mark.slow
async def test_open_pages_come_back_after_a_reload(browser: Browser) -> None:
    """By themselves: they show the new workers."""
    with Serving(tuned={"idagg.run.restart.YOUNG_S": 0.0}, window=2) as serving:
        await serving.ready()
        async with tab(browser, url(serving), may_say="ERR_") as page:
            await expect(page.locator("body")).to_have_attribute("data-stream", "live")
            before = serving.workers()
            command = [sys.executable, "-m", "idagg", "reload", "--pid", str(serving.pid)]
            done = await asyncio.to_thread(
                subprocess.run, command, capture_output=True, timeout=60, check=False
            )
            assert (done.returncode, done.stderr) == (0, b"")
            assert not set(before) & set(serving.workers())
            for pid in serving.workers():
                await expect(page.locator(".machine table")).to_contain_text(str(pid), timeout=30_000)
            await expect(page.locator("body")).to_have_attribute("data-stream", "live")


async def test_a_stop_ends_the_streams_of_open_pages(browser: Browser, serving: Serving) -> None:
    await serving.ready()
    async with tab(browser, url(serving), may_say="ERR_") as page:
        await expect(page.locator("body")).to_have_attribute("data-stream", "live")
        await asyncio.to_thread(serving.stop)
        await expect(page.locator("#lost")).to_contain_text("Nothing heard from idagg since")
