"""A server that says what it is told to say, whatever it is asked."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

_TLS = b"\x16"  # first byte of a client that wants TLS


def http(status: int, body: bytes = b"", kind: str = "application/json", *fields: str) -> bytes:
    """An answer, whole."""
    head = [
        f"HTTP/1.1 {status} X",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        *fields,
        "Connection: close",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


class Canned:
    """Each connection gets the next of ``answers``, and the last one again and again.

    An answer of None is never given: the connection stays open. ``stays``: after its answer, each does.
    """

    def __init__(self, *answers: bytes | None, stays: bool = False) -> None:
        self._answers: Sequence[bytes | None] = answers
        self._stays = stays
        self._open: list[socket.socket] = []
        self.asked: list[str] = []  # heads
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, at: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self.hang_up()

    def hang_up(self) -> None:
        """Close the connections that are open."""
        while self._open:
            self._open.pop().close()

    def _serve(self) -> None:
        for connection in self._connections():
            self._open.append(connection)
            with contextlib.suppress(ConnectionError):  # it has gone
                head = b""
                while (
                    not head.endswith(b"\r\n\r\n") and head[:1] != _TLS and (data := connection.recv(65_536))
                ):
                    head += data
                self.asked.append(head.decode(errors="replace"))
                answer = self._answers[min(len(self.asked), len(self._answers)) - 1]
                if answer is None:
                    continue
                connection.sendall(answer)
            if not self._stays:
                connection.close()

    def _connections(self) -> Iterator[socket.socket]:
        while True:
            try:
                yield self._listener.accept()[0]
            except OSError:  # shut down
                return
