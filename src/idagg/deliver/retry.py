"""The schedule of a callback's retries. Pure: time and chance come in as arguments.

The attempts are spread over the next minutes, not seconds, so that a receiver that restarts or is deployed
still gets the count. Precedent: Standard Webhooks' schedule (at once, 5 s, 5 min, 30 min …). This one is
shorter, because a count ten minutes old is of little use in a dashboard, and the queue has it anyway.
"""

from __future__ import annotations

import email.utils

# After the first attempt, the second …; each ± SPREAD, so that retries do not reach receivers in waves.
PAUSES_S = (5.0, 30.0, 120.0, 300.0)
ATTEMPTS = len(PAUSES_S) + 1
# Longer than idagg's longest pause, and short enough that a callback can be tried again before it expires.
MAX_RETRY_AFTER_S = 600.0
SPREAD = 0.2


def pause_s(attempts: int, *, chance: float, retry_after: str | None = None, unix_s: float = 0.0) -> float:
    """The pause in seconds after ``attempts`` attempts, which are at least 1 and less than ATTEMPTS.

    ``chance`` is in [0, 1). ``retry_after`` is the answer's field (RFC 9110 10.2.3). If it asks for a longer
    pause, it is obeyed up to MAX_RETRY_AFTER_S. ``unix_s`` is the present time, for a date in that field.
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
