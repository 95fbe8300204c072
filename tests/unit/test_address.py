"""What a store's URL says."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import trustme
from redis.asyncio.connection import ConnectionPool
from redis.exceptions import RedisError

from idagg.store.address import Address, Place, default_shards, shown

LOGINS = ("", "ida@", ":p%40ss@", "ida:s%3Acret@", "ida:@")
HOSTS = ("h", "H1:7000", "10.0.0.1", "[::1]", "[fe80::1]:7001", "")
PATHS = ("", "/", "/0", "/3", "/3/")
QUERIES = ("", "?db=2", "?db=", "?db=2&db=1", "?db=two", "?username=u&password=p%20w", "?password=%2540")


def test_sentinels() -> None:
    """Each host has its port, the sentinels their own user, and the data theirs and the database."""
    place = Place.parse(
        "redis+sentinel://ida:p%40ss@h1:7000,h2,[::1]/main%2Fone/2?sentinel_username=su&sentinel_password=sp"
    )
    assert [(seed.host, seed.port) for seed in place.seeds] == [("h1", 7000), ("h2", 26379), ("::1", 26379)]
    assert {(seed.username, seed.password, seed.database, seed.tls) for seed in place.seeds} == {
        ("su", "sp", 0, None)
    }
    assert (place.kind, place.service) == ("sentinel", "main/one")
    assert place.node[-3:] == ("ida", "p@ss", 2)


def test_a_cluster() -> None:
    """Seeds are nodes, with the nodes' user, and all in TLS."""
    place = Place.parse("rediss+cluster://:secret@h1,h2:7001")
    assert place.kind == "cluster"
    assert [(seed.host, seed.port, seed.password) for seed in place.seeds] == [
        ("h1", 6379, "secret"),
        ("h2", 7001, "secret"),
    ]
    assert all(seed.tls for seed in (*place.seeds, place.node))


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis+sentinel://ida:secret@h1,h2:1/main/1?sentinel_password=x", "redis+sentinel://h1,h2:1/main/1"),
        ("rediss+cluster://:secret@h1,h2", "rediss+cluster://h1,h2"),
        ("redis://:secret@h1/2", "redis://h1:6379/2"),
        ("unix://:secret@/run/s?db=1", "/run/s"),
    ],
)
def test_shown_without_secrets(url: str, text: str) -> None:
    assert shown(url) == text


def test_shards_where_nobody_says_how_many() -> None:
    assert [default_shards(url) for url in (None, "redis://h", "redis+sentinel://h/m")] == [1, 1, 1]
    assert default_shards("rediss+cluster://h1,h2") == 16


def by_redis_py(url: str) -> tuple[Any, ...] | None:
    """What that library makes of a URL; None: it refuses it."""
    try:
        plan: Any = ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]  # untyped there
        tls = plan.ssl_context.get() if url.startswith("rediss") else None
    except (RedisError, TypeError, ValueError):
        return None
    is_unix = url.startswith("unix")
    place = (plan.path, "", 0) if is_unix else (None, plan.host, plan.port)
    return (*place, as_set(tls), plan.username, plan.password, int(plan.db))


def as_set(context: Any) -> tuple[Any, ...] | None:
    if context is None:
        return None
    return (
        *(context.verify_mode, context.check_hostname, context.verify_flags, context.minimum_version),
        *(context.cert_store_stats(), [cipher["name"] for cipher in context.get_ciphers()]),
    )


def ours(url: str) -> tuple[Any, ...] | None:
    with contextlib.suppress(ValueError):
        address = Address.parse(url)
        return (*address[:3], as_set(address.tls), *address[4:])
    return None


def test_urls_are_read_as_redis_py_reads_them() -> None:
    urls = [
        f"redis://{login}{host}{path}{query}"
        for login in LOGINS
        for host in HOSTS
        for path in PATHS
        for query in QUERIES
    ]
    urls += [f"unix://{login}/run/a%20b.sock{query}" for login in LOGINS for query in QUERIES]
    urls += ["redis+other://h", "http://h", "h:6379", ""]
    assert {url: ours(url) for url in urls} == {url: by_redis_py(url) for url in urls}


def test_a_path_that_is_no_database_is_refused() -> None:
    """redis-py takes it for the database 0."""
    for path in ("/main", "/0x1", "/-1"):
        with pytest.raises(ValueError, match="no database"):
            Address.parse(f"redis://h{path}")


def test_tls_is_set_as_redis_py_sets_it(tmp_path: Path) -> None:
    ca = trustme.CA()
    mine = ca.issue_cert("h")
    mine.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "own.pem"))
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    options = [
        "",
        *(f"ssl_cert_reqs={value}" for value in ("none", "optional", "required", "perhaps")),
        *(f"ssl_check_hostname={value}" for value in ("false", "no", "0", "true", "yes", "")),
        f"ssl_ca_certs={tmp_path / 'ca.pem'}",
        f"ssl_ca_certs={tmp_path / 'ca.pem'}&ssl_cert_reqs=none",
        f"ssl_certfile={tmp_path / 'own.pem'}",
        f"ssl_certfile={tmp_path / 'own.pem'}&ssl_keyfile={tmp_path / 'own.pem'}",
        f"ssl_keyfile={tmp_path / 'own.pem'}",
        "ssl_min_version=772",
        "ssl_min_version=1",
        "ssl_ciphers=ECDHE-RSA-AES256-GCM-SHA384",
        "ssl_include_verify_flags=[VERIFY_X509_STRICT, VERIFY_CRL_CHECK_LEAF]",
        "ssl_exclude_verify_flags=VERIFY_X509_TRUSTED_FIRST",
        "ssl_include_verify_flags=VERIFY_NOTHING",
    ]
    urls = [f"rediss://h/1?{option}" for option in options]
    assert {url: ours(url) for url in urls} == {url: by_redis_py(url) for url in urls}


def test_a_missing_ca_file_is_told() -> None:
    with pytest.raises(FileNotFoundError):
        Address.parse("rediss://h?ssl_ca_certs=/not/there")


def test_certificates_are_read_again_when_they_have_changed(tmp_path: Path) -> None:
    """And not for each connection: that takes 30 ms, in which nothing else is done."""
    certificates = tmp_path / "ca.pem"
    url = f"rediss+cluster://h1,h2?ssl_ca_certs={certificates}"
    trustme.CA().cert_pem.write_to_path(certificates)
    place = Place.parse(url)
    first = place.node.tls
    assert first is not None
    assert {seed.tls for seed in place.seeds} == {first}
    assert Place.parse(url).node.tls is first
    assert Place.parse(f"{url}&ssl_check_hostname=no").node.tls is not first
    trustme.CA().cert_pem.write_to_path(tmp_path / "new.pem")
    (tmp_path / "new.pem").replace(certificates)
    second = Place.parse(url).node.tls
    assert second is not None
    assert second.get_ca_certs() != first.get_ca_certs()
    certificates.unlink()
    with pytest.raises(FileNotFoundError):
        Place.parse(url)
