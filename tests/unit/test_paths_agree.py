"""The fast path and the fallback app alone: the same answers and the same ids, whatever arrives."""

from __future__ import annotations

import asyncio
import collections
import itertools
import re
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from idagg.accept.admission import Admission
from idagg.accept.connection import Connection
from idagg.accept.fallback import Fallback, accept_routes, health_routes
from idagg.accept.fast_path import FastPath
from idagg.accept.routing import Router
from idagg.store.hits import Stored
from idagg.store.shards import Regime
from kit.fakes import Batches, Transport, settle
from kit.http_cases import read_all

CASES = st.sampled_from([case.request for case in read_all() if len(case.request) < 1000])
CUTS = st.integers(0, 200)
SPLICES = st.builds(lambda one, end, two, start: one[:end] + two[start:], CASES, CUTS, CASES, CUTS)
STREAMS = st.lists(CASES | SPLICES | st.binary(max_size=3), min_size=1, max_size=4).map(b"".join)
ANSWER = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]+\r\n((?:[^\r\n]+\r\n)*)\r\n(ok|failed|)")
# The fallback app names itself, and says that a connection is kept where it need not.
FREE = (b"Date:", b"Server:", b"Connection: keep-alive")
CLOSE = b"Connection: close"

Answer = tuple[bytes, bytes, list[bytes]]


class Store:
    """Stores all at once."""

    def __init__(self) -> None:
        self.ids: set[bytes] = set()

    async def add(self, seq: int, ids: Sequence[bytes], *_: Any, **__: Any) -> Stored:
        new = set(ids) - self.ids
        self.ids |= new
        return Stored(60, len(new), continues=True)


async def heard(path: FastPath, pieces: list[bytes]) -> tuple[list[Answer], bool]:
    """The answers of one connection, and whether it has ended."""
    connection, transport = Connection(path), Transport()
    connection.connection_made(transport)
    for piece in pieces:
        connection.data_received(piece)
        before = None
        async with asyncio.timeout(30):
            while before != transport.written or transport.paused:
                before = transport.written
                await settle()
    connection.connection_lost(None)
    await settle()
    assert path.unjudged_bytes == 0
    assert not path.connections
    found = list(ANSWER.finditer(transport.written))
    assert b"".join(match[0] for match in found) == transport.written
    fields = [sorted(line for line in match[2].splitlines() if not line.startswith(FREE)) for match in found]
    assert not any(CLOSE in some for some in fields[:-1])
    assert transport.ended == any(CLOSE in some for some in fields)
    return [(match[1], match[3], some) for match, some in zip(found, fields, strict=True)], transport.ended


async def outcome(
    pieces: list[bytes], *, fast: bool, shards: int = 1
) -> tuple[list[Answer], bool, set[bytes]]:
    """The same, and the ids counted, on one of the paths."""
    loop = asyncio.get_running_loop()
    troubles: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: troubles.append(context))
    store, tally = Store(), collections.Counter[int]()
    router = Router(
        lambda shard, regime: store,
        Regime(1, shards),
        Batches(),
        tally,
        deadline_s=100,
        max_batch=4096,
        now=loop.time,
        linger_s=0,
    )
    admission = Admission(router, tally)
    fallback = Fallback([*accept_routes(admission, None), *health_routes(lambda: None)], tally)
    await fallback.start()
    running = asyncio.create_task(router.run())
    path = FastPath(admission if fast else None, fallback, epoch_s=0, deadline_s=100, keepalive_s=75)
    answers, has_ended = await heard(path, pieces)
    router.stop()
    await running
    await fallback.close()
    assert not troubles
    return answers, has_ended, store.ids


@settings(max_examples=500, deadline=None)
@given(STREAMS, st.lists(st.integers(0, 1000), max_size=5), st.sampled_from([1, 4]))
def test_both_paths_say_and_count_the_same(stream: bytes, cuts: list[int], shards: int) -> None:
    """In whatever pieces it arrives, and over how many shards ids are spread. Of two faults of a head, the
    pieces may decide which is told."""
    ends = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[start:end] for start, end in itertools.pairwise(ends)]
    in_pieces = answers, has_ended, ids = asyncio.run(outcome(pieces, fast=True, shards=shards))
    assert in_pieces == asyncio.run(outcome(pieces, fast=False))
    whole = asyncio.run(outcome([stream], fast=True))
    told = len(answers) - has_ended
    assert (whole[0][:told], len(whole[0]), *whole[1:]) == (answers[:told], len(answers), has_ended, ids)
