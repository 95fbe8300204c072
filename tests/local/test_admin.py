"""Who may read the admin listener, and how it refuses."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import select
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web

from idagg.errors import StoreAwayError
from idagg.run import http_server
from idagg.run.access import Access, is_token, name_of, token_of
from idagg.run.http_server import HttpServer
from idagg.settings import Settings
from kit.waiting import LIMIT_S, eventually, until
from kit.wire import Answer, Wire, connect

TOKEN, NEXT = "a" * 16, "b" * 16


def settings(**given: Any) -> Settings:
    return Settings(state_dir=Path("/s"), **given)


async def fail(request: web.Request) -> web.Response:
    raise RuntimeError("secret of the inside")


async def away(request: web.Request) -> web.Response:
    raise StoreAwayError("Redis at h:1 cannot be reached: connection refused")


async def fine(request: web.Request) -> web.Response:
    return web.Response(text="fine")


async def large(request: web.Request) -> web.Response:
    return web.Response(body=b"x" * 3_000_000)


ROUTES = [
    web.get(path, fine) for path in ("/", "/metrics", "/livez", "/readyz", "/api/v1/x", "/openapi.json")
]
ROUTES += [web.get("/api/v1/fail", fail), web.get("/api/v1/away", away), web.get("/api/v1/large", large)]


@dataclasses.dataclass
class Admin:
    """An admin listener whose settings a test changes."""

    settings: Settings
    port: int = 0

    async def ask(
        self,
        path: str,
        fields: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        host: str = "127.0.0.1",
    ) -> Answer:
        wire = await connect(self.port)
        head = "".join(f"{name}: {value}\r\n" for name, value in {"Host": host, **(fields or {})}.items())
        try:
            await wire.send(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode())
            answer = await wire.answer(bodiless=method == "HEAD")
        finally:
            wire.close()
        assert answer is not None
        return answer


@pytest.fixture
async def admin() -> AsyncIterator[Admin]:
    admin = Admin(settings())
    server = HttpServer(ROUTES, [Access(lambda: admin.settings).middleware])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        admin.port = listening.getsockname()[1]
        await server.start(listening)
        yield admin
        await server.close()


def problem(answer: Answer, status: int) -> dict[str, Any]:
    """The answer's problem details, which are whole."""
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json")
    assert answer.headers["Cache-Control"] == "no-store"
    found = cast(dict[str, Any], json.loads(answer.body))
    assert found["status"] == status
    assert found.keys() >= {"type", "title", "detail"}
    assert "Traceback" not in answer.body.decode()
    return found


def basic(password: str, user: str = "") -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_a_token_is_needed_where_there_is_one(admin: Admin) -> None:
    """Everywhere but for health, and for /metrics where the settings want it."""
    assert (await admin.ask("/api/v1/x")).status == 200
    admin.settings = settings(admin_token=TOKEN)  # as by a reload
    for path in ("/", "/api/v1/x", "/openapi.json", "/nothing"):
        answer = await admin.ask(path)
        assert "Authorization: Bearer" in problem(answer, 401)["detail"]
        assert answer.headers.get_all("WWW-Authenticate") == [
            'Bearer realm="idagg"',
            'Basic realm="idagg", charset="UTF-8"',
        ]
        assert TOKEN not in answer.body.decode()
    for path in ("/livez", "/readyz", "/metrics"):
        assert (await admin.ask(path)).status == 200
    admin.settings = settings(admin_token=TOKEN, admin_metrics="token")
    problem(await admin.ask("/metrics"), 401)
    assert (await admin.ask("/metrics", bearer(TOKEN))).status == 200
    assert (await admin.ask("/livez")).status == 200


@pytest.mark.parametrize(
    "fields",
    [
        bearer(NEXT),
        bearer(TOKEN),
        {"Authorization": f"bearer   {TOKEN} "},
        basic(TOKEN),
        basic(NEXT, "anybody"),
        basic(TOKEN, "ü"),
    ],
)
async def test_right_tokens(admin: Admin, fields: dict[str, str]) -> None:
    """As Bearer, and as the password of Basic; while one is replaced, both are right."""
    admin.settings = settings(admin_token=f"{NEXT},{TOKEN}")
    assert (await admin.ask("/api/v1/x", fields)).status == 200


@pytest.mark.parametrize(
    "authorization",
    [
        *("", "Bearer", "Bearer ", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}a", f"Bearer {NEXT},{TOKEN}"),
        *(f"Token {TOKEN}", TOKEN, f"Basic {TOKEN}", "Basic !", "Basic /w==", "Bearer \xff"),
        basic("x", TOKEN)["Authorization"],
        f"Digest username={TOKEN}",
    ],
)
async def test_wrong_tokens(admin: Admin, authorization: str) -> None:
    admin.settings = settings(admin_token=f"{NEXT},{TOKEN}")
    problem(await admin.ask("/api/v1/x", {"Authorization": authorization}), 401)


async def test_a_token_that_is_not_utf_8(admin: Admin) -> None:
    admin.settings = settings(admin_token=TOKEN)
    wire = await connect(admin.port)
    await wire.send(b"GET /api/v1/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \xff\r\n\r\n")
    answer = await wire.answer()
    wire.close()
    assert answer is not None
    problem(answer, 401)


async def test_two_authorizations(admin: Admin) -> None:
    admin.settings = settings(admin_token=TOKEN)
    both = {"Authorization": f"Bearer {TOKEN}", "authorization": "Bearer x"}
    problem(await admin.ask("/api/v1/x", both), 401)


@pytest.mark.parametrize("name", ["token", "access_token", "Authorization", "api%5Fkey"])
async def test_a_token_in_the_query(admin: Admin, name: str) -> None:
    """It is refused even where it is right, or not needed: logs and histories keep queries."""
    for given in (settings(), settings(admin_token=TOKEN)):
        admin.settings = given
        found = problem(await admin.ask(f"/api/v1/x?{name}={TOKEN}", bearer(TOKEN)), 400)
        assert found["detail"].startswith("a token does not belong in a query")
        assert TOKEN not in str(found)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("10.1.2.3:80", 200),
        ("[::1]:8001", 200),
        ("localhost:8001", 200),
        ("LocalHost.", 200),
        ("machine", 200),
        ("machine.example", 200),
        ("idagg.example:8001", 200),
        ("admin.internal", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("x.idagg.example", 403),
        ("", 400),
        ("a@127.0.0.1", 400),
        ("127.0.0.1:99999", 400),
        ("127.0.0.1/x", 400),
        ("[::1", 400),
    ],
)
async def test_names(admin: Admin, host: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site whose name was made to point here (DNS rebinding) reads nothing by its visitors' browsers."""
    # What name servers say of this machine may be something else the next time.
    monkeypatch.setattr(socket, "gethostname", lambda: "machine")
    monkeypatch.setattr(socket, "getfqdn", {"machine": "machine.example"}.get)
    admin.settings = settings(
        admin_host="admin.internal", admin_open=True, admin_name=("idagg.example", "Other.Example")
    )
    for path in ("/", "/metrics", "/api/v1/x", "/openapi.json"):
        answer = await admin.ask(path, host=host)
        assert answer.status == status
        if status != 200:
            problem(answer, status)
    assert (await admin.ask("/readyz", host=host)).status == 200


async def test_a_name_is_judged_before_a_token(admin: Admin) -> None:
    admin.settings = settings(admin_token=TOKEN)
    problem(await admin.ask("/api/v1/x", bearer(TOKEN), host="evil.example"), 403)


@pytest.mark.parametrize("fields", ["", "Host: localhost\r\nHost: a\r\n"])
async def test_no_host(admin: Admin, fields: str) -> None:
    wire = await connect(admin.port)
    await wire.send(f"GET /api/v1/x HTTP/1.1\r\n{fields}\r\n".encode())
    answer = await wire.answer()
    wire.close()
    assert answer is not None
    problem(answer, 400)


async def test_what_is_not_there(admin: Admin) -> None:
    problem(await admin.ask("/api/v1/nothing"), 404)
    for method in ("POST", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS"):
        answer = await admin.ask("/api/v1/x", method=method)
        assert "GET, HEAD" in problem(answer, 405)["detail"]
        assert answer.headers["Allow"] == "GET, HEAD"
    assert (await admin.ask("/api/v1/x", method="HEAD")).status == 200


async def test_the_store_is_away(admin: Admin) -> None:
    answer = await admin.ask("/api/v1/away")
    assert problem(answer, 503)["detail"] == "Redis at h:1 cannot be reached: connection refused"
    assert answer.headers["Retry-After"] == "5"


async def test_a_failure_of_ours(admin: Admin, caplog: pytest.LogCaptureFixture) -> None:
    """It is told in the log, and not to the client."""
    answer = await admin.ask("/api/v1/fail")
    problem(answer, 500)
    assert b"inside" not in answer.body
    assert "secret of the inside" in caplog.text
    caplog.clear()


async def test_fields_of_every_answer(admin: Admin) -> None:
    """What a browser may do with it, and nothing about the libraries."""
    for path in ("/", "/livez", "/nothing"):
        headers = (await admin.ask(path)).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Server"] == "idagg"
        assert "Access-Control-Allow-Origin" not in headers


async def test_connections_are_bounded(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(http_server, "CLOSE_S", LIMIT_S)  # the time of one too many to ask
    held = [await connect(admin.port) for _ in range(2)]
    for wire in held:
        await wire.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = await wire.answer()
        assert answer is not None
    one_more = await admin.ask("/")
    assert (one_more.status, one_more.headers["Retry-After"]) == (503, "5")
    held.pop().close()
    await eventually(lambda: admin.ask("/"), lambda answer: answer.status == 200)
    held.pop().close()


async def test_a_client_that_does_not_read(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection ends, and what waits for it is dropped; others are served meanwhile."""
    answer = await admin.ask("/api/v1/large")
    assert (answer.status, len(answer.body)) == (200, 3_000_000)
    monkeypatch.setattr(http_server, "ANSWER_S", 0.3)
    wire = Wire()
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await asyncio.get_running_loop().sock_connect(wire.socket, ("127.0.0.1", admin.port))
    await wire.send(b"GET /api/v1/large HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await until(lambda: bool(select.select([wire.socket], [], [], 0)[0]))  # its answer has begun
    assert (await admin.ask("/")).status == 200
    monkeypatch.setattr(http_server, "CLOSE_S", LIMIT_S)  # the time of one too many to ask
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 1)  # until that of the client has ended
    await eventually(lambda: admin.ask("/"), lambda answer: answer.status == 200)
    assert await wire.answer() is None
    wire.close()


@pytest.mark.parametrize(
    ("field", "token"),
    [("Bearer x", "x"), ("Basic " + base64.b64encode(b"u:a:b").decode(), "a:b"), ("Bearer", ""), ("x", None)],
)
def test_token_of(field: str, token: str | None) -> None:
    assert token_of(field) == token


def test_every_token_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time tells not even which of them is right."""
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare)
    assert is_token("a", "a,b,c")
    assert compared == [b"a", b"b", b"c"]


def test_name_of() -> None:
    assert name_of("A.example.:80") == "a.example"
    assert name_of("[::1]:1") == "::1"
