"""Whether a callback is tried again, and when. Pure: time and chance come in as arguments.

The attempts of one callback lie within the next windows, not within seconds: a receiver that restarts, or is
deployed anew, still hears of the window. Precedent: Standard Webhooks' schedule (at once, 5 s, 5 min, 30 min
…), cut short, since a count of ten minutes ago helps nobody in a dashboard, and the queue has it anyway.
"""

from __future__ import annotations

import email.utils

# Behind the first attempt, the second …; a fifth of it more or less, so that receivers are not met in waves.
PAUSES_S = (5.0, 30.0, 120.0, 300.0)
ATTEMPTS = len(PAUSES_S) + 1
# More than the longest pause of our own, and it leaves room within a callback's life.
MAX_RETRY_AFTER_S = 600.0
SPREAD = 0.2


def pause_s(attempts: int, *, chance: float, retry_after: str | None = None, unix_s: float = 0.0) -> float:
    """How long to wait behind that many attempts, at least 1 of them and less than ATTEMPTS.

    ``chance`` in [0, 1); ``retry_after`` is the answer's field (RFC 9110 10.2.3), heeded where it asks for
    more than our own pause, up to MAX_RETRY_AFTER_S; ``unix_s`` is the time, for a date in it.
    """
    own = PAUSES_S[attempts - 1] * (1 - SPREAD + 2 * SPREAD * chance)
    return max(own, min(_asked_s(retry_after or "", unix_s), MAX_RETRY_AFTER_S))


def _asked_s(retry_after: str, unix_s: float) -> float:
    text = retry_after.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() - unix_s
    except (ValueError, OverflowError):
        return 0.0
