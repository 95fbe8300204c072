from __future__ import annotations

import readme


def test_the_settings_table_is_the_settings() -> None:
    """README and --help come from one place; `python tests/readme.py` writes the table anew."""
    assert readme.written() == readme.table()
