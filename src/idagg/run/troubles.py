"""The log's lines about trouble: when it begins or changes, while it lasts, and when it ends. Pure."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Mapping

# The first reminder; each pause is twice as long as the one before.
REMIND_S = 30.0
LONGEST_PAUSE_S = 600.0
# Time for which another cause has to be there before it is told: workers notice one after the other.
CHANGE_S = 2.0


@dataclasses.dataclass(slots=True)
class _Trouble:
    sentence: str
    since: float
    remind_at: float
    other: str = ""  # a sentence that has come in the place of the one that was told
    other_since: float = 0.0
    pause_s: float = REMIND_S

    def is_another(self, sentence: str, now: float) -> bool:
        """Whether this is another cause, for long enough to be told. It is the one that was told then."""
        if sentence == self.sentence:
            self.other = ""
            return False
        if sentence != self.other:
            self.other, self.other_since = sentence, now
        if now - self.other_since < CHANGE_S:
            return False
        self.sentence, self.other = sentence, ""
        return True


class Troubles:
    """``told_elsewhere`` are parts whose processes log the beginning and the end themselves."""

    def __init__(self, told_elsewhere: Collection[str] = ()) -> None:
        self._told_elsewhere = told_elsewhere
        self._present: dict[str, _Trouble] = {}

    def lasts_s(self, now: float) -> dict[str, float]:
        """By part, for how long it has been in trouble."""
        return {part: now - trouble.since for part, trouble in self._present.items()}

    def lines(self, found: Mapping[str, str], now: float) -> list[tuple[int, str]]:
        """Levels and lines to log, now that there is the trouble ``found``, a sentence for each part."""
        lines = []
        for part in self._present.keys() - found.keys():
            lasted = _words(now - self._present.pop(part).since)
            if part not in self._told_elsewhere:
                lines.append((logging.INFO, f"{part}: works again, after {lasted}"))
        for part, sentence in found.items():
            trouble = self._present.get(part)
            if trouble is None:
                self._present[part] = _Trouble(sentence, now, now + REMIND_S)
                is_news = True
            else:
                is_news = trouble.is_another(sentence, now)
            if is_news and part not in self._told_elsewhere:
                lines.append((logging.WARNING, f"{part}: {sentence}"))
            elif trouble and now >= trouble.remind_at:
                trouble.pause_s = min(2 * trouble.pause_s, LONGEST_PAUSE_S)
                trouble.remind_at = now + trouble.pause_s
                lasts = _words(now - trouble.since)
                lines.append((logging.WARNING, f"{part}: still in trouble, for {lasts}: {sentence}"))
        return lines


def _words(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
