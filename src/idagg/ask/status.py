"""``idagg status``: how all machines are, as lines and as an exit code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pydantic import ValidationError

from idagg.ask.client import Client, plain
from idagg.ask.times import iso, lasting
from idagg.errors import Exit, NoAnswerError
from idagg.read.fleet import Last, Machine, Pending, PendingWindows, Status, is_heard

PATH = "/api/v1/status"
# The alert's limit is 30 s (docs/alerts.toml). A leader that was killed is replaced within 6 s.
LATE_S = 30.0
# It is on purpose: whoever stops a machine knows.
_ON_PURPOSE = frozenset({"drain"})


def run(client: Client, tell: Callable[..., None], *, as_json: bool) -> int:
    body = client.get(PATH).body
    status = parse(body, client.url)
    found = troubles(status)
    if as_json:
        tell(body.decode())
    else:
        tell(*lines(status, found))
    return Exit.TROUBLE if found else Exit.OK


def parse(body: bytes, url: str) -> Status:
    """Raises NoAnswerError."""
    try:
        return Status.model_validate_json(body)
    except ValidationError as error:
        where = ".".join(map(str, error.errors(include_url=False)[0]["loc"]))
        raise NoAnswerError(
            f"{url} answers with a status that this version of idagg cannot read, at "
            f"{where or 'its beginning'}: use the version that runs there"
        ) from error


def troubles(status: Status) -> list[str]:
    """A sentence for everything that an operator has to look at. A window that is just being sent is none."""
    found = []
    if status.stale:
        age = lasting((status.now - status.stale.since).total_seconds())
        found.append(f"the other machines were seen last {age} ago: {status.stale.text}")
    if status.leader is None and not status.stale:
        found.append("no machine leads: windows are neither sealed nor delivered, and their ids are kept")
    if status.late_s is not None and status.late_s > LATE_S:
        found.append(f"a window that ended {lasting(status.late_s)} ago is not sealed: its count comes late")
    for machine in status.machines:
        if machine.silent_since is not None:
            found.append(
                f"{machine.name}: silent since {iso(machine.silent_since)}, for {lasting(machine.age_s)}: "
                "it has died, or cannot reach the store; ids that it answered ok are counted"
            )
        if not is_heard(machine, status):
            continue
        for part, trouble in sorted(machine.trouble.items()):
            if part not in _ON_PURPOSE:
                age = lasting((status.now - trouble.since).total_seconds())
                found.append(f"{machine.name}, {part}, for {age}: {trouble.text}")
        if not machine.ready and not machine.trouble:
            found.append(f"{machine.name}: it counts no ids")
    if status.pending:
        found += _held_up(
            status.pending, [said.text for machine in status.machines for said in machine.trouble.values()]
        )
    return [plain(sentence) for sentence in found]


def lines(status: Status, found: Sequence[str]) -> Iterator[str]:
    yield from table([(f"{name}:", said) for name, said in facts(status)])
    yield ""
    head = ("machine", "version", "started", "workers", "requests/s", "counting", "heard")
    rows = [_machine_row(machine, status) for machine in status.machines]
    yield from table([head, *rows], right=(3, 4))
    for name, values in (
        ("versions", {machine.version for machine in status.machines if machine.silent_since is None}),
        ("settings", {machine.settings for machine in status.machines if machine.silent_since is None}),
    ):
        if len(values) > 1:
            yield f"note: the machines have {len(values)} different {name}"
    yield ""
    yield f"trouble: {'none' if not found else ''}".rstrip()
    yield from (f"  {sentence}" for sentence in found)


def facts(status: Status) -> Iterator[tuple[str, str]]:
    """What is known of the namespace, line by line."""
    yield "counting", counting(status)
    yield "namespace", f"{status.namespace}, windows of {status.window_s} s, now {iso(status.now)}"
    leader = status.leader
    yield (
        "leader",
        f"{plain(leader.name)}, worker-{leader.worker}, epoch {leader.epoch}" if leader else "none",
    )
    current = status.current
    if current is None:
        yield "this window", "unknown"
    else:
        ids = "unknown" if current.unique_ids is None else f"{current.unique_ids:,} ids so far"
        yield "this window", f"{iso(current.window_start)}  {ids}"
    yield "last window", last_window(status.last) if status.last else "unknown"
    yield "pending", pending(status.pending)


def counting(status: Status) -> str:
    """How many machines count, and of how many nobody can say."""
    heard = [machine for machine in status.machines if is_heard(machine, status)]
    silent = sum(machine.silent_since is not None for machine in status.machines)
    said = f"{sum(machine.ready for machine in heard)} of {len(status.machines)} machines"
    if silent:
        said += f", {silent} silent"
    if status.stale and (unknown := len(status.machines) - len(heard) - silent):
        age = lasting((status.now - status.stale.since).total_seconds())
        said += f", {unknown} unknown, seen last {age} ago"
    return said


def last_window(last: Last) -> str:
    exact = "" if last.exact else ", an estimate"
    return f"{iso(last.window_start)}  {last.unique_ids:,} ids{exact}, {last.hits:,} hits"


def pending(of: Pending | None) -> str:
    if of is None:
        return "unknown"
    parts = [
        f"{name} of {_windows(counted)}"
        for name, counted in (("deliveries", of.deliveries), ("messages", of.messages))
        if counted.windows
    ]
    if of.callbacks.windows:
        endpoints = ", ".join(
            f"{count:,} {plain(why)}" for why, count in sorted(of.callbacks.endpoints.items())
        )
        parts.append(f"callbacks of {_windows(of.callbacks)}" + (f" ({endpoints})" if endpoints else ""))
    if of.quarantined:
        parts.append(f"{of.quarantined:,} quarantined")
    return ", ".join(parts) or "nothing"


def standing(machine: Machine, status: Status) -> str | None:
    """Why what it said last is not of the present; None: it is."""
    if is_heard(machine, status):
        return None
    return "unknown" if machine.silent_since is None else "SILENT"


def _windows(of: PendingWindows) -> str:
    return f"{of.windows:,} window{'s' * (of.windows > 1)}"


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> Iterator[str]:
    """The rows in columns. Those whose numbers are in ``right`` are aligned at their right end."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def _held_up(of: Pending, known: Sequence[str]) -> Iterator[str]:
    kinds: tuple[tuple[str, PendingWindows], ...] = (
        ("deliveries", of.deliveries),
        ("messages", of.messages),
        ("callbacks", of.callbacks),
    )
    for name, counted in kinds:
        if counted.windows and counted.reason and counted.reason not in known:
            yield f"pending {name}: {counted.reason}"
    if of.quarantined:
        yield f"{of.quarantined:,} windows are quarantined: their counts wait for a repair, see the log"


def _machine_row(machine: Machine, status: Status) -> tuple[str, ...]:
    is_of_now = is_heard(machine, status)
    running = [worker for worker in machine.workers if worker.pid is not None]
    return (
        plain(machine.name),
        plain(machine.version),
        f"{lasting((status.now - machine.started).total_seconds())} ago",
        f"{len(running)} of {len(machine.workers)}" if is_of_now else "-",
        f"{sum(worker.requests_per_s for worker in running):,.0f}" if is_of_now else "-",
        standing(machine, status) or ("yes" if machine.ready else "NO"),
        f"{lasting(machine.age_s)} ago" if machine.age_s >= 1 else "now",
    )
