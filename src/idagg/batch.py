"""What became of a batch of ids, for those who observe the group commits."""

from __future__ import annotations

from typing import Literal, NamedTuple

# Why a batch was not stored: the store could not be reached, refused it, or did not answer in time.
Cause = Literal["away", "refused", "slow"]


class BatchResult(NamedTuple):
    """One batch, after the store has answered, or has failed to.

    ``requests`` calls of ``add`` and ``add_many`` have been answered, parts of a request not counted, ``ids``
    ids were sent, and ``repeats`` ids counted without being sent. ``took_s`` is what the store took.
    ``waited_s`` is the time from the arrival of the first request to its answer; None: the batch is not
    answered yet. ``cause``: why it was not stored.
    """

    requests: int
    ids: int
    repeats: int
    stored: bool
    took_s: float
    waited_s: float | None = None
    cause: Cause | None = None
