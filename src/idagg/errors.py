"""Errors that one package raises for another, and the process's exit codes.

Each error's text is one sentence for a person: what happened and, where there is something to do, what.
"""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """Exit codes of the ``idagg`` command."""

    OK = 0
    TROUBLE = 1  # `idagg check` found a dependency in trouble
    USAGE = 2  # settings or arguments are wrong; nothing was started
    CANNOT_START = 3  # port taken, state folder in use, no embedded server to be had
    CRASH_LOOP = 4  # workers died again and again


class IdaggError(Exception):
    """The base of them all."""


class UnfitError(ValueError):
    """A value that a setting cannot take; says why, in words that hold no secret."""


class CannotStartError(IdaggError):
    """This instance cannot start here; a person has to change something."""


class StoreError(IdaggError):
    """The base of the store's errors."""


class StoreAwayError(StoreError):
    """The store could not be reached or is not ready; whether the command was carried out is unknown."""


class HalfDoneError(StoreAwayError):
    """The store refused a command in the middle of a script: what came before it was done."""


class StoreRefusedError(StoreError):
    """The store answered no: the command was not carried out, and asking again will not help by itself."""


class FencedError(StoreRefusedError):
    """Another leader has taken over since; what was asked under the old epoch was not done."""


class DamagedError(StoreError):
    """A member of an index in the store, or what it names, is not what we wrote, and has to be
    quarantined."""

    def __init__(self, index: str, member: bytes, what: str) -> None:
        super().__init__(what)
        self.index = index
        self.member = member

    @property
    def name(self) -> str:
        return f"{self.index} {self.member.decode(errors='replace')}"


class UnknownRefusalError(StoreRefusedError):
    """The store answered no, and nothing that we know of explains it."""


class WrongTypeError(UnknownRefusalError):
    """Somebody else's value stands where one of ours belongs."""


class BrokerAwayError(IdaggError):
    """The message was not confirmed; it may or may not have arrived."""


class LogFileError(IdaggError):
    """A line is not in the log file, nor any part of it; where that hangs, it may come later all the same."""
