"""The outcome of a callback, in the terms of the log file and the metrics. Pure."""

from __future__ import annotations

import dataclasses

from idagg.deliver.answer import RETRIED, Answer

BLOCKED = "blocked"
EXPIRED = "gave up: deadline"
INTERRUPTED = "interrupted"
INVALID = "invalid URL"
LIMIT = "limit"
SILENCED = "silenced"
TIMEOUT = "timeout"

# Errors of callbacks that were not made, so they are no failure of the receiver. Error → result.
_RESULTS = {BLOCKED: "blocked", EXPIRED: "expired", LIMIT: "limit", SILENCED: "silenced"}
_GONE_STATUS = 410


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """An answer, or the text of an error."""

    answer: Answer | None = None
    error: str | None = None
    ms: int = 0

    @property
    def is_retried(self) -> bool:
        """Whether another attempt may succeed."""
        if self.answer is not None:
            return self.answer.status in RETRIED
        return self.error not in (*_RESULTS, INVALID, INTERRUPTED)

    @property
    def is_failure(self) -> bool:
        """Whether it counts as a failure of the endpoint."""
        return self.result in ("refused", "error")

    @property
    def is_gone(self) -> bool:
        """Whether the receiver asked for no more callbacks (410)."""
        return self.answer is not None and self.answer.status == _GONE_STATUS

    @property
    def text(self) -> str:
        """A few words."""
        return f"status {self.answer.status}" if self.answer is not None else (self.error or "")[:60]

    @property
    def result(self) -> str:
        """The metric's label: ok (2xx), refused (other status), error, blocked, expired, silenced, limit."""
        if self.answer is not None:
            return "ok" if 200 <= self.answer.status < 300 else "refused"
        return _RESULTS.get(self.error or "", "error")
