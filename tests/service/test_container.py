"""The image and its compose file, as far as a machine without a container engine can run them.

The commands and variables that stand there, as a user without rights, as process 1 of a namespace, on a root
that cannot be written.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pika
import pika.exceptions
import pytest

from kit.engines import program
from kit.servers import RabbitServer, RedisServer, Server, free_port
from kit.waiting import LIMIT_S, eventually, until

CONTAINER = Path(__file__).parents[2] / "deploy/container"
IMAGE = (CONTAINER / "Containerfile").read_text().replace("\\\n", "")
COMPOSE = (CONTAINER / "compose.yaml").read_text()
INSIDE = "/usr/lib/idagg/bin/"
UID = 999


def words(instruction: str) -> list[str]:
    """Of an instruction's JSON form, with the interpreter and the program of this machine."""
    found = re.search(rf"^{instruction}.*?(\[.*\])", IMAGE, re.MULTILINE)
    assert found, instruction
    given: list[str] = json.loads(found[1])
    local = {"idagg": [sys.executable, "-P", "-m", "idagg"], "python3": [sys.executable]}
    program = given[0].removeprefix(INSIDE)
    return [*local.get(program, given[:1]), *given[1:]]


def variables() -> dict[str, str]:
    """What the image sets."""
    lines = re.findall(r"^ENV (.*)", IMAGE, re.MULTILINE)
    return dict(pair.split("=", 1) for line in lines for pair in shlex.split(line))


class ComposeRedis(RedisServer):
    """By the command of the compose file."""

    def _command(self) -> list[str]:
        found = re.search(r"^  redis:.*?command: (\[.*?\])$", COMPOSE, re.MULTILINE | re.DOTALL)
        assert found
        _, *arguments = json.loads(found[1])
        there = ["--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket)]
        return [program("redis"), *arguments, *there]


class Container(Server):
    """``deploy/container/Containerfile``'s ENTRYPOINT and CMD."""

    start_timeout_s = 60.0
    # Root of the new namespaces makes the mounts; then it is another user, and has no capability left.
    _SCRIPT = (
        "mount -o remount,bind,ro / && mount -t tmpfs tmpfs {tmp} && cd / && "
        'exec unshare --user --map-user={uid} --map-group={uid} setpriv --no-new-privs "$@"'
    )

    def __init__(self, **environment: str) -> None:
        super().__init__()
        self.port, self.admin_port = free_port(), free_port()
        self.tmp = self.folder / "tmp"
        self.tmp.mkdir()
        # In place of the volume.
        self._given = {"IDAGG_STATE_DIR": str(self.tmp)} | environment

    @property
    def said(self) -> str:
        return (self.folder / "output").read_text()

    @property
    def first(self) -> int:
        """The pid of its process 1, as it is seen from here."""
        return int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()[0])

    def status(self) -> str:
        """What the kernel says of its process 1."""
        return Path(f"/proc/{self.first}/status").read_text()

    def health(self) -> subprocess.CompletedProcess[str]:
        """Run the image's HEALTHCHECK."""
        command = [word.replace(":8001", f":{self.admin_port}") for word in words("HEALTHCHECK")]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def leave(self) -> int:
        """Stop it as an engine does: SIGTERM to its process 1. Returns its exit code."""
        assert self._process is not None
        os.kill(self.first, signal.SIGTERM)
        code = self._process.wait(timeout=40)
        self._process = None
        return code

    def _command(self) -> list[str]:
        namespaces = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child"]
        script = self._SCRIPT.format(tmp=shlex.quote(str(self.tmp)), uid=UID)
        start = [*words("ENTRYPOINT"), *words("CMD")]
        return [*namespaces, "--mount-proc", "sh", "-ec", script, "sh", *start]

    def _environment(self) -> dict[str, str]:
        ports = {"IDAGG_PORT": str(self.port), "IDAGG_ADMIN_PORT": str(self.admin_port)}
        return variables() | ports | {"TMPDIR": str(self.tmp), "IDAGG_WORKERS": "2"} | self._given

    def _answers(self) -> bool:
        return "/metrics\n" in self.said


def delivered(rabbit: RabbitServer, queue: str, enough: int) -> int:
    """Unique ids in the queue's messages, repeats left out; waits until there are enough."""
    counts: dict[str | None, int] = {}
    give_up_at = time.monotonic() + LIMIT_S
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbit.url))) as connection:
        channel = connection.channel()
        while sum(counts.values()) < enough and time.monotonic() < give_up_at:
            if channel.is_closed:
                channel = connection.channel()
            with contextlib.suppress(pika.exceptions.ChannelClosedByBroker):  # nobody has declared it yet
                _, properties, body = channel.basic_get(queue, auto_ack=True)
                if body:
                    counts[properties.message_id] = json.loads(body)["unique_ids"]
    return sum(counts.values())


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with ComposeRedis(tcp=True) as server:
        yield server


async def test_the_services_of_the_compose_file(
    redis: RedisServer, rabbit: RabbitServer, rabbit_queue: str
) -> None:
    """Two instances count together, healthy; they write nowhere, and leave at SIGTERM within their time."""
    given = dict(re.findall(r'^ +(IDAGG_\w+): "?([^\s"]+)"?$', COMPOSE, re.MULTILINE))
    given["IDAGG_REDIS_URL"] = given["IDAGG_REDIS_URL"].replace("redis:6379", f"127.0.0.1:{redis.port}")
    given["IDAGG_AMQP_URL"] = given["IDAGG_AMQP_URL"].replace("@rabbitmq", f"@127.0.0.1:{rabbit.port}")
    assert "127.0.0.1" in given["IDAGG_REDIS_URL"]
    assert "127.0.0.1" in given["IDAGG_AMQP_URL"]
    given |= {"IDAGG_WINDOW": "1", "IDAGG_AMQP_QUEUE": rabbit_queue, "IDAGG_ADMIN_TOKEN": "0" * 32}
    given["IDAGG_DEADLINE"] = "10"  # the longest: no request may fail
    with Container(**given) as one, Container(**given) as other:
        status = one.status()
        assert re.search(r"^NSpid:.*\t1$", status, re.MULTILINE)
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
        for container in (one, other):
            # An engine, too, asks again one that has not answered in 2 s.
            health = await eventually(
                functools.partial(asyncio.to_thread, container.health), lambda done: done.returncode == 0
            )
            assert health.stderr == ""
        for number in range(40):
            url = f"http://127.0.0.1:{(one, other)[number % 2].port}/api/verve/accept?id={number}"
            with await asyncio.to_thread(urllib.request.urlopen, url, timeout=LIMIT_S) as answer:
                assert answer.read() == b"ok"
        assert await asyncio.to_thread(delivered, rabbit, rabbit_queue, 40) == 40
        assert [await asyncio.to_thread(container.leave) for container in (one, other)] == [0, 0]
        assert (await asyncio.to_thread(one.health)).returncode == 1
        assert "Traceback" not in one.said + other.said


async def test_the_image_alone() -> None:
    """Without a Redis it keeps its data on a volume, and its records go to standard output."""
    with Container(IDAGG_WINDOW="1") as container:
        await until(lambda: "event=window" in container.said)
        assert await asyncio.to_thread(container.leave) == 0
