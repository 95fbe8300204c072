from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    add = parser.getgroup("soak").addoption
    add("--minutes", type=float, help="default: 20")
    add("--rate", type=int, help="requests per second, default: 10000")
    add("--window", type=int, help="seconds, default: 5")
    add("--windows-a-cycle", type=int, help="with one fault in each cycle, default: 4")
    add("--out", type=Path, help="folder of the verdict and the plots; default: tests/soak/results")
