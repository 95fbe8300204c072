"""Places in the flush where a test ends or stalls this process: ``IDAGG_FAILPOINT=PLACE=ACTION[@FILE]``.

With a file, that happens while the file exists, and takes it away, so that the successor passes.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "IDAGG_FAILPOINT"
PLACES = ("before-seal", "after-seal", "after-confirm", "before-mark", "after-mark", "attempt", "callback")
ACTIONS = {"kill": signal.SIGKILL, "stall": signal.SIGSTOP}


def problem(text: str | None) -> str | None:
    """What is wrong with the variable's value, in a sentence."""
    if text is None:
        return None
    place, _, action = text.partition("@")[0].partition("=")
    if place in PLACES and action in ACTIONS:
        return None
    return (
        f"environment {VARIABLE} cannot be {text!r}: it is one of {', '.join(PLACES)}, then =kill or =stall"
    )


def reach(place: str) -> None:
    """Say that this process has come to the place."""
    chosen, _, file = os.environ.get(VARIABLE, "").partition("@")
    if not chosen.startswith(f"{place}="):
        return
    if file:
        try:
            os.unlink(file)  # noqa: PTH108  one call, of which one process comes back
        except FileNotFoundError:
            return
    os.kill(os.getpid(), ACTIONS[chosen.partition("=")[2]])
