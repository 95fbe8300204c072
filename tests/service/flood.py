"""Clients that send as much as they are let, at little cost of their own: a process for tests to run.

``python flood.py PORT CONNECTIONS REQUEST`` opens the connections, says so in a line, sends the request over
and over on each, takes the answers, and goes on until it is ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys

_SENT_AT_ONCE = 1_000_000


def main() -> None:
    port, connections, request = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].encode()
    os.nice(19)  # on other machines it would take nothing from the server, and from other clients
    payload = memoryview(request * (_SENT_AT_ONCE // len(request)))
    answers = bytearray(1 << 18)
    poll = select.epoll()
    sockets = {}
    for _ in range(connections):
        client = socket.create_connection(("127.0.0.1", port))
        client.setblocking(False)
        sockets[client.fileno()] = client
        poll.register(client, select.EPOLLIN | select.EPOLLOUT)
    sent = dict.fromkeys(sockets, 0)
    print("connected", flush=True)  # noqa: T201
    while sockets:
        for descriptor, events in poll.poll():
            try:
                if events & ~select.EPOLLOUT and not sockets[descriptor].recv_into(answers):
                    raise ConnectionError
                if events & select.EPOLLOUT:
                    with contextlib.suppress(BlockingIOError):
                        sent[descriptor] += sockets[descriptor].send(payload[sent[descriptor] :])
                    sent[descriptor] %= len(payload)
            except ConnectionError:
                sockets.pop(descriptor).close()


if __name__ == "__main__":
    main()
