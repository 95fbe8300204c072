"""Shards: the parts of the key space that a window's ids are spread over. Pure.

All keys of a shard begin with its tag, so that they are in one slot of a cluster. An id always belongs to one
shard. So the counts of a window's shards, and the estimates, can be added up.

Tags are chosen so that the slots of the first n shards lie evenly, whatever n is: a cluster gives each master
about the same number of slots, and so of shards. Shard 0, the home shard, has the lock and the records.
"""

from __future__ import annotations

import binascii
import functools
import itertools
import zlib
from typing import NamedTuple

# Slots of a Redis Cluster.
SLOTS = 16_384
# A shard's slot is at most this far from the even place: a sixteenth of the distance between 64 shards.
_TOLERANCE = 16


class Regime(NamedTuple):
    """How a window's ids are spread: the regime's number, which rises with each change, and its shards.

    A window belongs to one regime. The first regime of a store has the number 1. A process that does not know
    the store's yet goes by number 0 and the shards of its settings.
    """

    number: int
    shards: int


# Of a process that knows no other, and of a store where no leader has been.
ONE_SHARD = Regime(0, 1)


def slot_of(key: str) -> int:
    """The cluster's slot of a key or tag: CRC-16/XMODEM of what its first braces hold, if anything."""
    _, brace, rest = key.partition("{")
    inner = rest.partition("}")[0] if brace and "}" in rest else ""
    return binascii.crc_hqx((inner or key).encode(), 0) % SLOTS


def shard_of(canonical_id: bytes, shards: int) -> int:
    return zlib.crc32(canonical_id) % shards


@functools.cache
def shard_tag(namespace: str, index: int = 0) -> str:
    """The tag of the shard with this index."""
    home = f"{{{namespace}:0}}"
    if index == 0:
        return home
    wanted = slot_of(home) + _van_der_corput(index)
    for attempt in itertools.count():
        tag = f"{{{namespace}:{index}.{attempt}}}"
        if (slot_of(tag) - wanted + _TOLERANCE) % SLOTS <= 2 * _TOLERANCE:
            return tag
    raise AssertionError("not reached: the slots of enough names come near every place")


def _van_der_corput(index: int) -> int:
    """The place of the index among the slots: 1/2, 1/4, 3/4, 1/8, 5/8, 3/8, 7/8, 1/16, … of them."""
    place, step = 0, SLOTS
    while index:
        step //= 2
        place += step * (index & 1)
        index >>= 1
    return place
