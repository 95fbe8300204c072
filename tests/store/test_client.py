from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Self
from unittest import mock

import pytest
import trustme

from idagg.accept.commit import GroupCommit
from idagg.errors import StoreAwayError, StoreRefusedError
from idagg.store.client import Client
from idagg.store.hits import HitStore
from idagg.tasks import end
from kit import servers
from kit.fakes import Batches
from kit.faults import store_client
from kit.oracle import open_hits
from kit.proxy import Proxy
from kit.waiting import LIMIT_S, long_window

TAG = "{t:0}"


def hits(link: Client, window_s: int = 3600) -> HitStore:
    return HitStore(link, namespace="t", window_s=window_s, exact_limit=1000)


async def total_hits(url: str) -> int:
    async with store_client(url) as client:
        return await open_hits(client, TAG)


async def test_a_batch_goes_in(store_server: servers.RedisServer) -> None:
    """A link counts, on either server, over a Unix socket."""
    link = Client(store_server.url)
    start = (await hits(link).add(1, [b"1", b"2", b"1"])).start_s
    await link.close()
    assert start % 3600 == 0
    assert await total_hits(store_server.url) == 3


async def test_password_and_database_are_heeded() -> None:
    """What the URL says of user, password and database is what happens, over TCP."""
    with servers.RedisServer(tcp=True, requirepass="s3cret") as server:
        link = Client(f"{server.tcp_url}/3")
        await hits(link).add(1, [b"1"])
        await link.close()
        third, first = (Client(server.tcp_url + number, timeout_s=LIMIT_S) for number in ("/3", ""))
        assert await third.command("DBSIZE") > 0
        assert await first.command("DBSIZE") == 0
        await third.close()
        await first.close()
        nobody = Client(f"redis://:wrong@127.0.0.1:{server.port}")
        with pytest.raises(StoreAwayError, match="refuses the password"):
            await hits(nobody).add(1, [b"1"])
        silent = Client(f"redis://127.0.0.1:{server.port}")
        with pytest.raises(StoreAwayError, match="wants a password") as error:
            await hits(silent).add(1, [b"1"])
        assert "s3cret" not in str(error.value)
        await nobody.close()
        await silent.close()


async def test_nothing_listens() -> None:
    """The sentence names the address."""
    port = servers.free_port()
    link = Client(f"redis://127.0.0.1:{port}/0")
    with pytest.raises(StoreAwayError, match=f"127.0.0.1:{port}"):
        await hits(link).add(1, [b"1"])


async def test_a_restarted_server_is_found_again(any_server: servers.RedisServer) -> None:
    """The command after the one that lost its connection makes a new one, scripts and all."""
    link = Client(any_server.url)
    store = hits(link)
    await store.add(1, [b"1"])
    any_server.restart()
    with pytest.raises(StoreAwayError):
        await store.add(2, [b"2"])
    await store.add(2, [b"2"])
    await link.close()


async def test_an_error_reply_leaves_the_connection_usable(any_server: servers.RedisServer) -> None:
    """A refusal is an answer like another."""
    link = Client(any_server.url)
    store = hits(link)
    await store.add(2, [b"1"])
    with pytest.raises(StoreRefusedError, match="STALE 2"):
        await store.add(1, [b"1"])
    await store.add(3, [b"1"])
    await link.close()


@pytest.mark.parametrize("kind", [Client, lambda url: Client(url, timeout_s=LIMIT_S)], ids=["hits", "flush"])
async def test_a_server_that_became_a_replica_is_left(
    any_server: servers.RedisServer, kind: Callable[[str], Client]
) -> None:
    """A name that leads to another server by now is only seen by who connects anew; the old one lives on."""
    with servers.RedisServer() as successor:
        async with Proxy(str(any_server.socket)) as proxy:
            scripts = kind(proxy.url)
            store = hits(scripts)
            await store.add(1, [b"1"])
            operator = Client(any_server.url, timeout_s=LIMIT_S)
            await operator.command("REPLICAOF", "127.0.0.1", "1")
            proxy.target = str(successor.socket)
            with pytest.raises(StoreAwayError, match="it is a replica"):
                await store.add(2, [b"2"])
            await store.add(2, [b"2"])
            assert await total_hits(successor.url) == 1
            await scripts.close()
            await operator.close()


@pytest.mark.parametrize("kind", [Client, lambda url: Client(url, timeout_s=LIMIT_S)], ids=["hits", "flush"])
async def test_another_protocol(kind: Callable[[str], Client]) -> None:
    """A web server's port, say: one sentence, as often as it is tried."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1") as web:
        port = web.sockets[0].getsockname()[1]
        scripts = kind(f"redis://127.0.0.1:{port}")
        for _ in range(2):
            with pytest.raises(StoreAwayError, match=f"127.0.0.1:{port} .* does not speak Redis' protocol"):
                async with asyncio.timeout(LIMIT_S):
                    await hits(scripts).add(1, [b"1"])
        await scripts.close()


async def test_a_cancelled_command_costs_the_connection(any_server: servers.RedisServer) -> None:
    """Nobody takes another's answer for its own: the next command has a new connection."""
    link = Client(any_server.url)
    store = hits(link)
    await store.add(1, [b"1"])
    any_server.freeze()
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await store.add(2, [b"2"])
    finally:
        any_server.thaw()
    again = await store.add(2, [b"2"])
    assert again.start_s % 3600 == 0
    await link.close()
    assert await total_hits(any_server.url) == 2


async def test_a_large_batch_comes_in_pieces_and_whole(any_server: servers.RedisServer) -> None:
    """The largest batch is one command."""
    link = Client(any_server.url)
    await hits(link).add(1, [b"%d" % n for n in range(4096)], [b"http://a/%d" % n for n in range(4096)])
    await link.close()
    assert await total_hits(any_server.url) == 4096


async def test_a_lost_reply_is_followed_by_a_no_op(any_server: servers.RedisServer) -> None:
    """The batch that was applied and whose reply was lost is sent again, counts once, and is answered ok."""

    class Caller:
        stored: asyncio.Future[bool]

        def answer(self, stored: bool) -> None:
            self.stored.set_result(stored)

    loop = asyncio.get_running_loop()
    async with Proxy(any_server.url.removeprefix("unix://")) as proxy:
        link = Client(proxy.url)
        commit = GroupCommit(hits(link), Batches(), deadline_s=LIMIT_S, max_batch=100, now=loop.time)
        running = asyncio.create_task(commit.run())
        client = Caller()
        for number in range(3):
            client.stored = loop.create_future()
            proxy.swallowed.clear()
            proxy.drop_replies = 1 if number else 0
            commit.add(client, b"7")
            assert await client.stored
            assert proxy.swallowed.is_set() == bool(number)
        commit.stop()
        await running
        await link.close()
    assert await total_hits(any_server.url) == 3


class Switch:
    """A proxy that keeps its client's connection, and lets another server answer from some command on."""

    def __init__(self, *sockets: str) -> None:
        self._sockets = sockets
        self.connections = 0
        self.chosen = 0

    async def __aenter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self._serving = asyncio.create_task(self._serve())
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._serving)
        self._listener.close()

    async def _serve(self) -> None:
        while True:
            client, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            self.connections += 1
            with client, contextlib.suppress(ConnectionError):  # a server that was killed
                await self._pass_on(client)

    async def _pass_on(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in self._sockets]
            for server, path in zip(servers, self._sockets, strict=True):
                server.setblocking(False)
                await loop.sock_connect(server, path)

            async def commands() -> None:
                while command := await loop.sock_recv(client, 65536):
                    await loop.sock_sendall(servers[self.chosen], command)

            async def replies(server: socket.socket) -> None:
                while reply := await loop.sock_recv(server, 65536):
                    await loop.sock_sendall(client, reply)

            passing = [asyncio.create_task(part) for part in (commands(), *map(replies, servers))]
            try:
                await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await end(*passing)


@pytest.mark.parametrize("loss", ["none", "switch", "flush", "lost tail"])
async def test_repeats_are_stored_again_where_the_store_lost_them(
    any_server: servers.RedisServer, loss: str
) -> None:
    """Each ok is for an id that the server has which answers now, on the old connection and on a new one."""
    loop = asyncio.get_running_loop()

    class Caller:
        def __init__(self) -> None:
            self.stored = loop.create_future()

        def answer(self, stored: bool) -> None:
            self.stored.set_result(stored)

    with servers.RedisServer() as other:
        async with Switch(str(any_server.socket), str(other.socket)) as switch:
            link = Client(switch.url)
            store = hits(link, window_s=long_window())
            commit = GroupCommit(store, Batches(), deadline_s=LIMIT_S, max_batch=100, now=loop.time)
            running = asyncio.create_task(commit.run())

            async def ask(*ids: bytes) -> None:
                clients = [Caller() for _ in ids]
                for client, canonical_id in zip(clients, ids, strict=True):
                    assert commit.add(client, canonical_id)
                for client in clients:
                    assert await client.stored

            async with store_client(any_server.url) as operator:
                await ask(b"1", b"2")
                await operator.command("SAVE")
                for _ in range(2):
                    await ask(b"5", b"6", b"7")
                assert commit.repeats.ids == {b"5", b"6", b"7"}
                if loss == "switch":
                    switch.chosen = 1
                elif loss == "flush":
                    await operator.command("FLUSHALL")
            if loss == "lost tail":
                any_server.kill()
                any_server.start()
            await ask(b"7", b"8", b"6")
            assert switch.connections == (2 if loss == "lost tail" else 1)
            async with store_client((other if loss == "switch" else any_server).url) as operator:
                (name,) = await operator.command("KEYS", "{t:0}:w:*:ids")
                found = set(await operator.command("SMEMBERS", name))
            assert found >= {b"6", b"7", b"8"}
            assert (b"5" in found) == (loss == "none")
            commit.stop()
            await running
            await link.close()


async def test_a_server_that_is_no_redis_is_told_of() -> None:
    """A peer that hangs up at once is a store that is away."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(LIMIT_S)
        link = Client(f"redis://127.0.0.1:{listener.getsockname()[1]}")
        adding = asyncio.create_task(hits(link).add(1, [b"1"]))
        peer, _ = await asyncio.to_thread(listener.accept)
        peer.close()
        with pytest.raises(StoreAwayError, match="cannot be reached"):
            await adding
        await link.close()


async def test_what_is_given_up_comes_before_what_is_sent_later(any_server: servers.RedisServer) -> None:
    """A bid whose caller is gone cannot reach the server behind the resignation; each gets its own answer."""
    client = Client(any_server.url, timeout_s=LIMIT_S)
    await client.command("SET", "lock", "0")
    connection = await client.command("CLIENT", "ID")
    any_server.freeze()
    try:
        given_up = asyncio.create_task(client.command("SET", "lock", "1"))
        await asyncio.sleep(0.05)
        await end(given_up)
        last = asyncio.create_task(client.command("GETSET", "lock", "2"))
        await asyncio.sleep(0.05)
    finally:
        any_server.thaw()
    async with asyncio.timeout(LIMIT_S):
        assert await last == b"1"
    assert await client.command("GET", "lock") == b"2"
    assert await client.command("CLIENT", "ID") == connection  # on another, the order would be chance
    await client.close()


async def test_commands_at_a_time(any_server: servers.RedisServer) -> None:
    """Each of many on one connection gets its own answer; one that takes too long costs all of them
    theirs."""
    client = Client(any_server.url, timeout_s=LIMIT_S)
    assert await asyncio.gather(*(client.command("ECHO", f"{n}") for n in range(100))) == [
        b"%d" % n for n in range(100)
    ]
    any_server.freeze()
    try:
        with mock.patch.object(client, "_timeout_s", 1):
            outcomes = await asyncio.gather(
                *(client.command("ECHO", f"{n}") for n in range(3)), return_exceptions=True
            )
    finally:
        any_server.thaw()
    assert [type(outcome) for outcome in outcomes] == [StoreAwayError] * 3
    assert await client.command("ECHO", "4") == b"4"
    await client.close()


async def test_tls(tmp_path: Path) -> None:
    """A private CA and a client's certificate are named in the URL; without them the sentence says why."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, identity in (("server", "127.0.0.1"), ("client", "idagg.example")):
        certificate = ca.issue_cert(identity)
        certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / f"{name}.pem")
    port = servers.free_port()
    with servers.RedisServer(
        "redis",
        tls_port=str(port),
        tls_cert_file=str(tmp_path / "server.pem"),
        tls_key_file=str(tmp_path / "server.pem"),
        tls_ca_cert_file=str(tmp_path / "ca.pem"),
    ):
        trusted = f"rediss://127.0.0.1:{port}/2?ssl_ca_certs={tmp_path / 'ca.pem'}"
        known = f"{trusted}&ssl_certfile={tmp_path / 'client.pem'}&ssl_keyfile={tmp_path / 'client.pem'}"
        client = Client(known)
        assert (await hits(client).add(1, [b"1"])).new_ids == 1
        await client.close()
        for url, why in (
            (f"rediss://127.0.0.1:{port}", "certificate verify failed"),
            (trusted, ""),  # the server wants a client's certificate; how it hangs up differs
            (known.replace("ca.pem", "gone.pem"), "No such file or directory"),
        ):
            client = Client(url, timeout_s=LIMIT_S)
            sentence = rf"^Redis at rediss://127.0.0.1:{port}.* cannot be reached: .*{why}"
            with pytest.raises(StoreAwayError, match=sentence):
                await client.command("PING")
            await client.close()
