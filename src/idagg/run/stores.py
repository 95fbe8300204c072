"""The store's servers that the settings describe."""

from __future__ import annotations

import functools
import os

from idagg.credentials import read_again
from idagg.in_force import InForce
from idagg.store.address import default_shards
from idagg.store.servers import Servers


def servers(redis_url: str, settings: InForce) -> Servers:
    """``redis_url`` is that of the settings, or the embedded store's."""
    return Servers(
        redis_url,
        replicas=settings.replicas,
        read_again=functools.partial(read_again, "redis_url", os.environ),
    )


def shards(settings: InForce) -> int:
    """How many shards the settings ask for."""
    return settings.shards or default_shards(settings.redis_url)
