"""Which server has a shard: the one that there is, the primary that sentinels name, the master of a slot.

The engines elect and fail over; here it is only asked who was elected. All that are asked are asked at once,
and the newest answer is taken, by the number that the engine raises with each election. (redis-py's client
asks one sentinel after the other and takes the first answer, and has none of this for our own connections.)

What is known here is shared by all clients of a process: one look serves all who want one meanwhile.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

import hiredis

from idagg.errors import LoginRefusedError, StoreAwayError
from idagg.store.address import Address, Place, kind_of, shown
from idagg.store.connection import Argument, Connection, open_connection
from idagg.store.replies import away, refusal, unreachable
from idagg.store.shards import slot_of
from idagg.tasks import end

T = TypeVar("T")

# Time for those who are asked. A machine that is gone does not answer at all, and often was the primary's.
ASK_S = 0.5
# Time for the others once more than half have answered: news of an election is with all of them soon.
GRACE_S = 0.1
# An answer is used for all who ask within it: trouble is tried again every 50 ms by each client.
FRESH_S = 0.1
# Nodes of a cluster that are asked in a look: enough that one on the wrong side of a cut is outvoted.
NODES_ASKED = 5


class Nodes(Protocol):
    """Where the servers are that hold shards. Raises StoreAwayError."""

    elects: bool  # another server may get a shard while the one that had it is silent
    known_replicas: int  # of the server that was found last, those that are away included; 0: nobody says

    async def locate(self, tag: str) -> Address:
        """The server to connect to for the shard TAG."""

    async def look_again(self, tag: str) -> Address:
        """The same, by what the others say now."""

    async def check(self, connection: Connection, address: Address) -> None:
        """Raises StoreAwayError where the server that was connected to is not what it was taken for."""

    def moved(self, reply: str, address: Address) -> None:
        """The server at the address says that a slot is at another one."""

    def doubt(self) -> None:
        """Somebody lost a connection, or was refused: what is known may be out of date."""


@dataclasses.dataclass
class Source:
    """The store's URL. ``read_again`` reads it where its secrets are kept, if that can be: the password may
    have been changed since."""

    url: str
    read_again: Callable[[], str | None] = lambda: None

    @property
    def place(self) -> Place:
        """Read for each connection, since certificates are renewed. Raises StoreAwayError."""
        try:
            return Place.parse(self.url)
        except (ValueError, OSError) as error:
            raise unreachable(shown(self.url), str(error)) from error

    def renew(self) -> bool:
        """Whether it has another user or password now. Only a restart changes the servers."""
        found = self.read_again()
        if not found or found == self.url or shown(found) != shown(self.url):
            return False
        try:
            Place.parse(found)
        except (ValueError, OSError):
            return False
        self.url = found
        return True


def nodes(source: Source) -> Nodes:
    match kind_of(source.url):
        case "sentinel":
            return Sentinels(source)
        case "cluster":
            return Cluster(source)
    return OneServer(source)


class OneServer:
    """The server of the URL."""

    elects = False
    known_replicas = 0

    def __init__(self, source: Source) -> None:
        self._source = source

    async def locate(self, tag: str) -> Address:
        return self._source.place.node

    async def look_again(self, tag: str) -> Address:
        return await self.locate(tag)

    async def check(self, connection: Connection, address: Address) -> None:
        """Whatever it is: there is no other."""

    def moved(self, reply: str, address: Address) -> None:
        raise refusal(address.shown, reply)

    def doubt(self) -> None:
        """There is no other."""


class Sentinels:
    """The primary of a service that sentinels watch. They are asked for each connection."""

    elects = True
    known_replicas = 0

    def __init__(self, source: Source) -> None:
        self._source = source
        self._look = _Shared(self._primary)

    async def locate(self, tag: str) -> Address:
        return await self._look()

    async def look_again(self, tag: str) -> Address:
        return await self._look()

    async def check(self, connection: Connection, address: Address) -> None:
        role = await connection.send(("ROLE",))
        if isinstance(role, hiredis.ReplyError):
            raise refusal(address.shown, str(role))
        if role[0] != b"master":
            raise StoreAwayError(
                f"Redis at {address.shown} is a replica, though its sentinels call it the primary: nothing "
                "is counted until they agree"
            )

    def moved(self, reply: str, address: Address) -> None:
        raise refusal(address.shown, reply)

    def doubt(self) -> None:
        """Each connection is asked for anyway."""

    async def _primary(self) -> Address:
        place, where = self._source.place, shown(self._source.url)
        found: list[tuple[int, bytes, bytes, int]] = []
        told: list[StoreAwayError] = []
        silent: list[StoreAwayError] = []
        # The second names the successor as soon as it is elected, the first once all replicas follow it.
        commands = [("SENTINEL", what, place.service) for what in ("MASTER", "GET-MASTER-ADDR-BY-NAME")]
        for seed, outcome in await _ask_all(place.seeds, *commands):
            name = f"{seed.host}:{seed.port}"
            if isinstance(outcome, LoginRefusedError):
                told.append(_sentinels_refusal(name, place.service, "WRONGPASS"))
            elif isinstance(outcome, StoreAwayError):
                told.append(outcome)
            elif isinstance(outcome, Exception):
                silent.append(
                    StoreAwayError(f"no sentinel of {where} answers, and nothing is counted: {outcome}")
                )
            elif refused := _first_error(outcome):
                told.append(_sentinels_refusal(name, place.service, refused))
            else:
                fields = dict(zip(outcome[0][::2], outcome[0][1::2], strict=True))
                replicas = int(fields.get(b"num-slaves", 0))
                found.append((int(fields[b"config-epoch"]), *outcome[1], replicas))
        if not found:
            raise _clearest(told or silent)
        _, host, port, self.known_replicas = max(found)
        return place.node._replace(host=host.decode(), port=int(port))


class _Range(NamedTuple):
    """Slots that one master has."""

    first: int
    last: int
    host: str
    port: int


class Cluster:
    """The masters of a cluster, by slots. They are asked once, and again when somebody doubts.

    ASK and TRYAGAIN are not followed. KEYS[1] of every script is the shard's tag, and no key has that name.
    So the node that hands a slot over answers ASK to all scripts as soon as that begins, and nothing changes
    in the slot until it has ended. A script that ran at the other node meanwhile would find none of the keys
    that are still on their way, and create others, which those would collide with.
    """

    elects = True
    known_replicas = 0

    def __init__(self, source: Source) -> None:
        self._source = source
        self._look = _Shared(self._newest)
        self._ranges: list[_Range] = []
        self._moved: dict[int, tuple[str, int]] = {}  # by slot, since the last look
        self._is_doubted = True

    async def locate(self, tag: str) -> Address:
        if self._is_doubted:
            self._ranges = await self._look()
            self._moved.clear()
            self._is_doubted = False
        slot = slot_of(tag)
        place = self._moved.get(slot)
        if not place:
            place = next((one[2:] for one in self._ranges if one.first <= slot <= one.last), None)
        if not place:
            self._is_doubted = True
            raise StoreAwayError(
                f"no node of {shown(self._source.url)} has the slot {slot}, and the ids of its shard are not "
                f"counted: give it to one (redis-cli --cluster fix)"
            )
        return self._source.place.node._replace(host=place[0], port=place[1])

    async def look_again(self, tag: str) -> Address:
        self._is_doubted = True
        return await self.locate(tag)

    async def check(self, connection: Connection, address: Address) -> None:
        """A replica answers MOVED."""

    def moved(self, reply: str, address: Address) -> None:
        _, slot, place = reply.split(" ")
        host, _, port = place.rpartition(":")
        self._moved[int(slot)] = address.host if host in ("", "?") else host, int(port)

    def doubt(self) -> None:
        self._is_doubted = True

    async def _newest(self) -> list[_Range]:
        place, where = self._source.place, shown(self._source.url)
        known = {(seed.host, seed.port) for seed in place.seeds} | {one[2:] for one in self._ranges}
        asked = random.sample(sorted(known), min(len(known), NODES_ASKED))
        addresses = [place.node._replace(host=host, port=port) for host, port in asked]
        found: list[tuple[bool, int, list[_Range]]] = []
        told: list[StoreAwayError] = []
        silent: list[StoreAwayError] = []
        for address, outcome in await _ask_all(addresses, ("CLUSTER", "INFO"), ("CLUSTER", "SLOTS")):
            if isinstance(outcome, StoreAwayError):
                told.append(outcome)
            elif isinstance(outcome, Exception):
                silent.append(
                    StoreAwayError(f"no node of {where} answers, and nothing is counted: {outcome}")
                )
            elif refused := _first_error(outcome):
                told.append(_nodes_refusal(address.shown, refused))
            else:
                info = dict(line.split(":", 1) for line in outcome[0].decode().split("\r\n") if ":" in line)
                ranges = [_range(entry, address.host) for entry in outcome[1]]
                is_well = info["cluster_state"] == "ok"
                found.append((is_well, int(info["cluster_current_epoch"]), ranges))
        if not found:
            raise _clearest(told or silent)
        return max(found)[2]


def _range(entry: list[Any], asked: str) -> _Range:
    first, last, (host, port, *_), *_ = entry
    # What the node does not know, or leaves to us: the name that it was asked by.
    name = asked if host in (None, b"", b"?") else host.decode()
    return _Range(first, last, name, port)


def _clearest(errors: list[StoreAwayError]) -> StoreAwayError:
    """Always the same one: each change is logged. What one says of the URL is of more use than that others
    are away."""
    return min(errors, key=str)


def _first_error(answers: list[Any]) -> str | None:
    return next((str(answer) for answer in answers if isinstance(answer, hiredis.ReplyError)), None)


def _sentinels_refusal(name: str, service: str, reply: str) -> StoreAwayError:
    if "No such master" in reply:
        return StoreAwayError(
            f"the sentinel at {name} knows no service {service!r}, and nothing is counted: give --redis-url "
            "the name after `sentinel monitor` in sentinel.conf"
        )
    if "unknown command" in reply:
        return StoreAwayError(
            f"what answers at {name} is no sentinel, and nothing is counted: give --redis-url the sentinels, "
            "or the server itself as redis://"
        )
    if reply.startswith(("WRONGPASS", "NOAUTH")):
        return LoginRefusedError(
            f"the sentinel at {name} refuses the user or the password, and nothing is counted: "
            "give sentinel_username and sentinel_password in the query of --redis-url"
        )
    return away(name, reply)


def _nodes_refusal(where: str, reply: str) -> StoreAwayError:
    # The second is a sentinel's.
    if "cluster support disabled" in reply or "unknown command" in reply:
        return StoreAwayError(
            f"Redis at {where} is no node of a cluster, and nothing is counted: give --redis-url as redis:// "
            "or rediss://, or as redis+sentinel:// if it is a sentinel"
        )
    return away(where, reply)


async def _ask(address: Address, *commands: tuple[Argument, ...]) -> list[Any]:
    connection = await open_connection(address)
    try:
        sent = [connection.send(command) for command in commands]
        answers = await asyncio.gather(*sent, return_exceptions=True)
    finally:
        connection.drop()
    for answer in answers:
        if isinstance(answer, hiredis.ReplyError):
            break  # that may be all it wanted to say
        if isinstance(answer, OSError):
            raise answer
    return answers


async def _ask_all(
    addresses: Sequence[Address], *commands: tuple[Argument, ...]
) -> list[tuple[Address, list[Any] | Exception]]:
    """Their answers, error replies included, or why there are none."""
    now = asyncio.get_running_loop().time
    tasks = [asyncio.create_task(_ask(address, *commands)) for address in addresses]
    pending, give_up_at = set(tasks), now() + ASK_S
    try:
        while pending and now() < give_up_at:
            _, pending = await asyncio.wait(
                pending, timeout=give_up_at - now(), return_when=asyncio.FIRST_COMPLETED
            )
            if 2 * sum(task.done() and not task.exception() for task in tasks) > len(tasks):
                give_up_at = min(give_up_at, now() + GRACE_S)
    finally:
        await end(*tasks)
    return [(address, _outcome(task)) for address, task in zip(addresses, tasks, strict=True)]


def _outcome(task: asyncio.Task[list[Any]]) -> list[Any] | Exception:
    if task.cancelled():
        return OSError(f"it did not answer within {ASK_S:g} s")
    error = task.exception()
    if error is None:
        return task.result()
    if not isinstance(error, OSError | StoreAwayError):
        raise error
    return error


class _Shared(Generic[T]):
    """A look that serves all who want one while it is under way, and for FRESH_S more."""

    def __init__(self, look: Callable[[], Awaitable[T]]) -> None:
        self._look = look
        self._running: asyncio.Task[tuple[T | None, StoreAwayError | None]] | None = None
        self._ended_at = -math.inf

    async def __call__(self) -> T:
        if self._running is None or (
            self._running.done() and asyncio.get_running_loop().time() - self._ended_at > FRESH_S
        ):
            self._running = asyncio.create_task(self._run())
        # One that gives up waiting does not end it for the others.
        found, error = await asyncio.shield(self._running)
        if error:
            raise type(error)(*error.args)
        return cast(T, found)

    async def _run(self) -> tuple[T | None, StoreAwayError | None]:
        """Returns the error, since nobody may be there any more to be raised to."""
        try:
            return await self._look(), None
        except StoreAwayError as error:
            return None, error
        finally:
            self._ended_at = asyncio.get_running_loop().time()
