"""RabbitMQ's URL, which may name several hosts, as pure values.

``amqp[s]://USER:PASSWORD@HOST[:PORT],HOST[:PORT]/VHOST?QUERY``, where the query has what aiormq heeds. That
library ignores every other name, those of RabbitMQ's own clients too, and takes what it cannot read for 0; so
all that it would not heed is refused here.
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
# What others call it → what to do.
_INSTEAD = {
    **dict.fromkeys(("cacertfile", "ca_certs", "ssl_ca_certs", "sslrootcert"), "cafile is its name here"),
    **dict.fromkeys(("ssl_certfile", "ssl_cert"), "certfile is its name here"),
    **dict.fromkeys(("ssl_keyfile", "ssl_key"), "keyfile is its name here"),
    **dict.fromkeys(("auth_mechanism", "login_method"), "auth is its name here, plain or external"),
    **dict.fromkeys(
        ("timeout", "connection_timeout", "connect_timeout", "socket_timeout"),
        "--amqp-connect-timeout sets that",
    ),
    **dict.fromkeys(
        ("no_verify_ssl", "verify", "ssl_cert_reqs", "fail_if_no_peer_cert"),
        "certificates are always verified; cafile names a private CA",
    ),
    "server_name_indication": "it is always the host",
}


def one_per_host(url: str) -> tuple[str, ...]:
    """The URL once for each of its hosts, in their order. Raises ValueError where it cannot be used; with a
    sentence, as UnfitError, where it looks well."""
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
    # Not loaded to print settings that name no RabbitMQ.
    from yarl import URL

    for one in urls:
        URL(one)  # raises ValueError
    return tuple(urls)


def _check_query(scheme: str, query: str) -> None:
    pairs = parse_qsl(query, keep_blank_values=True)
    given = dict(pairs)
    for name in given:
        if name not in _HEEDED:
            raise UnfitError(f"{name!r} in its query: {_INSTEAD.get(name, 'nothing heeds that')}")
        if name in _TLS and scheme == "amqp":
            raise UnfitError(f"{name!r} in its query: that is for amqps://")
    if len(given) < len(pairs):
        raise UnfitError("a name comes twice in its query")
    if not re.fullmatch("[1-9][0-9]{0,2}", given.get("heartbeat", "1")):
        raise UnfitError("'heartbeat' in its query: it is 1 to 999 whole seconds")
    if given.get("auth", "plain").lower() not in ("plain", "external"):
        raise UnfitError("'auth' in its query: it is plain or external")
    if "keyfile" in given and "certfile" not in given:
        raise UnfitError("'keyfile' in its query: it needs certfile")
    try:
        base64.b64decode(given.get("cadata", ""), validate=True)
    except binascii.Error as error:
        raise UnfitError("'cadata' in its query: it is no base64") from error
