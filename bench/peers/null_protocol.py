"""What uvloop itself costs: a protocol that counts the ends of requests and answers each with a constant.

It reads no path, no id and no header but ``Connection: close``. No service can be this cheap in Python.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import cast

import uvloop

_END = b"\r\n\r\n"
_REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
_LAST_REPLY = _REPLY.replace(_END, b"\r\nConnection: close" + _END)


class Null(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *whole, self._rest = (self._rest + data).split(_END)
        if b"\r\nConnection: close" in data:
            self._transport.write(_LAST_REPLY)
            self._transport.close()
        else:
            self._transport.write(_REPLY * len(whole))


async def main() -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    await loop.create_server(Null, "127.0.0.1", int(os.environ["PORT"]), backlog=4096)
    await stopped.wait()


uvloop.run(main())
