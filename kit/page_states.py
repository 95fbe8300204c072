"""States that the status page is looked at in, which no test could bring about one after another."""

from __future__ import annotations

import datetime
import functools
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from idagg.read.fleet import Status
from idagg.store.kept import KeptWindow
from idagg.window import Record

_EXAMPLE = Path(__file__).parents[1] / "tests" / "examples" / "status.json"
_NOW = datetime.datetime(2026, 11, 22, 10, 54, 21, 250_000, datetime.UTC)
_END_S = int(_NOW.timestamp()) // 60 * 60
# What callers and hosts could have written to do harm. Each is only shown.
HOSTILE = (
    '<img src=x onerror="hacked=1"></td></script><script>hacked=1</script>\u202e&amp;\'"`{{7*7}}\x1b[31m\x00'
)


class Seen(NamedTuple):
    status: Status
    windows: list[KeptWindow]


def _window(
    start_s: int, unique: int, *, hits: int = 0, exact: bool = True, suspect: bool = False
) -> KeptWindow:
    """Delivered to RabbitMQ at once. The estimate is off by up to 0.6 %."""
    estimate = round(unique * (1 + 0.006 * math.sin(start_s)))
    record = Record(
        start_s, 60, unique if exact else estimate, estimate, hits or unique * 5 // 2, exact, 7, suspect
    )
    return KeptWindow(record, "broker", start_s + 60.031)


def _windows(scale: int = 1, count: int = 60) -> list[KeptWindow]:
    chance = random.Random(7)
    return [
        _window(
            _END_S - 60 * ago,
            int(scale * (3600 + 900 * math.sin(ago / 9) + chance.randrange(300))),
            hits=int(scale * (9000 + 1900 * math.sin(ago / 9) + chance.randrange(900))),
        )
        for ago in range(count, 0, -1)
    ]


def _status(**changed: Any) -> dict[str, Any]:
    """The example without its trouble."""
    status = Status.model_validate_json(_EXAMPLE.read_bytes()).model_dump()
    status |= {"now": _NOW, "trouble": {}, "recent": []}
    for machine in status["machines"]:
        machine["trouble"] = {}
        machine["ready"] = True
        machine["workers"] = [
            _worker(slot, is_leader=machine["is_leader"] and slot == 0)
            for slot, _ in enumerate(machine["workers"])
        ]
    status["pending"]["messages"] = status["pending"]["callbacks"] = {"windows": 0}
    newest = _windows()[-1].record
    status["last"] = {
        "window_start": newest.start_s,
        "window_end": newest.end_s,
        **{name: getattr(newest, name) for name in ("unique_ids", "estimate", "hits", "exact")},
    }
    return status | changed


def _worker(slot: int, **changed: Any) -> dict[str, Any]:
    return {
        "slot": slot,
        "pid": 820 + slot,
        "heartbeat_age_s": 0.1 + 0.1 * (slot % 4),
        "answered": 8_123_456,
        "requests_per_s": 4902.4,
        "by_status": {"200": 4899.0, "400": 2.2, "404": 1.2},
        "ids_per_s": 3311.0,
        "batch_ids": 12.5,
        "commit_p50_ms": 0.9 + 0.1 * slot,
        "commit_p99_ms": 2.6 + 0.3 * slot,
    } | changed


def _trouble(text: str, ago_s: int = 40) -> dict[str, Any]:
    return {"text": text, "since": _NOW - datetime.timedelta(seconds=ago_s)}


def _silent(for_s: float) -> dict[str, Any]:
    return {"age_s": for_s, "silent_since": _NOW - datetime.timedelta(seconds=for_s)}


def _line(ago_s: float, text: str, *, level: str = "warning", process: str = "supervisor") -> dict[str, Any]:
    time = _NOW - datetime.timedelta(seconds=ago_s)
    return {"time": time, "level": level, "machine": "web-1", "process": process, "text": text}


def fresh() -> tuple[dict[str, Any], list[KeptWindow]]:
    status = _status(last=None)
    del status["machines"][1:]
    status["current"]["unique_ids"] = 3
    worker = {"requests_per_s": 0.6, "by_status": {"200": 0.6}, "ids_per_s": 0.6, "batch_ids": 1.0}
    status["machines"][0]["workers"] = [_worker(0, is_leader=True, **worker), _worker(1, **worker)]
    return status, []


def counting() -> tuple[dict[str, Any], list[KeptWindow]]:
    return _status(), _windows()


def broker_away() -> tuple[dict[str, Any], list[KeptWindow]]:
    text = "RabbitMQ at 10.0.0.9:5672 is away: Connection refused; counts go to the log file"
    status = _status(recent=[_line(41, f"broker: {text}", process="worker-0")])
    status["trouble"] = status["machines"][0]["trouble"] = {"broker": _trouble(text)}
    status["pending"]["messages"] = {"windows": 4, "reason": text}
    status["pending"]["callbacks"] = {"windows": 2, "endpoints": {"not tried yet": 3, "status 503": 12}}
    windows = _windows()
    windows[-4:] = [
        window._replace(sink="log", delivered_s=window.record.end_s + 1.04) for window in windows[-4:]
    ]
    return status, windows


def worker_dead() -> tuple[dict[str, Any], list[KeptWindow]]:
    text = "it is not running: the other workers accept its new connections"
    status = _status(
        recent=[_line(1, "worker-1 was killed by SIGKILL: starting it again in 0.5 s", level="error")]
    )
    status["trouble"] = status["machines"][0]["trouble"] = {"worker-1": _trouble(text, 1)}
    status["machines"][0]["ready"] = False
    status["machines"][0]["workers"][1] = {"slot": 1}
    return status, _windows()


def store_away() -> tuple[dict[str, Any], list[KeptWindow]]:
    text = "Redis at 10.0.0.5:6379 is away: Connection refused; requests are answered failed until it is back"
    status = _status(
        leader=None, current=None, pending=None, ready=False, recent=[_line(12, f"store: {text}")]
    )
    status["trouble"] = {"store": _trouble(text, 12)}
    for machine in status["machines"]:
        machine |= {
            "trouble": status["trouble"],
            "ready": False,
            "age_s": 12.0 if machine["id"] != status["machine"] else 0,
        }
        machine["workers"] = [
            _worker(
                slot,
                trouble=text,
                requests_per_s=410.0,
                by_status={"503": 410.0},
                batch_ids=None,
                ids_per_s=0,
                commit_p50_ms=None,
                commit_p99_ms=None,
            )
            for slot in range(2)
        ]
    status["machines"][0] |= {"is_leader": False, "epoch": 0}
    status["stale"] = {
        "since": _NOW - datetime.timedelta(seconds=12),
        "text": "the store is away: Connection refused",
    }
    return status, _windows()


def late() -> tuple[dict[str, Any], list[KeptWindow]]:
    text = "shard 3 is away: its ids are answered failed, and windows wait for it"
    status = _status(recent=[_line(140, f"shards: {text}")])
    status["machines"][0]["trouble"] = {"shards": _trouble(text, 140)}
    status["machines"][0]["shards"] = {"count": 16, "away": [3]}
    status["pending"]["deliveries"] = {"windows": 1, "reason": text}
    windows = _windows()[:-2]
    windows[-1] = windows[-1]._replace(sink=None, delivered_s=None)
    windows[30] = windows[30]._replace(delivered_s=windows[30].record.end_s + 74.2)
    del windows[12:15]
    status["last"] = None
    return status, windows


def machine_dead() -> tuple[dict[str, Any], list[KeptWindow]]:
    """Its worker led, and another machine leads by now."""
    status = _status()
    status["machines"][1] |= _silent(83.0) | {"is_leader": True, "epoch": 6}
    return status, _windows()


def many() -> tuple[dict[str, Any], list[KeptWindow]]:
    status = _status()
    one = status["machines"][0]
    status["machines"] = [
        one
        | {
            "id": f"{number:016x}" if number else one["id"],
            "name": f"web-{number + 1:02}.fra1.example.net",
            "is_leader": number == 0,
            "age_s": 0.4 + 0.05 * number if number else 0.0,
            "workers": [_worker(slot, is_leader=number == slot == 0) for slot in range(4)],
        }
        for number in range(20)
    ]
    status["machines"][11] |= _silent(9.2)
    status["leader"]["name"] = status["machines"][0]["name"]
    return status, _windows(90)


def quarantined() -> tuple[dict[str, Any], list[KeptWindow]]:
    text = "window 2026-11-22T10:31:00Z is quarantined: its keys in Redis are damaged; see docs/operating.rst"
    status = _status(recent=[_line(1300, text, level="error", process="worker-0")])
    status["pending"]["quarantined"] = 1
    windows = _windows()
    del windows[37]
    return status, windows


def estimate() -> tuple[dict[str, Any], list[KeptWindow]]:
    windows = _windows(3000)
    limit = 10_000_000
    windows = [
        _window(
            window.record.start_s,
            window.record.unique_ids,
            hits=window.record.hits,
            exact=window.record.unique_ids < limit,
            suspect=place == 44,
        )
        for place, window in enumerate(windows)
    ]
    status = _status(last=None)
    status["current"]["unique_ids"] = 5_432_100
    return status, windows


def big() -> tuple[dict[str, Any], list[KeptWindow]]:
    windows = _windows(140_000)
    windows[-1] = _window(_END_S - 60, 580_112_000, hits=1_160_224_000)
    status = _status(last=None)
    status["current"]["unique_ids"] = 203_039_201
    for machine in status["machines"]:
        machine["workers"] = [
            _worker(
                slot,
                requests_per_s=2_417_133.0,
                by_status={"200": 2_417_000.0, "503": 133.0},
                ids_per_s=2_417_000.0,
            )
            for slot in range(4)
        ]
    return status, windows


def hostile() -> tuple[dict[str, Any], list[KeptWindow]]:
    status = _status(namespace=HOSTILE, recent=[_line(3, HOSTILE * 4, process=HOSTILE)])
    for machine in status["machines"]:
        machine |= {
            "name": HOSTILE,
            "version": HOSTILE,
            "settings": HOSTILE,
            "trouble": {HOSTILE: _trouble(HOSTILE), "broker": _trouble(HOSTILE)},
            "workers": [_worker(0, trouble=HOSTILE, by_status={HOSTILE: 3.0})],
        }
    status["leader"]["name"] = HOSTILE
    status["pending"]["messages"] = {"windows": 2, "reason": HOSTILE}
    status["pending"]["callbacks"] = {"windows": 2, "reason": HOSTILE, "endpoints": {HOSTILE: 4}}
    status["stale"] = {"since": _NOW, "text": HOSTILE}
    return status, _windows()


_MAKERS: tuple[Callable[[], tuple[dict[str, Any], list[KeptWindow]]], ...] = (
    fresh,
    counting,
    broker_away,
    worker_dead,
    store_away,
    late,
    machine_dead,
    many,
    quarantined,
    estimate,
    big,
    hostile,
)


def _seen(maker: Callable[[], tuple[dict[str, Any], list[KeptWindow]]]) -> Seen:
    status, windows = maker()
    return Seen(Status.model_validate(status), windows)


STATES: Mapping[str, Callable[[], Seen]] = {
    maker.__name__: functools.partial(_seen, maker) for maker in _MAKERS
}
