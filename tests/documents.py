"""The examples in README and docs, as their readers find them."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.rst"), *(ROOT / "docs").rglob("*.rst")])

_BLOCK = re.compile(r"^( *)\.\. code-block:: (\w+)\n(?: *:\S+:.*\n)*\n((?:\1 +\S.*\n|[ ]*\n)+)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Command:
    """What is typed, and what is then shown; ``…`` in it stands for anything."""

    typed: str
    shown: str

    @property
    def expected(self) -> re.Pattern[str]:
        return re.compile(re.escape(self.shown).replace("…", ".*?"), re.DOTALL)


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The code blocks in this language, in their order."""
    return [textwrap.dedent(body).strip("\n") for _, found, body in _BLOCK.findall(text) if found == language]


def captioned(text: str) -> dict[str, str]:
    """The code blocks that have a caption, by that."""
    found = {}
    for whole in _BLOCK.finditer(text):
        if caption := re.search(r"^ *:caption: (.+)$", whole[0], re.MULTILINE):
            found[caption[1]] = textwrap.dedent(whole[3]).strip("\n")
    return found


def session(text: str) -> Iterator[Command]:
    """The commands of all ``console`` blocks, in their order."""
    for block in blocks(text, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            typed, _, shown = part.partition("\n")
            yield Command(typed, shown.rstrip("\n"))


def literal_lines(text: str, beginning: str) -> list[str]:
    """Lines of literal blocks that begin so."""
    return [line.strip() for line in text.splitlines() if line.strip().startswith(beginning)]
