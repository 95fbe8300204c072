"""What comes from the clients that people have: browsers, Java, curl."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from kit.proxy import Proxy
from kit.servers import free_port
from kit.serving import PATIENT, Serving
from kit.waiting import eventually
from kit.wire import ids

CHROMIUM = [
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--no-proxy-server", "--disable-extensions"),
]
# What a page does, as the body of an async function that returns what the page could see.
COUNT = """
    const answer = await fetch(`${base}?id=${ids[0]}`, {keepalive: true});
    return [answer.status, await answer.text()];
"""
BULK = """
    const answer = await fetch(base, {
        method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(ids),
    });
    return [answer.status, await answer.text()];
"""
# Neither asks beforehand, nor reads the answer.
BEACON = """
    return [navigator.sendBeacon(base, ids.join("\\n"))];
"""
JAVA = """
import java.net.URI;
import java.net.http.*;

class Client {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int index = 1; index < arguments.length; index++) {
            URI uri = URI.create(arguments[0] + "?id=" + arguments[index]);
            HttpResponse<String> answer =
                client.send(HttpRequest.newBuilder(uri).build(), HttpResponse.BodyHandlers.ofString());
            System.out.println(answer.version() + " " + answer.statusCode() + " " + answer.body());
        }
    }
}
"""


@pytest.fixture
def serving() -> Iterator[Serving]:
    with Serving(*PATIENT, window=1) as serving:
        yield serving


@pytest.fixture(scope="module")
def shared() -> Iterator[Serving]:
    """One for tests that ask it nothing but for counts, and wait for theirs before they end."""
    with Serving(*PATIENT, window=1) as serving:
        yield serving


@pytest.fixture
def before(shared: Serving) -> int:
    """The unique ids of earlier tests. Their windows are delivered: an id that comes again counts again."""
    return sum(shared.counts().values())


@contextlib.asynccontextmanager
async def page(
    port: int, script: str, target: str, numbers: list[int]
) -> AsyncIterator[asyncio.Future[object]]:
    """A site at ``port`` with a page that runs ``script``; yields what the page tells of it."""
    told: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    html = f"""<!doctype html><link rel="icon" href="data:,"><script>
        (async () => {{
            const base = {json.dumps(target)}, ids = {json.dumps(numbers)};
            let told;
            try {{ told = await (async () => {{ {script} }})(); }} catch (error) {{ told = [error.name]; }}
            await fetch("/told", {{method: "POST", body: JSON.stringify(told)}});
        }})();
    </script>"""

    async def show(request: web.Request) -> web.Response:
        return web.Response(text=html, content_type="text/html")

    async def tell(request: web.Request) -> web.Response:
        told.set_result(json.loads(await request.text()))
        return web.Response()

    app = web.Application()
    app.add_routes([web.get("/", show), web.post("/told", tell)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield told
    finally:
        await runner.cleanup()


async def nothing() -> None: ...


async def browse(
    serving: Serving,
    port: int,
    script: str,
    numbers: list[int],
    stay: Callable[[], Awaitable[object]] = nothing,
) -> object:
    """What a page of the site at ``port`` sees that does this in Chromium, which stays until ``stay`` is
    done."""
    target = f"http://127.0.0.1:{serving.port}/api/verve/accept"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        async with page(port, script, target, numbers) as told:
            browser = await asyncio.create_subprocess_exec(
                *(*CHROMIUM, f"--user-data-dir={folder}", f"http://127.0.0.1:{port}/"),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"HOME": folder},
                start_new_session=True,
            )
            try:
                async with asyncio.timeout(90):
                    seen = await told
                    await stay()
                    return seen
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(browser.pid, signal.SIGKILL)  # with the children of its own session
                await browser.wait()


async def total(serving: Serving) -> int:
    """The unique ids of all windows until now."""
    return sum((await serving.delivered()).values())


@pytest.mark.parametrize(("script", "count"), [(COUNT, 1), (BULK, 3)], ids=["GET", "POST of JSON"])
@pytest.mark.parametrize("allowed", ["the origin", "any"])
async def test_a_page_of_an_allowed_origin_reads_the_answer(script: str, count: int, allowed: str) -> None:
    """``--cors-origin`` names the origin of the pages, or all; a POST of JSON is asked for beforehand."""
    port = free_port()
    origin = f"http://127.0.0.1:{port}" if allowed == "the origin" else "*"
    with Serving("--cors-origin", origin, *PATIENT, window=1) as serving:
        assert await browse(serving, port, script, [next(ids) for _ in range(3)]) == [200, "ok"]
        assert await total(serving) == count


@pytest.mark.parametrize("flags", [[], ["--cors-origin", "https://shop.example"]], ids=["none", "another"])
async def test_a_page_of_another_origin_counts_and_reads_nothing(flags: list[str]) -> None:
    """The browser keeps the answer from it, and does not send what it has to ask for beforehand."""
    with Serving(*flags, *PATIENT, window=1) as serving:
        assert await browse(serving, free_port(), COUNT, [next(ids)]) == ["TypeError"]
        assert await browse(serving, free_port(), BULK, [next(ids)]) == ["TypeError"]
        assert await total(serving) == 1


async def test_a_beacon_counts_many(serving: Serving) -> None:
    """A page that is being left sends its ids, a line each, whatever its origin."""
    arrived = functools.partial(
        eventually, serving.figures, lambda figures: figures["idagg_requests_total{200}"] > 0
    )
    assert await browse(serving, free_port(), BEACON, [next(ids) for _ in range(3)], arrived) == [True]
    assert await total(serving) == 3


async def test_java_keeps_its_connection(serving: Serving, tmp_path: Path) -> None:
    """Java's HttpClient offers HTTP/2 with its requests; all are answered, on the fast path."""
    source = tmp_path / "Client.java"
    source.write_text(JAVA)
    numbers = [str(next(ids)) for _ in range(200)]
    async with Proxy(serving.port) as proxy:
        url = f"http://127.0.0.1:{proxy.port}/api/verve/accept"
        said = await output("java", str(source), url, *numbers)
        assert said.splitlines() == ["HTTP_1_1 200 ok"] * len(numbers)
        assert proxy.accepted == 1
    assert await total(serving) == len(numbers)
    assert await serving.handed_off() == 0


async def output(*command: str, code: Callable[[int], bool] = lambda code: code == 0) -> str:
    """What a command prints that ends as it should."""
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        async with asyncio.timeout(90):
            said, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    assert code(process.returncode), errors
    return said.decode()


async def curl(serving: Serving, *arguments: str, path: str = "/api/verve/accept") -> str:
    """The body and the status, in a line, and how often it connected."""
    return await output(
        *("curl", "--silent", "--noproxy", "*", "--write-out", " %{http_version} %{response_code}"),
        *(*arguments, f"http://127.0.0.1:{serving.port}{path}"),
    )


LINES = ["-H", "Content-Type: text/plain"]


@pytest.mark.parametrize(
    ("arguments", "said", "count"),
    [
        pytest.param(["-G", "--data-urlencode", "id=5"], "ok 1.1 200", 1, id="GET"),
        pytest.param(
            ["-G", "-d", "id=5", "--data-urlencode", "endpoint=http://a.invalid/x?y=1&z=2"],
            "ok 1.1 200",
            1,
            id="endpoint",
        ),
        pytest.param(["--http1.0", "-G", "-d", "id=5"], "ok 1.1 200", 1, id="HTTP/1.0"),
        pytest.param(["--http2", "-G", "-d", "id=5"], "ok 1.1 200", 1, id="HTTP/2 if possible"),
        pytest.param([*LINES, "--data-binary", "5\n6\n7\n"], "ok 1.1 200", 3, id="lines"),
        pytest.param([*LINES, "-H", "Transfer-Encoding: chunked", "-d", "5"], "ok 1.1 200", 1, id="chunks"),
        pytest.param(["--json", '[5, "6"]'], "ok 1.1 200", 2, id="JSON"),
        pytest.param(["-X", "PUT", "-G", "-d", "id=5"], "failed 1.1 405", 0, id="PUT"),
        pytest.param(["--head", "--output", "/dev/null"], " 1.1 405", 0, id="HEAD"),
    ],
)
async def test_curl_gets_its_answer(
    shared: Serving, before: int, arguments: list[str], said: str, count: int
) -> None:
    """By the options that its manual suggests."""
    assert await curl(shared, *arguments) == said
    assert await total(shared) == before + count


async def test_curl_need_not_wait_to_send_a_large_body(shared: Serving, before: int, tmp_path: Path) -> None:
    """It asks for 100 (Continue) and would wait for it, here for longer than it may take."""
    body = tmp_path / "ids"
    body.write_text("".join(f"{next(ids)}\n" for _ in range(4096)))
    asks = ["-H", "Expect: 100-continue", "--expect100-timeout", "600"]
    assert await curl(shared, *LINES, *asks, "--data-binary", f"@{body}") == "ok 1.1 200"
    assert await total(shared) == before + 4096


async def test_a_client_that_speaks_only_http_2_hears_at_once_that_it_is_wrong(shared: Serving) -> None:
    """It gets an answer that it cannot read, not silence."""
    await output(
        *("curl", "--silent", "--noproxy", "*", "--http2-prior-knowledge", "--max-time", "60"),
        f"http://127.0.0.1:{shared.port}/api/verve/accept?id=5",
        code=lambda code: code not in (0, 28),  # 28: it had to give up
    )
