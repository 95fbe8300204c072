r"""The corpus: hostile and odd inputs, one a file, each with the answers that are right. Read by the tests.

A file ``http_cases/NAME.http`` has a head, a line of dashes, and the bytes::

    # What it is, and why the answer is right.
    expect: 200 400 close
    counts: 5
    ----
    GET /api/verve/accept?id=5 HTTP/1.1\r\n
    ...

``expect`` has the statuses in their order (``400|501``: either will do), then what becomes of the connection:
``keep``, ``close``, or ``either``. ``counts``: the ids that are in the store afterwards; no line: none.
``allow``: the answer's field ``Allow``. ``bodiless``: ``yes`` where the requests are HEAD.

In the bytes, ends of lines of the file say nothing: what is sent is written as ``\r``, ``\n``, ``\t``,
``\\``, ``\xNN``. ``{3*ab}`` is ``ababab``, and may stand in another such one; a brace as such is ``\x7b``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

FOLDER = Path(__file__).parents[1] / "tests/http_cases"

_ESCAPES = {"r": b"\r", "n": b"\n", "t": b"\t", "\\": b"\\"}
_TOKEN = re.compile(r"\\x([0-9a-f]{2})|\\([rnt\\])|\{(\d+)\*|(\})|([^\\{}])")


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    why: str
    request: bytes
    statuses: list[set[int]]
    then: Literal["keep", "close", "either"]
    counts: frozenset[bytes]
    allow: str | None
    bodiless: bool


def decode(text: str) -> bytes:
    """The bytes that ``text`` stands for."""
    found: list[tuple[int, bytes]] = [(1, b"")]
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        assert token is not None, f"not to be understood: {text[at : at + 20]!r}"
        at = token.end()
        code, escape, times, end, plain = token.groups()
        if times:
            found.append((int(times), b""))
            continue
        if end:
            count, repeated = found.pop()
            more = count * repeated
        else:
            more = bytes.fromhex(code) if code else _ESCAPES[escape] if escape else plain.encode("ascii")
        found[-1] = found[-1][0], found[-1][1] + more
    ((_, data),) = found
    return data


def read(file: Path) -> Case:
    head, _, body = file.read_text("ascii").partition("----\n")
    lines = head.splitlines()
    why = " ".join(line.removeprefix("# ") for line in lines if line.startswith("# "))
    fields = dict(line.split(": ", 1) for line in lines if not line.startswith("# "))
    *statuses, then = fields.pop("expect").split()
    counts = fields.pop("counts", "").split()
    allow, bodiless = fields.pop("allow", None), fields.pop("bodiless", "no") == "yes"
    assert why, f"{file}: says nothing of itself"
    assert not fields, f"{file}: {fields}"
    assert then in ("keep", "close", "either"), f"{file}: {then}"
    return Case(
        file.stem,
        why,
        decode(body.replace("\n", "")),
        [set(map(int, status.split("|"))) for status in statuses],
        then,  # type: ignore[arg-type]  # looked at above
        frozenset(number.encode() for number in counts),
        allow,
        bodiless,
    )


def read_all() -> Iterator[Case]:
    return map(read, sorted(FOLDER.glob("*.http")))
