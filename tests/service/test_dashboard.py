"""The dashboard for Grafana and the alert rules, where Prometheus scrapes two machines under load."""

from __future__ import annotations

import asyncio
import collections
import json
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import tables
from documents import ROOT
from kit.servers import RedisServer, Server, free_port
from kit.serving import PATIENT, Serving, send
from kit.waiting import eventually, next_window

DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/dashboards/idagg.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
# Of metrics that these two machines do not have: they have neither an embedded store nor RabbitMQ.
NOT_HERE = ("idagg_embedded_store_bytes", "idagg_broker_up")
VARIABLES = {"$job": "idagg", "$instance": ".*", "$__rate_interval": "10s"}


class Prometheus(Server):
    """Debian's, with the alert rules, as it scrapes these admin listeners each second."""

    start_timeout_s = 60.0

    def __init__(self, ports: list[int]) -> None:
        super().__init__()
        self.port = free_port()
        targets = [f"127.0.0.1:{port}" for port in ports]
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(tables.RULES)],
            "scrape_configs": [{"job_name": "idagg", "static_configs": [{"targets": targets}]}],
        }
        (self.folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML, too

    def _command(self) -> list[str]:
        return [
            *("prometheus", f"--config.file={self.folder}/prometheus.yml"),
            *(f"--storage.tsdb.path={self.folder}/data", f"--web.listen-address=127.0.0.1:{self.port}"),
        ]

    def _answers(self) -> bool:
        try:
            with self._open("/-/ready"):
                return True
        except OSError:
            return False

    def _open(self, path: str) -> Any:
        return urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60)

    def ask(self, path: str) -> Any:
        with self._open(f"/api/v1/{path}") as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[Any]:
        """The samples now. Raises HTTPError where Prometheus does not understand it."""
        found: list[Any] = self.ask(f"query?{urllib.parse.urlencode({'query': expression})}")["result"]
        return found


def queries() -> Iterator[tuple[str, str]]:
    """Titles of panels, and their expressions."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def test_every_query_names_metrics_that_exist() -> None:
    known = {metric.name for metric in tables.metrics()}
    histograms = {metric.name for metric in tables.metrics() if metric.kind == "histogram"}
    known |= {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}
    named = {name for _, query in queries() for name in re.findall(r"(?:idagg|process)_\w+", query)}
    assert len(named) > 30
    assert named - known == set()
    for variable in DASHBOARD["templating"]["list"]:
        assert set(re.findall(r"idagg_\w+", json.dumps(variable))) <= known


def test_the_panels_have_their_places() -> None:
    """None covers another; each says in words what it shows."""
    taken: collections.Counter[tuple[int, int]] = collections.Counter()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        taken.update(
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        )
        assert place["x"] + place["w"] <= 24
    assert set(taken.values()) == {1}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert [panel["title"] for panel in PANELS if not panel["description"]] == []


async def test_two_machines_under_load(durable_server: RedisServer) -> None:
    """Prometheus has something to show for each query; no rule fails, and no alert is raised."""
    store = ("--redis-url", durable_server.url)
    with (
        Serving(*store, *PATIENT, window=2) as one,
        Serving(*store, *PATIENT, window=2) as other,
        Prometheus([one.admin_port, other.admin_port]) as prometheus,
    ):
        for _ in range(4):
            await next_window(2)
            await asyncio.gather(*(send(serving, range(300), connections=4) for serving in (one, other)))

        def asked(query: str) -> list[Any]:
            for variable, value in VARIABLES.items():
                query = query.replace(variable, value)
            return prometheus.query(query)

        async def empty() -> list[tuple[str, str]]:
            found = [(title, query) for title, query in queries() if not asked(query)]
            return [(title, query) for title, query in found if not any(name in query for name in NOT_HERE)]

        # A machine whose answer took longer than a second is missing for a moment.
        await eventually(empty, lambda found: not found)

        async def leaders() -> list[str]:
            return [found["value"][1] for found in asked('sum(idagg_leader{job="$job"})')]

        await eventually(leaders, lambda count: count == ["1"])

        async def machines() -> int:
            return len(asked('idagg_workers{job="$job", state="running"}'))

        await eventually(machines, lambda count: count == 2)
        await eventually(
            lambda: asyncio.to_thread(prometheus.ask, "rules"),
            lambda told: all(rule["health"] == "ok" for group in told["groups"] for rule in group["rules"]),
        )
        (group,) = prometheus.ask("rules")["groups"]
        assert len(group["rules"]) == len(tables.alerts())
        assert [rule["name"] for rule in group["rules"] if rule["state"] == "firing"] == []
