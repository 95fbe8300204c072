"""The models of a machine's state and of the fleet's."""

from __future__ import annotations

from pathlib import Path

import orjson

from idagg.read.fleet import Status

EXAMPLE = Path(__file__).parents[1] / "examples" / "status.json"


def test_the_example_is_a_whole_status() -> None:
    """Other tests use the example: it has every field, and reads and writes to the same."""
    given = EXAMPLE.read_bytes()
    status = Status.model_validate_json(given)
    assert orjson.loads(status.model_dump_json()) == orjson.loads(given)


def test_another_version_is_understood() -> None:
    """Fields that this version does not know are ignored, and those that it misses have their defaults."""
    document = orjson.loads(EXAMPLE.read_bytes())
    document["machines"][0]["mood"] = "good"
    del document["machines"][1]["shards"]
    status = Status.model_validate_json(orjson.dumps(document))
    assert [machine.shards.count for machine in status.machines] == [1, 1]
