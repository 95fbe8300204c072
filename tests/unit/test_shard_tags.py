"""Where ids and keys lie."""

import itertools

import pytest

from idagg.store.shards import SLOTS, shard_of, shard_tag, slot_of


@pytest.mark.parametrize(
    ("key", "slot"),
    [  # what CLUSTER KEYSLOT of Redis 7.0 says
        ("foo", 12182),
        ("123456789", 12739),
        ("{user1000}.following", 3443),
        ("{user1000}.followers", 3443),
        ("foo{}{bar}", 8363),
        ("foo{{bar}}zap", 4015),
        ("foo{bar}{zap}", 5061),
    ],
)
def test_slots_are_the_clusters(key: str, slot: int) -> None:
    assert slot_of(key) == slot


@pytest.mark.parametrize("namespace", ["idagg", "eu.West_1-a", "x" * 64])
@pytest.mark.parametrize("shards", [2, 4, 16, 64])
def test_slots_of_shards_lie_evenly(namespace: str, shards: int) -> None:
    slots = sorted(slot_of(shard_tag(namespace, index)) for index in range(shards))
    apart = [later - earlier for earlier, later in itertools.pairwise([*slots, slots[0] + SLOTS])]
    assert min(apart) > 0.8 * SLOTS / shards
    assert max(apart) < 1.2 * SLOTS / shards


def test_masters_have_alike_many_shards() -> None:
    """Three masters with contiguous slots, as redis-cli makes them."""
    owners = [3 * slot_of(shard_tag("idagg", index)) // SLOTS for index in range(16)]
    assert sorted(map(owners.count, range(3))) == [5, 5, 6]


def test_the_home_shard_is_where_it_always_was() -> None:
    assert shard_tag("idagg") == "{idagg:0}"


def test_ids_are_spread_evenly() -> None:
    """Sequential ids, which are the most alike."""
    owners = [shard_of(b"%d" % number, 16) for number in range(100_000)]
    assert all(5_900 < owners.count(shard) < 6_600 for shard in range(16))


def test_an_id_stays_in_its_shard() -> None:
    """Processes of other versions and machines have to agree."""
    assert [shard_of(id_, 4) for id_ in (b"1", b"123", b"-9223372036854775808")] == [3, 2, 3]
