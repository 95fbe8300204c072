"""Secrets that systemd hands over: files of a folder that this service alone can read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

SECRETS = ("redis_url", "amqp_url", "admin_token", "callback_secret", "callback_proxy")


def name_of(setting: str) -> str:
    return f"idagg_{setting}"


def read(setting: str, environ: Mapping[str, str]) -> str | None:
    """A credential; None where there is none. Raises OSError or UnicodeDecodeError."""
    if folder := environ.get("CREDENTIALS_DIRECTORY"):
        try:
            return Path(folder, name_of(setting)).read_text("utf-8").rstrip("\r\n")
        except FileNotFoundError:
            pass
    return None


def read_again(setting: str, environ: Mapping[str, str]) -> str | None:
    """What a credential says now; None where there is none that can be read."""
    try:
        return read(setting, environ)
    except (OSError, UnicodeDecodeError):
        return None
