"""Commands and scripts at one server, over one connection, with its errors in our words."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
import importlib.resources
from typing import Any

import hiredis

from idagg.errors import HalfDoneError, StoreAwayError, StoreError, StoreRefusedError, UnknownRefusalError
from idagg.store.address import Address, shown
from idagg.store.connection import Argument, Connection, open_connection
from idagg.store.replies import refusal, unreachable
from idagg.store.scripts import OPENINGS

_LUA = importlib.resources.files("idagg.store") / "lua"


def source(name: str) -> str:
    """A script whole, its prelude included."""
    parts = ("prelude", *OPENINGS.get(name, ()), name)
    return "\n".join((_LUA / f"{part}.lua").read_text(encoding="utf-8") for part in parts)


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
    """

    def __init__(self, url: str, *, timeout_s: float | None = None) -> None:
        self.address = shown(url)
        self._url = url
        self._timeout_s = timeout_s
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._is_permitted = False  # what scripts need

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

    def _script(self, name: str) -> Script:
        return Script.load(name)

    async def _prove(self, tag: str) -> None:
        """Raises StoreAwayError where the user may not run what the scripts need."""
        denied = await self._run("permitted", tag)
        if isinstance(denied, hiredis.ReplyError):
            if not str(denied).startswith("NOPERM") or "key" not in str(denied):
                raise self._refused(denied)
            denied = [f"~{tag}*".encode()]
        if denied:
            raise StoreAwayError(
                f"Redis at {self.address} does not permit this user what counting needs, and nothing is "
                f"counted: ACL SETUSER with {b' '.join(denied).decode()}"
            )
        self._is_permitted = True

    async def _run(self, name: str, tag: str, *args: Argument) -> Any:
        """The script's answer, an error reply included."""
        script = self._script(name)
        answer = await self._ask("EVALSHA", script.sha, 1, tag, *args)
        if isinstance(answer, hiredis.ReplyError) and str(answer).startswith("NOSCRIPT"):
            answer = await self._ask("EVAL", script.text, 1, tag, *args)
        return answer

    async def _ask(self, *args: Argument) -> Any:
        """The answer, an error reply included."""
        try:
            if self._timeout_s is None:
                return await self._answer(args)
            async with asyncio.timeout(self._timeout_s):
                return await self._answer(args)
        except TimeoutError as error:
            self._drop()
            why = f"it did not answer within {self._timeout_s:g} s" if self._timeout_s else str(error)
            raise unreachable(self.address, why) from error
        except OSError as error:
            raise unreachable(self.address, str(error)) from error
        except asyncio.CancelledError:
            if self._timeout_s is None:
                self._drop()
            raise

    async def _answer(self, args: tuple[Argument, ...]) -> Any:
        connection = self._connection
        if connection is None or connection.is_lost:
            async with self._connecting:
                connection = self._connection
                if connection is None or connection.is_lost:
                    connection = self._connection = await self._connect()
        return await connection.send(args)

    async def _connect(self) -> Connection:
        try:
            address = Address.parse(self._url)
        except ValueError as error:
            raise unreachable(self.address, str(error)) from error
        connection = await open_connection(address)
        try:
            if address.password:
                user = (address.username,) if address.username else ()
                await self._agree(connection, "AUTH", *user, address.password)
            if address.database:
                await self._agree(connection, "SELECT", address.database)
        except BaseException:
            connection.drop()
            raise
        return connection

    async def _agree(self, connection: Connection, *args: Argument) -> None:
        answer = await connection.send(args)
        if isinstance(answer, hiredis.ReplyError):
            words = refusal(self.address, str(answer))
            raise words if isinstance(words, StoreAwayError) else StoreAwayError(str(words))

    def _refused(self, answer: hiredis.ReplyError) -> StoreError:
        error = refusal(self.address, str(answer))
        if isinstance(error, HalfDoneError):
            self._is_permitted = False
        if isinstance(error, StoreAwayError):  # as a replica says, for good: another may be there by now
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
