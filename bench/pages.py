"""The figures in README and docs/benchmark.rst: those of the last whole run."""

from __future__ import annotations

from pathlib import Path

from bench.report import headline, summary
from bench.samples import Findings

ROOT = Path(__file__).parents[1]


def write(found: Findings) -> None:
    _put(ROOT / "README.rst", "figure", headline(found))
    _put(ROOT / "docs/benchmark.rst", "figures", summary(found))


def _put(page: Path, mark: str, text: str) -> None:
    """Put the text between the comments ``.. MARK`` and ``.. end of MARK``."""
    old = page.read_text(encoding="utf-8")
    begin, end = f".. {mark}\n", f".. end of {mark}\n"
    head, tail = old[: old.index(begin) + len(begin)], old[old.index(end) :]
    page.write_text(f"{head}\n{text}\n\n{tail}", encoding="utf-8")
