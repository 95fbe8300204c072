"""The figures in the README: those of the last whole run."""

from __future__ import annotations

from pathlib import Path

from bench.findings import Findings
from bench.report import summary

_README = Path(__file__).parents[1] / "README.rst"
_BEGIN, _END = ".. figures\n", ".. end of figures\n"


def write(found: Findings) -> None:
    text = _README.read_text(encoding="utf-8")
    head, tail = text[: text.index(_BEGIN) + len(_BEGIN)], text[text.index(_END) :]
    _README.write_text(f"{head}\n{summary(found)}\n\n{tail}", encoding="utf-8")
