"""Tables and sections in reStructuredText."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A simple table, names on the left and figures on the right."""
    rows = [["--" if cell == "-" else cell for cell in row] for row in rows]  # a lone hyphen begins a list
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    line = "  ".join("=" * width for width in widths)
    return "\n".join([line, _row(head, widths), line, *(_row(row, widths) for row in rows), line])


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])


def section(title: str, body: str) -> str:
    return f"{title}\n{'-' * len(title)}\n\n{body}"


def number(value: float | None) -> str:
    """Counts are whole, measures have two digits after the point where they are small."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"
