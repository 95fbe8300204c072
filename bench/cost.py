"""What a load costs the server and its Redis."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from bench.measure import cpu_seconds
from bench.service import Server
from bench.wrk import Load


@dataclasses.dataclass(frozen=True)
class Cost:
    """CPU by process id, from the kernel's accounts."""

    load: Load
    server_cpu_s: dict[int, float]
    store_cpu_s: dict[int, float]

    @classmethod
    def of(cls, server: Server, drive: Callable[[], Load]) -> Cost:
        store = server.store.process.pid if server.store else None
        server_before, store_before = cpu_seconds(server.process.pid), cpu_seconds(store) if store else {}
        load = drive()
        server_after, store_after = cpu_seconds(server.process.pid), cpu_seconds(store) if store else {}
        if not load.accepted:
            raise RuntimeError(f"{server.folder.name} accepted nothing: {load}")
        return cls(
            load,
            {pid: spent - server_before.get(pid, 0) for pid, spent in server_after.items()},
            {pid: spent - store_before.get(pid, 0) for pid, spent in store_after.items()},
        )

    @property
    def rate(self) -> float:
        return self.load.accepted / self.load.seconds

    @property
    def server_us(self) -> float:
        """CPU µs of the server's processes per accepted request."""
        return sum(self.server_cpu_s.values()) * 1e6 / self.load.accepted

    @property
    def store_us(self) -> float:
        return sum(self.store_cpu_s.values()) * 1e6 / self.load.accepted

    @property
    def total_us(self) -> float:
        return self.server_us + self.store_us

    def __str__(self) -> str:
        return f"{self.rate:,.0f} requests/s, {self.server_us:.2f} + {self.store_us:.2f} µs"
