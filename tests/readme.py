"""The README's table of settings, made from the settings."""

from __future__ import annotations

from pathlib import Path

from idagg.settings import SECRETS, Settings, default_text, flag, variable

README = Path(__file__).parents[1] / "README.rst"
_BEGIN, _END = ".. settings\n", ".. end of settings\n"


def table() -> str:
    rows = [("flag", "variable", "default", "meaning")]
    for name, field in Settings.model_fields.items():
        mark = " †" if name in SECRETS else ""
        rows.append(
            (
                f"``{flag(name)}``{mark}",
                f"``{variable(name)}``",
                default_text(name),
                _plain(str(field.description)),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    rule = " ".join("=" * width for width in widths)
    lines = [
        " ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule]) + "\n"


def _plain(text: str) -> str:
    """A word that ends in an underscore is a reference to reStructuredText."""
    return text.replace("_ ", r"\_ ")


def written() -> str:
    """The table that is in the README."""
    text = README.read_text(encoding="utf-8")
    return text[text.index(_BEGIN) + len(_BEGIN) : text.index(_END)].strip("\n") + "\n"


def write() -> None:
    text = README.read_text(encoding="utf-8")
    head, tail = text[: text.index(_BEGIN) + len(_BEGIN)], text[text.index(_END) :]
    README.write_text(f"{head}\n{table()}\n{tail}", encoding="utf-8")


if __name__ == "__main__":
    write()
