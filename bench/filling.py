"""Puts ids into idagg's window faster than requests could."""

from __future__ import annotations

from bench.service import Service
from idagg.store.client import Client
from idagg.store.hits import MAX_BATCH, HitStore

_EXACT_LIMIT = 10_000_000


async def fill(service: Service, first_id: int, count: int) -> set[int]:
    """As a worker would, in batches of the greatest size; returns the starts of the windows they are in."""
    link = Client(service.store.url)
    hits = HitStore(link, namespace="idagg", window_s=service.window_s, exact_limit=_EXACT_LIMIT)
    starts = set()
    for seq, done in enumerate(range(0, count, MAX_BATCH), 1):
        ids = [b"%d" % (first_id + number) for number in range(done, min(done + MAX_BATCH, count))]
        starts.add((await hits.add(seq, ids)).start_s)
    await link.close()
    return starts
