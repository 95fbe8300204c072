"""RabbitMQ's URL, which may name several hosts. Pure.

``amqp[s]://USER:PASSWORD@HOST[:PORT],HOST[:PORT]/VHOST?QUERY``. aiormq ignores every query parameter that it
does not know, even those of RabbitMQ's own clients. It reads an invalid number as 0. So this module refuses
every parameter that aiormq would not obey.
"""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import parse_qsl

from idagg.errors import UnfitError

_URL = re.compile(r"(amqps?)://(?:([^/?#]*)@)?([^/?#@]+)(/[^?#]*)?(?:\?([^#]*))?")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::([0-9]{1,5}))?", re.ASCII)

_TLS = {"cafile", "capath", "cadata", "certfile", "keyfile"}
_HEEDED = {"heartbeat", "name", "auth", *_TLS}
# Name of the parameter in other clients → what to do.
_INSTEAD = {
    **dict.fromkeys(("cacertfile", "ca_certs", "ssl_ca_certs", "sslrootcert"), "use cafile"),
    **dict.fromkeys(("ssl_certfile", "ssl_cert"), "use certfile"),
    **dict.fromkeys(("ssl_keyfile", "ssl_key"), "use keyfile"),
    **dict.fromkeys(("auth_mechanism", "login_method"), "use auth, plain or external"),
    **dict.fromkeys(
        ("timeout", "connection_timeout", "connect_timeout", "socket_timeout"),
        "use --amqp-connect-timeout",
    ),
    **dict.fromkeys(
        ("no_verify_ssl", "verify", "ssl_cert_reqs", "fail_if_no_peer_cert"),
        "certificates are always verified; cafile names a private CA",
    ),
    "server_name_indication": "it is always the host of the URL",
}


def one_per_host(url: str) -> tuple[str, ...]:
    """One URL for each host, in their order.

    Raises ValueError if the URL is malformed, and UnfitError, with the reason, if a parameter is refused.
    """
    match = _URL.fullmatch(url)
    if not match or re.search(r"\s", url):
        raise ValueError("not a URL of this kind")
    scheme, login, hosts, path, query = match.groups()
    _check_query(scheme, query or "")
    urls = []
    for host in hosts.split(","):
        found = _HOST.fullmatch(host)
        if not found or (found[2] and not 0 < int(found[2]) < 65536):
            raise ValueError("not a host")
        tail = f"{path or '/'}?{query}" if query else path or "/"
        urls.append(f"{scheme}://{'' if login is None else login + '@'}{host}{tail}")
    # Imported late: settings without RabbitMQ do not need it.
    from yarl import URL

    for one in urls:
        URL(one)  # raises ValueError
    return tuple(urls)


def _check_query(scheme: str, query: str) -> None:
    pairs = parse_qsl(query, keep_blank_values=True)
    given = dict(pairs)
    for name in given:
        if name not in _HEEDED:
            raise UnfitError(f"{name!r} in its query: {_INSTEAD.get(name, 'aiormq has no such parameter')}")
        if name in _TLS and scheme == "amqp":
            raise UnfitError(f"{name!r} in its query: that is for amqps://")
    if len(given) < len(pairs):
        raise UnfitError("a parameter occurs twice in its query")
    if not re.fullmatch("[1-9][0-9]{0,2}", given.get("heartbeat", "1")):
        raise UnfitError("'heartbeat' in its query: it is 1 to 999 whole seconds")
    if given.get("auth", "plain").lower() not in ("plain", "external"):
        raise UnfitError("'auth' in its query: it is plain or external")
    if "keyfile" in given and "certfile" not in given:
        raise UnfitError("'keyfile' in its query: it needs certfile")
    try:
        base64.b64decode(given.get("cadata", ""), validate=True)
    except binascii.Error as error:
        raise UnfitError("'cadata' in its query: it is not base64") from error
