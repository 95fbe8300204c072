"""Where the settings come from.

Precedence: flag, environment variable, TOML file, systemd credential, the default of a unit, default. This is
plain pydantic: pydantic-settings ignores a missing file and an unreadable credential, and its models would
read the environment again in each worker.
"""

from __future__ import annotations

import difflib
import logging
import re
import shlex
import tomllib
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

from pydantic import ValidationError

from idagg import credentials, failpoints
from idagg.credentials import SECRETS
from idagg.errors import IdaggError, UnfitError
from idagg.settings import Settings, described, flag, masked, variable

log = logging.getLogger("idagg.settings")

CONFIG_VARIABLE = "IDAGG_CONFIG"
# Other defaults, as NAME=VALUE separated by spaces. They are for a unit or an image: whatever it sets as
# environment variables would take precedence over the operator's file.
_DEFAULTS_VARIABLE = "IDAGG_DEFAULTS"

# Variables that Kubernetes sets in containers for each Service of their namespace, named after the Service. A
# Service named idagg-admin yields IDAGG_ADMIN_PORT.
_ADDRESS = r"[0-9a-f.:]+"
_INJECTED = re.compile(
    rf"""IDAGG(_[A-Z0-9]+)*_(
        SERVICE_HOST=({_ADDRESS}) | SERVICE_PORT(_[A-Z0-9_]+)?=[0-9]+ |
        PORT=(tcp|udp|sctp)://\S+ | PORT_[0-9]+_(TCP|UDP|SCTP)=(tcp|udp|sctp)://\S+ |
        PORT_[0-9]+_(TCP|UDP|SCTP)_(PROTO=(tcp|udp|sctp) | PORT=[0-9]+ | ADDR={_ADDRESS})
    )""",
    re.VERBOSE,
)

_Found = dict[str, tuple[object, str]]  # setting → value, where it came from


class SettingsError(IdaggError):
    """Settings that cannot be used. ``problems`` has one sentence for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(
    flags: Mapping[str, object], environ: Mapping[str, str], *, only: AbstractSet[str] | None = None
) -> tuple[Settings, dict[str, str]]:
    """The settings in force and the source of each. Raises SettingsError with every problem at once.

    ``flags`` has settings by name, and ``config``. None means not given. ``only`` names the settings that
    matter to a command that does not serve: the others have their defaults, whatever the sources say.
    """
    problems: list[str] = []
    path = flags.get("config")
    found = (  # a later source takes precedence
        _from_default(environ)
        | _from_defaults(environ, problems)
        | _from_credentials(environ, problems)
        | _from_file(environ.get(CONFIG_VARIABLE) if path is None else str(path), problems)
        | _from_environment(environ, problems)
        | _from_flags(flags)
    )
    if only is not None:
        found = {name: found[name] for name in only & found.keys()} | {"state_dir": ("/", "default")}
    origin = {name: found[name][1] if name in found else "default" for name in Settings.model_fields}
    try:
        settings = Settings.model_validate({name: value for name, (value, _) in found.items()})
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            name = str(detail["loc"][0])
            reason = detail.get("ctx", {}).get("error")
            problems.append(
                f"{name} ({origin[name]}) cannot be {masked(name, detail['input'])!r}: "
                + (str(reason) if isinstance(reason, UnfitError) else f"it is the {described(name)}")
            )
    if problems:
        raise SettingsError(problems)
    return settings, origin


def _from_default(environ: Mapping[str, str]) -> _Found:
    """The one default that depends on the environment."""
    if folders := environ.get("STATE_DIRECTORY"):
        folder = folders.split(":")[0]  # systemd lists all folders of a unit
    elif state := environ.get("XDG_STATE_HOME"):
        folder = f"{state}/idagg"
    elif home := environ.get("HOME"):
        folder = f"{home}/.local/state/idagg"
    else:
        return {}
    return {"state_dir": (folder, "default")}


def _from_defaults(environ: Mapping[str, str], problems: list[str]) -> _Found:
    where = f"environment {_DEFAULTS_VARIABLE}"
    found: _Found = {}
    try:
        items = shlex.split(environ.get(_DEFAULTS_VARIABLE, ""))
    except ValueError as error:
        problems.append(f"{where} cannot be read: {error}")
        return {}
    for item in items:
        name, is_given, value = item.partition("=")
        if not is_given or name not in Settings.model_fields:
            problems.append(f"{name} in {where} is no setting with a value{_meant(name)}")
        else:
            found[name] = value, where
    return found


def _from_credentials(environ: Mapping[str, str], problems: list[str]) -> _Found:
    found: _Found = {}
    for name in SECRETS:
        where = f"credential {credentials.name_of(name)}"
        try:
            value = credentials.read(name, environ)
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{where} cannot be read: {error}")
        else:
            if value is not None:
                found[name] = value, where
    return found


def _from_file(path: str | None, problems: list[str]) -> _Found:
    if path is None:
        return {}
    try:
        table = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        problems.append(f"the settings file {path!r} cannot be read: {error.strerror}")
        return {}
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
        problems.append(f"the settings file {path!r} is not TOML: {error}")
        return {}
    known = Settings.model_fields.keys()
    problems += [f"{key} in file {path} is no setting{_meant(key)}" for key in table if key not in known]
    return {name: (value, f"file {path}") for name, value in table.items() if name in known}


def _from_environment(environ: Mapping[str, str], problems: list[str]) -> _Found:
    names = {variable(name): name for name in Settings.model_fields}
    injected = [
        f"{name}={value}" for name, value in environ.items() if _INJECTED.fullmatch(f"{name}={value}")
    ]
    if injected:
        log.warning(
            "environment %s: %d variables like this are of a Kubernetes Service named like idagg: "
            "they are no settings, and are passed over",
            injected[0],
            len(injected),
        )
        environ = {name: value for name, value in environ.items() if f"{name}={value}" not in injected}
    problems += [
        f"environment {given} is no setting{_meant(given.removeprefix('IDAGG_'), variable)}"
        for given in environ
        if given.startswith("IDAGG_")
        and given not in names
        and given not in (CONFIG_VARIABLE, _DEFAULTS_VARIABLE, failpoints.VARIABLE)
    ]
    if problem := failpoints.problem(environ.get(failpoints.VARIABLE)):
        problems.append(problem)
    return {name: (environ[v], f"environment {v}") for v, name in names.items() if v in environ}


def _from_flags(flags: Mapping[str, object]) -> _Found:
    given = ((name, flags.get(name)) for name in Settings.model_fields)
    return {name: (value, f"flag {flag(name)}") for name, value in given if value is not None}


def _meant(wrong: str, written: Callable[[str], str] = str) -> str:
    """What to do about an unknown name. ``written`` spells a setting as its source does."""
    close = difflib.get_close_matches(wrong.lower(), Settings.model_fields, n=1)
    return f"; did you mean {written(close[0])}?" if close else "; `idagg config` lists them all"
