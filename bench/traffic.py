"""What is sent: the kinds of traffic that the servers meet, the first of them before all others."""

from __future__ import annotations

import dataclasses
from typing import Literal

HEADERS = {
    "bare": "Host: 127.0.0.1\r\n",
    "browser": (
        "Host: ids.example.com\r\n"
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n"
        "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n"
        "Accept-Language: en-GB,en;q=0.7,de;q=0.3\r\n"
        "Accept-Encoding: gzip, deflate, br, zstd\r\n"
        "Referer: https://www.example.com/campaigns/autumn\r\n"
        "Connection: keep-alive\r\n"
        "Cookie: session=3f7c1a9be2d04c55; consent=1\r\n"
    ),
}


@dataclasses.dataclass(frozen=True)
class Traffic:
    """``ids``: each new, or about ten requests for each, as Zipf's law spreads them. ``endpoints``: one of
    its own on every hundredth request, or on all of them one of so many in turn. ``close``: a connection for
    each request. ``pause_ms`` is how long each connection waits before a request."""

    what: str
    connections: int = 64
    headers: Literal["bare", "browser"] = "browser"
    ids: Literal["new", "zipf"] = "new"
    endpoints: int | Literal["some"] = 0
    close: bool = False
    pause_ms: int = 0

    @property
    def header_lines(self) -> str:
        lines = HEADERS[self.headers]
        if self.close:
            lines = lines.replace("Connection: keep-alive\r\n", "") + "Connection: close\r\n"
        return lines


# Stands in a plan where others have the name of a kind of traffic.
IDLE = "idle"
TRAFFIC = {
    "64": Traffic("64 connections, browser-like headers, all ids new"),
    "same-endpoint": Traffic("64 connections, the same endpoint on all requests", endpoints=1),
    "512": Traffic("512 connections", connections=512),
    "64-bare": Traffic("64 connections, bare headers", headers="bare"),
    "512-bare": Traffic("512 connections, bare headers", connections=512, headers="bare"),
    "zipf": Traffic("64 connections, about 10 requests for each id", ids="zipf"),
    "some-endpoints": Traffic("64 connections, an endpoint of its own on 1% of requests", endpoints="some"),
    "paced": Traffic("64 connections, 6 ms before each request: about 10,000 a second", pause_ms=6),
    "close": Traffic("64 at a time, a new connection for each request", close=True),
}
