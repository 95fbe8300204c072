"""The settings in force, as workers and the callback process get them: values without their rules.

`idagg.settings` has the rules, and the supervisor has checked them. pydantic, which checks them, would take
9 MB of each of these processes, so they do not load it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, Self

import orjson


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """Every setting; names, types and defaults are those of ``Settings``, and a test compares them.

    A default is for a message of an older supervisor that has no such setting. Printing shows no secret.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    admin_token: str | None = dataclasses.field(default=None, repr=False)
    admin_open: bool = False
    admin_host: str = "127.0.0.1"
    admin_port: int = 8001
    admin_name: tuple[str, ...] = ()
    admin_metrics: Literal["open", "token"] = "open"
    keepalive: int = 75
    max_connection_age: int | None = None
    drain: float = 0
    cors_origin: str | None = None
    workers: int = 1
    redis_url: str | None = dataclasses.field(default=None, repr=False)
    replicas: int = 0
    shards: int | None = None
    namespace: str = "idagg"
    amqp_url: str | None = dataclasses.field(default=None, repr=False)
    amqp_queue: str = "counts_queue"
    amqp_queue_type: Literal["quorum", "classic", "stream"] = "quorum"
    amqp_exchange: str | None = None
    amqp_routing_key: str | None = None
    amqp_body: Literal["json", "text"] = "json"
    amqp_connect_timeout: float = 2
    amqp_publish_timeout: float = 2
    log_file: Path = Path("unique_id_capture.log")
    window: int = 60
    deadline: float = 2
    exact_limit: int = 10_000_000
    keep_records: int = 35
    rollups: tuple[Literal["hour", "day"], ...] = ()
    callback_allow: tuple[str, ...] = ()
    callbacks: Literal["public", "listed", "off"] = "public"
    callback_rate: int = 50
    callback_limit: int | None = None
    callback_secret: str | None = dataclasses.field(default=None, repr=False)
    callback_ca: Path | None = None
    callback_proxy: str | None = dataclasses.field(default=None, repr=False)
    state_dir: Path | None = None

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read a supervisor's settings. Those that only another version has are ignored. Raises ValueError
        or TypeError."""
        given = orjson.loads(data)
        known = {field.name for field in dataclasses.fields(cls)}
        values = {name: value for name, value in given.items() if name in known}
        for name in ("log_file", "callback_ca", "state_dir"):
            if values.get(name) is not None:
                values[name] = Path(values[name])
        for name in ("callback_allow", "admin_name", "rollups"):
            values[name] = tuple(values.get(name, ()))
        return cls(**values)
