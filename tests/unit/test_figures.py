"""The figures of the fault matrix tell what the oracle found, of tests that fail, too."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from kit.figures import SHARED_S, Figures, Row, report
from kit.oracle import Delivery, Journal

pytest_plugins = ["pytester"]

_TESTS = """
import pytest
from kit.oracle import Journal

@pytest.fixture
def broken():
    raise OSError

@pytest.fixture
def breaks_at_the_end():
    yield
    raise OSError

@pytest.mark.fault("10", "all is well")
async def test_well(row):
    assert [number async for number in row.inject(1)] == [0, 1, 2]
    assert [number async for number in row.inject(1, most=2)] == [0, 1]
    assert row.wrong_ids(Journal(ok={1, 2}, slowest_s=0.25), {"60": {1, 2}}) == []

@pytest.mark.fault("2", "an id is lost")
def test_loses(row):
    assert row.wrong_ids(Journal(ok={1, 2}), {"60": {1}}) == []

@pytest.mark.fault("4", "a server does not end")
def test_ends_badly(breaks_at_the_end, row):
    pass

@pytest.mark.fault("3", "no server to be had")
def test_begins(broken, row):
    pass

@pytest.mark.fault("5", "it comes back late", recovery_must_s=1.0)
def test_late(row):
    row.recovered(1.5)

def test_without_figures():
    pass
"""
_MACHINE = dict.fromkeys(
    (
        *("processor", "cores", "memory", "system", "kernel", "fsync"),
        *("commit", "python", "redis", "valkey", "rabbitmq", "date"),
    ),
    "x",
)


def test_rows_are_written(pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row a test, by their numbers; a test that failed, or could not begin, is there and says so."""
    monkeypatch.setattr("kit.figures._machine", lambda _: _MACHINE)  # it would ask the servers for theirs
    pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function")
    pytester.makepyfile(_TESTS)
    pytester.inline_run(plugins=[Figures(tmp_path, 3, 7)])
    raw = json.loads((tmp_path / "raw.json").read_text())
    assert [(row["number"], row["kept"]) for row in raw["rows"]] == [
        ("2", False),
        ("3", False),
        ("4", False),
        ("5", False),
        ("10", True),
    ]
    assert [(row["injections"], row["acknowledged"], row["lost"]) for row in raw["rows"]] == [
        (0, 2, 1),
        (0, 0, 0),
        (0, 0, 0),
        (0, 0, 0),
        (5, 2, 0),
    ]
    told = (tmp_path / "report.rst").read_text().splitlines()
    for fault, promise in (
        ("an id is lost", "FAILED"),
        ("no server to be had", "FAILED"),
        ("it comes back late", "FAILED"),
        ("all is well", "kept"),
    ):
        (line,) = (line for line in told if fault in line)
        assert line.endswith(promise)


def test_a_limit_holds_where_figures_are_kept(pytester: pytest.Pytester) -> None:
    """Elsewhere a machine is shared, and may stand still."""
    pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function")
    pytester.makepyfile(_TESTS)
    outcomes = pytester.inline_run("-k", "late", plugins=[Figures(None, 3, 7)]).countoutcomes()
    assert outcomes == [1, 0, 0]


async def test_a_seed_says_when_faults_come(capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed is the schedule, and the same seed brings the same one again."""

    async def schedule(seed: int) -> list[str]:
        async for _ in Row("1", "a fault", wanted=3, seed=seed).inject(1):
            pass
        first, *injections = capsys.readouterr().out.splitlines()
        assert first.endswith(f"with --seed {seed} --injections 3")
        assert [line.split(" at ")[0] for line in injections] == [f"injection {n} of 3" for n in (1, 2, 3)]
        return [line.split(", after ")[1] for line in injections]

    assert await schedule(7) == await schedule(7) != await schedule(8)


def test_what_a_row_notes() -> None:
    """Counts add up over journals, times are the worst; verdicts are the oracle's."""
    row = Row("1", "everything", recovery_must_s=1.0)
    window = Delivery("idagg:60", "1970-01-01T00:01:00Z", 3)
    told = Journal({1, 2, 3}, {4}, {5}, slowest_s=0.5, ok_at=[10.5], trouble_at=[10.25])
    assert row.verdict(told, [window, window], expected=[window.window], answer_s=1) == []
    assert (row.expected, row.delivered, row.repeated) == (1, 1, 1)
    assert len(row.verdict(told, [], expected=[window.window], answer_s=0.25)) == 3
    assert (row.acknowledged, row.failed, row.unknown, row.lost, row.double) == (6, 2, 2, 3, 0)
    assert (row.expected, row.delivered, row.repeated, row.answer_s) == (2, 1, 1, 0.5)
    assert row.wrong_ids(told, {"60": {1, 2}, "120": {2, 3}}, may_lose={3}) != []
    assert (row.lost, row.granted, row.double) == (3, 0, 1)
    assert row.wrong_ids(told, {"60": {1, 2}}, may_lose={2, 3}) == []
    assert (row.lost, row.granted, row.double) == (3, 1, 1)
    assert row.not_recovered(told, 10, within_s=1) == []
    assert row.not_recovered(told, 10.25, within_s=1) == []
    assert row.recovery_s == 0.5
    assert row.not_recovered(told, 11, within_s=1) != []
    assert row.recovery_s == math.inf


def test_a_row_on_a_shared_machine() -> None:
    """Its limits are longer, none is short, and what it reports is as it was."""
    row = Row("1", "x", patience=5)
    told = Journal(slowest_s=149, ok_at=[159], trouble_at=[10.5])
    assert row.late(told, 30) == []
    assert row.late(told, 29) != []
    assert (row.answer_s, row.answer_must_s) == (149, 29)
    assert row.not_recovered(told, 10, within_s=30) == []
    assert row.not_recovered(told, 10, within_s=29) != []
    assert row.verdict(told, [], answer_s=30) == []
    assert (row.within_s(1), Row("1", "x").within_s(1)) == (SHARED_S, 1)
    assert (row.patient, Row("1", "x").patient) == (("--deadline", "10"), ())


def test_musts() -> None:
    """Each figure that a promise is about is judged, over all rows."""
    kept = Row("1", "kept", kept=True, injections=20, acknowledged=5_000_000, granted=7)
    long = Row("1", "long", kept=True, injections=1, most=1)
    assert "NO" not in report(_MACHINE, [kept, long])
    for broken in (
        Row("1", "lost", kept=True, injections=20, lost=1),
        Row("1", "double", kept=True, injections=20, double=1),
        Row("1", "window", kept=True, injections=20, expected=2, delivered=1),
        Row("1", "late", kept=True, injections=20, recovery_s=1.5, recovery_must_s=1),
        Row("1", "late", kept=True, injections=20, takeover_s=6.5, takeover_must_s=6),
        Row("1", "failed", injections=20),
        Row("1", "seldom", kept=True, injections=19),
    ):
        assert report(_MACHINE, [kept, broken]).count("NO") == 1
    assert report(_MACHINE, [Row("1", "few ids", kept=True, injections=20)]).count("NO") == 1
