from __future__ import annotations

import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

import idagg
from idagg.cli import main
from idagg.errors import CannotStartError, Exit
from idagg.settings import Settings, default_text, flag, is_switch

# The command line that is promised, whatever the model says.
FLAGS = {
    *("--host", "--port", "--admin-host", "--admin-port", "--keepalive", "--max-connection-age"),
    *("--admin-token", "--admin-open", "--admin-name", "--admin-metrics"),
    *("--drain", "--replicas", "--shards", "--keep-records", "--rollups"),
    *("--cors-origin", "--workers", "--redis-url", "--namespace"),
    *("--amqp-queue-type", "--amqp-exchange", "--amqp-routing-key"),
    *("--amqp-connect-timeout", "--amqp-publish-timeout"),
    *("--amqp-url", "--amqp-queue", "--amqp-body", "--log-file", "--window", "--deadline", "--exact-limit"),
    *("--callbacks", "--callback-allow", "--callback-rate", "--callback-limit", "--callback-secret"),
    *("--callback-ca", "--callback-proxy", "--state-dir"),
}
COMMANDS = ("serve", "check", "config")
WORKS = {"serve": "idagg.run.supervisor", "check": "idagg.run.check"}


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("IDAGG_") or name in {
            "STATE_DIRECTORY",
            "XDG_STATE_HOME",
            "CREDENTIALS_DIRECTORY",
        }:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def put(monkeypatch: pytest.MonkeyPatch, command: str, work: Callable[..., int]) -> None:
    """Put ``work`` in the place of what the command starts."""
    module = types.ModuleType(WORKS[command])
    setattr(module, command, work)
    monkeypatch.setitem(sys.modules, module.__name__, module)


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "idagg", *arguments],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def table(text: str) -> dict[str, tuple[str, str]]:
    rows = [re.fullmatch(r"(\w+) +(.*?) +\((.*)\)", line) for line in text.splitlines()]
    return {row[1]: (row[2], row[3]) for row in rows if row}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_setting(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command's help has each promised flag, with its meaning and default, and no other."""
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert set(re.findall(r"\[(--[a-z-]+) ", shown)) == FLAGS | {"--config"}
    assert {flag(name) for name in Settings.model_fields} == FLAGS
    for name, field in Settings.model_fields.items():
        value = f"[{name.upper()}]" if is_switch(name) else name.upper()
        assert f"{flag(name)} {value} {field.description} (default: {default_text(name)})" in shown


def test_config_prints_what_is_in_force(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`config` has a row for each setting: name, value, where it came from; secrets masked."""
    monkeypatch.setenv("IDAGG_AMQP_URL", "amqp://ida:hunter2@rabbit.example")
    monkeypatch.setenv("IDAGG_CALLBACK_SECRET", f"whsec_{4 * 'hunter22'}")
    (tmp_path / "a.toml").write_text("deadline = 1.5")
    flags = ["--config", f"{tmp_path}/a.toml", "--callback-allow", "a.b", "--callback-allow=::1", "--port=0"]
    assert main(["config", *flags]) == Exit.OK
    out, err = capsys.readouterr()
    assert (err, "hunter2" in out) == ("", False)
    rows = table(out)
    assert list(rows) == list(Settings.model_fields)
    assert rows["amqp_url"] == ("amqp://ida:***@rabbit.example", "environment IDAGG_AMQP_URL")
    assert rows["callback_secret"] == ("***", "environment IDAGG_CALLBACK_SECRET")
    assert rows["deadline"] == ("1.5", f"file {tmp_path}/a.toml")
    assert rows["callback_allow"] == ("a.b,::1", "flag --callback-allow")
    assert rows["port"] == ("0", "flag --port")
    assert rows["redis_url"] == ("none", "default")
    assert rows["state_dir"] == (f"{tmp_path}/.local/state/idagg", "default")


@pytest.mark.parametrize("command", WORKS)
def test_commands_get_the_settings(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve` and `check` get the settings in force, and their code is the command's."""
    got: list[Settings] = []

    def work(settings: Settings, *_: object, **__: object) -> int:
        got.append(settings)
        return 4

    put(monkeypatch, command, work)
    assert main([command, "--port", "80"]) == 4
    assert [settings.port for settings in got] == [80]


@pytest.mark.parametrize("command", WORKS)
def test_cannot_start(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What keeps an instance from starting is one line and has an exit code of its own."""

    def work(settings: Settings, *_: object, **__: object) -> int:
        raise CannotStartError(f"port {settings.port} is taken; stop its owner")

    put(monkeypatch, command, work)
    assert main([command]) == Exit.CANNOT_START
    assert capsys.readouterr() == ("", "idagg: port 8000 is taken; stop its owner\n")


@pytest.mark.parametrize("command", WORKS)
def test_interrupted(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends a command quietly, with the shell's code for it."""

    def work(settings: Settings, *_: object, **__: object) -> int:
        raise KeyboardInterrupt

    put(monkeypatch, command, work)
    assert main([command]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("command", WORKS)
def test_a_defect_is_not_dressed_up(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody foresaw keeps its traceback, a broken pipe inside the work included."""

    def work(settings: Settings, *_: object, **__: object) -> int:
        raise BrokenPipeError

    put(monkeypatch, command, work)
    with pytest.raises(BrokenPipeError):
        main([command])


@pytest.mark.parametrize("command", COMMANDS)
def test_bad_settings(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every problem is a line of its own, and nothing is started."""
    for name in WORKS:
        put(monkeypatch, name, lambda *_: pytest.fail("started"))
    monkeypatch.setenv("IDAGG_PROT", "1")
    assert main([command, "--port", "http", "--redis-url", "x:hunter2@y"]) == Exit.USAGE
    out, err = capsys.readouterr()
    unknown, port, redis_url = err.splitlines()
    assert unknown == "idagg: environment IDAGG_PROT is no setting; did you mean IDAGG_PORT?"
    assert port.startswith(
        "idagg: port (flag --port) cannot be 'http': it is the port of the public listener"
    )
    assert redis_url.startswith("idagg: redis_url (flag --redis-url) cannot be 'x:***@y': ")
    assert out == ""


def test_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a command the help is shown, as an error."""
    assert main([]) == Exit.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert all(command in err for command in COMMANDS)


@pytest.mark.parametrize("arguments", [["stop"], ["config", "--xyzzy"], ["config", "--por", "1"]])
def test_bad_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown commands and flags are refused, and a flag cannot be shortened."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == Exit.USAGE
    assert "idagg" in capsys.readouterr().err


def test_as_a_process() -> None:
    """`python -m idagg` hands the exit codes to its caller and prints no traceback."""
    version = run("--version")
    assert (version.returncode, version.stdout) == (0, f"idagg {idagg.__version__}\n")
    shown = run("config", IDAGG_PORT="81")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert table(shown.stdout)["port"] == ("81", "environment IDAGG_PORT")
    refused = run("serve", IDAGG_PORT="http")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert run().returncode == 2


@pytest.mark.parametrize("arguments", [["config"], ["check"], ["serve", "--help"], ["--version"]])
def test_broken_pipe(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that leaves early ends the command without a complaint."""
    monkeypatch.delenv(
        "PYTHONUNBUFFERED", raising=False
    )  # with it, argparse itself drops what it cannot print
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "idagg", *arguments],
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_what_serves_is_not_loaded_to_print() -> None:
    """`config` and `--help` do not pay for the servers' libraries."""
    script = (
        "import sys; from idagg.cli import main; main(['config']); "
        "sys.exit(bool({'uvloop', 'aiohttp', 'redis', 'aiormq'} & sys.modules.keys()))"
    )
    assert (
        subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL, check=False).returncode == 0
    )


@pytest.mark.parametrize("start", [["-m", "idagg"], ["-P", "-m", "idagg"]])
def test_files_of_the_working_folder_are_not_imported(start: list[str], tmp_path: Path) -> None:
    """A file named as a library is not run in its place."""
    for name in ("redis", "queue", "secrets", "pydantic", "argparse"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the working folder')")
    done = subprocess.run(
        [sys.executable, *start, "config"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
