"""Errors that one package raises for another, and the exit codes of the process.

An error's text is one sentence for the operator: what happened and, if the operator can act, what to do.
"""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """Exit codes of the ``idagg`` command."""

    OK = 0
    TROUBLE = (
        1  # `idagg check` found a dependency that cannot be used; `idagg status` that something is wrong
    )
    USAGE = 2  # settings or arguments are wrong; nothing was started
    CANNOT_START = 3  # port taken, state folder in use, no program for the embedded store
    CRASH_LOOP = 4  # workers died again and again
    NO_ANSWER = 5  # no admin listener of idagg answers there
    REFUSED = 6  # it wants another token, or another name
    NOT_NOW = 7  # it cannot read the counts now


class IdaggError(Exception):
    """Base of all errors of idagg."""


class UnfitError(ValueError):
    """A value that a setting refuses. The text gives the reason and contains no secret."""


class CannotStartError(IdaggError):
    """This instance cannot start until the operator changes something."""


class NoAnswerError(IdaggError):
    """A running idagg did not tell what a command asked for. ``code`` is the command's exit code."""

    def __init__(self, said: str, code: Exit = Exit.NO_ANSWER) -> None:
        super().__init__(said)
        self.code = code


class StoreError(IdaggError):
    """Base of the store's errors."""


class StoreAwayError(StoreError):
    """The store cannot be reached or is not ready. The command may or may not have been executed."""


class LoginRefusedError(StoreAwayError):
    """The store refused the user or the password, or wants one."""


class HalfDoneError(StoreAwayError):
    """The store refused a command in the middle of a script: what came before it was done."""


class StoreRefusedError(StoreError):
    """The store refused the command and did not execute it. A retry alone does not help."""


class OtherRegimeError(StoreRefusedError):
    """The batch was spread over the shards by a regime that is not the open window's."""

    def __init__(self, what: str, number: int, shards: int) -> None:
        super().__init__(what)
        self.number = number
        self.shards = shards


class FencedError(StoreRefusedError):
    """Another leader has a newer epoch. The store did not execute the command of the old one."""

    def __init__(self, what: str, epoch: int = 0) -> None:
        super().__init__(what)
        self.epoch = epoch


class DamagedError(StoreError):
    """An index member in the store, or the key that it names, is not as idagg wrote it.

    It has to be quarantined.
    """

    def __init__(self, index: str, member: bytes, what: str) -> None:
        super().__init__(what)
        self.index = index
        self.member = member

    @property
    def name(self) -> str:
        return f"{self.index} {self.member.decode(errors='replace')}"


class UnknownRefusalError(StoreRefusedError):
    """The store refused the command for a reason that idagg does not know."""


class WrongTypeError(UnknownRefusalError):
    """A key of idagg holds another program's value."""


class BrokerAwayError(IdaggError):
    """RabbitMQ did not confirm the message. It may or may not have arrived."""


class LogFileError(IdaggError):
    """The log file has no part of the line. If the write hangs, the line may still be written later."""
