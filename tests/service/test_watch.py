"""What an operator sees of a running idagg: metrics, systemd's status line, and the log."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path

from kit.servers import RedisServer
from kit.serving import Serving, in_one_window
from kit.waiting import eventually, until

LED = (
    *("idagg_last_window_unique_ids", "idagg_last_window_hits", "idagg_last_window_exact"),
    *("idagg_current_window_unique_ids", "idagg_pending{deliveries}", "idagg_quarantined"),
)


class Systemd:
    """The states that it was told."""

    def __init__(self, path: Path) -> None:
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._channel.bind(str(path))
        self._channel.setblocking(False)
        self.status: list[str] = []

    def look(self) -> str:
        """The present status line."""
        while True:
            try:
                said = self._channel.recv(4096).decode()
            except BlockingIOError:
                return self.status[-1] if self.status else ""
            self.status += re.findall(r"^STATUS=(.*)", said, re.MULTILINE)

    def close(self) -> None:
        self._channel.close()


async def test_what_is_seen(durable_server: RedisServer, tmp_path: Path) -> None:
    """Of a window, then of a store that is away, and that it is back."""
    systemd = Systemd(tmp_path / "notify")
    with Serving(
        *("--redis-url", durable_server.url, "--deadline", "5"),
        window=2,
        environment={"NOTIFY_SOCKET": str(tmp_path / "notify")},
    ) as serving:
        pattern = r"leading · 2 of 2 workers · [0-9]+ requests/s · last window \d\d:\d\d(:\d\d)? 300 ids"

        async def looked() -> list[str]:
            """All lines until now, after one window more with as many ids: a line is of the last one only."""
            await in_one_window(serving, range(300))
            systemd.look()
            return systemd.status

        await eventually(looked, lambda lines: any(re.fullmatch(pattern, line) for line in lines))
        memory = [
            f"process_resident_memory_bytes{{{process}}}"
            for process in ("worker-0", "worker-1", "callbacks", "supervisor")
        ]
        await eventually(  # each is known at some time
            serving.figures,
            lambda figures: (
                figures["idagg_last_sealed_window_seconds"] > 0
                and figures.keys() >= set(LED)
                and figures["idagg_last_window_exact"] == figures["idagg_store_up"] == 1
                and abs(figures["idagg_clock_skew_seconds"]) < 1
                and figures["idagg_seal_lateness_seconds"] < 10
                and figures["idagg_answer_seconds_count"] == figures["idagg_batch_size_count"] > 0
                and figures["idagg_connections_limit"] > 100
                and all(figures[name] > 1e6 for name in memory)
            ),
        )

        durable_server.stop()
        assert (await serving.ask("/api/verve/accept?id=1")).status == 503
        await until(lambda: re.search(r"not leading · .* · no ids stored for \d+ s", systemd.look()))
        figures = await eventually(
            serving.figures,
            lambda figures: (
                figures["idagg_store_up"] == figures["idagg_leader"] == 0
                and figures["idagg_unavailable_total{away}"] == figures["idagg_requests_total{503}"] == 1
            ),
        )
        assert figures.keys() & set(LED) == set()
        durable_server.start()
        await serving.ready()
        await until(lambda: re.search("store: works again, after", serving.said))
        told = re.findall(r"WARNING store: (.*)", serving.said)
        assert told
        assert len(told) == len({*told})
        await until(lambda: "no ids" not in systemd.look())

        died = "idagg_process_deaths_total{worker}"
        assert (await serving.figures())[died] == 0
        os.kill(serving.workers()[0], signal.SIGKILL)
        await eventually(serving.figures, lambda figures: figures[died] == 1)
    systemd.close()
