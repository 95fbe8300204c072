"""`idagg check`: a setup in which `idagg serve` would not start, or not count, does not pass."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from idagg.errors import Exit
from idagg.run import preflight
from idagg.run.check import check
from idagg.settings import Settings
from kit.faults import fill
from kit.servers import RedisServer, free_port
from kit.serving import Serving
from kit.waiting import LIMIT_S


def settings(folder: Path, **given: object) -> Settings:
    fixed = {"log_file": folder / "log", "port": 0, "admin_port": 0, "state_dir": folder / "state"}
    return Settings.model_validate(fixed | given)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a store that stands still for a moment."""
    monkeypatch.setattr("idagg.run.check.TIMEOUT_S", LIMIT_S)


def verdicts(given: Settings, origin: dict[str, str] | None = None) -> tuple[int, dict[str, str]]:
    """The exit code, and by part what has failed; of other parts what is told."""
    lines: list[str] = []
    code = check(given, origin or {}, lines.append, as_json=True)
    (line,) = lines
    return code, {part["part"]: f"{part['state']}: {part['said']}" for part in json.loads(line)["parts"]}


def cli(server: RedisServer, *command: str) -> str:
    done = subprocess.run(
        ["redis-cli", "-s", server.socket, *command], capture_output=True, text=True, check=True
    )
    assert "ERR" not in done.stdout, done.stdout
    return done.stdout


STATE = "{idagg:0}:state"
STORES = {
    "another schema": ([["HSET", STATE, "schema", "1"]], "version"),
    "another window": (
        [
            ["HSET", STATE, "length", "30", "exact_limit", "10000000", "shards", "1"],
            ["SET", "{idagg:0}:lock", "x"],
        ],
        "give it the same --window",
    ),
    "full": ([["CONFIG", "SET", "maxmemory", "1"]], "full (maxmemory"),
    "replica": ([["REPLICAOF", "127.0.0.1", "1"]], "is a replica"),
}


@pytest.mark.parametrize("name", STORES)
def test_a_store_that_would_not_count(name: str, any_server: RedisServer, tmp_path: Path) -> None:
    given = settings(tmp_path, redis_url=any_server.url)
    assert verdicts(given)[0] == Exit.OK
    commands, sentence = STORES[name]
    for command in commands:
        cli(any_server, *command)
    code, found = verdicts(given)
    assert code == Exit.TROUBLE
    assert found["store"].startswith("failed: ")
    assert sentence in found["store"]


def test_a_window_that_nobody_counts_in(any_server: RedisServer, tmp_path: Path) -> None:
    """Without a leader, this one's settings will be those of the store. The check leaves it as it is."""
    cli(any_server, "HSET", STATE, "length", "30", "exact_limit", "10000000", "shards", "1")
    assert verdicts(settings(tmp_path, redis_url=any_server.url))[0] == Exit.OK
    assert cli(any_server, "KEYS", "*") == f"{STATE}\n"
    assert cli(any_server, "HGET", STATE, "length") == "30\n"
    assert list(tmp_path.iterdir()) == []


def test_a_user_who_may_not_write(tmp_path: Path) -> None:
    with RedisServer("redis") as server:
        cli(server, "ACL", "SETUSER", "reader", "on", ">x", "~*", "+@read", "+info", "+eval", "+evalsha")
        code, found = verdicts(settings(tmp_path, redis_url=f"unix://reader:x@{server.socket}"))
    assert code == Exit.TROUBLE
    assert "ACL SETUSER with" in found["store"]


@pytest.mark.parametrize("small_disk", ["64k"], indirect=True)
def test_a_full_log_disk(small_disk: Path, tmp_path: Path) -> None:
    given = settings(tmp_path, log_file=small_disk / "log")
    assert verdicts(given)[1]["log file"].startswith("warning: less than 500 MB are free")
    fill(small_disk)
    code, found = verdicts(given)
    assert code == Exit.TROUBLE
    assert "is full" in found["log file"]


def test_a_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, found = verdicts(settings(tmp_path, state_dir=tmp_path / "file" / "state"))
    assert code == Exit.TROUBLE
    assert "cannot be made" in found["store"]


def test_a_state_folder_in_use(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "store"
    folder.mkdir(parents=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    assert verdicts(settings(tmp_path))[0] == Exit.OK
    fcntl.flock(lock, fcntl.LOCK_EX)
    code, found = verdicts(settings(tmp_path))
    os.close(lock)
    assert code == Exit.TROUBLE
    assert "another idagg keeps its data" in found["store"]


@pytest.mark.parametrize("flag", ["port", "admin_port"])
def test_a_taken_port(flag: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        taken.settimeout(0)
        code, found = verdicts(settings(tmp_path, **{flag: taken.getsockname()[1]}))
    assert code == Exit.TROUBLE
    assert "cannot listen on" in found["listeners"]
    assert "give another" in found["listeners"]


def test_an_address_of_another_machine(tmp_path: Path) -> None:
    code, found = verdicts(settings(tmp_path, host="192.0.2.1", port=free_port()))
    assert code == Exit.TROUBLE
    assert "no interface of this machine has it" in found["listeners"]


async def test_beside_idagg_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own ports and folder are no trouble: one checks before one restarts."""
    monkeypatch.setattr(preflight, "_LIVEZ_TIMEOUT_S", LIMIT_S)
    with Serving() as serving:
        given = settings(
            serving.folder,
            port=serving.port,
            admin_port=serving.admin_port,
            state_dir=serving.folder / "state",
        )
        assert preflight.is_idagg("127.0.0.1", serving.port)
        assert "idagg runs at" in preflight.listeners(given)
        assert (serving.folder / "state" / "store" / "lock").exists()
        preflight.state_folder(given)


def test_warnings(any_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are told, and change no exit code."""
    file = tmp_path / "idagg.toml"
    file.touch(mode=0o644)
    secret = settings(tmp_path, amqp_url="amqp://user:secret@x", redis_url=any_server.url)
    told = dict(preflight.warnings(secret, {"amqp_url": f"file {file}"}, -7.0))
    assert "every user of this machine can read" in told["secrets"]
    assert "secret@" not in told["secrets"]
    assert "-7.0 s off" in told["clock"]
    file.chmod(0o640)
    assert "secrets" not in dict(preflight.warnings(secret, {"amqp_url": f"file {file}"}, 0.1))
    kernel = {"/proc/sys/vm/overcommit_memory": 0, "/proc/sys/net/core/somaxconn": 128}
    monkeypatch.setattr(preflight, "_number", kernel.get)
    found = [said for part, said in preflight.warnings(settings(tmp_path), {}, None) if part == "kernel"]
    assert ["overcommit" in said for said in found].count(True) == 1
    assert ["somaxconn is 128" in said for said in found].count(True) == 1
    code, _ = verdicts(settings(tmp_path, redis_url=any_server.url))
    assert code == Exit.OK
