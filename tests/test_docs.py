"""What the documents show is what happens; what they list is all that there is."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import hashlib
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import aio_pika
import kombu
import pika
import pytest
from standardwebhooks import Webhook

import tables
from bench.report import headline
from bench.samples import Findings
from documents import PAGES, ROOT, Command, blocks, literal_lines, page, session
from idagg import records
from idagg.deliver.amqp_route import Route
from idagg.deliver.broker import Broker
from idagg.deliver.logfile import CallbackLine, rollup_line, window_line
from idagg.metrics import Metrics
from idagg.settings import Settings, flag
from idagg.signing import Signer
from idagg.sources import load
from idagg.window import Record, Rollup
from kit.servers import RabbitServer, free_port
from kit.serving import PATIENT, Serving
from kit.waiting import LIMIT_S, next_window, until

RECORD = Record(
    start_s=1795344780, length_s=60, unique_ids=4000, estimate=3988, hits=10000, exact=True, epoch=7
)
SEALED_S = RECORD.end_s + 0.012

# Flags of commands, not of settings.
OTHERS_FLAGS = {
    "--json",  # of idagg check
    "--uninstall",  # of deploy/install.sh
    "--pid",  # of idagg reload
    "--example",  # of idagg config
    "--no-deps",  # of pip
    "--admin-url",  # of idagg counts, status and top
    *("--from", "--limit", "--format", "--estimate"),  # of idagg counts
    *("--config", "--version", "--help", "--data-binary", "--data-urlencode", "--now", "--quick"),
    *("--minutes", "--seed", "--rate", "--out"),  # the soak's
    *("--store-server", "--figures", "--injections"),  # the tests'
    *("--cluster", "--cluster-replicas", "--cluster-yes"),  # of redis-cli
    *("--default", "--lua"),  # of other stores; the first goes on with _lua_flags
}


@contextlib.asynccontextmanager
async def serving_in_the_open(*flags: str) -> AsyncIterator[tuple[Serving, dict[str, str]]]:
    """idagg with the documents' log file; and what stands for it in their commands, by what they say."""
    serving = Serving(*flags, *PATIENT, "--log-file", "unique_id_capture.log")
    serving.log_file = serving.folder / "unique_id_capture.log"
    try:
        await asyncio.to_thread(serving.start)
        yield (
            serving,
            {
                "127.0.0.1:8000": f"127.0.0.1:{serving.port}",
                "127.0.0.1:8001": f"127.0.0.1:{serving.admin_port}",
            },
        )
    finally:
        await asyncio.to_thread(serving.close)


async def shows(command: Command, folder: Path, instead: Mapping[str, str]) -> None:
    """Run it; what only looks is run until it sees what it should."""
    typed, shown = (_replaced(text, instead) for text in (command.typed, command.shown))
    expected = Command(typed, shown).expected
    looks_only = any(what in command.typed for what in ("unique_id_capture.log", "127.0.0.1:8001"))
    give_up_at = time.monotonic() + LIMIT_S
    while True:
        done = await asyncio.to_thread(
            subprocess.run, ["bash", "-c", typed], cwd=folder, capture_output=True, text=True, check=False
        )
        if expected.fullmatch(done.stdout.rstrip("\n")):
            return
        assert looks_only, f"{typed}: {done.stdout}"
        assert time.monotonic() < give_up_at, f"{typed}: {done.stdout}"
        await asyncio.sleep(0.05)


@contextlib.contextmanager
def running(code: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An example that runs until it is ended."""
    with subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _replaced(text: str, instead: Mapping[str, str]) -> str:
    for old, new in instead.items():
        text = text.replace(old, new)
    return text


async def test_the_tutorial() -> None:
    """From its start to its end."""
    text = page("docs/tutorial.rst")
    start, *commands = session(text)
    _, _, flags = start.typed.partition("--window 5 ")
    port = free_port()
    (receiver,) = (block for block in blocks(text, "python") if "HTTPServer" in block)
    async with serving_in_the_open(*flags.split()) as (serving, instead):
        instead["127.0.0.1:9000"] = f"127.0.0.1:{port}"
        greeting = _replaced(start.shown, instead | {"windows of 5 s": "windows of 2 s"})
        assert Command("", f"…{greeting}…").expected.fullmatch(serving.said), serving.said
        with running(receiver.replace("9000", str(port)), serving.folder) as receiving:
            await until(lambda: _listens(port))  # the first attempt finds it
            for command in commands:
                if "endpoint=" in command.typed:  # none of the ids before it is in its window
                    await next_window(serving.window)
                await shows(command, serving.folder, instead)
            assert receiving.stdout is not None
            path, webhook_id, record = receiving.stdout.readline().decode().split(maxsplit=2)
    assert path == "/hook?of=me&count=1"
    assert webhook_id.startswith("idagg:")
    assert json.loads(record)["unique_ids"] == 1


@pytest.mark.parametrize("name", ["README.rst", "docs/reference/http.rst", "docs/consumers.rst"])
async def test_commands(name: str) -> None:
    commands = list(session(page(name)))
    assert commands
    async with serving_in_the_open() as (serving, instead):
        for command in commands:
            of_that_day = re.sub(r"(time|window)=20\S+", r"\1=…", command.shown)
            command = Command(command.typed, of_that_day)
            await shows(command, serving.folder, instead)


async def test_commands_that_read() -> None:
    """What they print has the form of what is shown: numbers, times and the machine's name are others."""
    commands = list(session(page("docs/reading.rst")))
    assert [command.typed.split()[1] for command in commands] == ["counts", "counts", "status"]
    async with serving_in_the_open() as (serving, _):
        installed = Path(sys.executable).parent
        own = os.environ | {
            "IDAGG_ADMIN_PORT": str(serving.admin_port),
            "PATH": f"{installed}:{os.environ['PATH']}",
        }
        for command in commands:
            give_up_at = time.monotonic() + LIMIT_S
            while _form(said := await _typed(command.typed, own)) != _form(command.shown):
                assert time.monotonic() < give_up_at, f"{command.typed}:\n{said}"
                await asyncio.sleep(0.05)


async def _typed(command: str, environ: Mapping[str, str]) -> str:
    typed = ["bash", "-c", command]
    done = await asyncio.to_thread(subprocess.run, typed, env=environ, capture_output=True, text=True)
    return done.stdout + done.stderr


def _form(text: str) -> list[list[str]]:
    """The words of each line, but for those with a number in them. Whole minutes have no seconds. More is
    missing where nobody led for a moment."""
    named = text.replace(socket.gethostname(), "web-1")
    numbers = re.sub(r"\S*\d\S*", "N", named)
    numbers = re.sub(r"(?m)^(missing .*)(?:\nmissing .*)+$", r"\1", numbers)
    return [line.split() for line in re.sub(r"N min N s\b", "N min", numbers).splitlines()]


def test_records() -> None:
    """A message's body and a callback's."""
    bodies = blocks(page("docs/reference/message.rst"), "json")
    (callback,) = blocks(page("docs/reference/callback.rst"), "http")
    for body in (*bodies, callback.partition("\n\n")[2]):
        assert [*json.loads(body).items()] == [*json.loads(RECORD.as_json()).items()]
    assert f"``{RECORD.message_id('idagg')}``" in page("docs/reference/message.rst")


def test_the_head_of_a_callback() -> None:
    (callback,) = blocks(page("docs/reference/callback.rst"), "http")
    line, *fields = callback.partition("\n\n")[0].splitlines()
    found = dict(field.split(": ") for field in fields)
    assert line == "POST /x?y=1&count=4000 HTTP/1.1"
    digest = hashlib.sha256(f"https://{found['Host']}/x?y=1".encode()).hexdigest()[:16]
    assert found["webhook-id"] == f"{RECORD.message_id('idagg')}:{digest}"
    assert found["webhook-timestamp"] == f"{RECORD.end_s}"


def test_lines_of_the_log_file() -> None:
    shown = literal_lines(page("docs/reference/log-file.rst"), "time=")
    late = "RabbitMQ did not answer within 2 s"
    called = CallbackLine(RECORD.start_s, "http://a.example/x", 200, None, 1, 35)
    failed = CallbackLine(RECORD.start_s, "http://b.example/", None, "timeout", 5, 10002)
    hour = Rollup("hour", RECORD.start_s // 3600 * 3600, 91_204, 600_000, suspect=False, epoch=1)
    limited = CallbackLine(RECORD.start_s, None, None, "limit", 0, 0, address="192.0.2.1", endpoints=13)
    assert shown == [
        window_line(RECORD, time_s=SEALED_S),
        window_line(RECORD, time_s=SEALED_S + 2.006, reason=late),
        rollup_line(hour, time_s=hour.end_s + 1.020, reason=None),
        called.text(SEALED_S + 0.035),
        limited.text(SEALED_S + 0.038),
        failed.text(RECORD.end_s + 507.101),
    ]


def test_settings_in_a_file(tmp_path: Path) -> None:
    (text,) = blocks(page("docs/reference/settings.rst"), "toml")
    file = tmp_path / "idagg.toml"
    file.write_text(text)
    settings, origin = load({"config": file}, {"HOME": "/root"})
    given = tomllib.loads(text)
    assert {name for name, where in origin.items() if where != "default"} == set(given)
    assert (settings.host, settings.redis_url) == (given["host"], given["redis_url"])


def test_load_balancers(tmp_path: Path) -> None:
    """HAProxy and nginx take the configurations of `operating`."""
    text = page("docs/operating.rst")
    port = str(free_port())
    (haproxy,) = (block for block in blocks(text, "text") if block.startswith("frontend"))
    (nginx,) = blocks(text, "nginx")
    defaults = (
        "defaults\n    mode http\n    timeout connect 5s\n    timeout client 10s\n    timeout server 10s\n"
    )
    (tmp_path / "haproxy.cfg").write_text(defaults + haproxy.replace(":80\n", f"127.0.0.1:{port}\n") + "\n")
    around = f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ access_log off;\n"
    (tmp_path / "nginx.conf").write_text(
        around + nginx.replace("listen 80", f"listen 127.0.0.1:{port}") + "}\n"
    )
    for command in (
        ["haproxy", "-c", "-f", str(tmp_path / "haproxy.cfg")],
        ["nginx", "-t", "-c", str(tmp_path / "nginx.conf"), "-p", str(tmp_path)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, "warn" in done.stderr.lower()) == (0, False), done.stderr


async def test_a_consumer_that_drops_repeats(rabbit: RabbitServer, rabbit_queue: str, tmp_path: Path) -> None:
    """Of two messages with one id it keeps one."""
    url = f"{rabbit.url}%2F"
    (code,) = (block for block in blocks(page("docs/consumers.rst"), "python") if "sqlite3" in block)
    code = code.replace("amqp://guest:guest@127.0.0.1:5672/%2F", url).replace("counts_queue", rabbit_queue)
    other = Record(start_s=RECORD.end_s, length_s=60, unique_ids=5, estimate=5, hits=5, exact=True, epoch=7)
    with (
        running(code, tmp_path),
        contextlib.closing(pika.BlockingConnection(pika.URLParameters(url))) as connection,
    ):
        channel = connection.channel()
        channel.queue_declare(rabbit_queue, durable=True, arguments={"x-queue-type": "quorum"})
        for record in (RECORD, RECORD, other):
            named = pika.BasicProperties(message_id=record.message_id("idagg"))
            channel.basic_publish("", rabbit_queue, record.as_json(), named)
        await until(lambda: _kept(tmp_path / "counts.db") == [(4000,), (5,)])
        channel.queue_delete(rabbit_queue)


async def test_declarations_of_the_queue(rabbit: RabbitServer, rabbit_queue: str) -> None:
    """Each library declares the queue as idagg has declared it."""
    url = f"{rabbit.url}%2F"
    broker = Broker(
        rabbit.url,
        Route(rabbit_queue),
        body="json",
        namespace="idagg",
        publish_timeout_s=LIMIT_S,
        connect_timeout_s=LIMIT_S,
    )
    broker.start()
    await broker.publish(RECORD)
    await broker.close()
    (block,) = (block for block in blocks(page("docs/consumers.rst"), "python") if "# aio-pika" in block)
    arguments, *lines = block.replace("counts_queue", rabbit_queue).splitlines()
    with (
        contextlib.closing(pika.BlockingConnection(pika.URLParameters(url))) as connection,
        kombu.Connection(url) as kombus,
    ):
        async with await aio_pika.connect(url) as aio:
            channels = (connection.channel(), await aio.channel(), None)
            for line, channel in zip(lines, channels, strict=True):
                text = f"{arguments}\n{line}"
                code = compile(text, "docs", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                names = {"channel": channel, "connection": kombus, "kombu": kombu}
                waiting = eval(code, names)  # noqa: S307  it is an example of our own documents
                if waiting is not None:
                    await waiting
        connection.channel().queue_delete(rabbit_queue)


def _kept(database: Path) -> list[tuple[int]]:
    with (
        contextlib.closing(sqlite3.connect(database)) as counts,
        contextlib.suppress(sqlite3.OperationalError),
    ):
        return counts.execute("SELECT unique_ids FROM counts ORDER BY start").fetchall()
    return []  # it has no table yet


def test_receivers_that_verify() -> None:
    """By our own library and by the standard's."""
    ours, standards = (block for block in blocks(page("docs/consumers.rst"), "python") if "whsec_" in block)
    body = RECORD.as_json()
    webhook_id = f"{RECORD.message_id('idagg')}:0b0962010370112d"
    for code in (ours, standards):
        (secret,) = re.findall(r'"(whsec_[^"]+)"', code)
        headers = Signer([secret]).headers(webhook_id, int(time.time()), body)
        found: dict[str, object] = {"body": body, "headers": headers}
        exec(code, found)  # noqa: S102  it is an example of our own documents
        if code is ours:
            assert found["callback"] == records.parse_callback(body, headers)
        else:
            assert found["record"] == json.loads(body)
            assert found["Webhook"] is Webhook


def test_the_examples_of_the_library() -> None:
    """Typed one after another, they print what the page shows."""
    text = "\n".join(blocks(page("docs/reference/records.rst"), "pycon"))
    session = doctest.DocTestParser().get_doctest(text, {}, "records.rst", "records.rst", 0)
    said: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(session, out=said.append)
    assert result.attempted
    assert not result.failed, "".join(said)


def test_the_page_of_the_library_is_whole() -> None:
    """It describes every name that is public."""
    described = re.findall(r"^\.\. auto\w+:: (\w+)", page("docs/reference/records.rst"), re.MULTILINE)
    assert sorted(described) == sorted(records.__all__)


def test_every_python_example_is_python() -> None:
    for file in PAGES:
        for block in blocks(file.read_text(encoding="utf-8"), "python"):
            compile(block, file, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_every_shell_example_is_shell() -> None:
    for file in PAGES:
        for block in blocks(file.read_text(encoding="utf-8"), "sh"):
            subprocess.run(["bash", "-n"], input=block, text=True, check=True)


def test_every_flag_is_one() -> None:
    """Of a setting, but for a few."""
    text = "".join(file.read_text(encoding="utf-8") for file in PAGES)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+[a-z]", text))
    assert named - {flag(name) for name in Settings.model_fields} == OTHERS_FLAGS


def test_every_setting_and_metric_is_listed(tmp_path: Path) -> None:
    tables.write(tmp_path)
    settings = (tmp_path / "settings.txt").read_text()
    assert {name for name in Settings.model_fields if f"``{flag(name)}``" not in settings} == set()
    loss, other = ((tmp_path / f"metrics-{kind}.txt").read_text() for kind in ("loss", "other"))
    assert loss.count("Alert:") == loss.count("\n``") + 1  # each has one
    for metric in vars(Metrics()).values():
        (family,) = metric.collect()
        assert f"``{family.name}" in loss + other, family.name
    assert "``idagg_workers{state}``" in other


def test_keys_of_the_store_are_there() -> None:
    text = "".join(file.read_text(encoding="utf-8") for file in PAGES)
    prelude = page("src/idagg/store/lua/prelude.lua")
    named = set(re.findall(r"\{(?:idagg|NAMESPACE):0\}:([\w:]+)", text))
    assert named
    for name in named:
        assert f" TAG:{re.sub('[0-9]{10}', 'START', name)} " in prelude, name


def test_alerts_are_about_metrics_that_are_there() -> None:
    """Each metric has an alert or a reason for none; expressions name nothing else."""
    known = {metric.name for metric in tables.metrics()}
    assert {name.removesuffix("_total") for name in known} | {"up"} == set(tables.ALERTS)
    for metric in tables.metrics():
        named = set(re.findall(r"idagg_\w+", metric.expression or ""))
        assert {name.removesuffix("_bucket") for name in named} <= known
        assert metric.expression or not metric.means_loss


def test_every_alert_leads_to_a_section() -> None:
    """Its `runbook` names the page, where it is in the table."""
    table = page("docs/operating.rst").partition("\nalert  ")[2].partition("\n.. _")[0]
    assert set(re.findall(r"\bIdagg\w+", table)) == {alert.name for alert in tables.alerts()}


def test_every_fault_is_listed() -> None:
    """However its test is marked; the marks in test_figures.py are those of a test's own tests."""
    files = [file for file in (ROOT / "tests").rglob("test_*.py") if file.name != "test_figures.py"]
    marks = sum(len(re.findall(r"pytest\.mark\.fault\(\s*\"", file.read_text())) for file in files)
    assert len(tables.faults()) == marks


def test_the_hostile_case_is_one() -> None:
    (shown,) = (block for block in blocks(page("CONTRIBUTING.rst"), "text") if "expect:" in block)
    assert f"{shown}\n" == page("tests/http_cases/chunks-bad-size.http")


def test_the_figure_of_the_readme() -> None:
    """It is what the bench measured last."""
    assert headline(Findings.read(ROOT / "bench/results/raw.jsonl")) in page("README.rst")
