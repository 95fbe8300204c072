"""What the supervisor knows of this machine at a moment, as metrics.

Other metrics are in files that processes write (``idagg.metrics``). These come from heartbeats and from the
system when somebody asks. A number that nobody knows is left out: 0 would be taken for true.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import orjson
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from idagg import __version__
from idagg.credentials import SECRETS
from idagg.run.messages import Heartbeat, Lead
from idagg.run.usage import Usage, usage
from idagg.settings import Settings

# Settings that differ between the machines of a namespace for good reasons.
_OWN = {"host", "port", "workers", "log_file", "state_dir", "callback_ca"}
_OWN |= {"admin_host", "admin_port", "admin_open", "admin_name", "admin_metrics"}


@dataclasses.dataclass(frozen=True)
class Machine:
    """One moment.

    ``workers`` are the last heartbeats by slot, None where no worker runs. ``pids`` are all running
    processes by name. ``deaths`` are those of processes that had to be started again, by kind, since the
    supervisor's start. ``store_folder`` is the embedded store's. ``ages_s``: how old the heartbeats are.
    ``waiting`` are numbers of endpoints still to be called, by their last attempt.
    """

    settings: Settings
    workers: Sequence[Heartbeat | None]
    pids: Mapping[str, int] = dataclasses.field(default_factory=dict)
    deaths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    store_folder: Path | None = None
    ages_s: Sequence[float | None] = ()
    waiting: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def running(self) -> list[Heartbeat]:
        return [worker for worker in self.workers if worker]

    @property
    def leader(self) -> Heartbeat | None:
        return next((worker for worker in self.running if worker.epoch), None)


def fingerprint(settings: Settings) -> str:
    """Of all settings that the machines of a namespace should have alike. Secrets are not in it."""
    shared = settings.model_dump(mode="json", exclude=_OWN | set(SECRETS))
    return hashlib.sha256(orjson.dumps(shared, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]


def families(machine: Machine) -> Iterator[Metric]:
    """The metrics. Takes milliseconds, and may wait for a disk."""
    yield _info(
        "idagg_build_info", "The release that runs", version=__version__, python=platform.python_version()
    )
    yield _info(
        "idagg_settings_info",
        "A fingerprint of the settings that all machines of a namespace should have alike",
        fingerprint=fingerprint(machine.settings),
    )
    yield _labelled(
        "idagg_workers",
        "Workers of this machine; configured: by --workers; running: those that accept requests",
        "state",
        {"configured": len(machine.workers), "running": len(machine.running)},
    )
    deaths = CounterMetricFamily(
        "idagg_process_deaths", "Processes that died and were started again", labels=["process"]
    )
    for kind in ("worker", "callbacks", "combiner"):
        deaths.add_metric([kind], machine.deaths.get(kind, 0))
    yield deaths
    yield _gauge(
        "idagg_store_up",
        "1 if all running workers can store ids, else 0",
        all(worker.store is None for worker in machine.running) if machine.running else None,
    )
    yield _gauge(
        "idagg_clock_skew_seconds",
        "This machine's clock minus the clock of Redis, which alone decides about windows",
        max(
            (worker.skew_s for worker in machine.running if worker.skew_s is not None), key=abs, default=None
        ),
    )
    yield _gauge(
        "idagg_seal_lateness_seconds",
        "Time by the clock of Redis for which the oldest window that has ended is not sealed",
        max((worker.late_s for worker in machine.running if worker.late_s is not None), default=None),
    )
    yield from _led(machine)
    yield from _disks(machine)
    yield from _processes(machine.pids)


def _led(machine: Machine) -> Iterator[Metric]:
    """What the leading machine alone knows."""
    leader = machine.leader
    lead = (leader.lead if leader else None) or Lead()
    yield _gauge(
        "idagg_broker_up",
        "1 if the leader is connected to RabbitMQ, and it takes messages, else 0; only the leading machine "
        "has it",
        leader.broker is None if leader and machine.settings.amqp_url else None,
    )
    yield _gauge(
        "idagg_last_sealed_window_seconds",
        "Start of the newest window that was sealed, Unix time; only the leading machine has it",
        lead.start_s,
    )
    yield _gauge(
        "idagg_last_window_unique_ids",
        "Unique ids of the newest window that was sealed; only the leading machine has it",
        lead.unique_ids,
    )
    yield _gauge(
        "idagg_last_window_hits",
        "Accepted hits of the newest window that was sealed; only the leading machine has it",
        lead.hits,
    )
    yield _gauge(
        "idagg_last_window_exact",
        "1 if that count is exact, 0 if it is an estimate; only the leading machine has it",
        lead.exact,
    )
    yield _gauge(
        "idagg_current_window_unique_ids",
        "Unique ids of the open window so far; only the leading machine has it",
        lead.so_far,
    )
    yield _labelled(
        "idagg_pending",
        "Sealed windows with something still to be sent; deliveries: their counts are in no sink yet; "
        "messages: in the log file, not yet in RabbitMQ; callbacks: endpoints not yet called; only the "
        "leading machine has it",
        "of",
        {"deliveries": lead.deliveries, "messages": lead.messages, "callbacks": lead.callbacks},
    )
    yield _gauge(
        "idagg_quarantined",
        "LOSS: windows whose keys in the store are damaged; an operator has to repair them; only the leading "
        "machine has it",
        lead.quarantined,
    )


def _disks(machine: Machine) -> Iterator[Metric]:
    folder = machine.store_folder
    yield _gauge(
        "idagg_embedded_store_bytes",
        "Size of the embedded store's files; with --redis-url it is left out",
        None if folder is None else _size(folder),
    )
    log_folder = machine.settings.log_file.absolute().parent
    yield _labelled(
        "idagg_disk_free_bytes",
        "Free space where files grow; log: the log file's disk; store: the embedded store's",
        "of",
        {"log": _free(log_folder), "store": None if folder is None else _free(folder)},
    )


def _processes(pids: Mapping[str, int]) -> Iterator[Metric]:
    """The names are those that Prometheus' clients give to every program."""
    found = {name: seen for name, pid in pids.items() if (seen := usage(pid))}
    cpu = CounterMetricFamily(
        "process_cpu_seconds", "CPU time of each process; store: the embedded one", labels=["process"]
    )
    for name, seen in found.items():
        cpu.add_metric([name], seen.cpu_s)
    yield cpu
    gauges: tuple[tuple[str, str, Callable[[Usage], float]], ...] = (
        ("resident_memory_bytes", "Memory in use", lambda seen: seen.resident_bytes),
        ("open_fds", "Open file descriptors", lambda seen: seen.open_files),
        ("max_fds", "Limit of open file descriptors", lambda seen: seen.most_files),
        ("start_time_seconds", "Time of start, Unix time", lambda seen: seen.started_s),
    )
    for name, words, value in gauges:
        yield _labelled(
            f"process_{name}",
            f"{words}, by process",
            "process",
            {who: value(seen) for who, seen in found.items()},
        )


def _gauge(name: str, words: str, value: float | None) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, words)
    if value is not None:
        family.add_metric([], float(value))
    return family


def _labelled(name: str, words: str, label: str, values: Mapping[str, float | None]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, words, labels=[label])
    for key, value in values.items():
        if value is not None:
            family.add_metric([key], float(value))
    return family


def _info(name: str, words: str, **labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, words, labels=list(labels))
    family.add_metric(list(labels.values()), 1)
    return family


def _size(folder: Path) -> float | None:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # a rewrite has just removed it
            total += path.lstat().st_blocks * 512
    return total if folder.is_dir() else None


def _free(folder: Path) -> float | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None
