"""What one soak found out."""

from __future__ import annotations

import bisect
import dataclasses
import functools

from idagg.window import iso
from kit import oracle
from kit.histogram import Histogram
from kit.oracle import Delivery, Size
from kit.soak import judge
from kit.soak.load import Plan, Told

# Above the default deadline, as the machine is shared.
_ANSWER_S = 2.5
# What came so long before a fault may still have waited when it began; so long after its end all is well.
_BEFORE_S, _RECOVERS_S = 3, 5
# What a process may hold at most, and grow from the first half of the soak to the second.
_MEMORY_KIB, _GROWTH_KIB, _DESCRIPTORS = 196_608, 32_768, 512
_TASKS = 64  # of both workers together


@dataclasses.dataclass(frozen=True)
class Event:
    """A fault, by seconds from the load's start."""

    fault: str
    began_s: float
    ended_s: float
    noticed: bool  # whether callers' requests may fail
    deadly: bool  # whether they may find nobody to answer


@dataclasses.dataclass
class Results:
    """``sizes`` are of each second, the largest of its kind of process, ``tasks`` those of all event loops;
    ``calls`` are callbacks as window's start, endpoint, count."""

    plan: Plan
    events: list[Event] = dataclasses.field(default_factory=list)
    sizes: dict[str, list[tuple[float, Size]]] = dataclasses.field(default_factory=dict)
    deliveries: list[Delivery] = dataclasses.field(default_factory=list)
    calls: list[tuple[str, str, int]] = dataclasses.field(default_factory=list)
    tasks: list[tuple[float, int]] = dataclasses.field(default_factory=list)
    told: Told | None = None

    def counts(self) -> dict[str, int]:
        return {delivery.window: delivery.count for delivery in self.deliveries}

    @functools.cached_property
    def bounds(self) -> tuple[judge.Bounds, dict[int, judge.Bounds]]:
        """Once all is told."""
        assert self.told is not None
        return judge.bounds(self.plan, self.told.answers)

    @functools.cached_property
    def complaints(self) -> list[str]:
        """Once all is told and delivered: A to F of the oracle, and the callbacks."""
        plan = self.plan
        assert self.told is not None
        answers = self.told.answers
        whole, cycles = self.bounds
        counts = {
            (int(oracle.epoch_s(window)) - plan.start_s) // plan.window_s: count
            for window, count in self.counts().items()
        }
        expected = {self._window(number) for number in judge.windows_with_hits(plan, answers)}
        return [
            *judge.complaints(plan, whole, cycles, counts),
            *oracle.missing(self.deliveries, expected),
            *oracle.changed(self.deliveries),
            *self._answers(),
            *self._growth(),
            *self._callbacks(),
        ]

    def _window(self, number: int) -> str:
        return iso(self.plan.window_start_s(number))

    def _meanwhile(self, second: int) -> list[Event]:
        """The faults that may explain what callers saw of the requests of this second."""
        return [
            event
            for event in self.events
            if event.began_s - _BEFORE_S <= second <= event.ended_s + _RECOVERS_S
        ]

    def _answers(self) -> list[str]:
        assert self.told is not None
        answers, found = self.told.answers, []
        for second in range(self.plan.seconds):
            meanwhile = self._meanwhile(second)
            failed = answers.failed[second]
            if failed and not any(event.noticed for event in meanwhile):
                found.append(f"D: {failed:,} requests of second {second} failed, and no fault excuses it")
            if answers.slowest_s[second] > _ANSWER_S and not any(event.deadly for event in meanwhile):
                found.append(f"D: an answer of second {second} took {answers.slowest_s[second]:.2f} s")
        return found

    def _growth(self) -> list[str]:
        found = []
        for name, sizes in self.sizes.items():
            if name == "Redis":
                continue
            most = Size(
                max(size.memory_kib for _, size in sizes), max(size.descriptors for _, size in sizes), 0
            )
            if most.memory_kib > _MEMORY_KIB or most.descriptors > _DESCRIPTORS:
                found.append(f"E: {name} had {most.memory_kib:,} KiB, {most.descriptors} descriptors")
            middle = bisect.bisect(sizes, self.plan.seconds / 2, key=lambda row: row[0])
            halves = [
                max((size.memory_kib for _, size in half), default=0)
                for half in (sizes[:middle], sizes[middle:])
            ]
            if halves[1] > halves[0] + _GROWTH_KIB:
                found.append(f"E: {name} grew from {halves[0]:,} to {halves[1]:,} KiB")
        if (most_tasks := self._most_tasks()) > _TASKS:
            found.append(f"E: there were {most_tasks} tasks")
        return found

    def _most_tasks(self) -> int:
        return max((count for _, count in self.tasks), default=0)

    def _callbacks(self) -> list[str]:
        assert self.told is not None
        counts = self.counts()
        found = [
            f"{endpoint} was told {count} of {window}, and {counts.get(window)} was delivered"
            for window, endpoint, count in self.calls
            if counts.get(window) != count
        ]
        called = {(window, endpoint) for window, endpoint, _ in self.calls}
        owed = judge.calls_owed(self.plan, self.told.answers)
        return found + [
            f"{endpoint} was not called for {self._window(number)}"
            for number, endpoint in sorted(owed)
            if (self._window(number), endpoint) not in called
        ]

    def summary(self) -> str:
        assert self.told is not None
        plan, answers = self.plan, self.told.answers
        whole, cycles = self.bounds
        exact = sum(bounds.lower == bounds.upper for bounds in cycles.values())
        latencies = Histogram.sum(answers.seconds).summary()
        ok, failed = sum(map(len, answers.seconds)), sum(answers.failed)
        usage, lag = self.told.usage.cpu_s / plan.seconds, self.told.lag.percentile_ms(99)
        figures = {
            "offered": f"{plan.rate:,} requests/s for {plan.seconds:,} s, in windows of {plan.window_s} s",
            "reached": f"{plan.requests / self.told.took_s:,.0f} requests/s",
            "generator": f"{usage:.0%} of a core, p99 of its lag {lag} ms",
            "answers": f"{ok:,} ok, {failed:,} failed or without an answer",
            "latency": ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(latencies).items()),
            "ids": f"{sum(self.counts().values()):,} counted, {whole.lower:,} to {whole.upper:,} are right",
            "cycles": f"{len(cycles)}, in {exact} of them only one number is right",
            "windows": f"{len(self.counts()):,}, delivered {len(self.deliveries):,} times",
            "callbacks": f"{len(self.calls):,}, {len(set(self.calls)):,} of them distinct",
            "faults": ", ".join(f"{event.fault} at {event.began_s:.0f} s" for event in self.events),
        }
        for name, sizes in self.sizes.items():
            figures[name] = (
                f"at most {max(size.memory_kib for _, size in sizes) / 1024:,.0f} MiB, "
                f"{max(size.descriptors for _, size in sizes)} descriptors"
            )
        figures["tasks"] = f"at most {self._most_tasks()}"
        verdict = [*self.complaints[:50], "FAILED"] if self.complaints else ["The oracle is content."]
        return "\n".join([*(f"{name:11} {what}" for name, what in figures.items()), "", *verdict])
