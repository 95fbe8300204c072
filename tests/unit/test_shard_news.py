"""What the log says of shards that are away."""

from __future__ import annotations

from idagg.run.shard_news import GATHER_S, ShardNews


def test_shards_of_one_master_are_one_line() -> None:
    """They go one after the other, and come back so."""
    news, gone = ShardNews(), {2: "master", 4: "master"}
    assert news.look(0, {4: "master"}, {4}) is None
    assert news.look(0.1, gone, {2, 4}) is None
    assert news.look(0.2, {2: "master"}, {2, 4}) is None  # the other was sent nothing since
    sentence = "shards 2, 4 store no ids, they are answered 503: master"
    assert news.look(GATHER_S, gone, {2, 4}) == (sentence, False)
    assert news.look(2, gone, {2, 4}) is None
    assert news.look(3, {}, {2}) is None
    assert news.look(4, {}, set()) == ("shards 2, 4 store ids again", True)
    assert news.look(5, {}, set()) is None


def test_a_shard_that_is_sent_nothing_is_not_back() -> None:
    news = ShardNews()
    for now in (0, GATHER_S):
        told = news.look(now, {1: "away"}, {1})
    assert told == ("shard 1 stores no ids, they are answered 503: away", False)
    assert news.look(5, {}, {1}) is None
    assert news.look(6, {1: "away"}, {1}) is None
    assert news.look(7, {}, set()) == ("shard 1 stores ids again", True)


def test_all_shards_are_no_news_of_some() -> None:
    """That the store is away is told elsewhere."""
    news = ShardNews()
    assert news.look(0, {0: "away"}, {0}) is None
    assert news.look(0.1, {}, {0, 1}) is None
    assert news.look(GATHER_S, {}, {0, 1}) is None
    assert news.look(9, {0: "away"}, {0}) is None
