"""The kinds of traffic that the servers meet."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Traffic:
    """``ids``: each new, or about ten requests for each, as Zipf's law spreads them. ``endpoints``: one of
    its own on every hundredth request, or on all of them one of so many in turn. ``bulk``: so many ids in
    the body of each request. ``close``: a connection for each request. ``pause_ms`` is how long each
    connection waits before a request. ``same_headers``: one block of header lines on all requests. ``java``:
    Java's client sends them instead of wrk, and this is the version that it is told to speak."""

    what: str
    connections: int = 64
    ids: Literal["new", "zipf"] = "new"
    endpoints: int | Literal["some"] = 0
    bulk: int = 0
    close: bool = False
    pause_ms: int = 0
    same_headers: bool = False
    java: Literal["", "HTTP_1_1", "HTTP_2"] = ""


# Stands in a plan where others have the name of a kind of traffic.
IDLE = "idle"
TRAFFIC = {
    "64": Traffic("64 connections, all ids new"),
    "64-same-headers": Traffic("64 connections, the same headers on all requests", same_headers=True),
    "same-endpoint": Traffic("64 connections, the same endpoint on all requests", endpoints=1),
    "zipf": Traffic("64 connections, about 10 requests for each id", ids="zipf"),
    "512": Traffic("512 connections", connections=512),
    "some-endpoints": Traffic("64 connections, an endpoint of its own on 1% of requests", endpoints="some"),
    "paced": Traffic("64 connections, 6 ms before each request: about 10,000 a second", pause_ms=6),
    "close": Traffic("64 at a time, a new connection for each request", close=True),
    "bulk": Traffic(
        "16 connections, 1,000 ids in each request; figures are per id", connections=16, bulk=1000
    ),
    "balanced": Traffic("64 connections to a load balancer in front of the server"),
    "java": Traffic(
        "Java's client as it is, 32 connections, 6,000 requests a second", connections=32, java="HTTP_2"
    ),
    "java-http1": Traffic(
        "Java's client told to speak HTTP/1.1, 32 connections, 6,000 requests a second",
        connections=32,
        java="HTTP_1_1",
    ),
}
