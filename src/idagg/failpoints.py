"""Places in the flush where a test kills or stops this process: ``IDAGG_FAILPOINT=PLACE=ACTION[@FILE]``.

If a file is named, the action happens only while it exists, and removes it. The process started next then
passes the same place. A number in the file says at which pass, from then on: 3, at the third.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

VARIABLE = "IDAGG_FAILPOINT"
PLACES = (
    *(
        "before-wait-lead",
        "before-seal",
        "before-wait-seal",
        "after-part",
        "after-seal",
        "after-merge",
        "after-drop",
        "before-plan",
    ),
    *("after-confirm", "before-mark", "after-mark", "attempt", "callback"),
    *("before-roll", "after-roll", "before-finish", "after-finish"),
    *("before-mark-rollup", "after-mark-rollup"),
)
ACTIONS = {"kill": signal.SIGKILL, "stall": signal.SIGSTOP}


def problem(text: str | None) -> str | None:
    """One sentence about an invalid value of the variable; None if it is valid."""
    if text is None:
        return None
    place, _, action = text.partition("@")[0].partition("=")
    if place in PLACES and action in ACTIONS:
        return None
    return (
        f"environment {VARIABLE} cannot be {text!r}: it is one of {', '.join(PLACES)}, then =kill or =stall"
    )


def reach(place: str) -> None:
    """Run the action of this place, if a test has set one."""
    chosen, _, file = os.environ.get(VARIABLE, "").partition("@")
    if not chosen.startswith(f"{place}="):
        return
    if file:
        try:
            passes = int(Path(file).read_text() or 1)
            if passes > 1:
                Path(file).write_text(str(passes - 1))
                return
            os.unlink(file)  # noqa: PTH108  one call: of several processes exactly one succeeds
        except FileNotFoundError:
            return
    os.kill(os.getpid(), ACTIONS[chosen.partition("=")[2]])
