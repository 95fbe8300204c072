"""What is built from the source: a wheel of what is there and nothing else, an archive that can do all."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import BytesParser
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import idagg
from idagg.credentials import SECRETS
from idagg.settings import Settings, default_text, example
from idagg.sources import load

_ROOT = Path(__file__).parents[1]
_BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
_PACKAGED = (".py", ".lua", ".typed", ".html", ".css", ".js")
_LEFT_OUT = shutil.ignore_patterns(
    ".*", "build", "*.egg-info", "__pycache__", "results", "http_cases", "generated", "_build"
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the source, where building leaves what it leaves."""
    return shutil.copytree(_ROOT, tmp_path / "source", ignore=_LEFT_OUT)


def _built(source: Path, kind: str) -> Path:
    out = source.parent / "out"
    out.mkdir()
    subprocess.run([sys.executable, "-c", _BUILD, kind, out], cwd=source, check=True, capture_output=True)
    (built,) = out.iterdir()
    return built


def test_a_module_that_was_deleted_is_not_installed(source: Path) -> None:
    """`pip install .` builds in the folder `build`, where an older version's modules may still be."""
    old = source / "build/lib/idagg/deleted.py"
    old.parent.mkdir(parents=True)
    old.write_text("")
    with zipfile.ZipFile(_built(source, "build_wheel")) as wheel:
        names = {name for name in wheel.namelist() if name.startswith("idagg/")}
        (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        assert BytesParser().parsebytes(wheel.read(metadata))["Version"] == idagg.__version__
    package = source / "src/idagg"
    there = {path for path in package.rglob("*") if path.suffix in _PACKAGED}
    assert names == {f"idagg/{path.relative_to(package)}" for path in there}


def test_the_source_archive_has_what_its_commands_need(source: Path) -> None:
    """Tests, bench, docs and the unit go with it."""
    with tarfile.open(_built(source, "build_sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = {
        str(path.relative_to(source))
        for top in ("bench", "deploy", "docs", "kit", "src/idagg", "tests")
        for path in (source / top).rglob("*")
        if path.is_file()
    }
    top = {
        "CHANGELOG.rst",
        "CONTRIBUTING.rst",
        "LICENSE",
        "README.rst",
        "SECURITY.rst",
        "setup.py",
        "tox.ini",
    }
    assert tracked | top <= names
    assert not {name for name in names if name.endswith(".pyc")}


def test_the_lock_fits_the_requirements(source: Path) -> None:
    """What is installed on machines satisfies setup.py, and each file's hash is known."""
    locked = [
        Requirement(line.rstrip("\\ "))
        for line in (_ROOT / "deploy/requirements.lock").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith((" ", "#"))
    ]
    versions = {one.name: str(one.specifier).removeprefix("==") for one in locked}
    with zipfile.ZipFile(_built(source, "build_wheel")) as wheel:
        (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        needed = BytesParser().parsebytes(wheel.read(metadata)).get_all("Requires-Dist") or []
    wanted = [one for one in map(Requirement, needed) if "extra" not in str(one.marker)]
    assert len(wanted) > 5
    assert [str(one) for one in wanted if not one.specifier.contains(versions[one.name])] == []


def test_the_example_of_settings_has_every_default() -> None:
    settings = [line[1:] for line in example().splitlines() if line.startswith("#") and line[1:2] != " "]
    assert [line.partition(" = ")[0] for line in settings] == list(Settings.model_fields)
    with_value = [line for line in settings if "# default:" not in line]
    assert len(with_value) > 15
    for name, value in tomllib.loads("\n".join(with_value)).items():
        shown = {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
        assert shown == default_text(name), name
    Settings.model_validate(tomllib.loads("\n".join(with_value)) | {"state_dir": "/x"})


@pytest.mark.parametrize(
    ("file", "setting"),
    [("idagg.service", "drain"), ("idagg-check", "drain"), ("container/Containerfile", "host")],
)
def test_the_settings_file_takes_precedence_over_what_is_deployed(
    file: str, setting: str, tmp_path: Path
) -> None:
    """They set no setting as a variable, which a settings file would not change; they set defaults."""
    text = (_ROOT / "deploy" / file).read_text()
    assert re.findall(r"\bIDAGG_(?!REDIS_URL|AMQP_URL)[A-Z_]+(?==)", text) == ["IDAGG_DEFAULTS"]
    found = re.search(r"""IDAGG_DEFAULTS="?([^"\n]+)""", text)
    assert found
    environ = {"HOME": "/", "IDAGG_DEFAULTS": found[1]}
    own = {"log_file": "/own", "drain": 30, "host": "::1"}
    (tmp_path / "own.toml").write_text("".join(f"{name} = {value!r}\n" for name, value in own.items()))
    assert load({}, environ)[1][setting] == "environment IDAGG_DEFAULTS"
    settings, _ = load({"config": str(tmp_path / "own.toml")}, environ)
    assert (str(settings.log_file), settings.drain, settings.host) == tuple(own.values())


@pytest.mark.parametrize(
    "script",
    ["install.sh", "idagg-check", *(f"debian/{name}" for name in ("build", "postinst", "prerm", "postrm"))],
)
def test_scripts_are_read_by_a_plain_shell(script: str) -> None:
    subprocess.run(["/bin/sh", "-n", _ROOT / "deploy" / script], check=True)
    assert (_ROOT / "deploy" / script).stat().st_mode & 0o111


def test_nonsense_is_told_in_a_sentence() -> None:
    said = subprocess.run(
        [_ROOT / "deploy/install.sh", "--remove"], capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr == "install.sh: unknown option --remove: see the first lines of this file\n"


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with a program that exists here."""
    text = (_ROOT / "deploy/idagg.service").read_text()
    unit = tmp_path / "idagg.service"
    unit.write_text(text.replace("/usr/lib/idagg/bin/idagg", "/bin/true"))
    return unit


def test_the_unit_is_understood(unit: Path) -> None:
    """systemd finds nothing to say about it."""
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_unit_outlives_the_loss_of_a_process(unit: Path) -> None:
    """If memory runs out, the kernel kills one process, and systemd leaves the others alone.

    systemd learns of it from ``memory.events`` of the unit's cgroup, and by default stops the unit then. That
    takes a booted systemd with a memory controller, which a test has not got. So here the unit says
    ``continue``; the test above has it understood; and ``test_1_out_of_memory`` of the faults has the kernel
    kill a worker, and the worker replaced.
    """
    lines = unit.read_text().splitlines()
    assert "OOMPolicy=continue" in lines
    assert "StartLimitIntervalSec=0" in lines


def test_the_unit_names_every_secret(unit: Path) -> None:
    """The comment at LoadCredential= has all settings that a file in that folder can give."""
    said = " ".join(unit.read_text().replace("\n# ", " ").split())
    assert f"a secret, named as its setting: {', '.join(SECRETS)}." in said


def test_the_unit_may_use_all_addresses_but_multicast_and_broadcast(unit: Path) -> None:
    (allowed,) = re.findall(r"^IPAddressAllow=(.*)$", unit.read_text(), re.MULTILINE)
    old = [IPv4Network(one) for one in allowed.split() if ":" not in one]
    new = [IPv6Network(one) for one in allowed.split() if ":" in one]
    assert set(collapse_addresses(old)) == set(
        IPv4Network("0.0.0.0/0").address_exclude(IPv4Network("224.0.0.0/3"))
    )
    assert set(collapse_addresses(new)) == set(IPv6Network("::/0").address_exclude(IPv6Network("ff00::/8")))


def test_the_unit_is_confined(unit: Path) -> None:
    """Its exposure, 0 to 10, is 1.1 at most."""
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=11", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
