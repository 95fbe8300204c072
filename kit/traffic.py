"""Requests as a load balancer forwards them: heads of many clients, no two alike."""

from __future__ import annotations

import functools
import random
import re

# How many blocks of header lines there are. It is prime, so that no number of connections falls into step
# with them: each connection meets all blocks, in ever another order.
BLOCKS = 8191
# Where a block holds the number of its request, so that no two heads are alike.
MARK = "{}"

_MOZILLA = "Mozilla/5.0"
_WINDOWS = f"{_MOZILLA} (Windows NT 10.0; Win64; x64"
_MAC = f"{_MOZILLA} (Macintosh; Intel Mac OS X 10_15_7)"
_ANDROID = f"{_MOZILLA} (Linux; Android 10; K)"
_CHROME = "AppleWebKit/537.36 (KHTML, like Gecko)"
_SAFARI = "AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5"
# Clients as they name themselves, by what else they send.
_CLIENTS = {
    (
        "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "Accept-Encoding: gzip, deflate, br",
    ): (
        f"{_WINDOWS}) {_CHROME} Chrome/137.0.0.0 Safari/537.36",
        f"{_WINDOWS}) {_CHROME} Chrome/138.0.0.0 Safari/537.36 Edg/138.0.0.0",
        f"{_WINDOWS}; rv:140.0) Gecko/20100101 Firefox/140.0",
        f"{_MAC} {_SAFARI} Safari/605.1.15",
        f"{_MOZILLA} (iPhone; CPU iPhone OS 18_5 like Mac OS X) {_SAFARI} Mobile/15E148 Safari/604.1",
        f"{_MOZILLA} (Android 14; Mobile; rv:140.0) Gecko/140.0 Firefox/140.0",
        f"{_MOZILLA} (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
        f"{_MOZILLA} (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
    ),
    ("Accept: */*", "Accept-Encoding: gzip, deflate, br, zstd", "Referer: https://www.example.com/"): (
        f"{_WINDOWS}) {_CHROME} Chrome/138.0.0.0 Safari/537.36",
        f"{_MAC} {_CHROME} Chrome/138.0.0.0 Safari/537.36",
        f"{_MOZILLA} (X11; Linux x86_64) {_CHROME} Chrome/136.0.0.0 Safari/537.36",
        f"{_ANDROID} {_CHROME} Chrome/138.0.0.0 Mobile Safari/537.36",
        f"{_ANDROID} {_CHROME} SamsungBrowser/28.0 Chrome/130.0.0.0 Mobile Safari/537.36",
        f"{_MOZILLA} (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    ),
    ("Accept: application/json", "Accept-Encoding: gzip"): (
        "Campaigns/5.12.1 (com.example.campaigns; build:8812; iOS 18.5.0) Alamofire/5.9.1",
        "okhttp/4.12.0",
        "okhttp/5.0.0-alpha.14",
        "Dart/3.8 (dart:io)",
        "Dalvik/2.1.0 (Linux; U; Android 14; Pixel 8 Build/AP2A.240905.003)",
        "Go-http-client/1.1",
    ),
    ("Accept: */*",): (
        "Campaigns/8812 CFNetwork/3826.500.131 Darwin/24.5.0",
        "curl/7.88.1",
        "curl/8.14.1",
        "python-requests/2.32.4",
    ),
    ("Accept: application/json, text/plain, */*", "Accept-Encoding: gzip, compress, deflate, br"): (
        "axios/1.10.0",
        "Apache-HttpClient/5.5 (Java/21.0.7)",
    ),
}
_AGENTS = tuple((agent, others) for others, agents in _CLIENTS.items() for agent in agents)
_LANGUAGES = ("en-US,en;q=0.9", "de-DE,de;q=0.9,en;q=0.8", "en-GB,en;q=0.7,de;q=0.3", "pt-BR,pt;q=0.9", "ja")
_COOKIES = ("session", "csrf", "consent", "_ga", "ab", "cart", "visitor", "ref")


@functools.cache
def blocks() -> tuple[str, ...]:
    """Header lines of BLOCKS requests, each block with its empty line and one MARK; the same in each run."""
    draw = random.Random(1)
    return tuple(_block(draw) for _ in range(BLOCKS))


def _block(draw: random.Random) -> str:
    agent, others = draw.choice(_AGENTS)
    lines = ["Host: ids.example.com", f"User-Agent: {agent}", *others]
    if agent.startswith(_MOZILLA):
        lines.append(f"Accept-Language: {draw.choice(_LANGUAGES)}")
    if draw.random() < 1 / 3:
        lines.append(f"Cookie: {_cookie(draw)}")
    lines += [
        f"X-Forwarded-For: {'.'.join(str(draw.randrange(1, 255)) for _ in range(4))}",
        "X-Forwarded-Proto: https",
    ]
    # A number of nine digits completes them.
    if draw.random() < 1 / 4:
        lines.append(f"X-Amzn-Trace-Id: Root=1-{_hex(draw, 8)}-{_hex(draw, 15)}{MARK}")
    else:
        lines.append(f"X-Request-Id: {_hex(draw, 23)}{MARK}")
    lines.append(f"traceparent: 00-{_hex(draw, 32)}-{_hex(draw, 16)}-0{draw.randrange(2)}")
    if draw.random() < 1 / 2:  # as HAProxy writes them, and HTTP/2 does
        lines = [re.sub("^[^:]+", lambda name: name[0].lower(), line) for line in lines]
    return "\r\n".join([*lines, "", ""])


def _hex(draw: random.Random, digits: int) -> str:
    return f"{draw.getrandbits(4 * digits):0{digits}x}"


def _cookie(draw: random.Random) -> str:
    """From 200 to 800 bytes, most of them short."""
    length = int(200 + 600 * draw.random() ** 2)
    text = "; ".join(f"{name}={_hex(draw, 100)}" for name in draw.sample(_COOKIES, len(_COOKIES)))
    return text[:length]


@functools.cache
def _halves() -> tuple[tuple[bytes, bytes], ...]:
    """Blocks before and after their mark."""
    return tuple(
        (before, after)
        for before, _, after in (block.encode().partition(MARK.encode()) for block in blocks())
    )


def get(query: bytes, number: int) -> bytes:
    """A request for an id, whole; its head is that of no other number."""
    before, after = _halves()[number % BLOCKS]
    return b"GET /api/verve/accept?%b HTTP/1.1\r\n%b%09d%b" % (query, before, number, after)
