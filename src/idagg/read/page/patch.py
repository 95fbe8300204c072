"""What has changed of a view, as a JSON merge patch (RFC 7396). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Both have the same fields and no null, so that nothing has to be deleted. Arrays are replaced."""
    return {
        field: patch(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
        for field, value in after.items()
        if (old := before.get(field)) != value
    }
