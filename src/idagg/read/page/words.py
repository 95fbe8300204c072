"""Numbers and times as the status page shows them. Pure."""

from __future__ import annotations

import datetime
import unicodedata

from idagg.window import iso

# Between groups of three digits, as ISO 80000-1 has it: narrow, and no line breaks there.
_GAP = "\u202f"
# Control characters, those that are not seen, and halves of pairs.
_HIDDEN = ("Cc", "Cf", "Cs")
# What nobody knows.
UNKNOWN = "—"


def number(count: int) -> str:
    """``580112000`` → ``580 112 000``."""
    return f"{count:,}".replace(",", _GAP)


def rate(per_s: float) -> str:
    """To two digits at least, as far as there are any."""
    if per_s >= 100 or per_s == 0:
        return number(round(per_s))
    return f"{per_s:.1f}" if per_s >= 1 else f"{per_s:.2f}"


def several(count: int, noun: str) -> str:
    return f"{number(count)} {noun}" + ("" if count == 1 else "s")


def duration(seconds: float) -> str:
    """To two digits or so: ``0.4 s``, ``12 s``, ``3 min``, ``5 h``, ``12 days``."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else several(int(seconds / 86_400), "day")


def milliseconds(ms: float | None) -> str:
    if ms is None:
        return UNKNOWN
    if ms >= 1000:
        return f"{ms / 1000:.1f} s"
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.1f} ms"


def axis(count: float) -> str:
    """For a scale: ``2500000`` → ``2.5 M``."""
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:g} {letter}"
    return f"{count:g}"


def time_of_day(moment: datetime.datetime, now: datetime.datetime) -> str:
    """In UTC, as the log has it; with the date if that is not today's."""
    moment = moment.astimezone(datetime.UTC)
    today = moment.date() == now.astimezone(datetime.UTC).date()
    return f"{moment:%H:%M:%S}" if today else f"{moment:%Y-%m-%d %H:%M:%S}"


def window_time(start_s: int, length_s: int) -> str:
    """The start of a window, with seconds only where windows begin within minutes."""
    clock = iso(start_s)[11:19]
    return clock if length_s % 60 or start_s % 60 else clock[:5]


def visible(text: str, longest: int = 2000) -> str:
    """What others have written, but for what hides letters or turns them around; cut where it is long."""
    letters = ("\ufffd" if unicodedata.category(letter) in _HIDDEN else letter for letter in text[:longest])
    return "".join(letters) + ("…" if len(text) > longest else "")
