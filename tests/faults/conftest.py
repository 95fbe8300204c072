from __future__ import annotations

import pytest

from idagg.store import connection, topology
from kit.waiting import LIMIT_S


@pytest.fixture(autouse=True)
def patient_dials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own clients connect however long the machine stands still meanwhile. Those of idagg's processes try
    again."""
    monkeypatch.setattr(connection, "DIAL_S", LIMIT_S)
    monkeypatch.setattr(topology, "ASK_S", LIMIT_S / 2)
