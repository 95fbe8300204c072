"""Commands and scripts at one server, over one connection, with its errors in our words."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import importlib.resources
import logging
from typing import Any

import hiredis

from idagg.errors import (
    HalfDoneError,
    LoginRefusedError,
    StoreAwayError,
    StoreError,
    StoreRefusedError,
    UnknownRefusalError,
)
from idagg.failpoints import reach
from idagg.store.address import Address, shown
from idagg.store.connection import Argument, Connection, open_connection
from idagg.store.replies import away, not_permitted, refusal, unreachable
from idagg.store.scripts import OPENINGS, UNWAITED
from idagg.store.topology import Nodes, Source, nodes
from idagg.tasks import end

log = logging.getLogger("idagg.store")

# How long replicas may take to acknowledge: half of the default deadline, so that there is a second try.
WAIT_MS = 1000
# How often a command follows MOVED: the node asked, the one that it names, and one more while they agree.
REDIRECTIONS = 3

_LUA = importlib.resources.files("idagg.store") / "lua"


def source(name: str) -> str:
    """A script whole, its prelude included."""
    parts = ("prelude", *OPENINGS.get(name, ()), name)
    return "\n".join((_LUA / f"{part}.lua").read_text(encoding="utf-8") for part in parts)


# By script, where the process ends in tests: the server has done it, and its replicas may not have.
_FAILPOINTS = {name: functools.partial(reach, f"before-wait-{name}") for name in ("lead", "seal")}


@dataclasses.dataclass(frozen=True, slots=True)
class Script:
    text: str
    sha: str  # EVALSHA's name for it

    @classmethod
    def of(cls, text: str) -> Script:
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())

    @classmethod
    @functools.cache
    def load(cls, name: str) -> Script:
        return cls.of(source(name))


class Client:
    """Connects when it is used, and again when the connection was lost. A command is sent once. No script is
    run before the server has shown that it permits what they need.

    ``timeout_s`` bounds each command; what took longer costs the connection, and has an unknown outcome. A
    caller that is cancelled leaves its command on its way: what is sent later comes later. Without
    ``timeout_s`` the callers bound their waiting by cancelling, and that costs the connection, too.

    ``tag`` is the shard whose server it is a client of; ``at`` is where the servers are, if that is shared
    with others. With ``replicas``, the answer of a script that may have changed something counts only once
    so many replicas of its server have what it did.
    """

    def __init__(
        self,
        url: str,
        *,
        tag: str = "",
        timeout_s: float | None = None,
        replicas: int = 0,
        at: tuple[Source, Nodes] | None = None,
    ) -> None:
        self.address = shown(url)
        self._tag = tag
        self._timeout_s = timeout_s
        self._replicas = replicas
        wait: tuple[Argument, ...] = ("WAIT", replicas, WAIT_MS)
        self._wait = hiredis.pack_command(wait)  # type: ignore[arg-type]  # its types know tuples of one only
        if at is None:
            source = Source(url)
            at = source, nodes(source)
        self._source, self._nodes = at
        self._connection: Connection | None = None
        self._place: Address | None = None  # of the connection
        self._connecting = asyncio.Lock()
        self._leaving: asyncio.Task[None] | None = None
        self._is_permitted = False  # what scripts need

    @property
    def known_replicas(self) -> int:
        """See ``Nodes``."""
        return self._nodes.known_replicas

    async def script(self, name: str, tag: str, *args: Argument) -> Any:
        """Run ``store/lua/NAME.lua`` on the shard TAG.

        Raises StoreAwayError where the outcome is unknown, StoreRefusedError where nothing was done.
        """
        if not self._is_permitted:
            await self._prove(tag)
        answer = await self._run(name, tag, *args)
        if isinstance(answer, hiredis.ReplyError):
            raise await self._explained(self._refused(answer), name, tag)
        return answer

    async def command(self, *args: Argument) -> Any:
        """Run one plain command; errors as for ``script``."""
        answer = await self._ask(*args)
        if isinstance(answer, hiredis.ReplyError):
            error = self._refused(answer)
            if isinstance(error, UnknownRefusalError):
                error = type(error)(f"{error} (to {' '.join(map(str, args[:2]))})")
            raise error
        return answer

    async def damage(self, tag: str) -> list[str]:
        """Say in sentences what is wrong in the shard, or was and is quarantined."""
        found = [what.decode(errors="replace") for what in await self.script("inspect", tag)]
        if not found and (quarantined := (await self.script("counts", tag))[-1]):
            found.append(
                f"{quarantined} windows are in {tag}:quarantine, docs/operating says how to mend them"
            )
        return found

    async def close(self) -> None:
        self._drop()
        if self._leaving:
            await end(self._leaving)

    def _script(self, name: str) -> Script:
        return Script.load(name)

    async def _prove(self, tag: str) -> None:
        """Raises StoreAwayError where the user may not run what the scripts need."""
        denied = await self._run("permitted", tag)
        if isinstance(denied, hiredis.ReplyError):
            if not str(denied).startswith("NOPERM") or " to access " not in str(denied):
                if str(denied).startswith("OOM"):
                    return  # what a full server still runs, sealing above all, must not wait for the proof
                raise self._refused(denied)
            denied = [b"~"]
        if denied == [b"~"]:
            # Who has more than the home shard needs the keys of all: one permission, and one sentence.
            home_only = tag.endswith(":0}")
            denied = [f"~{tag}*".encode() if home_only else f"~{tag.partition(':')[0]}:*".encode()]
        if denied:
            raise not_permitted(self.address, b" ".join(denied).decode())
        self._is_permitted = True

    async def _run(self, name: str, tag: str, *args: Argument) -> Any:
        """The script's answer, an error reply included."""
        script = self._script(name)
        waits_for = name if self._replicas and name not in UNWAITED else ""
        answer = await self._ask("EVALSHA", script.sha, 1, tag, *args, waits_for=waits_for)
        if isinstance(answer, hiredis.ReplyError) and str(answer).startswith("NOSCRIPT"):
            answer = await self._ask("EVAL", script.text, 1, tag, *args, waits_for=waits_for)
        return answer

    async def _ask(self, *args: Argument, waits_for: str = "") -> Any:
        """The answer, an error reply included; of a script that ``waits_for`` names, with what it did on the
        replicas."""
        for _ in range(REDIRECTIONS):
            answer = await self._within_limit(args, waits_for)
            if not isinstance(answer, hiredis.ReplyError) or not str(answer).startswith("MOVED "):
                return answer
            # It was not run there.
            place = self._place
            self._drop()
            if place is not None:
                self._nodes.moved(str(answer), place)
        raise StoreAwayError(
            f"the nodes beside {self.address} do not agree who has the slot of {self._tag}: nothing is "
            "counted in it until they do"
        )

    async def _within_limit(self, args: tuple[Argument, ...], waits_for: str) -> Any:
        limit = None if self._timeout_s is None else asyncio.timeout(self._timeout_s)
        try:
            if limit is None:  # one without a limit would cost each batch 2.6 us
                return await self._answer(args, waits_for)
            async with limit:
                return await self._answer(args, waits_for)
        except OSError as error:
            self._nodes.doubt()
            if limit is None or not limit.expired():
                raise unreachable(self.address, str(error)) from error
            self._drop()
            raise unreachable(self.address, f"it did not answer within {self._timeout_s:g} s") from error
        except asyncio.CancelledError:
            if self._timeout_s is None:
                self._nodes.doubt()
                self._drop()
            raise

    async def _answer(self, args: tuple[Argument, ...], waits_for: str) -> Any:
        connection = self._connection
        if connection is None or connection.is_lost:
            async with self._connecting:
                connection = self._connection
                if connection is None or connection.is_lost:
                    connection = self._connection = await self._connect()
        if not waits_for:
            return await connection.send(args)
        between = _FAILPOINTS.get(waits_for)
        answer, acknowledged = await connection.send_both(args, self._wait, between)
        if not isinstance(answer, hiredis.ReplyError):
            self._check_replicas(acknowledged)
        return answer

    def _check_replicas(self, acknowledged: Any) -> None:
        """Raises StoreAwayError where too few of them have what was done, or may not have it."""
        if isinstance(acknowledged, hiredis.ReplyError):
            self._drop()
            raise away(self.address, str(acknowledged))
        if acknowledged < self._replicas:
            raise StoreAwayError(
                f"only {acknowledged} of {self._replicas} replicas of Redis at {self.address} have "
                f"acknowledged within {WAIT_MS / 1000:g} s: ids are answered failed, and may be counted; "
                "start or mend the replicas, or lower --replicas"
            )

    async def _connect(self) -> Connection:
        try:
            return await self._connect_once()
        except LoginRefusedError:
            if not self._source.renew():
                raise
        log.info(
            "the user or the password of %s was refused, and is read again: it has changed", self.address
        )
        return await self._connect_once()

    async def _connect_once(self) -> Connection:
        place = await self._nodes.locate(self._tag)
        self.address = place.shown
        on_silence = functools.partial(self._suspect, place) if self._nodes.elects else None
        try:
            connection = await open_connection(place, on_silence=on_silence)
            try:
                await self._nodes.check(connection, place)
            except BaseException:
                connection.drop()
                raise
        except (OSError, StoreAwayError):
            self._nodes.doubt()
            raise
        self._place = place
        return connection

    def _suspect(self, place: Address, connection: Connection) -> None:
        """The server owes an answer: another may have been elected in its place."""
        if self._leaving is None or self._leaving.done():
            self._leaving = asyncio.create_task(self._leave_if_replaced(place, connection))

    async def _leave_if_replaced(self, place: Address, connection: Connection) -> None:
        with contextlib.suppress(StoreAwayError):
            present = await self._nodes.look_again(self._tag)
            if (present.host, present.port) != (place.host, place.port):
                connection.drop()

    def _refused(self, answer: hiredis.ReplyError) -> StoreError:
        error = refusal(self.address, str(answer))
        if isinstance(error, HalfDoneError):
            self._is_permitted = False
        if isinstance(error, StoreAwayError) and not str(answer).startswith(("ASK ", "TRYAGAIN")):
            # As a replica says, for good: another may be there by now.
            self._nodes.doubt()
            self._drop()
        return error

    async def _explained(self, error: StoreError, name: str, tag: str) -> StoreError:
        """A script's error; for a refusal that nothing we know of explains, what is wrong in the store."""
        if not isinstance(error, UnknownRefusalError) or name == "inspect":
            return error
        found = await self.script("inspect", tag)
        return (
            StoreRefusedError(f"Redis at {self.address} is damaged: {found[0].decode()}") if found else error
        )

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.drop()
            self._connection = None
