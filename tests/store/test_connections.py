"""Connections live through what networks and administrators do."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from idagg.credentials import read_again
from idagg.errors import LoginRefusedError, StoreAwayError, StoreError
from idagg.store import connection as connection_module
from idagg.store.address import Address
from idagg.store.client import Client
from idagg.store.connection import Connection
from idagg.store.hits import HitStore
from idagg.store.probe import Seen, look, probe, risks
from idagg.store.servers import Servers
from idagg.store.windows import WindowStore
from idagg.tasks import end
from kit import servers
from kit.proxy import Proxy
from kit.waiting import LIMIT_S, eventually, long_window, until

TAG = "{t:0}"
# Of <asm/socket.h>; Python does not name it.
SO_ATTACH_FILTER = 26


def hits(client: Client) -> HitStore:
    return HitStore(client, namespace="t", window_s=3600, exact_limit=1000)


def deaden(client: Client) -> None:
    """Whatever comes for the client's connection is dropped from now on, acknowledgements and all, as where a
    NAT has forgotten it: a filter that takes no packet."""
    assert client._connection is not None
    assert client._connection._transport is not None
    ours = client._connection._transport.get_extra_info("socket")
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(drop_all))
    with socket.socket(fileno=os.dup(ours.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


@pytest.mark.slow  # a container may not let it attach a filter
async def test_a_connection_that_a_nat_has_forgotten() -> None:
    """The batch that finds out goes again on a new one, before its deadline; nobody cancels it."""
    with servers.RedisServer(tcp=True) as server:
        client = Client(server.tcp_url)
        store = hits(client)
        await store.add(1, [b"1"])
        deaden(client)
        async with asyncio.timeout(LIMIT_S):
            with pytest.raises(StoreAwayError, match="cannot be reached"):
                await store.add(2, [b"2"])
            await store.add(2, [b"2"])
        await client.close()


async def test_an_idle_connection_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found before it is needed, though whatever stands between acknowledges all that is sent."""
    for name, value in (("IDLE_S", 0.3), ("LOOK_S", 0.1)):
        monkeypatch.setattr(connection_module, name, value)
    with servers.RedisServer(tcp=True) as server:
        beside = Client(server.url, timeout_s=LIMIT_S)

        async def pings() -> int:
            (said,) = re.findall(rb"cmdstat_ping:calls=(\d+)", await beside.command("INFO", "commandstats"))
            return int(said)

        async with Proxy(server.port) as proxy:
            client = Client(proxy.url)
            store = hits(client)
            await store.add(1, [b"1"])
            before = client._connection
            assert before is not None
            known = await pings()
            await eventually(pings, lambda made: made > known + 1)
            assert not before.is_lost  # it was asked, and has answered
            monkeypatch.setattr(connection_module, "DIAL_S", 1.0)
            proxy.stall = True
            await until(lambda: before.is_lost)
            proxy.stall = False
            monkeypatch.setattr(connection_module, "DIAL_S", LIMIT_S)
            await store.add(2, [b"2"])
            await client.close()
        await beside.close()


async def test_a_dial_that_is_given_up() -> None:
    """Its connection is closed, wherever it was, and nothing looks at it any more."""
    with servers.RedisServer(tcp=True, requirepass="p") as server:
        address = Address.parse(server.tcp_url)
        server.freeze()
        try:
            for turns in range(6):
                dialling = asyncio.create_task(connection_module.open_connection(address))
                for _ in range(turns):
                    await asyncio.sleep(0.002)
                await end(dialling)
        finally:
            server.thaw()
        await asyncio.sleep(3 * connection_module.LOOK_S)  # what is lost would be looked at
        client = Client(server.tcp_url, timeout_s=LIMIT_S)
        await eventually(
            lambda: client.command("CLIENT", "LIST", "TYPE", "normal"),
            lambda told: len(told.splitlines()) == 1,
        )
        await client.close()


async def test_a_name_with_an_address_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next address is tried soon, not after the kernel's minutes."""
    with servers.RedisServer(tcp=True) as server, socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:  # a full queue takes no SYN
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())

        async def both(host: str, port: int) -> list[tuple[int, int, int, str, tuple[str, int]]]:
            tcp = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
            return [(*tcp, deaf.getsockname()), (*tcp, ("127.0.0.1", server.port))]

        monkeypatch.setattr(connection_module, "_addresses", both)
        client = Client("redis://store.example", timeout_s=LIMIT_S)
        assert await client.command("PING") == b"PONG"
        await client.close()
        for filler in fillers:
            filler.close()


async def test_a_password_that_is_changed(tmp_path: Path) -> None:
    """It is read again where it is kept, and only for the same servers."""
    file = tmp_path / "idagg_redis_url"
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    with servers.RedisServer(tcp=True, requirepass="old") as server:
        shared = Servers(server.tcp_url, read_again=lambda: read_again("redis_url", environ))
        client = shared.client(TAG, timeout_s=LIMIT_S)
        await client.command("CONFIG", "SET", "requirepass", "new")
        client._drop()
        for url in (None, server.tcp_url, f"redis://:new@127.0.0.2:{server.port}"):
            if url:
                file.write_text(url)
            with pytest.raises(LoginRefusedError, match="refuses the password or the user"):
                await client.command("PING")
        file.write_text(server.tcp_url.replace("old", "new") + "\n")
        assert await client.command("PING") == b"PONG"
        other = shared.client(TAG, timeout_s=LIMIT_S)
        assert await other.command("PING") == b"PONG"
        for each in (client, other):
            await each.close()


async def test_a_new_client_of_a_full_server(any_server: servers.RedisServer) -> None:
    """It cannot prove what it is permitted there, and leads and seals all the same: that frees memory."""
    first, window_s = Client(any_server.url, timeout_s=LIMIT_S), long_window()
    await HitStore(first, namespace="t", window_s=window_s, exact_limit=1000).add(1, [b"1"])
    await first.command("CONFIG", "SET", "maxmemory", "1")
    second = Client(any_server.url, timeout_s=LIMIT_S)
    windows = WindowStore(second, namespace="t", window_s=window_s, exact_limit=1000)
    epoch = (await windows.election.lead("a", lease_ms=60_000)).epoch
    assert await windows.sealing.seal(epoch) > 0
    for client in (first, second):
        await client.close()


@contextlib.asynccontextmanager
async def saying(words: bytes, *, is_asked: bool = False, closes: bool = True) -> AsyncIterator[int]:
    """The port of a server that says this to whoever connects, or asks, and nothing else."""
    talks = []

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.append(asyncio.current_task())
        if is_asked:
            await reader.read(1)
        writer.write(words)
        with contextlib.suppress(ConnectionError):
            if not closes:
                await reader.read()  # until the other one does
            writer.close()
            await writer.wait_closed()

    async with await asyncio.start_server(say, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*filter(None, talks))


async def lost_connection(port: int) -> Connection:
    """A connection that the server has said something on, and that is lost before anything was sent."""
    connection = await connection_module.open_connection(Address.parse(f"redis://127.0.0.1:{port}"))
    await until(lambda: connection.is_lost)
    return connection


@pytest.mark.parametrize(
    "url",
    [
        *("redis://{}", "redis://:p@{}", "redis+cluster://{}", "redis+cluster://:p@{}"),
        *("redis+sentinel://{}/s", "redis+sentinel://{}/s?sentinel_password=p"),
    ],
)
@pytest.mark.parametrize("is_asked", [False, True])
async def test_protected_mode(url: str, is_asked: bool) -> None:
    """What a server says to other machines that has no password and is not told where to listen: at once, or
    when it has been asked, and it closes the connection. We are no other machine, so it is a fake."""
    denied = b"-DENIED Redis is running in protected mode because protected mode is enabled\r\n"
    async with saying(denied, is_asked=is_asked) as port:
        client = Servers(url.format(f"127.0.0.1:{port}")).client(TAG, timeout_s=LIMIT_S)
        wanted = (
            rf"^Redis at \S+:{port}\S* is in protected mode and answers only its own machine, and nothing"
        )
        for _ in range(20):
            with pytest.raises(StoreAwayError, match=wanted):
                await client.command("PING")
        await client.close()


async def test_a_server_that_takes_no_more_clients() -> None:
    """It says so before it is asked anything, and closes the connection. Each time it is asked again."""
    with servers.RedisServer(tcp=True, maxclients="1") as server:
        client = Client(server.tcp_url, timeout_s=LIMIT_S)
        with socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT_S) as only:
            only.sendall(b"PING\r\n")
            assert only.recv(100) == b"+PONG\r\n"
            for _ in range(20):
                with pytest.raises(StoreAwayError, match="has as many clients as its maxclients lets it"):
                    await client.command("PING")
                with pytest.raises(StoreAwayError, match="has as many clients as its maxclients lets it"):
                    await hits(client).add(1, [b"1"])
        async with asyncio.timeout(LIMIT_S):
            while True:  # it may not have noticed yet
                try:
                    assert await client.command("PING") == b"PONG"
                except StoreAwayError:
                    await asyncio.sleep(0.01)
                else:
                    break
        await client.close()


async def test_a_server_that_speaks_unasked() -> None:
    """Its words are nobody's answer."""
    async with saying(b"+PONG\r\n+PONG\r\n", closes=False) as port:
        connection = await lost_connection(port)
        with pytest.raises(OSError, match="the connection was lost"):
            await connection.send(("PING",))


async def test_a_connection_that_was_refused_refuses_all() -> None:
    """A command by itself, and one with another."""
    async with saying(b"-ERR max number of clients reached\r\n") as port:
        connection = await lost_connection(port)
        answers = [await connection.send(("PING",)), (await connection.send_both(("PING",), b""))[0]]
        assert [str(answer) for answer in answers] == ["ERR max number of clients reached"] * 2


@pytest.mark.parametrize(
    ("info", "sentence"),
    [
        ({"maxmemory": "1", "maxmemory_policy": "allkeys-lru"}, "drops keys, and counts with them"),
        ({"maxmemory": "0", "maxmemory_policy": "allkeys-lru"}, None),
        ({"maxmemory": "1", "maxmemory_policy": "noeviction"}, None),
        ({"aof_enabled": "0"}, "keeps no append-only file: ids that were answered ok are lost when it ends"),
        ({"role": "slave"}, "is a replica, and nothing is counted"),
        ({"cluster_enabled": "1"}, "is a node of a cluster"),
        ({"connected_slaves": "2", "slave0": "ip=h,state=online", "slave1": "ip=h,state=wait_bgsave"}, None),
    ],
)
def test_risks(info: dict[str, str], sentence: str | None) -> None:
    """Each has its sentence, and nothing else has one."""
    found = risks(Seen("redis://h:1", info, {}), kind="server", replicas=0)
    assert len(found) == bool(sentence)
    if sentence:
        assert sentence in found[0]
    assert len(risks(Seen("redis://h:1", info, {}), kind="server", replicas=2)) == 1 + bool(sentence)


async def test_a_server_that_drops_keys() -> None:
    """`idagg check` fails there, since counts come out too small."""
    with servers.RedisServer(maxmemory="10mb", maxmemory_policy="allkeys-lru", appendonly="yes") as server:
        with pytest.raises(StoreError, match=r"\(maxmemory-policy allkeys-lru\): windows come out too small"):
            await probe(server.url, "t", timeout_s=LIMIT_S)
        client = Client(server.url, timeout_s=LIMIT_S)
        assert len(risks(await look(client), kind="server", replicas=0)) == 1
        await client.close()
