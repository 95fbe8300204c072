"""A real ``idagg serve`` with a folder of its own, and what tests ask of it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from idagg.settings import is_loopback
from idagg.window import iso
from kit.servers import Server
from kit.waiting import LIMIT_S, eventually, next_window, until
from kit.wire import Answer, connect, ids, request

# Sets constants of modules and environment variables, then is the command.
_TUNED = """
import importlib, json, os, sys
for name, value in json.loads(sys.argv.pop(1)).items():
    module, _, constant = name.rpartition(".")
    if not module:
        os.environ[constant] = value
        continue
    assert hasattr(importlib.import_module(module), constant), name
    setattr(importlib.import_module(module), constant, value)
from idagg.cli import main
sys.exit(main())
"""

# The same for workers, which are interpreters of their own: it is what each imports first.
_WORKERS = """
import sys
if "idagg.run.worker" in sys.orig_argv:
    import importlib
    for name, value in {}.items():
        module, _, constant = name.rpartition(".")
        if not hasattr(importlib.import_module(module), constant):
            raise SystemExit(name)
        setattr(importlib.import_module(module), constant, value)
"""

WORKERS = 2
# Flags where no request may fail, though the machine may stand still for seconds: the longest deadline.
PATIENT = ("--deadline", "10")


class Figures(dict[str, float]):
    """One that is not there, as nobody knows it yet, is no number: every comparison with it is false."""

    def __missing__(self, name: str) -> float:
        return math.nan


class Serving(Server):
    """``idagg serve`` on free ports. All that it starts and all that it writes is in ``folder``.

    ``tuned`` sets constants of the supervisor's process, by their full names, and, by names without a dot,
    environment variables of what it starts. ``workers_have`` sets constants of its workers. ``prefix`` is a
    command that runs it elsewhere; ``host`` is where both listeners are then. ``without`` are flags of ours
    that are left to a settings file.
    """

    start_timeout_s = 60.0

    def __init__(
        self,
        *flags: str,
        window: int = 2,
        tuned: Mapping[str, float | str] | None = None,
        workers_have: Mapping[str, float | str] | None = None,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        host: str = "127.0.0.1",
        without: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.folder = self.folder.resolve()
        self.window = window
        self.flags = flags
        self.tuned = tuned
        self.prefix = prefix
        self.host = host
        self.without = without
        self.log_file = self.folder / "counts.log"
        self.state = self.folder / "state"
        self.port = self.admin_port = 0
        self._temporary = self.folder / "tmp"
        self._temporary.mkdir()
        self._variables = dict(environment or {})
        if workers_have:
            first = self.folder / "first"
            first.mkdir()
            (first / "sitecustomize.py").write_text(_WORKERS.format(dict(workers_have)))
            others = self._variables.get("PYTHONPATH", os.environ.get("PYTHONPATH"))
            self._variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(first), others)))
        self._left_before: set[Path] = set()  # by one that was killed

    @property
    def said(self) -> str:
        """What it has printed since its start, on either stream."""
        output = self.folder / "output"
        return output.read_text() if output.exists() else ""

    def start(self) -> None:
        """Start it, and wait for its greeting."""
        self._left_before = set(self._temporary.iterdir())
        super().start()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """It ends with 0, and leaves neither a process nor a temporary file."""
        process = self._process
        assert process is not None, "not running"
        self._end(number)
        assert (process.returncode, self.processes()) == (0, set())
        assert set(self._temporary.iterdir()) <= self._left_before
        assert "did not stop" not in self.said

    def ends(self) -> tuple[int, str]:
        """Run it to an end that comes by itself; returns its exit code and what it said on stderr."""
        done = subprocess.run(
            self._command(),
            cwd=self.folder,
            env=os.environ | self._environment(),
            capture_output=True,
            text=True,
            timeout=self.start_timeout_s,
            check=False,
        )
        assert (done.stdout, self.processes()) == ("", set())
        return done.returncode, done.stderr

    def close(self) -> None:
        self._tell()
        if self._process is not None:
            self.kill()
        while left := self.processes():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder)

    def _tell(self) -> None:
        print(self.said)  # noqa: T201  pytest shows it where a test has failed

    def processes(self) -> set[int]:
        """All that live of the supervisor, its workers and its store: those who work in our folder."""
        found = set()
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):  # it has ended, or is not ours to look at
                if entry.name.isdecimal() and (entry / "cwd").readlink().is_relative_to(self.folder):
                    found.add(int(entry.name))
        return found

    def workers(self) -> list[int]:
        """Pids, oldest first: by their slots, as long as none has been replaced."""
        return [
            pid
            for pid in self._oldest_first()
            if _of_process(pid, "cmdline").endswith(b"\0idagg.run.worker\0")
        ]

    def store(self) -> int:
        """The embedded store's pid."""
        (pid,) = (pid for pid in self.processes() if _of_process(pid, "comm").endswith(b"-server\n"))
        return pid

    def callback_process(self) -> int:
        """The pid of the last that was started: while it is replaced, there are two."""
        found = (
            pid for pid in self._oldest_first() if _of_process(pid, "cmdline").endswith(b"callback_process\0")
        )
        *_, pid = found
        return pid

    def combiner(self) -> int | None:
        """Its pid; None while none runs."""
        return next(
            (pid for pid in self.processes() if _of_process(pid, "cmdline").endswith(b"combiner_process\0")),
            None,
        )

    def _oldest_first(self) -> list[int]:
        """Pids begin anew at the kernel's limit, which may be 32,768: their order says nothing."""
        return sorted(self.processes(), key=_started)

    def leader(self) -> int:
        """The slot of the worker that was elected last."""
        return int(re.findall(r"worker-(\d+) INFO leading", self.said)[-1])

    def records(self, event: str) -> list[dict[str, str]]:
        """The log file's lines of this kind, oldest first; each is whole."""
        if not self.log_file.exists():
            return []
        with self.log_file.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # a line under way can be seen in part, where a page ends
            text = file.read()
        assert text == "" or text.endswith("\n")
        return [fields for line in text.splitlines() if (fields := _logfmt(line))["event"] == event]

    def counts(self) -> dict[str, int]:
        """Unique ids by window, as the log file tells; no window has two counts."""
        return agreed((line["window"], int(line["unique_ids"])) for line in self.records("window"))

    async def delivered(self) -> dict[str, int]:
        """The counts, once the log file has all windows as far as the one that is open now."""
        now_s = int(time.time())
        present = iso(now_s - now_s % self.window)
        return await until(lambda: counts if max(counts := self.counts(), default="") >= present else None)

    async def ask(
        self, path: str, *, admin: bool = False, method: str = "GET", fields: Mapping[str, str] | None = None
    ) -> Answer:
        """The answer to one request on a connection of its own."""
        wire = await connect(self.admin_port if admin else self.port, self.host)
        head = "".join(
            f"{name}: {value}\r\n" for name, value in {"Host": self.host, **(fields or {})}.items()
        )
        try:
            await wire.send(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode())
            answer = await wire.answer(bodiless=method == "HEAD")
        finally:
            wire.close()
        assert answer is not None
        return answer

    async def is_refused(self) -> bool:
        """Whether nobody listens at the port. A process that ends gives up its memory and its folder, by
        which it is found, before its sockets."""
        try:
            wire = await connect(self.port, self.host)
        except ConnectionRefusedError:
            return True
        wire.close()
        return False

    async def health(self) -> Answer:
        """What the admin listener says of it."""
        return await self.ask("/readyz?verbose", admin=True)

    async def readiness(self) -> set[int]:
        """What ``/readyz`` of the public listener says: of every worker, as good as certain."""
        return {(await self.ask("/readyz")).status for _ in range(8 * WORKERS)}

    async def hit(self) -> int:
        """Send a new id; returns the status."""
        return (await self.ask(f"/api/verve/accept?id={next(ids)}")).status

    async def counts_again(self, *, within_s: float = LIMIT_S) -> None:
        """Wait until a new id gets its ok."""
        await eventually(self.hit, lambda status: status == 200, within_s=within_s)

    async def ready(self, *, within_s: float = LIMIT_S) -> None:
        """Wait until every worker listens and reaches the store."""
        await eventually(self.health, lambda answer: answer.status == 200, within_s=within_s)

    async def replaces(self, pid: int, *, within_s: float = LIMIT_S) -> None:
        """Wait until another worker listens in the place of this one."""
        await until(lambda: pid not in (now := self.workers()) and len(now) == WORKERS, within_s=within_s)
        await self.ready()

    async def figures(self) -> Figures:
        """The samples of ``/metrics``, as ``name{label}``."""
        answer = await self.ask("/metrics", admin=True)
        assert answer.status == 200
        return Figures(
            {
                sample.name + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value
                for family in text_string_to_metric_families(answer.body.decode())
                for sample in family.samples
            }
        )

    async def handed_off(self) -> float:
        """Requests that the fast path handed off, whatever the reason."""
        figures = await self.figures()
        return sum(value for name, value in figures.items() if name.startswith("idagg_handed_off_total{"))

    async def tasks(self) -> int:
        """Of the workers' event loops."""
        return int((await self.figures())["idagg_tasks"])

    def _command(self) -> list[str]:
        start = ["-m", "idagg"] if self.tuned is None else ["-c", _TUNED, json.dumps(self.tuned)]
        given = {
            "--host": self.host,
            "--admin-host": self.host,
            "--port": "0",
            "--admin-port": "0",
            "--workers": str(WORKERS),
            "--window": str(self.window),
            "--log-file": str(self.log_file),
            "--state-dir": str(self.state),
        }
        if not is_loopback(self.host):
            given["--admin-open"] = "on"
        given = {flag: value for flag, value in given.items() if flag not in self.without}
        return [*self.prefix, sys.executable, *start, "serve", *itertools.chain(*given.items()), *self.flags]

    def _environment(self) -> dict[str, str]:
        return {"TMPDIR": str(self._temporary), **self._variables}

    def _answers(self) -> bool:
        greeting = rf"http://{self.host}:(\d+)/api.*http://{self.host}:(\d+)/metrics\n"
        found = re.search(greeting, self.said, re.DOTALL)
        if found:
            self.port, self.admin_port = int(found[1]), int(found[2])
        return found is not None


async def send(
    serving: Serving,
    numbers: Iterable[int],
    *,
    connections: int = 16,
    query: str = "",
    port: int | None = None,
) -> None:
    """Send these ids, pipelined, over some connections, or by what is at ``port``; each gets its ok."""
    shares: list[list[int]] = [[] for _ in range(connections)]
    for share, number in zip(itertools.cycle(shares), numbers, strict=False):
        share.append(number)

    async def each(share: list[int]) -> None:
        wire = await connect(port or serving.port)
        try:
            async with asyncio.TaskGroup() as both:  # who does not read gets no more read from
                both.create_task(wire.send(b"".join(request(number, query) for number in share)))
                for _ in share:
                    answer = await wire.answer()
                    assert answer is not None
                    assert (answer.status, answer.body) == (200, b"ok")
        finally:
            wire.close()

    await asyncio.gather(*(each(share) for share in shares if share))


async def in_one_window(serving: Serving, numbers: Sequence[int], query: str = "") -> int:
    """Send these ids in one window; returns its start. If the machine is too slow, again in a later one."""
    while True:
        start = await next_window(serving.window)
        await send(serving, numbers, query=query)
        if time.time() < start + serving.window:
            return start


def agreed(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Counts by window; repeated ones are equal."""
    found: dict[str, int] = {}
    for window, count in counts:
        assert found.setdefault(window, count) == count, f"two counts of {window}"
    return found


def _started(pid: int) -> tuple[int, int]:
    """When it was started, in the kernel's ticks, and the pid."""
    try:
        # The second field is the program's name in parentheses and may hold anything.
        return int(_of_process(pid, "stat").rpartition(b")")[2].split()[19]), pid
    except IndexError:  # it has ended
        return 0, pid


def _of_process(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _logfmt(line: str) -> dict[str, str]:
    pairs = re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)', line)
    assert " ".join(f"{name}={value}" for name, value in pairs) == line
    return {name: json.loads(value) if value.startswith('"') else value for name, value in pairs}
