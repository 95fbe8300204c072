"""What a store's URL says."""

from __future__ import annotations

import pytest

from idagg.store.address import Place, default_shards, shown


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
