"""The groups of Redis that docs/several-machines.rst sets up, by its own files and commands.

Each of its machines is an address of loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from documents import captioned, page
from kit.oracle import Load
from kit.servers import Server, free_port
from kit.serving import PATIENT, Serving
from kit.waiting import until

PAGE = page("docs/several-machines.rst")
BLOCKS = captioned(PAGE)
SENTINELS, NODES = range(11, 14), range(21, 27)


class Placed:
    """The page's text, with addresses and ports that this machine has."""

    def __init__(self) -> None:
        self.redis = free_port()
        self._sentinel = free_port()

    def here(self, text: str) -> str:
        text = text.replace("10.0.0.", "127.7.0.").replace("26379", str(self._sentinel))
        text = re.sub(r"(redis\+sentinel://.*)/idagg", rf"\1:{self._sentinel}/idagg", text)
        text = re.sub(r"(redis\+cluster://\S*)", rf"\1:{self.redis}", text)
        return text.replace("6379", str(self.redis))


class Configured(Server):
    """A server that has its settings from a file."""

    def __init__(self, host: str, port: int, text: str, *flags: str) -> None:
        super().__init__()
        self._at = host, port
        self._flags = flags
        self._file = self.folder / "conf"
        self._file.write_text(f"port {port}\n{text}\ndir {self.folder}\n")

    def _command(self) -> list[str]:
        return ["redis-server", str(self._file), *self._flags]

    def _answers(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(self._at) == 0


def own(text: str, first: int, machine: int) -> str:
    """With the machine's own address in the two lines that have it; loopback's first is all machines'."""
    lines = rf"^(bind|\S*announce-ip|sentinel announce-ip) 127\.7\.0\.{first}\b.*"
    return re.sub(lines, rf"\1 127.7.0.{machine}", text, flags=re.MULTILINE)


@contextlib.contextmanager
def sentinels(placed: Placed) -> Iterator[str]:
    redis, of_replicas, sentinel, url = (
        placed.here(BLOCKS[f"/etc/{name}"])
        for name in (
            "redis/redis.conf",
            "redis/redis.conf of replicas",
            "redis/sentinel.conf",
            "idagg/credentials/redis_url with Sentinel",
        )
    )
    with contextlib.ExitStack() as stack:
        for number in SENTINELS:
            text = own(redis, 11, number) + "\n" + (of_replicas if number > 11 else "")
            stack.enter_context(Configured(f"127.7.0.{number}", placed.redis, text))
        for number in SENTINELS:
            port = int(re.findall(r"^port (\d+)", sentinel, re.MULTILINE)[0])
            text = own(sentinel, 11, number).replace("dir /var/lib/redis\n", "")
            stack.enter_context(Configured(f"127.7.0.{number}", port, text, "--sentinel"))
        yield url


@contextlib.contextmanager
def cluster(placed: Placed) -> Iterator[str]:
    node, make, url = (
        placed.here(BLOCKS[name])
        for name in (
            "/etc/redis/redis.conf of a node",
            "Make the cluster",
            "/etc/idagg/credentials/redis_url with a cluster",
        )
    )
    with contextlib.ExitStack() as stack:
        for number in NODES:
            stack.enter_context(Configured(f"127.7.0.{number}", placed.redis, own(node, 21, number)))
        subprocess.run(shlex.split(make), check=True, capture_output=True, timeout=60)
        yield url


def verdict(line: str) -> tuple[int, str]:
    """Of how many servers the check tells, and what. They are named in the order of the shards."""
    servers, _, told = line.partition(", appendfsync ")
    return servers.count("redis://"), told


@pytest.mark.parametrize(("group", "shown"), [(sentinels, "with Sentinel"), (cluster, "with a cluster")])
async def test_a_group(group: Callable[[Placed], AbstractContextManager[str]], shown: str) -> None:
    placed = Placed()
    with contextlib.ExitStack() as stack:
        url = await asyncio.to_thread(stack.enter_context, group(placed))
        flags = ("--redis-url", url, "--replicas", "1")
        expected = verdict(BLOCKS[f"idagg-check {shown}"])

        def checked() -> tuple[int, str]:
            command = [sys.executable, "-m", "idagg", "check", *flags]
            said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
            return next(verdict(line) for line in said.splitlines() if " store: " in line)

        await until(lambda: checked() == expected, within_s=60)
        with Serving(*flags, *PATIENT) as serving:
            async with Load(serving):
                """Until 2,000 ids got their ok."""
            serving.stop()
