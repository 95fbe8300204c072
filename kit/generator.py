"""Open-loop load: requests leave at a constant rate, however late the server is.

Request k is due at k / rate, and its latency runs from then, not from when it could be sent. So a server that
stalls is charged for all the requests that come meanwhile, as its users would charge it. It is charged
for what this generator is late itself, too; that is reported beside the latencies.

Requests go to the connections in turn; one whose last answer is late gets the next request all the same,
pipelined. So the nth answer on connection c of C is that of request c + n·C, and nothing has to be kept of a
request. Sockets and epoll without a loop between them: that is half the CPU, and timers finer than 1 ms.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
import os
import re
import resource
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path

from kit.histogram import Histogram
from kit.processes import Usage
from kit.traffic import get

# What is due goes out once a tick: to wake up for each request would take twice the CPU.
_TICK_S = 0.0005
# How long answers are waited for when everything is sent. Longer than any server's own deadline.
_PATIENCE_S = 15.0
_READ_BYTES = 16_384
_MAX_HEADS = 1024


@dataclasses.dataclass(frozen=True)
class Result:
    """``seconds`` and ``failed`` have an entry for each second of the run, by when the requests were due;
    ``seconds`` has the latencies of those answered 200, ``failed`` counts the others and those without an
    answer. ``lag`` is how late the generator was in sending,
    ``usage`` the generator's own."""

    start_s: float
    rate: float
    connections: int
    seconds: list[Histogram]
    failed: list[int]
    lag: Histogram
    usage: Usage

    @property
    def ok(self) -> int:
        return sum(map(len, self.seconds))


def drive(
    port: int,
    *,
    rate: float,
    seconds: int,
    connections: int,
    first_id: int,
    start_s: float,
) -> Result:
    """Drive a local server with new ids from ``start_s``, Unix time, on. The process does nothing else."""
    outcomes = Outcomes(seconds)
    lag, usage = offer(
        port,
        lambda number: get(b"id=%d" % (first_id + number), first_id + number),
        outcomes,
        rate=rate,
        seconds=seconds,
        connections=connections,
        start_s=start_s,
    )
    return Result(start_s, rate, connections, outcomes.seconds, outcomes.failed, lag, usage)


class TooLateError(RuntimeError):
    """The moment to begin was over before the connections were open. Nothing was sent."""


class Outcomes:
    """What came of the requests, by the second in which they were due."""

    def __init__(self, seconds: int) -> None:
        self.seconds = [Histogram() for _ in range(seconds)]
        self.failed = [0] * seconds

    def settle(self, number: int, due_s: float, took_s: float | None, *, ok: bool) -> None:
        """Request ``number`` was answered, ``ok`` with 200; ``took_s`` is None where it was not answered.
        ``due_s`` is from the run's start, ``took_s`` from then."""
        if took_s is not None and ok:
            self.seconds[int(due_s)].add(int(took_s * 1e6))
        else:
            self.failed[int(due_s)] += 1


def offer(
    port: int,
    request: Callable[[int], bytes],
    outcomes: Outcomes,
    *,
    rate: float,
    seconds: int,
    connections: int,
    start_s: float,
) -> tuple[Histogram, Usage]:
    """Send requests 0, 1, … at this rate; returns how late they left, and what that cost."""
    gc.disable()  # there are no cycles to collect, and a collection would look like a late server
    Path("/proc/self/timerslack_ns").write_text("1")  # timers may be 50 us late by default
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    request(0)  # here it may take its time to prepare for all others
    run = _Run(port, outcomes, rate=rate, seconds=seconds, connections=connections)
    wait_s = start_s - time.time()
    if wait_s < 0:
        run.close()
        raise TooLateError(f"opening {connections} connections took {-wait_s:.1f} s more than there were")
    time.sleep(wait_s)
    before = Usage.of(os.getpid())
    run.go(request)
    return run.lag, Usage.of(os.getpid()) - before


class _Connection:
    """Connects again at its next turn where it was lost."""

    def __init__(self, run: _Run, number: int) -> None:
        self._run = run
        self._number = number
        self._taken = 0  # requests
        self._settled = 0  # those of them that are answered or given up
        self._unsent = b""
        self._partial = b""
        self._socket: socket.socket | None = None

    def open(self, *, wait: bool) -> socket.socket:
        self._socket = sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(30)
        if wait:
            sock.connect(("127.0.0.1", self._run.port))
        sock.setblocking(False)
        if not wait:
            sock.connect_ex(("127.0.0.1", self._run.port))  # what comes of it, epoll tells
        self._run.register(sock, self)
        return sock

    def send(self, request: bytes) -> None:
        self._taken += 1
        sock = self._socket or self.open(wait=False)
        if self._unsent:
            self._unsent += request
            return
        try:
            sent = sock.send(request)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.give_up()
            return
        if sent < len(request):
            self._unsent = request[sent:]

    def wake(self, now: float) -> None:
        """Take what has come, and send what could not be sent before."""
        sock = self._socket
        if sock is None:
            return
        try:
            if self._unsent:
                self._unsent = self._unsent[sock.send(self._unsent) :]
            while True:
                data = sock.recv(_READ_BYTES)
                if not data:
                    self.give_up()
                    return
                self._read(data, now)
                if len(data) < _READ_BYTES:
                    return
        except BlockingIOError:
            pass
        except OSError:
            self.give_up()

    def give_up(self) -> None:
        """Whatever is owed fails."""
        if self._socket is not None:
            self._socket.close()  # which takes it out of epoll, too
            self._socket = None
        self._unsent = self._partial = b""
        while self._settled < self._taken:
            self._settle(ok=False, now=None)

    def _read(self, data: bytes, now: float) -> None:
        data = self._partial + data
        start = 0
        while (end := data.find(b"\r\n\r\n", start)) > 0:
            ok, body = self._run.judge(data[start:end])
            if end + 4 + body > len(data):
                break
            start = end + 4 + body
            self._settle(ok=ok, now=now)
        self._partial = data[start:]

    def _settle(self, *, ok: bool, now: float | None) -> None:
        self._run.settle(self._number + self._settled * self._run.count, ok=ok, now=now)
        self._settled += 1


class _Run:
    def __init__(self, port: int, outcomes: Outcomes, *, rate: float, seconds: int, connections: int) -> None:
        self.port = port
        self.count = connections
        self._outcomes = outcomes
        self.lag = Histogram()
        self._rate = rate
        self._total = int(rate * seconds)
        self._settled = 0
        self._start = 0.0
        self._heads: dict[bytes, tuple[bool, int]] = {}
        self._by_descriptor: dict[int, _Connection] = {}
        self._epoll = select.epoll()
        self._connections = [_Connection(self, number) for number in range(connections)]
        for connection in self._connections:
            connection.open(wait=True)

    def register(self, sock: socket.socket, connection: _Connection) -> None:
        self._by_descriptor[sock.fileno()] = connection
        self._epoll.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)

    def go(self, request: Callable[[int], bytes]) -> None:
        clock = time.perf_counter
        rate, total, epoll, lag = self._rate, self._total, self._epoll, self.lag
        connections = itertools.cycle(self._connections)
        sent = 0
        self._start = start = now = clock()
        end = start + total / rate + _PATIENCE_S
        while self._settled < total and now < end:
            while sent < total and start + sent / rate <= now:
                next(connections).send(request(sent))
                now = clock()
                lag.add(int((now - start - sent / rate) * 1e6))
                sent += 1
            wake = start + _tick(sent / rate) if sent < total else end
            if wake > now:
                select.select([epoll], [], [], wake - now)  # epoll's own timeout is in whole milliseconds
            for descriptor, _ in epoll.poll(0):
                self._by_descriptor[descriptor].wake(clock())
            now = clock()
        self.close()
        for number in range(sent, total):
            self.settle(number, ok=False, now=None)

    def close(self) -> None:
        for connection in self._connections:
            connection.give_up()

    def settle(self, number: int, *, ok: bool, now: float | None) -> None:
        self._settled += 1
        due_s = number / self._rate
        took_s = None if now is None else now - self._start - due_s
        self._outcomes.settle(number, due_s, took_s, ok=ok)

    def judge(self, head: bytes) -> tuple[bool, int]:
        """Whether the head is that of a 200, and how long its body is."""
        known = self._heads.get(head)
        if known is None:
            if len(self._heads) >= _MAX_HEADS:
                self._heads.clear()
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            if length is None:
                raise RuntimeError(f"an answer without a length: {head!r}")
            known = self._heads[head] = head.startswith(b"HTTP/1.1 200 "), int(length[1])
        return known


def _tick(due_s: float) -> float:
    """The first tick at or after that; what falls on one but for an error of rounding is on it."""
    return math.ceil(due_s / _TICK_S - 1e-6) * _TICK_S
