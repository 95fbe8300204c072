"""What `idagg status` says of a status, and when it is trouble."""

from __future__ import annotations

import datetime

import pytest

from documents import ROOT
from idagg.ask import status as words
from idagg.read import fleet

EXAMPLE = fleet.Status.model_validate_json((ROOT / "tests/examples/status.json").read_bytes())
NOW = EXAMPLE.now
BEFORE = NOW - datetime.timedelta(seconds=11)
AWAY = fleet.Trouble(text="Redis is away", since=NOW - datetime.timedelta(seconds=75))


def machine(**changes: object) -> fleet.Machine:
    return EXAMPLE.machines[0].model_copy(update={"trouble": {}, "ready": True, **changes})


def well(**changes: object) -> fleet.Status:
    pending = fleet.Pending(deliveries=fleet.PendingWindows(windows=1))
    return EXAMPLE.model_copy(
        update={"trouble": {}, "machines": [machine()], "pending": pending, "stale": None, **changes}
    )


def test_all_is_well() -> None:
    """A window that is just being delivered is no trouble."""
    assert words.troubles(well()) == []
    assert list(words.lines(well(), []))[-1] == "trouble: none"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"leader": None}, "no machine leads"),
        ({"late_s": 31.0}, "a window that ended 31 s ago is not sealed"),
        (
            {"stale": fleet.Stale(since=NOW - datetime.timedelta(seconds=9), text="Redis is away")},
            "the other machines were seen last 9 s ago: Redis is away",
        ),
        (
            {"machines": [machine(), machine(id="b", silent_since=BEFORE, age_s=11)]},
            "web-1: silent since 2026-11-22T10:54:10Z, for 11 s: it has died, or cannot reach the store",
        ),
        ({"machines": [machine(trouble={"store": AWAY})]}, "web-1, store, for 1 min 15 s: Redis is away"),
        ({"machines": [machine(ready=False)]}, "web-1: it counts no ids"),
        (
            {"pending": fleet.Pending(messages=fleet.PendingWindows(windows=2, reason="no queue is bound"))},
            "pending messages: no queue is bound",
        ),
        ({"pending": fleet.Pending(quarantined=2)}, "2 windows are quarantined"),
        ({"machines": [machine(name="\x1b[2J", ready=False)]}, "\ufffd[2J: it counts no ids"),
    ],
)
def test_trouble(changes: dict[str, object], said: str) -> None:
    (found,) = words.troubles(well(**changes))
    assert found.startswith(said)
    shown = list(words.lines(well(**changes), [found]))
    assert shown[-2:] == ["trouble:", f"  {found}"]


def test_a_machine_that_is_stopped_on_purpose() -> None:
    """Whoever has stopped it knows."""
    draining = {"drain": AWAY}
    assert words.troubles(well(machines=[machine(trouble=draining, ready=False)])) == []


def test_trouble_that_holds_something_up_is_told_once() -> None:
    pending = fleet.Pending(messages=fleet.PendingWindows(windows=2, reason=AWAY.text))
    (found,) = words.troubles(well(pending=pending, machines=[machine(trouble={"broker": AWAY})]))
    assert found.startswith("web-1, broker")


def test_machines_that_are_not_heard() -> None:
    """What a machine said before it fell silent, or the store went away, is not told as the present."""
    silent = machine(id="c", name="web-3", age_s=11, silent_since=BEFORE)
    other = machine(id="b", name="web-2", age_s=9, trouble={"broker": AWAY})
    stale = fleet.Stale(since=NOW - datetime.timedelta(seconds=9), text="Redis is away")
    seen = well(machines=[machine(), other, silent], stale=stale)
    assert words.counting(seen) == "1 of 3 machines, 1 silent, 1 unknown, seen last 9 s ago"
    assert not any("broker" in sentence for sentence in words.troubles(seen))
    rows = [line.split() for line in words.lines(seen, []) if line.startswith("web-")]
    assert [row[-6:] for row in rows] == [
        ["2", "of", "2", "4,902", "yes", "now"],
        ["-", "-", "unknown", "9", "s", "ago"],
        ["-", "-", "SILENT", "11", "s", "ago"],
    ]
    assert words.counting(well(machines=[machine(), other])) == "2 of 2 machines"


def test_the_example() -> None:
    shown = "\n".join(words.lines(EXAMPLE, words.troubles(EXAMPLE)))
    assert shown == SHOWN


SHOWN = """\
counting:     2 of 2 machines
namespace:    idagg, windows of 60 s, now 2026-11-22T10:54:21Z
leader:       web-1, worker-0, epoch 7
this window:  2026-11-22T10:54:00Z  1,432 ids so far
last window:  2026-11-22T10:53:00Z  4,000 ids, 10,000 hits
pending:      messages of 1 window, callbacks of 2 windows (3 not tried yet, 12 status 503, 1 timeout)

machine  version  started      workers  requests/s  counting  heard
web-1    1.0.0    2 d 2 h ago   2 of 2       4,902  yes       now
web-2    1.0.0    2 d 2 h ago   1 of 2       4,810  yes       2 s ago

trouble:
  web-1, broker, for 40 s: RabbitMQ at 10.0.0.9:5672 is away: Connection refused; counts go to the log file
  web-2, worker-1, for 2 s: it is not running: the other workers accept its new connections"""
