"""Failed starts under a service manager, and the processes' ties."""

from __future__ import annotations

from pathlib import Path

import pytest

from idagg.run.starts import FailedStarts, delay_s


def test_delays() -> None:
    """The first failure is told at once; the delay then doubles up to its limit."""
    assert [delay_s(failures) for failures in range(9)] == [0, 0, 1, 2, 4, 8, 16, 30, 30]
    assert delay_s(10_000) == 30


def test_failed_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures add up over processes until a start goes well."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}:/run/other")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    assert [FailedStarts().one_more() for _ in range(3)] == [1, 2, 3]
    FailedStarts().none()
    assert list(tmp_path.iterdir()) == []
    FailedStarts().none()
    (tmp_path / "failed-starts").write_text("theirs")
    assert FailedStarts().one_more() == 1


@pytest.mark.parametrize("missing", ["RUNTIME_DIRECTORY", "NOTIFY_SOCKET"])
def test_nobody_starts_it_again(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a terminal nothing is counted, and nothing waits."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.delenv(missing)
    assert FailedStarts().one_more() == 0
    assert list(tmp_path.iterdir()) == []
