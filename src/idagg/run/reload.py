"""How a supervisor executes its next self at a reload: the same process id, another program.

The program that is installed now first rehearses in a process of its own: it is loaded whole, checks the
settings anew, and reads what it would inherit. Only if that goes well, this process executes it. Precedents:
nginx's -t before its reload, and systemd's own daemon-reexec.

Listeners, child processes and the embedded store stay as they are. They are named in one JSON message, in a
memory file whose descriptor an environment variable names. During an upgrade the two sides have different
versions: as in all messages, unknown fields are ignored, and missing ones have their defaults.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any, NoReturn

import orjson

from idagg import __version__, libraries
from idagg.errors import CannotStartError, Exit
from idagg.metrics import FOLDER_VARIABLE
from idagg.run import sockets
from idagg.run.child import Held
from idagg.run.messages import Message
from idagg.settings import INHERITED_VARIABLE, Settings
from idagg.spawn import died_of
from idagg.store.embedded import find_binary

# To load the program and the settings. On an idle machine it takes half a second.
REHEARSAL_S = 30.0
# Signals that a supervisor reacts to. They wait until its next self does.
SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})

# A reload does not change these. The window's length and the like are agreed on with all machines; the
# others say which data is served.
_FIXED = ("namespace", "window", "exact_limit", "state_dir")


@dataclasses.dataclass(frozen=True, slots=True)
class Inherited(Message):
    """What a supervisor leaves to its next self. Numbers are descriptors, unless they are said to be others.

    ``settings`` are those in force; ``wanted`` those that the rehearsal has checked, as its version writes
    them. ``workers`` are by slot; ``rest`` are processes that are about to end. ``waiting`` are connections
    of ``idagg reload``. ``combiner_at`` is where the path of the combiner's socket begins.
    """

    settings: Settings
    redis_url: str
    metrics_folder: str
    listeners: list[int]
    admin: int
    workers: list[dict[str, Any] | None]
    callbacks: dict[str, Any] | None = None
    rest: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    store: dict[str, Any] | None = None
    control: int | None = None
    waiting: list[int] = dataclasses.field(default_factory=list)
    wanted: dict[str, Any] | None = None
    version: str = ""
    outlives_terminal: bool = False
    combiner: dict[str, Any] | None = None
    combiner_at: str | None = None

    @staticmethod
    def settings_from(data: bytes) -> object:
        return Settings.from_json(data)

    def descriptors(self) -> list[int]:
        found = [*self.listeners, self.admin, *self.waiting]
        for held in (*self.workers, self.callbacks, self.combiner, *self.rest):
            if held is not None:
                found += [held["stdin"], held["stdout"]]
        found += [number for number in (self.control, (self.store or {}).get("lock")) if number is not None]
        return found


def held_from(fields: Mapping[str, Any]) -> Held:
    known = {field.name for field in dataclasses.fields(Held)}
    return Held(**{name: value for name, value in fields.items() if name in known})


def environment(given: Mapping[str, str] | None) -> dict[str, str]:
    """This process's environment; with ``given``, its settings from there."""
    found = dict(os.environ)
    found.pop(FOLDER_VARIABLE, None)  # of the metrics that are this process's
    if given is not None:
        found = {name: value for name, value in found.items() if not name.startswith("IDAGG_")}
        found |= {name: value for name, value in given.items() if name.startswith("IDAGG_")}
    return found


class RehearsalError(Exception):
    """The program that is installed now, with the settings as they are now, would not serve."""


async def rehearse(inherited: Inherited, variables: Mapping[str, str]) -> dict[str, Any]:
    """Have the installed program rehearse. Returns the settings that it wants. Raises RehearsalError."""
    memory = _write(inherited)
    try:
        process = await asyncio.create_subprocess_exec(
            *(*_command(), "--rehearse"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=[memory],
            env={**variables, INHERITED_VARIABLE: str(memory)},
            start_new_session=True,
        )
    except OSError as error:
        raise RehearsalError(f"{sys.executable} cannot be run: {error.strerror}") from error
    finally:
        os.close(memory)
    try:
        async with asyncio.timeout(REHEARSAL_S):
            said, complaints = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise RehearsalError(f"the new program did not load within {REHEARSAL_S:g} s") from None
    if process.returncode == Exit.OK:
        try:
            wanted = orjson.loads(said.splitlines()[-1])["settings"]
        except (IndexError, KeyError, TypeError, ValueError):
            raise RehearsalError("the new program is not understood: is it idagg?") from None
        assert isinstance(wanted, dict)
        return wanted
    lines = complaints.decode(errors="replace").splitlines()
    own = [line.removeprefix("idagg: ") for line in lines if line.startswith("idagg: ")]
    died = died_of(process.returncode or 0)
    raise RehearsalError("; ".join(own) or f"the new program died ({died}): {lines[-1] if lines else died}")


def rehearsal(settings: Settings, inherited: Inherited) -> int:
    """Run ``idagg serve --rehearse``: print what a reload would set. Raises CannotStartError."""
    # Loaded here, so that a program that cannot be loaded is never executed.
    from idagg.run import callback_process, combiner_process, supervisor, worker

    assert all((callback_process.main, combiner_process.main, supervisor.resume, worker.main))
    libraries.check()
    fixed = unchangeable(inherited.settings, settings)
    if fixed:
        raise CannotStartError(
            f"{', '.join(fixed)} cannot be changed by a reload: restart idagg on all machines (see Operating)"
        )
    if settings.redis_url is None:
        find_binary()  # to start it again
    old = inherited.settings
    for host, port, flags, before in (
        (settings.host, settings.port, "--host or --port", (old.host, old.port)),
        (
            settings.admin_host,
            settings.admin_port,
            "--admin-host or --admin-port",
            (old.admin_host, old.admin_port),
        ),
    ):
        if (host, port) != before:
            for bound in sockets.bind(host, port, 1, flags=flags, is_ours=0 != port == before[1]):
                bound.close()
    message = {"settings": orjson.Fragment(settings.to_json()), "version": __version__}
    sys.stdout.write(orjson.dumps(message).decode() + "\n")
    return Exit.OK


def unchangeable(old: Settings, new: Settings) -> list[str]:
    """The flags of those settings that differ and that a reload does not change."""
    fixed = [name for name in _FIXED if getattr(old, name) != getattr(new, name)]
    if (old.redis_url is None) != (new.redis_url is None):  # from or to the embedded store
        fixed.append("redis_url")
    elif old.redis_url is not None and "state_dir" in fixed:
        fixed.remove("state_dir")  # nothing is there
    return ["--" + name.replace("_", "-") for name in fixed]


def execute(inherited: Inherited, variables: Mapping[str, str]) -> NoReturn:
    """Execute the installed program in this process. Raises OSError, and then nothing has changed."""
    memory = _write(inherited)
    numbers = [memory, *inherited.descriptors()]
    try:
        for number in numbers:
            os.set_inheritable(number, True)
        command = _command()
        os.execve(command[0], command, {**variables, INHERITED_VARIABLE: str(memory)})  # noqa: S606  as it was started
    except OSError:
        for number in numbers:
            os.set_inheritable(number, False)
        os.close(memory)
        raise


def inherited() -> Inherited | None:
    """What this process has inherited; None if it was started afresh."""
    number = os.environ.pop(INHERITED_VARIABLE, None)
    if number is None:
        return None
    with os.fdopen(int(number), "rb") as memory:
        memory.seek(0)
        return Inherited.parse(memory.read())


def take_over(found: Inherited) -> None:
    """Keep the inherited descriptors from the processes that this one starts."""
    for number in found.descriptors():
        os.set_inheritable(number, False)


def hold_signals() -> None:
    """Have the kernel keep signals back, across the execution, until ``let_signals``."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def let_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def monotonic_usec() -> str:
    """The field that systemd wants beside RELOADING=1, sd_notify(3)."""
    return f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"


def _command() -> list[str]:
    """The command line of this process, as it was given."""
    return [sys.executable, *sys.orig_argv[1:]]


def _write(message: Inherited) -> int:
    memory = os.memfd_create("idagg-inherited")
    with open(memory, "wb", closefd=False) as file:
        file.write(message.line())
    return memory
