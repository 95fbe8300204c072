"""`idagg top` in a terminal: a pty whose screen is kept by pyte."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence

import pyte
import pytest

from documents import ROOT
from idagg.ask import top as ask_top
from kit.canned import Canned

EXAMPLE = json.loads((ROOT / "tests/examples/status.json").read_bytes())
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


def event(**changes: object) -> bytes:
    """A comment, and a status, as a stream has them."""
    return b": well\r\n\r\nid: 7\r\ndata: %b\r\n\r\n" % json.dumps(EXAMPLE | changes).encode()


class Terminal:
    """A terminal in which a command runs."""

    def __init__(self, command: Sequence[str], columns: int = 80, lines: int = 24) -> None:
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.written = b""
        self._own, other = pty.openpty()
        self.resize(columns, lines)
        self.before = termios.tcgetattr(other)
        self._other = other
        self.process = subprocess.Popen(
            command,
            stdin=other,
            stdout=other,
            stderr=other,
            # Without COLUMNS and LINES, which would take the place of the terminal's size.
            env={k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
            | {"TERM": "xterm-256color"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._own, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))
        self.screen.resize(lines, columns)

    def press(self, keys: bytes) -> None:
        os.write(self._own, keys)

    def shows(self, is_there: Callable[[str], bool], within_s: float = 60) -> str:
        """Wait until the screen is so; returns it."""
        give_up_at = time.monotonic() + within_s
        while True:
            text = "\n".join(line.rstrip() for line in self.screen.display).rstrip()
            if is_there(text):
                return text
            assert time.monotonic() < give_up_at, text
            self._read(0.1)

    def ends(self, within_s: float = 60) -> int:
        """Its exit code. Meanwhile the terminal takes what is written: a program waits for that."""
        give_up_at = time.monotonic() + within_s
        while self._read(0.1) or self.process.poll() is None:
            assert time.monotonic() < give_up_at
        return self.process.returncode

    def is_as_before(self) -> bool:
        """Echo and line mode, the cursor, and the screen that was there."""
        left = self.written.rfind(b"\x1b[?1049l") > self.written.rfind(b"\x1b[?1049h")
        shown = self.written.rfind(b"\x1b[?25h") > self.written.rfind(b"\x1b[?25l")
        return left and shown and termios.tcgetattr(self._other) == self.before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._own)
        os.close(self._other)

    def _read(self, within_s: float) -> bool:
        if not select.select([self._own], [], [], within_s)[0]:
            return False
        data = os.read(self._own, 65_536)
        self.written += data
        self._stream.feed(data)
        return True


@contextlib.contextmanager
def top(url: str, columns: int = 80, lines: int = 24) -> Iterator[Terminal]:
    terminal = Terminal([sys.executable, "-m", "idagg", "top", "--admin-url", url], columns, lines)
    try:
        yield terminal
    finally:
        terminal.close()


def test_in_80_columns() -> None:
    """All of the example is on a screen that ssh opens by default."""
    with Canned(HEAD + event(), stays=True) as server, top(server.url) as terminal:
        assert terminal.shows(lambda text: "not running\n" in f"{text}\n") == SHOWN


def test_drawn_anew() -> None:
    """Each status that comes is shown in the place of the last."""
    counted = [{"window_start": "2026-11-22T10:54:00Z", "unique_ids": ids} for ids in (1432, 1433)]
    stream = HEAD + event(current=counted[0]) + event(current=counted[1])
    with Canned(stream, stays=True) as server, top(server.url) as terminal:
        text = terminal.shows(lambda text: "1,433 ids so far" in text)
    assert text.count("this window") == 1


@pytest.mark.parametrize(("key", "code"), [(b"q", 0), (b"\x03", 0), (b"\x04", 0)])
def test_a_key_ends_it(key: bytes, code: int) -> None:
    """q, Ctrl-C and Ctrl-D; the terminal is then as it was."""
    with Canned(HEAD + event(), stays=True) as server, top(server.url) as terminal:
        terminal.shows(lambda text: "web-1" in text)
        terminal.press(b"x")
        terminal.press(key)
        assert terminal.ends() == code
        assert terminal.is_as_before()


def test_a_key_before_ctrl_c_is_still_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or who was told of it would wait for the next one, and not end."""
    own, other = pty.openpty()
    try:
        with open(other, closefd=False) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            with ask_top._keys() as keys:
                os.write(own, b"x\x03")
                assert select.select([keys], [], [], 10)[0]
                assert os.read(keys, 64) == b"x"
    finally:
        os.close(own)
        os.close(other)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it(number: signal.Signals) -> None:
    with Canned(HEAD + event(), stays=True) as server, top(server.url) as terminal:
        terminal.shows(lambda text: "web-1" in text)
        terminal.process.send_signal(number)
        assert terminal.ends() == 128 + number
        assert terminal.is_as_before()


def test_the_stream_ends() -> None:
    """It says so, keeps what it knows, and goes on with the next stream."""
    again = event(namespace="again")
    with Canned(HEAD + event(), None, HEAD + again, stays=True) as server, top(server.url) as terminal:
        terminal.shows(lambda text: "web-1" in text)
        server.hang_up()
        terminal.shows(lambda text: "no answer" in text and "1,432 ids so far" in text)
        terminal.shows(lambda _: len(server.asked) == 2)  # it stays so until the next one has an answer
        server.hang_up()
        text = terminal.shows(lambda text: text.startswith("idagg, namespace again  counting"))
        assert "no answer" not in text


def test_another_size() -> None:
    with Canned(HEAD + event(), stays=True) as server, top(server.url, 60) as terminal:
        terminal.shows(lambda text: "web-1" in text)
        terminal.resize(132, 30)
        terminal.shows(lambda text: "Connection refused; counts go to the log file\n" in text)


def test_no_terminal() -> None:
    """One plain picture, without a control character."""
    with Canned(HEAD + event(), stays=True) as server:
        done = subprocess.run(
            [sys.executable, "-m", "idagg", "top", "--admin-url", server.url],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\n".join(line.rstrip() for line in done.stdout.splitlines()) == SHOWN


def test_nothing_to_show() -> None:
    """A failure is a sentence on the terminal as it is."""
    with Canned(HEAD) as server, top(server.url) as terminal:
        assert terminal.ends() == 5
        assert b"has ended the stream before it said anything" in terminal.written
        assert b"\x1b" not in terminal.written


SHOWN = """\
idagg, namespace idagg  counting, with trouble  2026-11-22T10:54:21Z
leader       web-1, worker-0, epoch 7
this window  2026-11-22T10:54:00Z  1,432 ids so far
last window  2026-11-22T10:53:00Z  4,000 ids, 10,000 hits
pending      messages of 1 window, callbacks of 2 windows (3 not tried yet, 12
             status 503, 1 timeout)
requests/s   9,712   200: 9,710   400: 2.2
! web-1, broker, for 40 s: RabbitMQ at 10.0.0.9:5672 is away: Connection
refused; counts go to the log file
! web-2, worker-1, for 2 s: it is not running: the other workers accept its new
connections

machine  worker    requests/s  ids/batch  p50 ms  p99 ms  heard
web-1    0 leads        4,902       12.5     0.9     2.6  0.2 s
web-1    1                  0          -       -       -  0.3 s
web-2    0              4,810       11.9     1.1     3.0  2.3 s
web-2    1        not running"""
