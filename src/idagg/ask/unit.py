"""The settings of the installed service (``deploy/idagg.service``), for commands typed beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from idagg.ask.client import Client, base_url
from idagg.settings import Settings
from idagg.sources import CONFIG_VARIABLE, load

FOLDER = Path("/etc/idagg")
# What a client of the admin listener needs. Other settings may name files that its user cannot read.
_NAMES = frozenset({"host", "port"})


def client(flags: Mapping[str, object], environ: Mapping[str, str]) -> Client:
    """A client of the admin listener that flags and settings name. Raises SettingsError."""
    found = settings(flags, environ)
    url = flags.get("admin_url")
    return Client(base_url(None if url is None else str(url), found), found.admin_token)


def settings(flags: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
    """The settings of the admin listener. Raises SettingsError.

    If neither a flag nor a variable names a file, it is the unit's, if there is one. The unit's environment
    (``/etc/default/idagg``) is not read.
    """
    config = flags.get("config") or environ.get(CONFIG_VARIABLE)
    if config is None and os.access(FOLDER / "idagg.toml", os.R_OK):
        config = str(FOLDER / "idagg.toml")
    wanted = _NAMES | {name for name in Settings.model_fields if name.startswith("admin_")}
    found, _ = load({**flags, "config": config}, environ, only=wanted)
    if found.admin_token is None and config is not None:
        token = _credential(Path(str(config)).absolute())
        return found.model_copy(update={"admin_token": token})
    return found


def _credential(config: Path) -> str | None:
    """The token in the unit's folder of credentials, which root alone can read."""
    if config.parent != FOLDER:
        return None
    folder = "credentials" if config.stem == "idagg" else f"credentials-{config.stem}"
    try:
        return (FOLDER / folder / "admin_token").read_text("utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
