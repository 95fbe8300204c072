"""Times as operators type them. Pure."""

from __future__ import annotations

import datetime
import re

# As the API has it: fewer digits are a year or a month, and more are a minute, or milliseconds.
_UNIX_S = re.compile(r"[0-9]{9,10}")
_AGO = re.compile(r"-?([0-9]{1,9})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_EXAMPLES = (
    "2026-11-25T10:53:00+01:00, or, in UTC, '2026-11-25 10:53'; 1h, 30m or 2d for so long ago; yesterday; or "
    "Unix seconds, of 9 or 10 digits"
)


def moment(text: str, now: datetime.datetime) -> datetime.datetime:
    """The moment that is meant, in UTC, in whole seconds. Raises ValueError.

    ``now`` is in UTC. Without a zone a time is in UTC, as everything that idagg prints.
    """
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    named = {"now": now, "today": today, "yesterday": today - datetime.timedelta(days=1)}
    try:
        if text in named:
            found = named[text]
        elif ago := _AGO.fullmatch(text):
            found = now - datetime.timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        elif _UNIX_S.fullmatch(text):
            found = datetime.datetime.fromtimestamp(int(text), datetime.UTC)
        else:
            found = datetime.datetime.fromisoformat(text)
            found = found.astimezone(datetime.UTC) if found.tzinfo else found.replace(tzinfo=datetime.UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no time: write {_EXAMPLES}") from None
    return found.replace(microsecond=0)


def iso(when: datetime.datetime) -> str:
    return when.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def lasting(seconds: float) -> str:
    """A duration in its two largest units: ``3 d 4 h``."""
    left = max(0, round(seconds))
    units = [("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)]
    while len(units) > 1 and left < units[0][1]:
        del units[0]
    parts = []
    for name, size in units[:2]:
        count, left = divmod(left, size)
        parts.append(f"{count} {name}")
    return " ".join(part for part in parts if part == parts[0] or not part.startswith("0 "))
