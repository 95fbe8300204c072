"""What a machine tells of itself: metrics, the status line, and the log's lines about trouble."""

from __future__ import annotations

import os
import time
from pathlib import Path

from idagg.run.machine import Machine, families, fingerprint
from idagg.run.messages import Heartbeat, Lead, Traffic
from idagg.run.status import line
from idagg.run.troubles import Troubles
from idagg.run.usage import usage
from idagg.settings import Settings

SETTINGS = Settings(state_dir=Path("/nonexistent"), log_file=Path("/nonexistent/log"))
LEAD = Lead(1763808780, 580112, 600000, True, 77, 1, 2, 0, 0)


def samples(machine: Machine) -> dict[str, float]:
    return {
        sample.name + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value
        for family in families(machine)
        for sample in family.samples
    }


def test_the_leading_machine() -> None:
    settings = SETTINGS.model_copy(update={"amqp_url": "amqp://x"})
    workers = [
        Heartbeat(7, broker="away", lead=LEAD, skew_s=0.1, late_s=0.0),
        Heartbeat(skew_s=-0.2, late_s=3.0),
        None,
    ]
    found = samples(Machine(settings, workers, deaths={"worker": 2}))
    assert found["idagg_last_window_unique_ids"] == 580112
    assert (found["idagg_last_window_hits"], found["idagg_last_window_exact"]) == (600000, 1)
    assert found["idagg_last_sealed_window_seconds"] == 1763808780
    assert found["idagg_current_window_unique_ids"] == 77
    assert (found["idagg_pending{deliveries}"], found["idagg_pending{messages}"]) == (1, 2)
    assert (found["idagg_broker_up"], found["idagg_store_up"]) == (0, 1)
    assert (found["idagg_workers{configured}"], found["idagg_workers{running}"]) == (3, 2)
    assert (found["idagg_clock_skew_seconds"], found["idagg_seal_lateness_seconds"]) == (-0.2, 3.0)
    assert (found["idagg_process_deaths_total{worker}"], found["idagg_process_deaths_total{callbacks}"]) == (
        2,
        0,
    )


def test_what_nobody_knows_is_left_out() -> None:
    """Right after a start, and on a machine that does not lead, nothing reads 0 as if that were true."""
    assert samples(Machine(SETTINGS, [None])).keys() == {
        f"idagg_settings_info{{{fingerprint(SETTINGS)}}}",
        *(name for name in samples(Machine(SETTINGS, [None])) if name.startswith("idagg_build_info")),
        *("idagg_workers{configured}", "idagg_workers{running}"),
        *(f"idagg_process_deaths_total{{{kind}}}" for kind in ("worker", "callbacks", "combiner")),
    }
    follower = samples(Machine(SETTINGS, [Heartbeat(store="away")]))
    assert follower["idagg_store_up"] == 0
    led = ("idagg_last", "idagg_pending", "idagg_quarantined", "idagg_current", "idagg_broker")
    assert [name for name in follower if name.startswith(led)] == []


def test_the_fingerprint() -> None:
    """A machine's own settings and secrets do not change it; others do."""
    own = {"host": "10.0.0.7", "workers": 3, "redis_url": "redis://:secret@x", "log_file": Path("/x")}
    assert fingerprint(SETTINGS.model_copy(update=own)) == fingerprint(SETTINGS)
    assert fingerprint(SETTINGS.model_copy(update={"window": 61})) != fingerprint(SETTINGS)
    assert fingerprint(SETTINGS.model_copy(update={"amqp_queue": "x"})) != fingerprint(SETTINGS)


def test_disks_and_processes(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "log").write_bytes(bytes(100_000))
    settings = SETTINGS.model_copy(update={"log_file": tmp_path / "log"})
    found = samples(Machine(settings, [], {"supervisor": os.getpid(), "gone": 2**22}, {}, tmp_path / "store"))
    assert found["idagg_embedded_store_bytes"] >= 100_000
    assert found["idagg_disk_free_bytes{log}"] > 0
    assert found["idagg_disk_free_bytes{store}"] > 0
    assert found["process_resident_memory_bytes{supervisor}"] > 1e6
    assert found["process_max_fds{supervisor}"] > found["process_open_fds{supervisor}"] > 2
    assert not [name for name in found if "gone" in name]


def test_usage_of_this_process() -> None:
    seen = usage(os.getpid())
    assert seen is not None
    assert abs(seen.cpu_s - time.process_time()) < 1
    assert 0 < time.time() - seen.started_s < 24 * 3600
    assert usage(2**22) is None


def test_the_status_line() -> None:
    leader = Heartbeat(7, lead=LEAD, traffic=Traffic({"200": 9000.2, "503": 0.2}))
    machine = Machine(SETTINGS, [leader, Heartbeat(traffic=Traffic({"200": 800}))])
    assert line(machine, {"broker": 40.2}) == (
        "leading · 2 of 2 workers · 9,800 requests/s · last window 10:53 580,112 ids · "
        "RabbitMQ away for 40 s, 3 windows pending"
    )
    follower = Machine(SETTINGS, [Heartbeat(store="away"), None])
    assert line(follower, {"store": 3, "worker-1": 5}) == (
        "not leading · 1 of 2 workers · 0 requests/s · no ids stored for 3 s"
    )
    assert line(follower, {"drain": 3}, ["stopping"]).endswith("0 requests/s · stopping")


def test_lines_about_trouble() -> None:
    """One when it begins, changes and ends, and reminders that become rarer."""
    troubles = Troubles(told_elsewhere={"broker"})

    def said(now: float, **found: str) -> list[str]:
        return [sentence for _, sentence in troubles.lines(found, now)]

    assert said(0, store="x") == ["store: x"]
    assert said(1, store="x") == []
    assert said(2, store="y") == said(3, store="z") == said(4, store="y") == []  # it may be for a moment
    assert said(6, store="y") == ["store: y"]
    assert troubles.lasts_s(6) == {"store": 6}
    assert said(31, store="y") == ["store: still in trouble, for 31 s: y"]
    assert said(60, store="y") == []
    assert said(92, store="y") == ["store: still in trouble, for 92 s: y"]
    assert said(93) == ["store: works again, after 93 s"]
    assert said(94) == []
    # Who has it says when it begins and ends.
    assert said(100, broker="z") == []
    assert said(131, broker="z") == ["broker: still in trouble, for 31 s: z"]
    assert said(132) == []
    hour = Troubles()
    assert sum(len(hour.lines({"store": "x"}, second)) for second in range(3600)) <= 12
