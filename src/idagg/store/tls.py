"""TLS to the store: the ``ssl_…`` options of a URL, named as redis-py names them."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Mapping
from pathlib import Path

OPTIONS = frozenset(
    f"ssl_{name}"
    for name in (
        *("ca_certs", "ca_path", "ca_data", "certfile", "keyfile", "password"),
        *("cert_reqs", "check_hostname", "min_version", "ciphers"),
        *("include_verify_flags", "exclude_verify_flags"),
    )
)

_CERT_REQS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_FALSE = {"0", "F", "FALSE", "N", "NO"}


def context(given: Mapping[str, str]) -> ssl.SSLContext:
    """What to connect with. Raises ValueError; OSError where a file cannot be read.

    Certificates are renewed, so it is made anew when a file has changed. It is not made for each connection:
    to load the system's certificates takes 30 ms.
    """
    system = ssl.get_default_verify_paths()
    named = (given.get(f"ssl_{name}") for name in ("certfile", "keyfile", "ca_certs", "ca_path"))
    files = tuple(map(_state, (system.cafile, system.capath, *named)))
    return _made(tuple(sorted((name, value) for name, value in given.items() if name in OPTIONS)), files)


def _state(path: str | None) -> tuple[int, int] | None:
    """Another one once the file has changed."""
    try:
        found = Path(path).stat() if path else None
    except OSError:
        return None
    return found and (found.st_ino, found.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _made(options: tuple[tuple[str, str], ...], files: tuple[object, ...]) -> ssl.SSLContext:
    given = dict(options)
    made = ssl.create_default_context()
    required = given.get("ssl_cert_reqs", "required")
    if required not in _CERT_REQS:
        raise ValueError(f"ssl_cert_reqs has to be one of {', '.join(_CERT_REQS)}")
    is_checked = given.get("ssl_check_hostname", "").upper() not in _FALSE
    made.check_hostname = required != "none" and is_checked
    made.verify_mode = _CERT_REQS[required]
    made.verify_flags |= _flags(given.get("ssl_include_verify_flags"))
    made.verify_flags &= ~_flags(given.get("ssl_exclude_verify_flags"))
    certificate, key = given.get("ssl_certfile"), given.get("ssl_keyfile")
    if certificate:
        made.load_cert_chain(certificate, key, given.get("ssl_password"))
    elif key:
        raise ValueError("ssl_keyfile needs ssl_certfile")
    trusted = given.get("ssl_ca_certs"), given.get("ssl_ca_path"), given.get("ssl_ca_data")
    if any(trusted):
        made.load_verify_locations(*trusted)
    if version := given.get("ssl_min_version"):
        made.minimum_version = ssl.TLSVersion(int(version))
    if ciphers := given.get("ssl_ciphers"):
        made.set_ciphers(ciphers)
    return made


def _flags(names: str | None) -> ssl.VerifyFlags:
    found = ssl.VerifyFlags(0)
    for name in (names or "").strip("[]").split(","):
        if name.strip():
            try:
                found |= ssl.VerifyFlags[name.strip()]
            except KeyError:
                raise ValueError(f"{name} is no flag of ssl.VerifyFlags") from None
    return found
