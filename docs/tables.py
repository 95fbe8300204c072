"""The generated parts of these pages: settings, metrics, and the faults that tests inject.

Sphinx runs this before each build (``conf.py``); what it writes, in ``docs/generated``, is not kept.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric as Family

from idagg.credentials import SECRETS
from idagg.metrics import Metrics, SupervisorMetrics, left_out_family
from idagg.run.api import Api
from idagg.run.machine import Machine
from idagg.run.machine import families as machine_families
from idagg.run.openapi import document
from idagg.run.reading import Asked, Reading
from idagg.settings import Settings, default_text, flag

_HERE = Path(__file__).parent
_ROOT = _HERE.parent
_MEASURED = _ROOT / "bench/results/faults/raw.json"

RULES = _ROOT / "deploy/prometheus/idagg.rules.yml"

ALERTS: dict[str, dict[str, str]] = tomllib.loads((_HERE / "alerts.toml").read_text(encoding="utf-8"))


# Nothing is read for the documents.
_NOBODY = cast(Asked, None)
_MACHINE = Machine(Settings(state_dir=_HERE), [])


@dataclasses.dataclass(frozen=True)
class Alert:
    """A rule of Prometheus."""

    name: str
    expression: str
    holds_for: str
    severity: str
    advice: str

    @property
    def annotations(self) -> dict[str, str]:
        said = re.sub(r":ref:`([^`]+)`", _section, self.advice).replace("``", "")
        return {"description": said, "runbook": f"docs/operating.rst, When something is wrong: {self.name}"}


@dataclasses.dataclass(frozen=True)
class Metric:
    name: str  # as Prometheus has it
    kind: str
    labels: tuple[str, ...]
    help: str
    expression: str | None
    advice: str

    @property
    def means_loss(self) -> bool:
        return "LOSS" in self.help


def metrics() -> list[Metric]:
    """Every metric of the program, in its order. Raises KeyError where one has neither alert nor reason."""
    families: list[tuple[Family, tuple[str, ...]]] = []
    for metric in (*vars(Metrics()).values(), *vars(SupervisorMetrics()).values()):
        assert isinstance(metric, MetricWrapperBase)
        # The library has no public name for a metric's labels.
        families += ((family, tuple(metric._labelnames)) for family in metric.collect())
    families.append((left_out_family(0), ()))
    # The names of labels are those of a family without samples.
    families += ((family, tuple(getattr(family, "_labelnames", ()))) for family in machine_families(_MACHINE))
    found = []
    for family, labels in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        alert = ALERTS[family.name]
        found.append(
            Metric(name, family.type, labels, family.documentation, alert.get("alert"), alert["advice"])
        )
    return found


def alerts() -> list[Alert]:
    """Every alert, in the order of ``alerts.toml``."""
    loss = {metric.name.removesuffix("_total") for metric in metrics() if metric.means_loss}
    return [
        Alert(
            entry.get("name") or "".join(map(str.capitalize, metric.split("_"))),
            entry["alert"],
            entry.get("for", "0s"),
            entry.get("severity") or ("critical" if metric in loss else "warning"),
            " ".join(entry["advice"].split()),
        )
        for metric, entry in ALERTS.items()
        if "alert" in entry
    ]


def rules() -> str:
    """The alerts as a rule file of Prometheus. A JSON string is one of YAML, too."""
    lines = [
        "# Made by `python docs/tables.py rules` from docs/alerts.toml: change it there.",
        "# All machines of a namespace are one job; its name begins with idagg. Windows have 60 s.",
        "groups:",
        "  - name: idagg",
        "    rules:",
    ]
    for alert in alerts():
        lines += [
            f"      - alert: {alert.name}",
            f"        expr: {json.dumps(alert.expression)}",
            f"        for: {alert.holds_for}",
            "        labels:",
            f"          severity: {alert.severity}",
            "        annotations:",
            *(f"          {name}: {json.dumps(said)}" for name, said in alert.annotations.items()),
        ]
    return "\n".join(lines) + "\n"


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault that a test injects, and what its mark says that must be reached."""

    number: int
    what: str
    file: str
    test: str
    recovery_must_s: float | None = None
    takeover_must_s: float | None = None


def faults() -> list[Fault]:
    """Of all tests marked ``fault``, by number. Read, not imported, since that needs the tests' packages."""
    found = []
    for path in sorted((_ROOT / "tests").rglob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found += [_fault(mark, path, node.name) for mark in _marks(node.decorator_list)]
    return sorted(found, key=lambda fault: fault.number)


def _marks(decorators: Iterable[ast.AST]) -> Iterator[ast.Call]:
    for decorator in decorators:
        for node in ast.walk(decorator):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
                yield node


def _fault(mark: ast.Call, path: Path, test: str) -> Fault:
    number, what = map(ast.literal_eval, mark.args)
    musts = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in mark.keywords}
    return Fault(int(number.split("-")[0]), what, str(path.relative_to(_ROOT)), test, **musts)


def write(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in {
        "settings": _settings(),
        "alert-up": _rule("up") + "\n\n" + ALERTS["up"]["advice"].strip() + "\n",
        "metrics-loss": "".join(_metric(metric) for metric in metrics() if metric.means_loss),
        "metrics-other": "".join(_metric(metric) for metric in metrics() if not metric.means_loss),
        "api": _api(),
        "faults": _fault_table(),
        "measured": _measured(),
        "fault-tests": _fault_tests(),
    }.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")


def _settings() -> str:
    rows = []
    for name, field in Settings.model_fields.items():
        mark = " †" if name in SECRETS else ""
        rows.append((f"``{flag(name)}``{mark}", default_text(name), _plain(str(field.description))))
    return _table(("flag", "default", "meaning"), rows, (28, 22, 50))


def _api() -> str:
    """The operations of the API, as its OpenAPI document has them."""
    parts = []
    for path, methods in document(Api(_NOBODY, Reading(_NOBODY)).operations())["paths"].items():
        one = methods["get"]
        rows = [
            (f"``{parameter['name']}``", _default(parameter["schema"]), _prose(parameter["description"]))
            for parameter in one["parameters"]
        ]
        kinds = ", ".join(f"``{media}``" for media in one["responses"]["200"]["content"])
        said = f"{one['summary']}. {_prose(one.get('description', ''))}".rstrip()
        parts.append(f"``GET {path}``\n\n{_indented([said, '', f'As {kinds}.'])}")
        if rows:
            parts.append(
                _indented(_table(("parameter", "default", "meaning"), rows, (15, 15, 70)).splitlines())
            )
    return "\n".join(parts)


def _default(schema: dict[str, Any]) -> str:
    return f"``{schema['default']}``" if "default" in schema else ""


def _prose(text: str) -> str:
    """Of Markdown's code."""
    return " ".join(text.replace("`", "``").split())


def _metric(metric: Metric) -> str:
    labels = f"{{{','.join(metric.labels)}}}" if metric.labels else ""
    advice = metric.advice.splitlines()
    if metric.expression is None:
        alert = [f"No alert: {advice[0]}", *advice[1:]]
    else:
        alert = [*_rule(metric.name.removesuffix("_total")).splitlines(), "", *advice]
    lines = [f"{_plain(metric.help)}.", "", *alert]
    return f"``{metric.name}{labels}`` ({metric.kind})\n{_indented(lines)}\n"


def _rule(metric: str) -> str:
    """The alert about a metric, as the page shows it."""
    rule = next(rule for rule in alerts() if rule.expression == ALERTS[metric]["alert"])
    holds = f", if it holds for {rule.holds_for}" if rule.holds_for != "0s" else ""
    return (
        f"Alert: **{rule.name}** ({rule.severity}){holds}:\n\n.. code-block:: text\n\n    {rule.expression}"
    )


def _fault_table() -> str:
    measured = {
        (row["number"].split("-")[0], row["fault"]): row
        for row in json.loads(_MEASURED.read_text(encoding="utf-8"))["rows"]
    }
    rows = []
    for fault in faults():
        row = measured.get((str(fault.number), fault.what))
        counts = ("injections", "acknowledged", "lost", "double")
        rows.append(
            (
                str(fault.number),
                fault.what,
                *(f"{row[count]:,}" if row else "" for count in counts),
                _within(row["recovery_s"] if row else None, fault.recovery_must_s),
                _within(row["takeover_s"] if row else None, fault.takeover_must_s),
            )
        )
    head = ("", "fault", "times", "ok", "lost", "twice", "recovery, s", "takeover, s")
    return _table(head, rows, (5, 35, 8, 14, 8, 8, 11, 11))


def _measured() -> str:
    machine = json.loads(_MEASURED.read_text(encoding="utf-8"))["machine"]
    return (
        "Last measured on {date}: {processor}, {cores} cores, {system}, an fsync takes {fsync}; "
        "idagg at {commit}.\n".format(**machine)
    )


def _fault_tests() -> str:
    rows = [(str(fault.number), fault.what, f"``{fault.file}``", f"``{fault.test}``") for fault in faults()]
    return _table(("", "fault", "file", "test"), rows, (5, 35, 30, 30))


def _within(took_s: float | None, must_s: float | None) -> str:
    took = "" if took_s is None else f"{took_s:.2f}"
    return took if must_s is None else f"{took} (≤ {must_s:g})".strip()


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], widths: Sequence[int]) -> str:
    """A list table: its source has no columns to keep in line."""
    lines = [".. list-table::", "    :header-rows: 1", f"    :widths: {' '.join(map(str, widths))}", ""]
    for first, *others in (head, *rows):
        lines += [f"    * - {first}", *(f"      - {cell}" for cell in others)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _indented(lines: Iterable[str]) -> str:
    return "\n".join(f"    {line}".rstrip() for line in lines) + "\n"


def _section(reference: re.Match[str]) -> str:
    """Where a reader of the plain text finds what a label names: by its heading."""
    page = (_HERE / "operating.rst").read_text(encoding="utf-8")
    heading = page.partition(f"\n.. _{reference[1]}:\n\n")[2].partition("\n")[0]
    assert heading, reference[1]
    return f'docs/operating.rst, "{heading}"'


def _plain(text: str) -> str:
    """A word that ends in an underscore, and an asterisk, would be markup."""
    return text.replace("_ ", r"\_ ").replace("*", r"\*")


if __name__ == "__main__" and sys.argv[1:] == ["rules"]:
    RULES.parent.mkdir(exist_ok=True)
    RULES.write_text(rules(), encoding="utf-8")
