"""Behind what stands before idagg where it is deployed: Varnish, HAProxy, nginx."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from idagg.window import iso
from kit import servers
from kit.balancers import HAProxy, Nginx, Varnish
from kit.serving import PATIENT, Serving, send
from kit.waiting import next_window, until
from kit.wire import connect, ids, request

REQUESTS = 2000


@pytest.fixture
def serving() -> Iterator[Serving]:
    with Serving(*PATIENT, window=1) as serving:
        yield serving


@pytest.fixture(scope="module")
def shared() -> Iterator[Serving]:
    """One for tests that leave it as it is."""
    with Serving(*PATIENT) as serving:
        yield serving


async def status(port: int, number: int) -> int:
    wire = await connect(port)
    try:
        await wire.send(request(number))
        answer = await wire.answer()
    finally:
        wire.close()
    assert answer is not None
    assert answer.body == (b"ok" if answer.status == 200 else b"failed")
    return answer.status


async def traffic(serving: Serving, port: int) -> None:
    """Send ids, all distinct, some at once; every one is counted."""
    before = sum((await serving.delivered()).values())
    await send(serving, [next(ids) for _ in range(REQUESTS)], port=port)
    assert sum((await serving.delivered()).values()) == before + REQUESTS


async def test_a_cache_answers_for_no_id(shared: Serving) -> None:
    """Varnish by default passes on the same id in each window, and it is counted in each."""
    number = next(ids)
    with Varnish(shared.port) as varnish:
        expected = {}
        for _ in range(2):
            start = 0
            while time.time() >= start + shared.window:  # until the machine is not too slow for one window
                start = await next_window(shared.window)
                for _ in range(3):
                    assert await status(varnish.port, number) == 200
            expected[iso(start)] = 1
        counts = await shared.delivered()
        assert {window: counts[window] for window in expected} == expected


@pytest.mark.parametrize(
    "check",
    [
        ["option httpchk"],
        ["option httpchk OPTIONS /livez"],
        ["option httpchk OPTIONS /readyz"],
        ["option httpchk HEAD /readyz"],
        ["option httpchk GET /readyz"],
        ["option httpchk", "http-check send meth GET uri /readyz ver HTTP/1.1 hdr Host idagg"],
    ],
    ids=lambda check: check[-1],
)
async def test_haproxy_finds_a_server_up(shared: Serving, check: list[str]) -> None:
    """Its checks are HTTP/1.0 without a Host and, unless they say otherwise, OPTIONS."""
    with HAProxy(shared.port, *check) as haproxy:
        await until(lambda: haproxy.last_check() == "L7OK")
        await until(lambda: haproxy.state() == "UP")


async def test_haproxy_passes_traffic_on(serving: Serving) -> None:
    """Requests of many clients share its connections to idagg."""
    with HAProxy(serving.port, "option httpchk OPTIONS /readyz", "http-reuse always") as haproxy:
        await until(lambda: haproxy.last_check() == "L7OK")
        await traffic(serving, haproxy.port)
        await until(lambda: haproxy.state() == "UP")  # one check that was late makes it another


async def test_haproxy_leaves_a_server_whose_store_is_away() -> None:
    """It is down while ``/readyz`` says 503, and up again soon after the store is back."""
    with (
        servers.RedisServer() as store,
        Serving("--redis-url", store.url, *PATIENT, window=1) as serving,
        HAProxy(serving.port, "option httpchk OPTIONS /readyz") as haproxy,
    ):
        await until(lambda: haproxy.last_check() == "L7OK")
        assert await status(haproxy.port, next(ids)) == 200
        store.stop()
        await until(lambda: haproxy.state() == "DOWN")
        store.start()
        await until(lambda: haproxy.state() == "UP")
        assert await status(haproxy.port, next(ids)) == 200


async def test_nginx_passes_traffic_on_over_kept_connections(serving: Serving) -> None:
    """HTTP/1.1 to the upstream, as its documentation recommends; the fast path serves all of it."""
    with Nginx(serving.port, "proxy_http_version 1.1;", 'proxy_set_header Connection "";') as nginx:
        await traffic(serving, nginx.port)
        assert await serving.handed_off() == 0


async def test_nginx_passes_traffic_on_as_it_does_by_default(serving: Serving) -> None:
    """HTTP/1.0 and a new connection for each request; the fast path serves all of it."""
    with Nginx(serving.port) as nginx:
        await traffic(serving, nginx.port)
        assert await serving.handed_off() == 0
