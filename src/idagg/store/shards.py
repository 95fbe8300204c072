"""The names of shards. All keys of one begin with its tag, so that they are in one slot of a cluster."""

from __future__ import annotations


def shard_tag(namespace: str) -> str:
    return f"{{{namespace}:0}}"
