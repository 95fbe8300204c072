"""idagg's own metrics, added up over all processes of this machine.

Each process writes its metrics to files in a folder of the supervisor's (prometheus_client's multiprocess
mode). The admin listener adds them up. Metrics are updated per batch or per window, never per request.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from idagg import libraries
from idagg.window import Counts, Record

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client reads it on import, so a process must be started with it."""


# prometheus_client's own first size of a file; our metrics fill a tenth of it.
_FILE_BYTES = 1 << 16

CONTENT_TYPE = CONTENT_TYPE_LATEST


def write_as(writer: int) -> None:
    """Write metrics to the files with this number, which no other running process may have.

    A number is used again after its process has died, so that files do not accumulate.
    """
    if FOLDER_VARIABLE in os.environ:
        libraries.write_metrics_as(writer)


def forget(folder: Path, writer: int) -> None:
    """Drop the live gauges of a process that has died. Its counters stay."""
    multiprocess.mark_process_dead(writer, str(folder))  # type: ignore[no-untyped-call]  # untyped there


def reserve(folder: Path, writer: int) -> None:
    """Make a process's files with all their space on disk. Raises OSError if there is none.

    prometheus_client makes them without space and maps them into memory: on a full disk, the first write
    would kill the process (SIGBUS). A folder that was swept away is made again.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    for kind in ("counter", "histogram", "gauge_livesum", "gauge_max"):
        with (folder / f"{kind}_{writer}.db").open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, _FILE_BYTES)


def exposition(folder: Path, writers: Iterable[int]) -> tuple[bytes, list[str]]:
    """The metrics of all processes in Prometheus' text format, and the names of files that are left out.

    Those cannot be read, or are missing although their writer runs.
    """
    files = {path.name: str(path) for path in folder.glob("*.db")}
    left_out = [name for name, path in files.items() if not _is_readable(path)]
    readable = [path for name, path in files.items() if name not in left_out]
    left_out += [name for writer in writers if (name := f"counter_{writer}.db") not in files]
    registry = CollectorRegistry()
    registry.register(_Files(readable, len(left_out)))
    return generate_latest(registry), left_out


def left_out_family(count: int) -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "idagg_metrics_left_out",
        "Files of metrics that could not be read: what they count is missing in this answer",
        count,
    )


class _Files(Collector):
    def __init__(self, files: Sequence[str], left_out: int) -> None:
        self._files = files
        self._left_out = left_out

    def collect(self) -> Iterator[Metric]:
        yield from multiprocess.MultiProcessCollector.merge(self._files)  # type: ignore[no-untyped-call]  # untyped there
        yield left_out_family(self._left_out)


def _is_readable(path: str) -> bool:
    try:
        multiprocess.MultiProcessCollector.merge([path])  # type: ignore[no-untyped-call]  # untyped there
    except Exception:  # what is wrong in a file decides which error it is
        return False
    return True


class Metrics:
    """One process's metrics. "LOSS" marks each that means that something was not counted or not delivered."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._requests = Counter(
            "idagg_requests",
            "Requests by status of the answer; LOSS: 503, callers were told that their ids may not be "
            "counted",
            ["status"],
            registry=registry,
        )
        for status in (200, 400, 404, 405, 408, 413, 414, 417, 431, 501, 503, 505):
            self._requests.labels(str(status))
        self._handed_off = Counter(
            "idagg_handed_off",
            "Requests that the fast path handed off to the fallback app; post: the bulk form, "
            "method: another method, path: another path or an unusual form of the accept request",
            ["reason"],
            registry=registry,
        )
        for reason in ("post", "method", "path"):
            self._handed_off.labels(reason)
        self._connections = Gauge(
            "idagg_connections",
            "Connections open on the public listener",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._in_flight = Gauge(
            "idagg_in_flight",
            "Ids that wait for the store, repeats included",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._repeats = Counter(
            "idagg_repeats",
            "Ids answered 200 without being sent to the store, because the open window had them",
            registry=registry,
        )
        self._batch_size = Histogram(
            "idagg_batch_size",
            "Ids in a batch",
            buckets=[4**power for power in range(7)],
            registry=registry,
        )
        self._store_seconds = Histogram(
            "idagg_store_seconds",
            "Time from sending a batch to the store's answer, retries included",
            buckets=[0.0005 * 2**power for power in range(13)],
            registry=registry,
        )
        self._sealed = Counter("idagg_windows_sealed", "Windows sealed", registry=registry)
        self._delivered = Counter("idagg_windows_delivered", "Windows delivered", ["sink"], registry=registry)
        self._lag = Histogram(
            "idagg_flush_lag_seconds",
            "Time from a window's end to its delivery",
            buckets=[0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600],
            registry=registry,
        )
        self._suspect = Counter(
            "idagg_windows_suspect",
            "LOSS: windows whose ids and sketch differ by more than chance, since the store has lost writes",
            registry=registry,
        )
        self._dropped = Counter(
            "idagg_endpoints_dropped",
            "LOSS: hits whose endpoint was over the window's limit and is not called",
            registry=registry,
        )
        self._callbacks = Counter(
            "idagg_callbacks",
            "Endpoints by result; LOSS: limit (over --callback-limit), expired (waited too long) and "
            "given_up (too many windows waited) were not called",
            ["result"],
            registry=registry,
        )
        self._leader = Gauge(
            "idagg_leader",
            "1 if a worker of this machine is the leader, else 0",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._last = Gauge(
            "idagg_last_sealed_window_seconds",
            "Start of the newest window that this machine sealed, Unix time in seconds",
            multiprocess_mode="max",
            registry=registry,
        )
        self._pending = Gauge(
            "idagg_pending",
            "Sealed windows with something still to be sent; deliveries: their counts are in no sink yet; "
            "messages: in the log file, not yet in RabbitMQ; callbacks: endpoints not yet called",
            ["of"],
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._quarantined = Gauge(
            "idagg_quarantined",
            "LOSS: windows whose keys in the store are damaged; an operator has to repair them",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._differs = Gauge(
            "idagg_differing_workers",
            "LOSS: workers whose --window or --exact-limit is not what the others agree on: they answer 503 "
            "and do not lead",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._log_lines_dropped = Counter(
            "idagg_log_lines_dropped",
            "Lines of idagg's own log that were dropped, because nobody read standard error",
            registry=registry,
        )
        self._tasks = Gauge(
            "idagg_tasks",
            "Tasks of all event loops: about ten each, and one for each callback in progress",
            multiprocess_mode="livesum",
            registry=registry,
        )

    def batch(self, *, requests: int, ids: int, repeats: int, stored: bool, took_s: float) -> None:
        self._requests.labels("200" if stored else "503").inc(requests)
        self._repeats.inc(repeats)
        self._batch_size.observe(ids)
        self._store_seconds.observe(took_s)

    def traffic(
        self, answered: Mapping[int, int], handed_off: Mapping[str, int], *, connections: int, waiting: int
    ) -> None:
        """Add requests that were answered without the store (``answered``, by status) and handed off."""
        for status, count in answered.items():
            self._requests.labels(str(status)).inc(count)
        for reason, count in handed_off.items():
            self._handed_off.labels(reason).inc(count)
        self._connections.set(connections)
        self._in_flight.set(waiting)

    def sealed(self, record: Record, *, dropped_endpoints: int) -> None:
        self._sealed.inc()
        self._last.set(record.start_s)
        self._dropped.inc(dropped_endpoints)
        self._suspect.inc(record.suspect)

    def delivered(self, record: Record, *, sink: str, lag_s: float) -> None:
        self._delivered.labels(sink).inc()
        self._lag.observe(max(lag_s, 0))

    def pending(self, counts: Counts) -> None:
        self._pending.labels("deliveries").set(counts.deliveries)
        self._pending.labels("messages").set(counts.messages)
        self._pending.labels("callbacks").set(counts.callbacks)
        self._quarantined.set(counts.quarantined)

    def leads(self, epoch: int) -> None:
        self._leader.set(1 if epoch else 0)
        if not epoch:
            self.pending(Counts(0, 0, 0, 0))

    def differs(self, does: bool) -> None:
        self._differs.set(does)

    def tasks(self, count: int) -> None:
        self._tasks.set(count)

    def log_lines_dropped(self, lines: int) -> None:
        self._log_lines_dropped.inc(lines)

    def called(self, result: str, endpoints: int = 1) -> None:
        self._callbacks.labels(result).inc(endpoints)
