"""The ``idagg`` command."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from idagg import __version__
from idagg.errors import CannotStartError, Exit, NoAnswerError
from idagg.settings import INHERITED_VARIABLE, Settings, default_text, example, flag, is_switch
from idagg.sources import SettingsError, load

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

_EPILOG = (
    "Each setting is also an environment variable IDAGG_NAME and a key of the TOML file. Precedence: flag, "
    "environment variable, file, systemd credential. Every user of this machine can read flags: give secrets "
    "as environment variables, or as systemd credentials idagg_redis_url, idagg_amqp_url, idagg_admin_token, "
    "idagg_callback_secret and idagg_callback_proxy."
)

_CLIENTS_EPILOG = (
    "The settings admin_host, admin_port and admin_token are read as `idagg serve` reads them: environment, "
    "file, systemd credential. For the installed service, root needs no option. Exit codes: 0 done; 2 wrong "
    "arguments; 5 no admin listener of idagg answers; 6 it refuses the token or the name; 7 it cannot read "
    "the counts now."
)
_TIMES = (
    "2026-11-25T10:53:00+01:00; '2026-11-25 10:53' or 2026-11-25, in UTC; 1h, for so long ago, also with s, "
    "m, d or w; now, today or yesterday, in UTC; Unix seconds"
)
# argparse would take it for a flag.
_AGO = re.compile(r"-[0-9]+[smhdw]")


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    try:
        with _printing():
            arguments = parser.parse_args(_joined(sys.argv[1:] if argv is None else argv))
        if arguments.run is None:
            parser.print_help(sys.stderr)
            return Exit.USAGE
        if vars(arguments).get("example"):
            with _printing():
                sys.stdout.write(example())
            return Exit.OK
        if arguments.run is _reload:
            return int(_reload(arguments.pid))
        if arguments.run in (_counts, _status, _top):
            return int(arguments.run(arguments))
        is_rehearsal = bool(vars(arguments).get("rehearse"))
        if arguments.run is _serve and INHERITED_VARIABLE in os.environ and not is_rehearsal:
            return _resume()
        settings, origin = load(vars(arguments), os.environ)
        if arguments.run is _check:
            return int(_check(settings, origin, bool(arguments.json)))
        return _rehearse(settings) if is_rehearsal else int(arguments.run(settings, origin))
    except SettingsError as error:
        return _complain(Exit.USAGE, *error.problems)
    except CannotStartError as error:
        return _complain(Exit.CANNOT_START, str(error))
    except NoAnswerError as error:
        return _complain(error.code, str(error))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _joined(argv: Sequence[str]) -> list[str]:
    """``--from -1h`` as ``--from=-1h``."""
    joined: list[str] = []
    for argument in argv:
        if joined and joined[-1] in ("--from", "--to") and _AGO.fullmatch(argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


class _Parser(argparse.ArgumentParser):
    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Print it as any other output: argparse's own passes over a closed pipe, and exits with 0."""
        (file or sys.stdout).write(self.format_help())


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("idagg", description="Counts unique ids per minute.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"idagg {__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, run, summary in (
        ("serve", _serve, "count unique ids until a signal stops it"),
        (
            "check",
            _check,
            "check whether `serve` would start and count: settings, dependencies, this machine",
        ),
        ("config", _config, "print the settings in force and where each came from"),
    ):
        command = commands.add_parser(
            name, help=summary, description=summary, epilog=_EPILOG, allow_abbrev=False
        )
        command.set_defaults(run=run)
        command.add_argument(
            "--config", metavar="FILE", help="TOML file of settings (default: $IDAGG_CONFIG)"
        )
        if name == "check":
            command.add_argument(
                "--json", action="store_true", help="print one JSON object, for machines, instead of lines"
            )
        if name == "config":
            command.add_argument(
                "--example", action="store_true", help="print a settings file of all defaults, as comments"
            )
        for setting, field in Settings.model_fields.items():
            help_text = f"{field.description} (default: {default_text(setting)})"
            if is_switch(setting):
                command.add_argument(flag(setting), nargs="?", const="on", help=help_text)
            else:
                action = "append" if setting in ("callback_allow", "admin_name") else "store"
                command.add_argument(flag(setting), action=action, help=help_text)
        if run is _serve:  # a supervisor runs this before it reloads
            command.add_argument("--rehearse", action="store_true", help=argparse.SUPPRESS)
    summary = "have a running idagg load the installed program and its settings anew, and wait for that"
    command = commands.add_parser("reload", help=summary, description=summary, allow_abbrev=False)
    command.set_defaults(run=_reload)
    command.add_argument(
        "--pid", type=int, help="process id of `idagg serve` (default: the one that runs on this machine)"
    )
    _add_clients(commands)
    return parser


def _add_clients(commands: argparse._SubParsersAction[_Parser]) -> None:
    """The commands that ask a running idagg. They take settings of its admin listener, and no others."""
    for name, run, summary in (
        ("counts", _counts, "print the counts of windows, oldest first; times are in UTC"),
        ("status", _status, "print how all machines are; exit with 1 if something is wrong"),
        ("top", _top, "show how all machines are, live; q or Ctrl-C ends it"),
    ):
        command = commands.add_parser(
            name, help=summary, description=summary, epilog=_CLIENTS_EPILOG, allow_abbrev=False
        )
        command.set_defaults(run=run)
        command.add_argument(
            "--config",
            metavar="FILE",
            help="TOML file of settings (default: $IDAGG_CONFIG, else that of the installed service)",
        )
        command.add_argument(
            "--admin-url",
            metavar="URL",
            help="the admin listener, http://HOST:PORT (default: that of the settings)",
        )
        command.add_argument(
            "--admin-token",
            metavar="TOKEN",
            help="its token; every user of this machine can read flags: prefer $IDAGG_ADMIN_TOKEN",
        )
        if run is _status:
            command.add_argument("--json", action="store_true", help="print what the API answers")
        if run is _counts:
            command.add_argument(
                "--from", dest="since", metavar="TIME", help=f"start of the first window: {_TIMES}"
            )
            command.add_argument("--to", dest="until", metavar="TIME", help="end of the range (default: now)")
            command.add_argument(
                "--limit",
                type=int,
                metavar="N",
                help="print the newest N windows of the range (default: 60 without --from, all with it)",
            )
            command.add_argument(
                "--format", choices=("table", "csv", "json"), default="table", help="default: table"
            )
            command.add_argument(
                "--estimate",
                action="store_true",
                help="estimate how many different ids the whole range had, in place of its windows",
            )


# Imported late: `config` and `--help` do not need these modules, and they take long to load.
def _serve(settings: Settings, _origin: Mapping[str, str]) -> int:
    from idagg.run.supervisor import serve

    return serve(settings)


def _resume() -> int:
    from idagg.run.supervisor import resume

    return resume()


def _rehearse(settings: Settings) -> int:
    from idagg.run.reload import inherited, rehearsal

    found = inherited()
    if found is None:
        raise CannotStartError("--rehearse is for idagg itself, during a reload")
    return rehearsal(settings, found)


def _reload(pid: int | None) -> int:
    from idagg.run.control import reload

    return reload(pid, os.environ)


def _counts(arguments: argparse.Namespace) -> int:
    from idagg.ask import counts, unit

    asked = counts.Asked(
        arguments.since, arguments.until, arguments.limit, arguments.format, arguments.estimate
    )
    return counts.run(unit.client(vars(arguments), os.environ), asked, _print)


def _status(arguments: argparse.Namespace) -> int:
    from idagg.ask import status, unit

    return status.run(unit.client(vars(arguments), os.environ), _print, as_json=arguments.json)


def _top(arguments: argparse.Namespace) -> int:
    from idagg.ask import top, unit

    return top.run(unit.client(vars(arguments), os.environ))


def _check(settings: Settings, origin: Mapping[str, str], as_json: bool = False) -> int:
    from idagg.run.check import check

    return int(check(settings, origin, _print, as_json=as_json))


def _config(settings: Settings, origin: Mapping[str, str]) -> int:
    rows = [(name, _shown(value), origin[name]) for name, value in settings.masked().items()]
    name_width, value_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    _print(*(f"{name:{name_width}}  {value:{value_width}}  ({where})" for name, value, where in rows))
    return Exit.OK


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        value = ",".join(value)
    if isinstance(value, bool):
        value = "on" if value else "off"
    return "none" if value in (None, "") else str(value)


def _complain(code: Exit, *sentences: str) -> int:
    from idagg.run.logs import is_journal

    mark = "<3>" if is_journal() else ""
    sys.stderr.writelines(f"{mark}idagg: {sentence}\n" for sentence in sentences)
    return code


def _print(*lines: str) -> None:
    with _printing():
        sys.stdout.writelines(f"{line}\n" for line in lines)


@contextlib.contextmanager
def _printing() -> Iterator[None]:
    """If the reader of the output has closed its pipe, end the process without a message, as SIGPIPE does."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes the rest of the buffer at exit, and would print an error without this.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
