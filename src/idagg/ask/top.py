"""``idagg top``: the status of all machines, drawn anew whenever it comes.

rich draws: it knows the terminal's size, colours and alternate screen. It does not read keys: that is done
here.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Generator, Iterator, Sequence
from types import FrameType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from idagg.ask import status as words
from idagg.ask.client import Client, plain
from idagg.ask.times import iso
from idagg.errors import Exit, NoAnswerError
from idagg.read.fleet import Status, Worker, is_heard

PATH = "/api/v1/events"
# After a stream has ended: idagg reloads, or restarts.
AGAIN_S = 1.0
# Of output that is no terminal.
WIDTH = 80
_NO_FIGURES = ("-",) * 4
_ENDS = re.compile(rb"[qQ\x04]")  # Ctrl-D, too


def run(client: Client) -> int:
    """Show the status until q or Ctrl-C; once, if standard output or input is no terminal."""
    events = client.events(PATH)
    first = _next(events, client.url)  # before the screen is taken: a failure is a plain sentence
    if not (sys.stdout.isatty() and sys.stdin.isatty()):
        events.close()
        Console(width=WIDTH).print(screen(first))
        return Exit.OK
    news = _News(client, events)
    with _signals(news) as got, _keys() as keys:
        _show(first, news, keys, got)
    ended_by = [number for number in got if number != signal.SIGINT]
    return 128 + ended_by[0] if ended_by else Exit.OK


def _show(seen: Status, news: _News, keys: int, got: Sequence[int]) -> None:
    """Until a key or a signal ends it."""
    console = Console()
    size = console.size  # before the first picture: a change that comes with it is seen
    with Live(screen(seen), console=console, screen=True, auto_refresh=False) as live:
        news.start()
        trouble = None
        while not got:
            # The time limit is for a window whose size changes: SIGWINCH would interrupt other calls, too.
            ready, _, _ = select.select([keys, news.descriptor], [], [], 0.5)
            if keys in ready and (not (pressed := os.read(keys, 64)) or _ENDS.search(pressed)):
                return
            said = news.take() if news.descriptor in ready else []
            for one in said:
                seen, trouble = (one, None) if isinstance(one, Status) else (seen, one)
            if said or console.size != size:
                size = console.size
                live.update(screen(seen, trouble), refresh=True)


class _News:
    """A thread that reads the stream, and connects again whenever it ends."""

    def __init__(self, client: Client, events: Generator[bytes, None, None]) -> None:
        self._client = client
        self._events = events
        self._queue = queue.SimpleQueue[Status | str]()
        self.descriptor, self._writer = os.pipe()  # readable whenever something is in the queue
        self._thread = threading.Thread(target=self._read, name="idagg.top", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def take(self) -> list[Status | str]:
        """What has come: a status, or a sentence about why there is none."""
        os.read(self.descriptor, 4096)
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._queue.get_nowait())
        return found

    def _read(self) -> None:
        while True:
            try:
                for event in self._events:
                    self._tell(words.parse(event, self._client.url))
                self._tell(f"{self._client.url} has ended the stream: it stops, or reloads")
            except NoAnswerError as error:
                self._tell(str(error))
            time.sleep(AGAIN_S)
            self._events = self._client.events(PATH)

    def _tell(self, one: Status | str) -> None:
        self._queue.put(one)
        self.wake()

    def wake(self) -> None:
        os.write(self._writer, b".")


def _next(events: Iterator[bytes], url: str) -> Status:
    event = next(events, None)
    if event is None:
        raise NoAnswerError(f"{url} has ended the stream before it said anything: it stops, or reloads")
    return words.parse(event, url)


@contextlib.contextmanager
def _keys() -> Iterator[int]:
    """Keys of the terminal, one by one and unseen, while this lasts. Yields their descriptor."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        mode = termios.tcgetattr(descriptor)
        # Ctrl-C would drop a key of which select() has told already, and the read would wait for another.
        mode[tty.LFLAG] |= termios.NOFLSH
        termios.tcsetattr(descriptor, termios.TCSANOW, mode)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _signals(news: _News) -> Iterator[Sequence[int]]:
    """The signals that came and would end this process: it has to give the terminal back first.

    Exceptions in their place would come at any moment, also while rich takes the terminal.
    """
    got: list[int] = []

    def end(number: int, _: FrameType | None) -> None:
        got.append(number)
        news.wake()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, end) for number in numbers}
    before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    try:
        yield got
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def screen(status: Status, gone: str | None = None) -> RenderableType:
    """All of it. ``gone``: why this is not the present."""
    found = words.troubles(status)
    state = Text("no answer", "bold red") if gone else _state(status, bool(found))
    return Group(
        Text.assemble(
            ("idagg", "bold"), f", namespace {plain(status.namespace)}  ", state, f"  {iso(status.now)}"
        ),
        _facts(status),
        # Above the workers, which may be more than the screen has lines.
        *(Text(f"! {plain(sentence)}", "red") for sentence in ([gone] if gone else []) + found),
        Text(),
        _workers(status),
    )


def _state(status: Status, has_trouble: bool) -> Text:
    if not any(machine.ready for machine in status.machines if is_heard(machine, status)):
        return Text("not counting", "bold red")
    return Text("counting, with trouble", "bold yellow") if has_trouble else Text("counting", "bold green")


def _facts(status: Status) -> RenderableType:
    facts = Table.grid(padding=(0, 2))
    for name, said in words.facts(status):
        if name in ("leader", "this window", "last window", "pending"):
            facts.add_row(Text(name, "dim"), Text(said))
    facts.add_row(Text("requests/s", "dim"), _by_status(status))
    return facts


def _by_status(status: Status) -> Text:
    rates: dict[str, float] = {}
    for machine in status.machines:
        for worker in machine.workers if is_heard(machine, status) else ():
            for code, rate in worker.by_status.items():
                rates[code] = rates.get(code, 0.0) + rate
    text = Text.assemble((_rate(sum(rates.values())), "bold"))
    for code, rate in sorted(rates.items()):
        text.append(f"   {plain(code)}: {_rate(rate)}", "red" if code.startswith("5") else "")
    return text


def _workers(status: Status) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("machine", no_wrap=True, max_width=20)
    table.add_column("worker", no_wrap=True)
    for name in ("requests/s", "ids/batch", "p50 ms", "p99 ms", "heard"):
        table.add_column(name, justify="right", no_wrap=True)
    for machine in status.machines:
        if standing := words.standing(machine, status):
            table.add_row(
                Text(plain(machine.name)), Text(standing, "red"), *_NO_FIGURES, Text(f"{machine.age_s:.0f} s")
            )
            continue
        for worker in machine.workers:
            table.add_row(Text(plain(machine.name)), *_worker(worker))
    return table


def _worker(worker: Worker) -> Iterator[Text]:
    leads = " leads" if worker.is_leader else ""
    yield Text(f"{worker.slot}{leads}", "bold" if leads else "")
    if worker.pid is None:
        yield Text("not running", "red")
        return
    yield Text(_rate(worker.requests_per_s), "red" if worker.trouble else "")
    for number in (worker.batch_ids, worker.commit_p50_ms, worker.commit_p99_ms):
        yield Text("-" if number is None else f"{number:,.1f}")
    yield Text("-" if worker.heartbeat_age_s is None else f"{worker.heartbeat_age_s:.1f} s")


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 or rate == 0 else f"{rate:.1f}"
