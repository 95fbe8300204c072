"""Groups of real Redis servers that stand in for each other: Sentinel's, and a Redis Cluster's.

All are asked and told by redis-cli over their Unix sockets, which neither passwords' users nor cut cables nor
TLS change. Calls wait for what they ask for: from an event loop, call them by ``asyncio.to_thread``.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, Self, TypeVar
from urllib.parse import quote, urlencode

from idagg.store.shards import SLOTS, slot_of
from kit.servers import PEM, RedisServer, free_port
from kit.waiting import LIMIT_S

T = TypeVar("T")

# Of a sentinel: how often it tells and asks others. The defaults are 2,000, 10,000 and 1,000, and a primary
# that comes back as one is told after four of the first kind that it is a replica now.
_HURRIED_MS = {"publish-period": 500, "info-period": 500, "ask-period": 200}

# Until servers that start, elect and copy have agreed, on a machine that is shared.
AGREED_S = 60.0


def wait_for(condition: Callable[[], T | None], *, within_s: float = AGREED_S, what: str = "") -> T:
    """Wait until the condition is true; returns what it said."""
    give_up_at = time.monotonic() + within_s
    while not (said := condition()):
        assert time.monotonic() < give_up_at, f"not within {within_s:g} s: {what}"
        time.sleep(0.02)
    return said


class Place(NamedTuple):
    """Where a server runs: its address, and a command that runs it there."""

    host: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()


HERE = Place()


class Node(RedisServer):
    """One server of a group."""

    start_timeout_s = 60.0  # it may have much to load
    _announces = "replica_announce_ip"  # which of its addresses others are told

    def __init__(
        self,
        kind: Literal["redis", "valkey"] = "redis",
        *,
        place: Place = HERE,
        user: str = "",
        tls: bool = False,
        **options: str,
    ) -> None:
        super().__init__(kind, tcp=True)
        self.place = place
        self.user = user
        self.tls = tls
        announced = {} if "cluster_enabled" in options else {self._announces: place.host}
        self.options |= {"bind": place.host, "protected_mode": "no", **announced, **options}
        if tls:
            pem = self.folder / "pem"
            pem.write_text(PEM)
            files = dict.fromkeys(("tls_cert_file", "tls_key_file", "tls_ca_cert_file"), str(pem))
            # Later options win: the plain port is off.
            self.options |= {"port": "0", "tls_port": str(self.port), "tls_auth_clients": "no", **files}
            self.options["tls_replication"] = "yes"

    @property
    def address(self) -> str:
        return f"{self.place.host}:{self.port}"

    @property
    def password(self) -> str:
        return self.options.get("requirepass", "")

    @property
    def runs(self) -> bool:
        return self._process is not None

    def ask(self, *words: str, within_s: float = LIMIT_S) -> str:
        """The answer to a command, as redis-cli prints it; raises CalledProcessError where it is an error."""
        return redis_cli("-s", str(self.socket), "-e", *words, password=self.password, within_s=within_s)

    def may_answer(self, *words: str) -> str:
        """The same; empty where there is none, as it is away or frozen or does not want to."""
        if not self.runs:
            return ""
        try:
            return self.ask(*words, within_s=3.0)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return ""

    def info(self, section: str) -> dict[str, str]:
        """What INFO says; nothing where it does not answer."""
        lines = self.may_answer("INFO", section).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    @property
    def role(self) -> str:
        """``master`` or ``slave``, as it says itself; empty where it does not answer."""
        return self.info("replication").get("role", "")

    @property
    def followers(self) -> int:
        """How many replicas it has that are in sync."""
        return self.may_answer("INFO", "replication").count("state=online")

    def copies(self, primary: Node) -> bool:
        """It is a replica of this one, and has all that it has."""
        said = self.info("replication")
        return (
            said.get("role") == "slave"
            and said.get("master_port") == str(primary.port)
            and said.get("master_link_status") == "up"
            and said.get("master_sync_in_progress") == "0"
        )

    def _command(self) -> list[str]:
        command = [*self.place.prefix, *super()._command()]
        if self.user:
            command += ["--user", self.user, "on", f">{self.password}", "~*", "&*", "+@all"]
        return command


class SentinelNode(Node):
    """A sentinel. It keeps what it knows in its configuration file, also when it is killed."""

    _announces = "sentinel announce-ip"

    def __init__(
        self,
        kind: Literal["redis", "valkey"],
        *,
        place: Place = HERE,
        user: str = "",
        tls: bool = False,
        **options: str,
    ) -> None:
        super().__init__(kind, place=place, user=user, tls=tls, **options)
        self.identity = os.urandom(20).hex()
        self.monitors: list[str] = []  # lines of its file

    def start(self) -> None:
        file = self.folder / "sentinel.conf"
        if not file.exists():
            fixed = {"port": str(self.port), "unixsocket": str(self.socket), **self.options}
            del fixed["save"]
            lines = [f"{name.replace('_', '-')} {value}" for name, value in fixed.items()]
            if self.user:
                lines.append(f"user {self.user} on >{self.password} ~* &* +@all")
            file.write_text("\n".join([*lines, f"sentinel myid {self.identity}", *self.monitors, ""]))
        super().start()

    def _command(self) -> list[str]:
        program = RedisServer._command(self)[0]
        return [*self.place.prefix, program, str(self.folder / "sentinel.conf"), "--sentinel"]


class Group:
    """Servers that begin and end together."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._stack = contextlib.ExitStack()

    @property
    def running(self) -> list[Node]:
        return [node for node in self.nodes if node.runs]

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._stack = stack
            self._start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        raise NotImplementedError


class SentinelGroup(Group):
    """A primary, replicas, and sentinels that watch them.

    ``user`` and ``password`` are for the data, ``sentinel_user`` and ``sentinel_password`` for the sentinels.
    Places are of the first primary, of its replicas and of the sentinels, in this order. ``options`` are the
    data nodes' own.
    """

    SERVICE = "idagg"

    def __init__(
        self,
        replicas: int = 2,
        *,
        sentinels: int = 3,
        kind: Literal["redis", "valkey"] = "redis",
        user: str = "",
        password: str = "",
        sentinel_user: str = "",
        sentinel_password: str = "",
        tls: bool = False,
        down_after_ms: int = 1000,
        failover_timeout_ms: int = 2000,
        places: Sequence[Place] = (),
        **options: str,
    ) -> None:
        super().__init__()
        self._user, self._password = user, password
        self._sentinel_user, self._sentinel_password = sentinel_user, sentinel_password
        self._tls = tls
        self._kind: Literal["redis", "valkey"] = kind
        self._timing = {
            "down-after-milliseconds": down_after_ms,
            "failover-timeout": failover_timeout_ms,
            "parallel-syncs": max(1, replicas),
        }
        self._counts = (1 + replicas, sentinels)
        self._places = places or (HERE,) * (1 + replicas + sentinels)
        self._options = {**_durable(password), **options}
        self.sentinels: list[SentinelNode] = []

    @property
    def url(self) -> str:
        return self.url_of(self.sentinels)

    def url_of(self, sentinels: Sequence[SentinelNode]) -> str:
        """The same, by some of its sentinels alone."""
        names = ("sentinel_username", self._sentinel_user), ("sentinel_password", self._sentinel_password)
        query = [(name, value) for name, value in names if value]
        query += _tls_query(self.nodes[0])
        where = _url("sentinel", self.nodes[0], self._user, self._password, sentinels)
        return f"{where}/{self.SERVICE}{'?' * bool(query)}{urlencode(query)}"

    @property
    def primary(self) -> Node:
        """Which most sentinels name."""
        named = wait_for(self._named, what="no sentinel names a primary")
        return max(named, key=named.count)

    @property
    def replicas(self) -> list[Node]:
        """All running ones but the primary."""
        primary = self.primary
        return [node for node in self.running if node is not primary]

    def promoted(self, instead_of: Node, *, within_s: float = AGREED_S) -> tuple[Node, float]:
        """Wait until another is primary, and all sentinels name it: an old one that comes back earlier makes
        some elect again. Returns it, and when it became primary, of ``time.monotonic``."""

        since_s: dict[Node, float] = {}

        def agreed() -> tuple[Node, float] | None:
            for node in self.running:
                if node is not instead_of and node not in since_s and node.role == "master":
                    since_s[node] = time.monotonic()
            named = set(self._named()) if since_s else set()
            if len(named) != 1 or not named <= since_s.keys():
                return None  # on a machine that stands still they may have elected another one meanwhile
            (new,) = named
            return new, since_s[new]

        return wait_for(agreed, within_s=within_s, what=f"no primary instead of {instead_of.address}")

    def whole(self, replicas: int, *, within_s: float = AGREED_S) -> float:
        """Wait until the primary has so many replicas; returns when that was, of ``time.monotonic``."""

        def found() -> float | None:
            return time.monotonic() if self.primary.followers >= replicas else None

        return wait_for(found, within_s=within_s, what=f"there are no {replicas} replicas")

    def in_sync(self, *, within_s: float = AGREED_S) -> None:
        """Wait until all running replicas copy the primary that the sentinels name, each knowing all."""

        def agreed() -> bool:
            primary = self.primary
            known = f"status=ok,address={primary.address},slaves={len(self.nodes) - 1}"
            known += f",sentinels={len(self.sentinels)}"
            return (
                primary.role == "master"
                and all(
                    sentinel.info("sentinel").get("master0", "").endswith(known)
                    for sentinel in self.sentinels
                    if sentinel.runs
                )
                and all(node.copies(primary) for node in self.running if node is not primary)
                and primary.followers >= len(self.running) - 1  # as it sees it, too
            )

        wait_for(agreed, within_s=within_s, what="replicas are not in sync")

    def restart(self, node: Node, *, of: Node | None = None, as_replica: bool = True) -> None:
        """Start one that ended, as a replica of the present primary, and wait until it is in sync.

        ``of``: of this one, and only start it. Not ``as_replica``: as what it was, as a service manager does;
        sentinels make it a replica seconds later.
        """
        primary = of or self.primary
        node.options.pop("replicaof", None)
        if as_replica and node is not primary:
            node.options["replicaof"] = f"{primary.place.host} {primary.port}"
        node.start()
        if not of:
            self.in_sync()

    def down_after(self, ms: int) -> None:
        """For how long a node says nothing before it is down, from now on."""
        for sentinel in self.sentinels:
            sentinel.ask("SENTINEL", "SET", self.SERVICE, "down-after-milliseconds", str(ms))

    def failover(self) -> Node:
        """As an administrator asks a sentinel for it; returns the new primary.

        The old one is told seconds later, and says until then that it is a primary, too.
        """
        old = self.primary
        command = ("SENTINEL", "FAILOVER", self.SERVICE)
        asked_s = -math.inf

        def made() -> bool:
            nonlocal asked_s
            others = (node for node in self.running if node is not old)
            if asked_s > 0 and any(node.role == "master" for node in others):
                return True
            # For the first second, a replica that was started again is still away, as a sentinel sees it. And
            # a failover is given up that takes too long.
            if time.monotonic() > asked_s + 10 and self.sentinels[0].may_answer(*command):
                asked_s = time.monotonic()
            return False

        wait_for(made, what="a sentinel does not fail over")
        return self.promoted(old)[0]

    def _start(self) -> None:
        places = iter(self._places)
        nodes, sentinels = self._counts
        for _ in range(nodes):
            node = Node(self._kind, place=next(places), user=self._user, tls=self._tls, **self._options)
            if self.nodes:
                node.options["replicaof"] = f"{self.nodes[0].place.host} {self.nodes[0].port}"
            self.nodes.append(node)
            self._stack.enter_context(node)
        options = {"requirepass": self._sentinel_password} if self._sentinel_password else {}
        for _ in range(sentinels):
            place = next(places)
            user = self._sentinel_user
            self.sentinels.append(SentinelNode(self._kind, place=place, user=user, tls=self._tls, **options))
        for sentinel in self.sentinels:
            sentinel.monitors = list(self._monitors(sentinel))
            self._stack.enter_context(sentinel)
            for period, ms in _HURRIED_MS.items():
                sentinel.ask("SENTINEL", "DEBUG", period, str(ms))
        self.in_sync()

    def _named(self) -> list[Node]:
        """By each sentinel that answers."""
        command = ("SENTINEL", "get-master-addr-by-name", self.SERVICE)
        answers = [sentinel.may_answer(*command).split() for sentinel in self.sentinels]
        by_address = {node.address: node for node in self.nodes}
        return [by_address[":".join(answer)] for answer in answers if answer]

    def _monitors(self, sentinel: SentinelNode) -> Iterator[str]:
        """What it would find out by itself, within seconds, is said at once."""
        first, *replicas = self.nodes
        quorum = len(self.sentinels) // 2 + 1
        name = self.SERVICE
        yield f"sentinel monitor {name} {first.place.host} {first.port} {quorum}"
        if self._password:
            yield f"sentinel auth-pass {name} {self._password}"
        if self._sentinel_password:
            yield f"sentinel sentinel-pass {self._sentinel_password}"
        for what, value in self._timing.items():
            yield f"sentinel {what} {name} {value}"
        for node in replicas:
            yield f"sentinel known-replica {name} {node.place.host} {node.port}"
        for other in self.sentinels:
            if other is not sentinel:
                yield f"sentinel known-sentinel {name} {other.place.host} {other.port} {other.identity}"


class _Self(NamedTuple):
    """What a node of a cluster says of itself."""

    identity: str
    is_master: bool
    master: str  # identity, of a replica
    epoch: int
    slots: list[tuple[int, int]]  # first and last

    @classmethod
    def parse(cls, line: str) -> _Self:
        identity, _, flags, master, _, _, epoch, _, *slots = line.split()
        pairs = [slot.partition("-") for slot in slots if not slot.startswith("[")]
        ranges = [(int(first), int(last or first)) for first, _, last in pairs]
        return cls(identity, "master" in flags.split(","), master, int(epoch), ranges)

    def holds(self, slot: int) -> bool:
        return self.is_master and any(first <= slot <= last for first, last in self.slots)


class RedisCluster(Group):
    """Masters with a third, or so, of the slots each, and their replicas.

    Whoever is away takes only its own slots with it, as it should be for idagg; ``options`` are the nodes'.
    """

    def __init__(
        self,
        masters: int = 3,
        replicas_each: int = 1,
        *,
        kind: Literal["redis", "valkey"] = "redis",
        user: str = "",
        password: str = "",
        tls: bool = False,
        node_timeout_ms: int = 1000,
        **options: str,
    ) -> None:
        super().__init__()
        self._kind: Literal["redis", "valkey"] = kind
        self._user, self._password, self._tls = user, password, tls
        self._counts = (masters, replicas_each)
        self._options = {
            **_durable(password),
            "cluster_enabled": "yes",
            "cluster_node_timeout": str(node_timeout_ms),
            "cluster_require_full_coverage": "no",
            **({"tls_cluster": "yes"} if tls else {}),
            **options,
        }

    @property
    def url(self) -> str:
        return self.url_of(self.nodes)

    def url_of(self, nodes: Sequence[Node]) -> str:
        """The same, by some of its nodes alone."""
        query = _tls_query(self.nodes[0])
        where = _url("cluster", self.nodes[0], self._user, self._password, nodes)
        return f"{where}{'?' * bool(query)}{urlencode(query)}"

    @property
    def masters(self) -> list[Node]:
        """Those that have slots, each by its own word; of two for one slot the later one. Each has one."""

        def all_slots() -> dict[Node, _Self] | None:
            said = self._said()  # one that stands still for a moment does not answer
            ranges = {pair for view in said.values() if view.is_master for pair in view.slots}
            covered = set[int]().union(*(range(first, last + 1) for first, last in ranges))
            return said if len(covered) == SLOTS else None

        said = wait_for(all_slots, what="there are slots that nobody has")
        found = {self._holder(slot, said) for view in said.values() for slot, _ in view.slots}
        return [node for node in self.nodes if node in found]

    def master_of(self, key: str) -> Node:
        """The node with the slot of a key or a shard's tag."""
        return self.holder(slot_of(key))

    def holder(self, slot: int) -> Node:
        return wait_for(lambda: self._holder(slot, self._said()), what=f"nobody has slot {slot}")

    def replica_of(self, master: Node) -> Node:
        """A running replica of it."""
        identity = self.identity(master)

        def found() -> Node | None:
            said = self._said().items()
            return next((node for node, view in said if not view.is_master and view.master == identity), None)

        return wait_for(found, what=f"{master.address} has no replica")

    def node_timeout(self, ms: int) -> None:
        """For how long a node says nothing before it is down, from now on."""
        for node in self.running:
            node.ask("CONFIG", "SET", "cluster-node-timeout", str(ms))

    def identity(self, node: Node) -> str:
        return node.ask("CLUSTER", "MYID").strip()

    def promoted(self, instead_of: Node, slot: int, *, within_s: float = AGREED_S) -> tuple[Node, float]:
        """Wait until another has the slot; returns it, and when it got it, of ``time.monotonic``."""

        def found() -> tuple[Node, float] | None:
            said = {node: view for node, view in self._said().items() if node is not instead_of}
            node = self._holder(slot, said)
            return None if node is None else (node, time.monotonic())

        return wait_for(found, within_s=within_s, what=f"no master instead of {instead_of.address}")

    def whole(self, slot: int, replicas: int, *, within_s: float = AGREED_S) -> float:
        """Wait until the slot's master has so many replicas; returns when that was, of ``time.monotonic``."""

        def found() -> float | None:
            node = self._holder(slot, self._said())
            return time.monotonic() if node and node.followers >= replicas else None

        return wait_for(found, within_s=within_s, what=f"the slot {slot} has no {replicas} replicas")

    def in_sync(self, *, within_s: float = AGREED_S) -> None:
        """Wait until all running nodes agree who has which slots, and each replica copies its master."""

        def agreed() -> bool:
            said = self._said()
            if len(said) < len(self.running):
                return False
            by_identity = {view.identity: node for node, view in said.items()}
            views = {
                node: sorted(_slots_lines(node.may_answer("CLUSTER", "NODES"), set(by_identity)))
                for node in said
            }
            return (
                len(set(map(tuple, views.values()))) == 1
                and all("cluster_state:ok" in node.may_answer("CLUSTER", "INFO") for node in said)
                and all(
                    view.master in by_identity and node.copies(by_identity[view.master])
                    for node, view in said.items()
                    if not view.is_master
                )
                and all(
                    node.followers >= sum(other.master == view.identity for other in said.values())
                    for node, view in said.items()
                    if view.is_master
                )
            )

        wait_for(agreed, within_s=within_s, what="the cluster's nodes do not agree")

    def restart(self, node: Node) -> None:
        """Start one that ended; whoever has got its slots keeps them."""
        node.start()
        self.in_sync()

    def failover(self, replica: Node) -> None:
        """Make this replica the master, as an administrator does before a restart of the old one."""
        asked_s = -math.inf

        def made() -> bool:
            nonlocal asked_s
            if replica.role == "master":
                return True
            if time.monotonic() > asked_s + 6:  # it gives up after 5 s
                asked_s = time.monotonic()
                replica.may_answer("CLUSTER", "FAILOVER")
            return False

        wait_for(made, what=f"{replica.address} is not made a master")
        self.in_sync()

    def add_master(self, replicas: int = 0) -> Node:
        """A new master, without slots; and replicas of it."""
        new = self._new_node()
        self._manage("add-node", new.address, self.nodes[0].address)
        self.nodes.append(new)
        self.in_sync()
        for _ in range(replicas):
            replica = self._new_node()
            identity = self.identity(new)
            self._manage(
                "add-node", replica.address, new.address, "--cluster-slave", "--cluster-master-id", identity
            )
            self.nodes.append(replica)
            self.in_sync()
        return new

    def reshard(self, sources: Sequence[Node], target: Node, slots: int) -> None:
        """Move so many slots, with all that is in them, from these masters to another."""
        self._manage(
            *("reshard", target.address, "--cluster-slots", str(slots), "--cluster-yes"),
            *("--cluster-from", ",".join(map(self.identity, sources))),
            *("--cluster-to", self.identity(target)),
            within_s=300,
        )
        self.in_sync()

    def move(self, slot: int, target: Node) -> None:
        """Move one slot, with all that is in it, to another master."""
        source = self.holder(slot)
        self.begin_move(slot, target)
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", str(slot), "100").split():
            login = ("AUTH", self._password) if self._password else ()
            address = (target.place.host, str(target.port))
            source.ask("MIGRATE", *address, "", "0", "5000", *login, "KEYS", *keys)
        identity = self.identity(target)
        target.ask("CLUSTER", "SETSLOT", str(slot), "NODE", identity)
        for node in set(self.masters) - {target}:
            # It may have heard of it by now, and be a replica of the target as it has no slots any more.
            node.may_answer("CLUSTER", "SETSLOT", str(slot), "NODE", identity)
        self.in_sync()

    def begin_move(self, slot: int, target: Node) -> None:
        """From now on the slot is on its way to another master, and all keys are still at the old one."""
        source = self.holder(slot)
        target.ask("CLUSTER", "SETSLOT", str(slot), "IMPORTING", self.identity(source))
        source.ask("CLUSTER", "SETSLOT", str(slot), "MIGRATING", self.identity(target))

    def forget(self, node: Node) -> None:
        """Take a node without slots out of the cluster, and end it."""
        identity = self.identity(node)
        self.nodes.remove(node)
        node.kill()  # a replica by now: a stop would wait until it has loaded what it will not need
        for other in self.running:
            other.ask("CLUSTER", "FORGET", identity)
        self.in_sync()

    def _start(self) -> None:
        masters, replicas_each = self._counts
        for _ in range(masters * (1 + replicas_each)):
            self.nodes.append(self._new_node())
        addresses = [node.address for node in self.nodes]
        self._manage("create", *addresses, "--cluster-replicas", str(replicas_each), "--cluster-yes")
        self.in_sync()

    def _new_node(self) -> Node:
        options = {"cluster_port": str(free_port()), **self._options}
        node = Node(self._kind, place=HERE, user=self._user, tls=self._tls, **options)
        return self._stack.enter_context(node)

    def _manage(self, *words: str, within_s: float = 60.0) -> None:
        tls = ("--tls", "--cacert", self.nodes[0].options["tls_ca_cert_file"]) if self._tls else ()
        redis_cli(*tls, "--cluster", *words, password=self._password, within_s=within_s)

    def _said(self) -> dict[Node, _Self]:
        found = {}
        for node in self.running:
            for line in node.may_answer("CLUSTER", "NODES").splitlines():
                if "myself" in line:
                    found[node] = _Self.parse(line)
        return found

    @staticmethod
    def _holder(slot: int, said: dict[Node, _Self]) -> Node | None:
        holders = [node for node, view in said.items() if view.holds(slot)]
        return max(holders, key=lambda node: said[node].epoch, default=None)


def _slots_lines(nodes: str, running: set[str]) -> Iterator[str]:
    """Who of these has which role and which slots, by a node's CLUSTER NODES."""
    for line in nodes.splitlines():
        identity, _, flags, master, _, _, _, link, *slots = line.split()
        if identity in running:
            words = set(flags.split(",")) - {"myself"}
            yield f"{identity} {sorted(words)} {master} {link} {slots}"


def redis_cli(*words: str, password: str = "", within_s: float = LIMIT_S) -> str:
    """What redis-cli prints."""
    done = subprocess.run(
        ["redis-cli", *words],
        env={**os.environ, "REDISCLI_AUTH": password} if password else None,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=within_s,
    )
    if done.returncode != 0:
        print(done.stdout, done.stderr)  # noqa: T201  pytest shows it where a test has failed
    done.check_returncode()
    return done.stdout


def _durable(password: str) -> dict[str, str]:
    secret = {"requirepass": password, "masterauth": password} if password else {}
    # A replica need not wait 5 s for others that would like the same copy.
    return {"appendonly": "yes", "appendfsync": "always", "repl_diskless_sync_delay": "0", **secret}


def _url(kind: str, first: Node, user: str, password: str, nodes: Sequence[Node]) -> str:
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if password else ""
    return f"redis{'s' * first.tls}+{kind}://{login}{','.join(node.address for node in nodes)}"


def _tls_query(node: Node) -> list[tuple[str, str]]:
    return [("ssl_ca_certs", node.options["tls_ca_cert_file"])] if node.tls else []
