"""Whether the store's servers can keep what they acknowledge: before idagg trusts them, and while it does."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import NamedTuple

from idagg.errors import StoreError
from idagg.store.address import Kind, kind_of
from idagg.store.client import Client
from idagg.store.election import Agreed, spread_otherwise
from idagg.store.embedded import OLDEST
from idagg.store.servers import Servers
from idagg.store.shards import shard_tag


class Seen(NamedTuple):
    """What a server says of itself. ``config`` lacks what it does not tell, as many hosted ones do.

    ``known`` is how many replicas its sentinels, or its cluster, know of, those that are away included.
    """

    where: str
    info: Mapping[str, str]
    config: Mapping[str, str]
    known: int = 0

    @property
    def replicas(self) -> int:
        """Those that follow it now."""
        names = (f"slave{number}" for number in range(int(self.info.get("connected_slaves", "0"))))
        return sum("state=online" in self.info.get(name, "") for name in names)

    @property
    def away(self) -> int:
        """Replicas that are known, but do not follow it now."""
        return max(self.known, int(self.info.get("connected_slaves", "0"))) - self.replicas

    @property
    def version(self) -> str:
        return self.info.get("valkey_version") or self.info.get("redis_version", "0")


async def look(client: Client, *, asks_config: bool = False) -> Seen:
    """Ask the client's server. Raises StoreError."""
    info = (await client.command("INFO")).decode()
    config: dict[str, str] = {}
    patterns = ("*appendfsync*", "min-replicas-to-write", "cluster-require-full-coverage")
    for pattern in patterns if asks_config else ():
        with contextlib.suppress(StoreError):
            told = [word.decode() for word in await client.command("CONFIG", "GET", pattern)]
            config |= dict(zip(told[::2], told[1::2], strict=True))
    lines = (line.partition(":") for line in info.splitlines() if not line.startswith("#"))
    fields = {name: value for name, _, value in lines}
    known = client.known_replicas
    if asks_config and fields.get("cluster_enabled") == "1":
        with contextlib.suppress(StoreError):
            known = _replicas_of_myself((await client.command("CLUSTER", "NODES")).decode())
    return Seen(client.address, fields, config, known)


def _replicas_of_myself(nodes: str) -> int:
    """Of the answer to CLUSTER NODES; each line is ID ADDRESS FLAGS MASTER …"""
    lines = [line.split(" ") for line in nodes.splitlines()]
    (own,) = (words[0] for words in lines if "myself" in words[2].split(","))
    return sum(words[3] == own for words in lines)


def risks(seen: Seen, *, kind: Kind, replicas: int) -> list[str]:
    """How ids are lost, or refused, as the server is set up: a sentence each. Pure."""
    found = _faults(seen, kind, replicas)
    if seen.info.get("aof_enabled") == "0":
        found.append(
            f"Redis at {seen.where} keeps no append-only file: ids that were answered ok are lost when it "
            "ends; set appendonly yes"
        )
    return found


def _faults(seen: Seen, kind: Kind, replicas: int) -> list[str]:
    """Those that are nobody's choice."""
    info, where = seen.info, f"Redis at {seen.where}"
    policy = info.get("maxmemory_policy", "noeviction")
    found = []
    if info.get("maxmemory", "0") != "0" and policy != "noeviction":
        found.append(
            f"{where} drops keys, and counts with them, when it is full (maxmemory-policy {policy}): windows "
            "come out too small though every id was answered ok; set noeviction"
        )
    if info.get("role") == "slave":
        found.append(f"{where} is a replica, and nothing is counted: give --redis-url its primary")
    if info.get("cluster_enabled") == "1" and kind != "cluster":
        found.append(
            f"{where} is a node of a cluster, and nothing is counted once it has handed a slot over: "
            "give --redis-url as redis+cluster:// or rediss+cluster://"
        )
    wanted = int(seen.config.get("min-replicas-to-write", "0"))
    if seen.replicas < wanted:
        found.append(
            f"{where} has {seen.replicas} of the {wanted} replicas that its min-replicas-to-write asks for, "
            "and takes no writes: start replicas, or lower it"
        )
    if seen.replicas < replicas:
        found.append(
            f"{where} has {seen.replicas} of the {replicas} replicas that --replicas asks for, and no id is "
            "answered ok: start replicas, or lower it"
        )
    return found


def worth(seen: Seen, *, replicas: int) -> str:
    """What an ``ok`` of the server is worth. Pure."""
    return "; ".join(part for part in (_durability(seen), _survival(seen, replicas), _fit(seen)) if part)


async def probe(
    url: str, namespace: str, *, timeout_s: float, replicas: int = 0, shards: int | None = None
) -> str:
    """Say what the servers are, and what an ``ok`` is worth there. Raises StoreError where they cannot be
    used, or lose what they have acknowledged."""
    servers = Servers(url, replicas=replicas)
    found: dict[str, Seen] = {}
    for index in range(shards or 1):
        tag = shard_tag(namespace, index)
        client = servers.client(tag, timeout_s=timeout_s)
        try:
            seen = await look(client, asks_config=True)
            found.setdefault(seen.where, seen)
            _check(seen, kind_of(url), replicas)
            if damage := await client.damage(tag):
                raise StoreError(f"Redis at {seen.where} is damaged: {'; '.join(damage)}")
        finally:
            await client.close()
    # The masters of a cluster are mostly alike: each thing is said once, of all that it is true of.
    verdicts: dict[str, list[Seen]] = {}
    for seen in found.values():
        verdicts.setdefault(worth(seen, replicas=replicas), []).append(seen)
    return "; ".join(
        f"Redis {', '.join(dict.fromkeys(seen.version for seen in alike))} at "
        f"{', '.join(seen.where for seen in alike)}, {verdict}"
        for verdict, alike in verdicts.items()
    )


class Beside(NamedTuple):
    """What becomes of a process beside those that run: ``trouble`` says why it would not count, ``notice``
    why it would not lead. ``now_s`` is the store's clock, Unix time."""

    trouble: str | None
    notice: str | None
    now_s: float


async def agreement(url: str, namespace: str, ours: Agreed, *, timeout_s: float) -> Beside:
    """Compare the settings of a process with those of the store's. Raises StoreError."""
    tag = shard_tag(namespace)
    client = Servers(url).client(tag, timeout_s=timeout_s)
    try:
        length, exact_limit, shards, is_led, now_us = await client.script("agreed", tag)
    finally:
        await client.close()
    theirs = Agreed(length, exact_limit, shards)
    trouble = notice = None
    if is_led and not ours.counts_like(theirs):
        flags = ours._replace(shards=shards).differing_flags(theirs)
        trouble = (
            f"running instances count {theirs}, and this one would count nothing: give it the same "
            f"{flags}, or a --namespace of its own"
        )
    elif is_led and ours.shards != shards:
        notice = spread_otherwise(shards)
    return Beside(trouble, notice, now_us / 1e6)


def _check(seen: Seen, kind: Kind, replicas: int) -> None:
    where = f"Redis at {seen.where}"
    if seen.info.get("redis_mode") == "sentinel":
        raise StoreError(f"{where} is a sentinel: give --redis-url as redis+sentinel://HOST/SERVICE")
    if tuple(map(int, seen.version.split(".")[:2])) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise StoreError(f"{where} is {seen.version}: {wanted} or newer is needed")
    most, used = (int(seen.info.get(name, "0")) for name in ("maxmemory", "used_memory"))
    if most and used >= most:
        raise StoreError(f"{where} is full (maxmemory {most / 1e6:.0f} MB), and nothing is counted: raise it")
    # A missing log is the operator's choice, as far as `check` goes: what it means is in what an ok is worth.
    if found := _faults(seen, kind, replicas):
        raise StoreError("; ".join(found))


def _durability(seen: Seen) -> str:
    if seen.info.get("aof_enabled", "0") == "0":
        return "appendonly no: an ok can be lost when Redis dies"
    policy = seen.config.get("appendfsync", "unknown")
    if policy == "unknown":
        return "appendonly yes, appendfsync unknown"
    if policy == "always" and seen.config.get("no-appendfsync-on-rewrite") == "yes":
        return "appendfsync always, but no-appendfsync-on-rewrite: an ok of a rewrite's time can be lost"
    meaning = {
        "always": "an ok is on disk",
        "everysec": "an ok of the last 2 s can be lost when Redis dies",
    }.get(policy, "an ok can be lost when Redis' machine dies")
    return f"appendfsync {policy}: {meaning}"


def _survival(seen: Seen, replicas: int) -> str:
    there = seen.replicas
    if not there:
        none = f"none of its {seen.away} replicas follows it now: an ok is on this machine alone"
        return none if seen.away else ""
    if replicas == 0:
        cut_off = seen.config.get("min-replicas-to-write") == "0"
        return f"{there} replicas and --replicas 0: a failover loses the last ids that were answered ok" + (
            ", and those of a primary that is cut off (min-replicas-to-write 0)" if cut_off else ""
        )
    if replicas < there + seen.away:
        away = f" ({seen.away} of them away now)" if seen.away else ""
        return (
            f"--replicas {replicas} of {there + seen.away}{away}: an ok survives a failover, unless the "
            "replica that is promoted is one that was behind"
        )
    return f"--replicas {replicas} of {there}: an ok survives the loss of any machine"


def _fit(seen: Seen) -> str:
    """What keeps the server from taking ids when another is away, though it need not."""
    is_cluster = seen.info.get("cluster_enabled") == "1"
    if is_cluster and seen.config.get("cluster-require-full-coverage") == "yes":
        return "cluster-require-full-coverage yes: while one master is away, none counts; set no"
    return ""
