"""What a script in ``store/lua`` begins with, and which of them change nothing."""

from __future__ import annotations

# The leader's are fenced by its epoch.
_LEADERS = ("damage", "fence")
# Between the prelude and the script.
OPENINGS = {
    **dict.fromkeys(
        (
            *("seal", "look", "drop", "quarantine"),  # of every shard
            *("gather", "merge", "announce", "settle", "outbid"),  # of the home shard
            *("mark", "attempts", "callbacks_done"),
            *("roll", "finish", "mark_rollup"),
        ),
        _LEADERS,
    ),
    **dict.fromkeys(("propose", "confirm"), (*_LEADERS, "planning")),
    "follow": ("planning",),
    "inspect": ("damage",),
    "accept": ("taking",),
    "accept_many": ("taking",),
}
# Scripts that write nothing, so that no replica has anything to acknowledge. All others write; `pending`
# and `look` do when they are asked to.
READS = frozenset(
    {
        *("agreed", "callbacks", "counts", "current", "endpoints", "fleet", "inspect"),
        *("kept", "sketched", "sketches", "rolled", "rolling", "rollups"),
    }
)
# What these write stays for seconds only, and need not outlive a failover.
UNWAITED = READS | {"publish", "union"}
