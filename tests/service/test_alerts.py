"""The alert rules for Prometheus: each is raised by its trouble, and none by a restart of all machines."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

import tables

# Seconds between two scrapes, and so between two values of a series.
SCRAPE_S = 15


def metric(name: str, values: str, instance: str = "a:8001", **labels: str) -> dict[str, str]:
    """A series, in promtool's notation of values: ``0+5x80`` begins at 0 and rises by 5, 80 times."""
    shown = {"job": "idagg", "instance": instance} | labels
    inside = ",".join(f'{key}="{value}"' for key, value in shown.items())
    return {"series": f"{name}{{{inside}}}", "values": values}


def alert(name: str, **labels: str) -> dict[str, object]:
    """What is raised, as promtool expects it."""
    (rule,) = (rule for rule in tables.alerts() if rule.name == name)
    return {
        "exp_labels": {"job": "idagg", "severity": rule.severity} | labels,
        "exp_annotations": rule.annotations,
    }


A = {"instance": "a:8001"}
LATE = [
    metric("idagg_flush_lag_seconds_bucket", "0+0x80", le="30"),
    metric("idagg_flush_lag_seconds_bucket", "0+1x80", le="100"),
    metric("idagg_flush_lag_seconds_bucket", "0+1x80", le="+Inf"),
]
SLOW = [
    metric("idagg_store_seconds_bucket", "0+0x80", le="1.024"),
    metric("idagg_store_seconds_bucket", "0+9x80", le="2.048"),
    metric("idagg_store_seconds_bucket", "0+9x80", le="+Inf"),
]
# By alert: the trouble, which has lasted for 20 minutes, and labels of the alert beside the job.
TROUBLES: dict[str, tuple[list[dict[str, str]], dict[str, str]]] = {
    "IdaggMachineAway": ([metric("up", "0x80")], A),
    "IdaggRequestsFail": (
        [
            metric("idagg_unavailable_total", "0+1x80", cause="away"),
            metric("idagg_requests_total", "0+99x80", status="200"),
            metric("idagg_requests_total", "0+1x80", status="503"),
        ],
        {},
    ),
    "IdaggWindowsSuspect": ([metric("idagg_windows_suspect_total", "0x70 1x10")], {}),
    "IdaggStoreLost": ([metric("idagg_store_lost_total", "0x70 1x10")], {}),
    "IdaggDifferingWorkers": ([metric("idagg_differing_workers", "2x80")], A),
    "IdaggShardsAway": ([metric("idagg_shards_away", "1x80")], A),
    "IdaggStoreRisks": ([metric("idagg_store_risks", "1x80")], A),
    "IdaggEndpointsDropped": ([metric("idagg_endpoints_dropped_total", "0x70 1x10")], {}),
    "IdaggCallbacks": (
        [metric("idagg_callbacks_total", "0x70 1x10", result="expired")],
        {"result": "expired"},
    ),
    "IdaggWindowsPending": ([metric("idagg_pending", "3x80", of="deliveries")], {}),
    "IdaggQuarantined": ([metric("idagg_quarantined", "1x80")], {}),
    "IdaggStoreSlow": (SLOW, {}),
    "IdaggCountsLate": (LATE, {}),
    "IdaggNoLeader": ([metric("idagg_leader", "0x80"), metric("idagg_leader", "0x80", "b:8001")], {}),
    "IdaggSealingLate": ([metric("idagg_seal_lateness_seconds", "0+15x80")], {}),
    "IdaggStoreAway": ([metric("idagg_store_up", "0x80"), metric("idagg_store_up", "1x80", "b:8001")], A),
    "IdaggBrokerAway": ([metric("idagg_broker_up", "0x80")], {}),
    "IdaggWorkersMissing": (
        [
            metric("idagg_workers", "2x80", state="configured"),
            metric("idagg_workers", "1x80", state="running"),
        ],
        A,
    ),
    "IdaggProcessDeaths": (
        [metric("idagg_process_deaths_total", "0x60 3x20", process="worker")],
        A | {"process": "worker"},
    ),
    "IdaggClockSkew": ([metric("idagg_clock_skew_seconds", "-9x80")], A),
    "IdaggSettingsDiffer": (
        [
            metric("idagg_settings_info", "1x200", fingerprint="x"),
            metric("idagg_settings_info", "1x200", "b:8001", fingerprint="y"),
        ],
        {},
    ),
    "IdaggReleasesDiffer": (
        [
            metric("idagg_build_info", "1x600", version="1"),
            metric("idagg_build_info", "1x600", "b:8001", version="2"),
        ],
        {},
    ),
    "IdaggDiskFull": ([metric("idagg_disk_free_bytes", "4e8x80", of="log")], A | {"of": "log"}),
    "IdaggDescriptorsScarce": (
        [
            metric("process_open_fds", "900x80", process="worker-0"),
            metric("process_max_fds", "1000x80", process="worker-0"),
        ],
        A | {"process": "worker-0"},
    ),
    "IdaggReloadFailed": ([metric("idagg_reloads_total", "0x70 1x10", result="failed")], A),
    "IdaggLogLinesDropped": ([metric("idagg_log_lines_dropped_total", "0x70 9x10")], A),
    "IdaggMetricsLeftOut": ([metric("idagg_metrics_left_out", "1x80")], A),
    "IdaggRollupLag": ([metric("idagg_rollup_lag_seconds", "7300x80")], {}),
}
LATER = {"IdaggSettingsDiffer": "45m", "IdaggReleasesDiffer": "140m"}


def promtool(folder: Path, tests: Iterable[dict[str, object]]) -> None:
    """Run the tests of rules; a JSON file is one of YAML, too."""
    file = folder / "tests.yml"
    rules = folder / "rules.yml"
    rules.write_text(tables.rules())
    file.write_text(
        json.dumps({"rule_files": [str(rules)], "evaluation_interval": f"{SCRAPE_S}s", "tests": list(tests)})
    )
    done = subprocess.run(
        ["promtool", "test", "rules", file], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_are_as_they_are_made() -> None:
    """Those in `deploy` are made from `docs/alerts.toml` by `python docs/tables.py rules`."""
    assert tables.RULES.read_text() == tables.rules()
    done = subprocess.run(
        ["promtool", "check", "rules", tables.RULES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_trouble_raises_its_alert(tmp_path: Path) -> None:
    assert TROUBLES.keys() == {rule.name for rule in tables.alerts()}
    tests: list[dict[str, object]] = []
    for name, (series, labels) in TROUBLES.items():
        when = {"eval_time": LATER.get(name, "20m"), "alertname": name}
        tests.append(
            {
                "interval": f"{SCRAPE_S}s",
                "input_series": series,
                "alert_rule_test": [when | {"exp_alerts": [alert(name, **labels)]}],
            }
        )
    promtool(tmp_path, tests)


# A machine is well for 10 minutes, away for two scrapes, and well again. Prometheus ends a series at a scrape
# that fails.
AWAY = "stale _ "


def machine(instance: str, *, leads: bool) -> list[dict[str, str]]:
    def gauge(name: str, value: str, **labels: str) -> dict[str, str]:
        return metric(name, f"{value}x38 {AWAY}{value}x40", instance, **labels)

    def counter(name: str, step: int, **labels: str) -> dict[str, str]:
        """It begins anew."""
        return metric(name, f"0+{step}x38 {AWAY}0+{step}x40", instance, **labels)

    led = [
        gauge("idagg_pending", "1", of="deliveries"),
        gauge("idagg_quarantined", "0"),
        gauge("idagg_broker_up", "1"),
    ]
    buckets = [
        counter(f"idagg_{name}_seconds_bucket", 9, le=le)
        for name in ("store", "flush_lag", "answer")
        for le in ("0.512", "30", "+Inf")
    ]
    return [
        metric("up", "1x38 0 0 1x40", instance),
        # Nobody leads for a moment after the start.
        metric("idagg_leader", f"{int(leads)}x38 {AWAY}0 {int(leads)}x39", instance),
        *(led if leads else []),
        *buckets,
        counter("idagg_requests_total", 1000, status="200"),
        *(counter("idagg_unavailable_total", 0, cause=cause) for cause in ("away", "slow", "full")),
        *(counter("idagg_callbacks_total", 0, result=result) for result in ("ok", "limit", "expired")),
        *(counter("idagg_process_deaths_total", 0, process=kind) for kind in ("worker", "callbacks")),
        *(counter("idagg_reloads_total", 0, result=result) for result in ("done", "failed")),
        counter("idagg_windows_suspect_total", 0),
        counter("idagg_store_lost_total", 0),
        counter("idagg_endpoints_dropped_total", 0),
        counter("idagg_log_lines_dropped_total", 0),
        gauge("idagg_store_up", "1"),
        # The first worker is there before the others.
        metric("idagg_workers", f"2x38 {AWAY}2x40", instance, state="configured"),
        metric("idagg_workers", f"2x38 {AWAY}1 2x39", instance, state="running"),
        metric("idagg_seal_lateness_seconds", f"0x38 {AWAY}20 0x39", instance),
        gauge("idagg_clock_skew_seconds", "0.1"),
        gauge("idagg_differing_workers", "0"),
        gauge("idagg_shards_away", "0"),
        gauge("idagg_store_risks", "0"),
        gauge("idagg_metrics_left_out", "0"),
        gauge("idagg_settings_info", "1", fingerprint="x"),
        gauge("idagg_build_info", "1", version="1"),
        gauge("idagg_disk_free_bytes", "5e9", of="log"),
        gauge("process_open_fds", "100", process="worker-0"),
        gauge("process_max_fds", "1000", process="worker-0"),
    ]


@pytest.mark.parametrize("at", ["9m", "9m45s", "10m", "10m15s", "10m45s", "11m30s", "15m"])
def test_a_restart_of_all_machines_raises_none(at: str, tmp_path: Path) -> None:
    """Both at once, which nobody should do."""
    series = [*machine("a:8001", leads=True), *machine("b:8001", leads=False)]
    quiet = [
        {"eval_time": at, "alertname": rule.name, "exp_alerts": list[object]()} for rule in tables.alerts()
    ]
    promtool(tmp_path, [{"interval": f"{SCRAPE_S}s", "input_series": series, "alert_rule_test": quiet}])
