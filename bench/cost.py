"""What a load costs the server and its Redis."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from bench.service import Server
from bench.wrk import Load
from kit.processes import cpu_seconds


@dataclasses.dataclass(frozen=True)
class Cost:
    """CPU by process id, from the kernel's accounts."""

    load: Load
    server_cpu_s: dict[int, float]
    store_cpu_s: dict[int, float]
    balancer_cpu_s: dict[int, float]

    @classmethod
    def of(cls, server: Server, drive: Callable[[], Load]) -> Cost:
        processes = [server.process, server.store and server.store.process, server.balancer]
        before = [cpu_seconds(process.pid) if process else {} for process in processes]
        load = drive()
        after = [cpu_seconds(process.pid) if process else {} for process in processes]
        if not load.accepted:
            raise RuntimeError(f"{server.folder.name} accepted nothing: {load}")
        spent = [
            {pid: now - then.get(pid, 0) for pid, now in each.items()}
            for each, then in zip(after, before, strict=True)
        ]
        return cls(load, *spent)

    @property
    def rate(self) -> float:
        return self.load.accepted / self.load.seconds

    @property
    def server_us(self) -> float:
        """CPU µs of the server's processes per accepted id."""
        return self._us(self.server_cpu_s)

    @property
    def store_us(self) -> float:
        return self._us(self.store_cpu_s)

    @property
    def balancer_us(self) -> float:
        return self._us(self.balancer_cpu_s)

    @property
    def total_us(self) -> float:
        return self.server_us + self.store_us

    def _us(self, cpu_s: dict[int, float]) -> float:
        return sum(cpu_s.values()) * 1e6 / self.load.accepted

    def __str__(self) -> str:
        return f"{self.rate:,.0f} requests/s, {self.server_us:.2f} + {self.store_us:.2f} µs"
