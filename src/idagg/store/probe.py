"""Questions to a server before idagg trusts it with counts."""

from __future__ import annotations

from idagg.errors import StoreError
from idagg.store.client import Client
from idagg.store.embedded import OLDEST
from idagg.store.shards import shard_tag


async def probe(url: str, namespace: str, *, timeout_s: float) -> str:
    """Say what the server is, and what an ``ok`` is worth there. Raises StoreError where it cannot be
    used."""
    client = Client(url, timeout_s=timeout_s)
    try:
        info = _fields(await client.command("INFO"))
        version = info.get("valkey_version") or info["redis_version"]
        if tuple(map(int, version.split(".")[:2])) < OLDEST:
            wanted = ".".join(map(str, OLDEST))
            raise StoreError(f"Redis at {client.address} is {version}: {wanted} or newer is needed")
        policy = info.get("maxmemory_policy", "noeviction")
        if info.get("maxmemory", "0") != "0" and policy != "noeviction":
            raise StoreError(
                f"Redis at {client.address} drops keys, and counts with them, when it is full "
                f"(maxmemory-policy {policy}): set noeviction"
            )
        if damage := await client.damage(shard_tag(namespace)):
            raise StoreError(f"Redis at {client.address} is damaged: {'; '.join(damage)}")
        return f"Redis {version} at {client.address}, {await _durability(client, info)}"
    finally:
        await client.close()


def _fields(info: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in info.decode().splitlines() if not line.startswith("#"))
    return {name: value for name, _, value in lines}


async def _durability(client: Client, info: dict[str, str]) -> str:
    if info.get("aof_enabled", "0") == "0":
        return "appendonly no: an ok can be lost when Redis dies"
    try:
        told: list[bytes] = await client.command("CONFIG", "GET", "*appendfsync*")
    except StoreError:  # many hosted servers do not tell
        told = []
    config = dict(zip(told[::2], told[1::2], strict=True))
    policy = config.get(b"appendfsync", b"unknown").decode()
    if policy == "unknown":
        return "appendonly yes, appendfsync unknown"
    if policy == "always" and config.get(b"no-appendfsync-on-rewrite") == b"yes":
        return "appendfsync always, but no-appendfsync-on-rewrite: an ok of a rewrite's time can be lost"
    worth = {
        "always": "an ok is on disk",
        "everysec": "an ok of the last 2 s can be lost when Redis dies",
    }.get(policy, "an ok can be lost when Redis' machine dies")
    return f"appendfsync {policy}: {worth}"
