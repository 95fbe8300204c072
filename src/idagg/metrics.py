"""idagg's own metrics, added up over all processes of this machine.

Each process writes its metrics to files in a folder of the supervisor's (prometheus_client's multiprocess
mode). The admin listener adds them up. Metrics are updated per batch or per window, never per request.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from idagg.batch import BatchResult
from idagg.window import Record

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client reads it on import, so a process must be started with it."""


# The supervisor's number as a writer; its processes count from 0.
SUPERVISOR = 1_000_000
# prometheus_client's own first size of a file; our metrics fill a tenth of it.
_FILE_BYTES = 1 << 16

CONTENT_TYPE = CONTENT_TYPE_LATEST

# Of callbacks: those of `Outcome`, and one of the `Caller`.
RESULTS = ("ok", "refused", "error", "blocked", "silenced", "limit", "expired", "given_up")


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
    for kind in ("counter", "histogram", "gauge_livesum", "gauge_livemax"):
        with (folder / f"{kind}_{writer}.db").open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, _FILE_BYTES)


def exposition(
    folder: Path, writers: Iterable[int], others: Callable[[], Iterable[Metric]] = tuple
) -> tuple[bytes, list[str]]:
    """The metrics of all processes in Prometheus' text format, and the names of files that are left out.

    Those cannot be read, or are missing although their writer runs. ``others`` are metrics that are in no
    file.
    """
    files = {path.name: str(path) for path in folder.glob("*.db")}
    left_out = [name for name, path in files.items() if not _is_readable(path)]
    readable = [path for name, path in files.items() if name not in left_out]
    left_out += [name for writer in writers if (name := f"counter_{writer}.db") not in files]
    registry = CollectorRegistry()
    registry.register(_Files(readable, len(left_out), others))
    return generate_latest(registry), left_out


def left_out_family(count: int) -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "idagg_metrics_left_out",
        "Files of metrics that could not be read: what they count is missing in this answer",
        count,
    )


class _Files(Collector):
    def __init__(self, files: Sequence[str], left_out: int, others: Callable[[], Iterable[Metric]]) -> None:
        self._files = files
        self._left_out = left_out
        self._others = others

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry would collect all of it once more, to know the names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        yield from multiprocess.MultiProcessCollector.merge(self._files)  # type: ignore[no-untyped-call]  # untyped there
        yield left_out_family(self._left_out)
        yield from self._others()


def _is_readable(path: str) -> bool:
    try:
        multiprocess.MultiProcessCollector.merge([path])  # type: ignore[no-untyped-call]  # untyped there
    except Exception:  # what is wrong in a file decides which error it is
        return False
    return True


class SupervisorMetrics:
    """The supervisor's own metrics."""

    def __init__(self) -> None:
        self._reloads = Counter(
            "idagg_reloads",
            "Reloads by result; failed: the log gives the reason, and idagg serves as before",
            ["result"],
            registry=CollectorRegistry(),
        )
        for result in ("done", "failed"):
            self._reloads.labels(result)

    def reloaded(self, result: str) -> None:
        self._reloads.labels(result).inc()


class Metrics:
    """One process's metrics. "LOSS" marks each that means that something was not counted or not delivered."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._requests = Counter(
            "idagg_requests",
            "Requests to the public listener by status of the answer, health checks included",
            ["status"],
            registry=registry,
        )
        for status in (200, 400, 404, 405, 408, 413, 414, 417, 431, 501, 503, 505):
            self._requests.labels(str(status))
        self._unavailable = Counter(
            "idagg_unavailable",
            "LOSS: accept requests answered 503, by cause; away: the store could not be reached; refused: "
            "it refused the batch; slow: it did not answer in time; full: too many requests waited; "
            "connections: too many connections were open",
            ["cause"],
            registry=registry,
        )
        for cause in ("away", "refused", "slow", "full", "connections"):
            self._unavailable.labels(cause)
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
        self._connections_limit = Gauge(
            "idagg_connections_limit",
            "Connections that the running workers accept at most, by the limit of open files",
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
        self._answer_seconds = Histogram(
            "idagg_answer_seconds",
            "Time from the arrival of a batch's first request to its answer; the batch's others waited less",
            buckets=[0.0005 * 2**power for power in range(13)],
            registry=registry,
        )
        self._sealed = Counter("idagg_windows_sealed", "Windows sealed", registry=registry)
        self._delivered = Counter("idagg_windows_delivered", "Windows delivered", ["sink"], registry=registry)
        for sink in ("broker", "log"):
            self._delivered.labels(sink)
        self._lag = Histogram(
            "idagg_flush_lag_seconds",
            "Time from a window's end to its delivery, by the clock of Redis",
            buckets=[0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600],
            registry=registry,
        )
        self._suspect = Counter(
            "idagg_windows_suspect",
            "LOSS: windows whose ids and sketch differ by more than chance, since the store has lost writes",
            registry=registry,
        )
        self._lost = Counter(
            "idagg_store_lost",
            "LOSS: times a worker found that the store does not have the last ids that it had acknowledged",
            registry=registry,
        )
        self._dropped = Counter(
            "idagg_endpoints_dropped",
            "LOSS: hits whose endpoint was over the window's limit and is not called",
            registry=registry,
        )
        self._rollup_lag = Gauge(
            "idagg_rollup_lag_seconds",
            "Time since the end of the oldest hour that is not rolled up, if it has windows; of the leader, "
            "else 0",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._sketches_gone = Counter(
            "idagg_sketches_gone",
            "Sketches of windows that had expired or were lost before they were rolled up: estimates leave "
            "their hours out; counts of windows are not concerned",
            registry=registry,
        )
        self._callbacks = Counter(
            "idagg_callbacks",
            "Endpoints by result; LOSS: limit (over --callback-limit), expired (waited too long) and "
            "given_up (too many windows waited) were not called",
            ["result"],
            registry=registry,
        )
        for result in RESULTS:
            self._callbacks.labels(result)
        self._leader = Gauge(
            "idagg_leader",
            "1 if a worker of this machine is the leader, else 0",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._differs = Gauge(
            "idagg_differing_workers",
            "LOSS: workers whose --window, --exact-limit or --shards is not what the others agree on: they "
            "do not lead, and but for --shards they answer 503",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._risks = Gauge(
            "idagg_store_risks",
            "LOSS: ways in which the store's servers, as they are set up, can lose ids that were answered ok",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._shards_away = Gauge(
            "idagg_shards_away",
            "LOSS: shards that store no ids, by the worker with most of them; their ids are answered 503",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._log_lines_dropped = Counter(
            "idagg_log_lines_dropped",
            "Lines of idagg's own log that were dropped, because nobody read standard error",
            registry=registry,
        )
        self._tasks = Gauge(
            "idagg_tasks",
            "Tasks of all event loops: about ten each, one for each shard and for each callback in progress",
            multiprocess_mode="livesum",
            registry=registry,
        )

    def batch(self, result: BatchResult) -> None:
        self._requests.labels("200" if result.stored else "503").inc(result.requests)
        if result.cause:
            self._unavailable.labels(result.cause).inc(result.requests)
        if result.waited_s is not None:
            self._answer_seconds.observe(result.waited_s)
        self._repeats.inc(result.repeats)
        self._batch_size.observe(result.ids)
        self._store_seconds.observe(result.took_s)

    def traffic(
        self,
        answered: Mapping[int, int],
        handed_off: Mapping[str, int],
        unavailable: Mapping[str, int],
        *,
        connections: int,
        connections_limit: int,
        waiting: int,
    ) -> None:
        """Add requests that were answered without the store (``answered``, by status), and among them the
        accept requests ``unavailable`` by cause; and those handed off."""
        for cause, count in unavailable.items():
            self._unavailable.labels(cause).inc(count)
        self._connections_limit.set(connections_limit)
        for status, count in answered.items():
            self._requests.labels(str(status)).inc(count)
        for reason, count in handed_off.items():
            self._handed_off.labels(reason).inc(count)
        self._connections.set(connections)
        self._in_flight.set(waiting)

    def sealed(self, record: Record, *, dropped_endpoints: int) -> None:
        self._sealed.inc()
        self._dropped.inc(dropped_endpoints)
        self._suspect.inc(record.suspect)

    def lost(self) -> None:
        self._lost.inc()

    def delivered(self, record: Record, *, sink: str, lag_s: float) -> None:
        self._delivered.labels(sink).inc()
        self._lag.observe(max(lag_s, 0))

    def rolled(self, *, lag_s: float, gone: int) -> None:
        self._rollup_lag.set(lag_s)
        self._sketches_gone.inc(gone)

    def leads(self, epoch: int) -> None:
        self._leader.set(1 if epoch else 0)
        self._rollup_lag.set(0)

    def differs(self, does: bool) -> None:
        self._differs.set(does)

    def risks(self, count: int) -> None:
        self._risks.set(count)

    def shards_away(self, count: int) -> None:
        self._shards_away.set(count)

    def tasks(self, count: int) -> None:
        self._tasks.set(count)

    def log_lines_dropped(self, lines: int) -> None:
        self._log_lines_dropped.inc(lines)

    def called(self, result: str, endpoints: int = 1) -> None:
        self._callbacks.labels(result).inc(endpoints)
