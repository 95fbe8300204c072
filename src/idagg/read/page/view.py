"""What the status page says: every text of it, made of a `Status` and of the kept windows. Pure."""

from __future__ import annotations

import collections
import datetime
import http
from collections.abc import Iterable, Sequence

from idagg.read import fleet
from idagg.read.page.models import (
    Answers,
    Current,
    Figure,
    Late,
    Line,
    Machine,
    Pending,
    Reason,
    State,
    Text,
    Verdict,
    View,
    Worker,
)
from idagg.read.page.windows import Windows
from idagg.read.page.words import (
    UNKNOWN,
    duration,
    milliseconds,
    number,
    rate,
    several,
    time_of_day,
    visible,
    window_time,
)
from idagg.store.kept import KeptWindow

# After its start, a machine needs no leader for so long.
_ELECTION = datetime.timedelta(seconds=10)
# The newest lines of the log that are shown.
LINES = 20
# With more machines than this, the workers of those without trouble are folded away.
_FEW_MACHINES = 4
# Names of machines in a sentence, before it says how many more there are.
_NAMES = 3

_MEANING = {
    "200": "ok: the id is stored",
    "400": "failed: the id or the endpoint is not valid",
    "503": "failed: the id could not be stored",
}


def view(status: fleet.Status, kept: Iterable[KeptWindow], build: str = "") -> View:
    """``kept`` are the newest windows, in any order; those that the plot has no place for are left out."""
    windows = Windows(status, kept)
    late = _late(status, windows)
    verdict = _verdict(status, late)
    own = next(machine for machine in status.machines if machine.id == status.machine)
    heard = _heard(status)
    workers = [worker for machine in heard for worker in machine.workers]
    where = "on all machines"
    if len(heard) < len(status.machines):
        where = f"on {len(heard)} of {several(len(status.machines), 'machine')}"
    return View(
        build=build,
        title=f"{verdict.title} · {visible(status.namespace)} · idagg",
        namespace=visible(status.namespace),
        machine=visible(own.name),
        as_of=time_of_day(status.now, status.now),
        verdict=verdict,
        last=_last(status, windows),
        current=_current(status),
        late=late,
        requests=Figure(
            rate(sum(worker.requests_per_s for worker in workers)),
            [Text(f"a second, {where}"), Text(_commit(workers))],
        ),
        plot=windows.plot(),
        answers=_answers(workers),
        latency=_latency(workers),
        pending=_pending(status),
        leader=_leader(status),
        machines=[_machine(machine, status) for machine in status.machines],
        recent=[_line(line, status.now) for line in status.recent[:LINES]],
        some_recent=bool(status.recent),
    )


def _heard(status: fleet.Status) -> list[fleet.Machine]:
    return [machine for machine in status.machines if fleet.is_heard(machine, status)]


def _verdict(status: fleet.Status, late: Late) -> Verdict:
    machines, heard = len(status.machines), _heard(status)
    counting = [machine for machine in heard if any(map(_stores, machine.workers))]
    # Of the others nothing is known while the store is away.
    rest = [
        machine
        for machine in status.machines
        if machine not in counting and (machine.silent_since or machine in heard)
    ]
    workers = [worker for machine in heard for worker in machine.workers]
    storing = sum(_stores(worker) for worker in workers)
    reasons = _reasons(status)
    state: State = "warning"
    title = "Counting, with trouble"
    if not counting:
        state, title = "bad", "Not counting"
        who = _names(heard)
        sentence = (
            f"No ids are stored by {who}: requests are answered failed. What was answered ok stays counted."
            + "".join(f" {words}." for words in _silent(rest, status))
        )
        if status.stale:
            sentence = (
                f"{_names(status.machines[:1])} cannot reach the store: its requests are answered failed. "
                f"Other machines are {_as_of(status.stale, status.now)}."
            )
    elif rest:
        title = "Counting, on a part of the machines"
        idle = _names(machine for machine in rest if machine in heard)
        parts = [f"not {idle}"] if idle else []
        stores = "stores" if len(counting) == 1 else "store"
        sentence = (
            f"{len(counting)} of {several(machines, 'machine')} {stores} ids; "
            f"{'; '.join([*parts, *_silent(rest, status)])}."
        )
    elif status.stale:
        sentence = (
            f"Ids are stored by {_names(counting)}. Other machines are {_as_of(status.stale, status.now)}: "
            "the store cannot be asked for them."
        )
    elif status.leader is None and all(status.now - machine.started < _ELECTION for machine in heard):
        state, title, sentence = "good", "Counting", "Ids are stored. No machine leads yet."
    elif status.leader is None:
        sentence = (
            "Ids are stored. No machine leads: windows are sealed and delivered late, with the right counts."
        )
    elif storing < len(workers):
        sentence = f"Ids are stored, by {number(storing)} of {several(len(workers), 'worker')}."
    elif late.state != "good" and status.pending:
        sentence = f"Ids are stored. {late.lines[0].text}."
    elif reasons:
        sentence = f"Ids are stored. {_sentence_of(reasons)}"
    else:
        state, title = "good", "Counting"
        who = {1: "This machine stores", 2: "Both machines store"}.get(
            machines, f"All {machines} machines store"
        )
        sentence = f"{who} ids, and windows are delivered in time."
    return Verdict(state, title, sentence, reasons)


def _silent(machines: Iterable[fleet.Machine], status: fleet.Status) -> list[str]:
    """Those of them that are silent, in one part of a sentence."""
    named = [
        f"{visible(machine.name)} is silent since {time_of_day(machine.silent_since, status.now)}"
        for machine in machines
        if machine.silent_since
    ]
    more = [f"and {len(named) - _NAMES} more"] if len(named) > _NAMES else []
    return [", ".join(named[:_NAMES] + more)] if named else []


def _stores(worker: fleet.Worker) -> bool:
    return worker.pid is not None and worker.trouble is None


def _sentence_of(reasons: Sequence[Reason]) -> str:
    parts = sorted({reason.part for reason in reasons})
    return f"There is trouble with {', '.join(parts)}."


def _reasons(status: fleet.Status) -> list[Reason]:
    """Each trouble once, with the machines that have it."""
    found: dict[tuple[str, str], list[tuple[str, datetime.datetime]]] = collections.defaultdict(list)
    for machine in _heard(status):
        for part, trouble in machine.trouble.items():
            found[part, trouble.text].append((machine.name, trouble.since))
    reasons = [
        Reason(
            part=visible(part),
            text=visible(text),
            where=_few([name for name, _ in seen]),
            since=f"since {time_of_day(min(since for _, since in seen), status.now)}",
        )
        for (part, text), seen in sorted(found.items())
    ]
    reasons += [
        Reason(
            "machine",
            "it says nothing: it has died, or cannot reach the store; ids that it answered ok are counted",
            visible(machine.name),
            f"since {time_of_day(machine.silent_since, status.now)}",
        )
        for machine in status.machines
        if machine.silent_since
    ]
    if status.stale:
        since = _as_of(status.stale, status.now)
        reasons.append(
            Reason("machines", visible(status.stale.text), visible(status.machines[0].name), since)
        )
    return reasons


def _as_of(stale: fleet.Stale, now: datetime.datetime) -> str:
    return f"shown as of {time_of_day(stale.since, now)} UTC"


def _names(machines: Iterable[fleet.Machine]) -> str:
    return _few([machine.name for machine in machines])


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(visible(name) for name in names[:_NAMES])
    return shown if len(names) <= _NAMES else f"{shown} and {len(names) - _NAMES} more"


def _last(status: fleet.Status, windows: Windows) -> Figure:
    newest = windows.newest
    if newest and (status.last is None or newest.record.start_s >= status.last.window_start.timestamp()):
        record = newest.record
        start_s, end_s, unique, hits = record.start_s, record.end_s, record.unique_ids, record.hits
        exact, estimate = record.exact, record.estimate
    elif status.last:
        last = status.last
        start_s, end_s = int(last.window_start.timestamp()), int(last.window_end.timestamp())
        unique, hits, exact, estimate = last.unique_ids, last.hits, last.exact, last.estimate
    else:
        return Figure(UNKNOWN, [Text("no window has ended yet")])
    length_s = end_s - start_s
    kind = f"exact; estimate {number(estimate)}" if exact else "estimate, standard error 0.8 %"
    return Figure(
        number(unique),
        [
            Text(f"unique ids, {window_time(start_s, length_s)} to {window_time(end_s, length_s)} UTC"),
            Text(kind),
            Text(f"{number(hits)} hits"),
        ],
    )


def _current(status: fleet.Status) -> Current:
    length_s = status.window_s
    now_s = status.now.timestamp()
    start_s = (
        int(status.current.window_start.timestamp()) if status.current else int(now_s // length_s) * length_s
    )
    passed_s = min(max(int(now_s - start_s), 0), length_s)
    so_far = status.current.unique_ids if status.current else None
    return Current(
        count=UNKNOWN if so_far is None else number(so_far),
        lines=[
            Text("unique ids so far" if so_far is not None else "not known: no leader has told"),
            Text(f"from {window_time(start_s, length_s)} UTC, {passed_s} s of {length_s} s"),
        ],
        passed_s=str(passed_s),
        length_s=str(length_s),
    )


def _late(status: fleet.Status, windows: Windows) -> Late:
    """What is behind, or lost; the worst first."""
    pending = status.pending or fleet.Pending()
    # One window is pending for a moment after each boundary.
    undelivered = len(windows.overdue) if windows.by_place else max(pending.deliveries.windows - 1, 0)
    found: list[tuple[int, State, str]] = [
        (pending.quarantined, "bad", "{} quarantined: an operator has to repair the keys"),
        (windows.suspect, "bad", "{} suspect: the store had lost writes"),
        (len(windows.unsealed), "warning", "{} ended and not sealed: the ids are safe in the store"),
        (undelivered, "warning", "{} sealed and not delivered: the counts are safe in the store"),
        (
            pending.messages.windows if pending.messages.reason else 0,
            "warning",
            "{} in the log file, not yet in RabbitMQ",
        ),
    ]
    lines = [(state, sentence.format(several(count, "window"))) for count, state, sentence in found if count]
    if not lines and status.pending is None:
        return Late(UNKNOWN, [Text("not known: no leader has told")], "warning")
    if not lines:
        return Late("Nothing", [Text("every window that has ended is delivered")], "good")
    total = sum(count for count, _, _ in found)
    return Late(number(total), [Text(text) for _, text in lines], lines[0][0])


def _commit(workers: Iterable[fleet.Worker]) -> str:
    p99 = [worker.commit_p99_ms for worker in workers if worker.commit_p99_ms is not None]
    return f"commit latency p99 {milliseconds(max(p99))}" if p99 else "no batch in the last 5 s"


def _latency(workers: Sequence[fleet.Worker]) -> str:
    """Of the slowest worker: quantiles of several cannot be added up."""
    p50 = [worker.commit_p50_ms for worker in workers if worker.commit_p50_ms is not None]
    p99 = [worker.commit_p99_ms for worker in workers if worker.commit_p99_ms is not None]
    if not p50 or not p99:
        return "Commit latency: there was no batch in the last 5 s."
    return (
        f"Commit latency of the slowest worker in the last 5 s: median {milliseconds(max(p50))}, "
        f"99 of 100 batches within {milliseconds(max(p99))}."
    )


def _answers(workers: Iterable[fleet.Worker]) -> list[Answers]:
    total = collections.Counter(dict.fromkeys(_MEANING, 0.0))
    for worker in workers:
        total.update(worker.by_status)
    return [
        Answers(visible(status, 3), _meaning(status), rate(per_s))
        for status, per_s in sorted(total.items())
        if per_s or status in _MEANING
    ]


def _meaning(status: str) -> str:
    try:
        return _MEANING.get(status) or http.HTTPStatus(int(status)).phrase.lower()
    except ValueError:
        return ""


def _pending(status: fleet.Status) -> list[Pending]:
    pending = status.pending
    if pending is None:
        about = "only the leader knows, and none has told"
        return [
            Pending(name, UNKNOWN, "warning", about if name == "deliveries" else "")
            for name in ("deliveries", "messages", "callbacks", "quarantined")
        ]
    endpoints = [
        f"{number(count)} {visible(reason)}" for reason, count in sorted(pending.callbacks.endpoints.items())
    ]
    attempts = f"; by their last attempt: {', '.join(endpoints)}" if endpoints else ""
    rows: list[tuple[str, fleet.PendingWindows, str]] = [
        ("deliveries", pending.deliveries, "sealed, in no sink yet"),
        ("messages", pending.messages, "in the log file, not yet in RabbitMQ"),
        ("callbacks", pending.callbacks, f"with endpoints still to be called{attempts}"),
    ]
    found = [
        Pending(
            name,
            number(of.windows),
            "warning" if of.windows and of.reason else "good",
            f"{about}: {visible(of.reason)}" if of.windows and of.reason else about,
        )
        for name, of, about in rows
    ]
    about = "with damaged keys in the store"
    if pending.quarantined:
        about += ": an operator has to repair them"
    return [
        *found,
        Pending("quarantined", number(pending.quarantined), "bad" if pending.quarantined else "good", about),
    ]


def _leader(status: fleet.Status) -> str:
    leader = status.leader
    if leader is None:
        return "No machine leads, or none that is known."
    return f"Leader: worker {leader.worker} of {visible(leader.name)}, epoch {number(leader.epoch)}."


def _machine(machine: fleet.Machine, status: fleet.Status) -> Machine:
    running = [worker for worker in machine.workers if worker.pid is not None]
    state: State = "good"
    about, unheard = "counts", None
    if machine.silent_since:
        state, about = "bad", f"silent since {time_of_day(machine.silent_since, status.now)}"
        unheard = "not heard of"
    elif not fleet.is_heard(machine, status):
        state, about = "warning", "not known"
        unheard = about
    elif "drain" in machine.trouble:
        state, about = "warning", "stops"
    elif not any(map(_stores, machine.workers)):
        state, about = "bad", "does not count"
    elif machine.trouble or not all(map(_stores, machine.workers)):
        state, about = "warning", "counts, with trouble"
    facts = [
        f"settings {visible(machine.settings, 20)}",
        f"started {time_of_day(machine.started, status.now)} UTC",
        f"supervisor's pid {machine.pid}",
    ]
    if machine.clock_skew_s is not None:
        facts.append(f"clock {machine.clock_skew_s * 1000:+.0f} ms from the store's")
    if machine.shards.count > 1:
        away = ", ".join(map(str, machine.shards.away))
        facts.append(f"{machine.shards.count} shards" + (f", away: {away}" if away else ""))
    return Machine(
        key=machine.id,
        name=visible(machine.name),
        state=state,
        about=about,
        leads=f"leader, epoch {number(machine.epoch)}",
        is_follower=not machine.is_leader,
        version=visible(machine.version, 20),
        running=f"{len(running)} of {several(len(machine.workers), 'worker')}",
        rate=UNKNOWN
        if unheard
        else f"{rate(sum(worker.requests_per_s for worker in machine.workers))} requests/s",
        heartbeat=f"{duration(machine.age_s)} ago" if machine.id != status.machine else "this machine",
        facts=", ".join(facts),
        table=f"Workers of {visible(machine.name)}",
        is_open=state != "good" or len(status.machines) <= _FEW_MACHINES,
        workers=[_worker(worker, unheard, state) for worker in machine.workers],
    )


def _worker(worker: fleet.Worker, unheard: str | None, of_machine: State) -> Worker:
    """``unheard``: why what it said last is not of the present."""
    state: State = "good"
    about = "leader" if worker.is_leader else "stores ids"
    if unheard:
        state, about = of_machine, unheard
    elif worker.pid is None:
        state, about = "bad", "not running"
    elif worker.trouble:
        state, about = "bad", visible(worker.trouble)
    heartbeat_s = worker.heartbeat_age_s
    return Worker(
        name=f"worker {worker.slot}",
        state=state,
        about=about,
        pid=UNKNOWN if worker.pid is None else str(worker.pid),
        heartbeat=UNKNOWN if heartbeat_s is None else f"{duration(heartbeat_s)} ago",
        rate=rate(worker.requests_per_s),
        ids=rate(worker.ids_per_s),
        batch=UNKNOWN if worker.batch_ids is None else rate(worker.batch_ids),
        p50=milliseconds(worker.commit_p50_ms),
        p99=milliseconds(worker.commit_p99_ms),
    )


def _line(line: fleet.Line, now: datetime.datetime) -> Line:
    return Line(
        time=time_of_day(line.time, now),
        level=line.level,
        where=f"{visible(line.machine)} {visible(line.process)}",
        text=visible(line.text),
    )
