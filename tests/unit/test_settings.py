from __future__ import annotations

import base64
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import get_type_hints

import pydantic
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from idagg import failpoints
from idagg.credentials import SECRETS
from idagg.deliver.guard import Guard
from idagg.deliver.post import Proxy, tls_context
from idagg.in_force import InForce
from idagg.settings import Settings, default_text, flag, variable
from idagg.signing import Signer
from idagg.sources import SettingsError, load

HOME = {"HOME": "/home/ida"}
CA = Path(__file__).with_name("ca.pem")


def secret(size: int = 32, byte: bytes = b"k") -> str:
    return f"whsec_{base64.b64encode(size * byte).decode()}"


# Every setting, with a value that is not its default.
GIVEN = {
    "host": "::",
    "port": 0,
    "admin_token": "0123456789abcdef,t._~+/-t._~+/-t==",
    "admin_open": True,
    "admin_host": "admin.example",
    "admin_port": 65535,
    "admin_name": ("idagg.example", "other"),
    "admin_metrics": "token",
    "keepalive": 3600,
    "max_connection_age": 86_400,
    "drain": 7.5,
    "cors_origin": "https://a.example:8443",
    "workers": 256,
    "redis_url": "rediss://ida:hunter2@redis.example:6380/1",
    "replicas": 2,
    "shards": 64,
    "namespace": "eu.West_1-a",
    "amqp_url": "amqps://ida:hunter2@rabbit.example/vhost",
    "amqp_queue": "ä" * 127,
    "amqp_queue_type": "classic",
    "amqp_exchange": "amq.topic",
    "amqp_routing_key": "k" * 255,
    "amqp_body": "text",
    "amqp_connect_timeout": 30.0,
    "amqp_publish_timeout": 0.1,
    "log_file": Path("/var/log/idagg.log"),
    "window": 3600,
    "deadline": 0.05,
    "exact_limit": 0,
    "keep_records": 400,
    "rollups": ("day", "hour"),
    "callback_allow": ("10.0.0.0/8", "::1", "hooks.internal"),
    "callbacks": "listed",
    "callback_rate": 10_000,
    "callback_limit": 1,
    "callback_secret": f"{secret()},{secret(64)}",
    "callback_ca": CA,
    "callback_proxy": "http://ida:hunter2@[::1]:3128",
    "state_dir": Path("/var/lib/idagg"),
}


def problems(flags: Mapping[str, object], environ: Mapping[str, str] = HOME) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(flags, environ)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def toml(tmp_path: Path, text: str) -> dict[str, str]:
    path = tmp_path / "idagg.toml"
    path.write_text(text, "utf-8")
    return {"config": str(path)}


def test_defaults() -> None:
    """With nothing given every setting has its documented default and says so."""
    settings, origin = load({}, HOME)
    assert settings == Settings(
        host="127.0.0.1",
        port=8000,
        admin_token=None,
        admin_open=False,
        admin_host="127.0.0.1",
        admin_port=8001,
        admin_name=(),
        admin_metrics="open",
        keepalive=75,
        max_connection_age=None,
        cors_origin=None,
        workers=min(len(os.sched_getaffinity(0)), 4),
        redis_url=None,
        replicas=0,
        shards=None,
        namespace="idagg",
        amqp_url=None,
        amqp_queue="counts_queue",
        amqp_queue_type="quorum",
        amqp_exchange=None,
        amqp_routing_key=None,
        amqp_body="json",
        amqp_connect_timeout=2.0,
        amqp_publish_timeout=2.0,
        log_file=Path("unique_id_capture.log"),
        window=60,
        deadline=2.0,
        exact_limit=10_000_000,
        keep_records=35,
        rollups=(),
        callback_allow=(),
        callbacks="public",
        callback_rate=50,
        callback_limit=None,
        callback_secret=None,
        callback_ca=None,
        callback_proxy=None,
        state_dir=Path("/home/ida/.local/state/idagg"),
    )
    assert origin == dict.fromkeys(Settings.model_fields, "default")


@pytest.mark.parametrize(("cpus", "workers"), [(1, 1), (3, 3), (4, 4), (5, 4), (384, 4)])
def test_default_workers(monkeypatch: pytest.MonkeyPatch, cpus: int, workers: int) -> None:
    """A worker for each usable CPU, and no more than do the job: each further one costs Redis CPU."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)))
    assert load({}, HOME)[0].workers == workers


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "XDG_STATE_HOME": "/xdg", **HOME}, "/var/lib/a"),
        ({"XDG_STATE_HOME": "/xdg", **HOME}, "/xdg/idagg"),
        ({"STATE_DIRECTORY": "", "XDG_STATE_HOME": "", **HOME}, "/home/ida/.local/state/idagg"),
    ],
)
def test_default_state_dir(environ: dict[str, str], folder: str) -> None:
    """State goes to systemd's first folder, else to the XDG one, else below the home."""
    settings, origin = load({}, environ)
    assert (settings.state_dir, origin["state_dir"]) == (Path(folder), "default")


def test_no_place_for_state() -> None:
    """Where no default folder can be named, one has to be given."""
    (problem,) = problems({}, {})
    assert problem == (
        "state_dir (default) cannot be None: the embedded store needs a folder for its data, and neither "
        "STATE_DIRECTORY, XDG_STATE_HOME nor HOME is set: give --state-dir, or --redis-url"
    )
    assert load({"state_dir": "/s"}, {})[0].state_dir == Path("/s")
    assert load({"redis_url": "redis://r"}, {})[0].state_dir is None


def test_the_embedded_store_has_no_replicas() -> None:
    (problem,) = problems({"state_dir": "/s", "replicas": 1})
    assert problem == (
        "replicas (flag --replicas) cannot be 1: the embedded store has no replicas: give --redis-url, or "
        "leave --replicas out"
    )
    assert load({"redis_url": "redis://r", "replicas": 1}, {})[0].replicas == 1
    (problem,) = problems({"redis_url": "x"}, {})
    assert problem.startswith("redis_url ")


# Of a Service named idagg with a named port, in a namespace that has a Service named idagg-admin, too.
INJECTED = {
    "IDAGG_SERVICE_HOST": "10.96.3.7",
    "IDAGG_SERVICE_PORT": "8000",
    "IDAGG_SERVICE_PORT_HTTP": "8000",
    "IDAGG_PORT": "tcp://10.96.3.7:8000",
    "IDAGG_PORT_8000_TCP": "tcp://10.96.3.7:8000",
    "IDAGG_PORT_8000_TCP_PROTO": "tcp",
    "IDAGG_PORT_8000_TCP_PORT": "8000",
    "IDAGG_PORT_8000_TCP_ADDR": "fd00::7",
    "IDAGG_ADMIN_SERVICE_HOST": "10.96.3.8",
    "IDAGG_ADMIN_PORT": "tcp://10.96.3.8:8001",
}


def test_variables_of_kubernetes(caplog: pytest.LogCaptureFixture) -> None:
    """What Kubernetes injects for Services of our name is no setting, and one line says so."""
    settings, origin = load({}, HOME | INJECTED | {"IDAGG_WINDOW": "7"})
    assert (settings.port, settings.admin_port, settings.window) == (8000, 8001, 7)
    assert (origin["port"], origin["window"]) == ("default", "environment IDAGG_WINDOW")
    (line,) = caplog.messages
    assert line.startswith("environment IDAGG_SERVICE_HOST=10.96.3.7: 10 variables like this ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("IDAGG_SERVICE_HOST", "http://x"),
        ("IDAGG_SERVICE_PORTS", "8000"),
        ("IDAGG_SERVICE_PORT", "http"),
        ("IDAGG_PORT", "tcp:8000"),
        ("IDAGG_PORT_8000_TCP_PROTO", "http"),
        ("IDAGG_PORTS", "tcp://10.96.3.7:8000"),
    ],
)
def test_variables_that_only_resemble_those_of_kubernetes(name: str, value: str) -> None:
    """Other values and names are the operator's mistakes, as ever."""
    (problem,) = problems({}, HOME | INJECTED | {name: value})
    assert name in problem


def test_precedence(tmp_path: Path) -> None:
    """A flag wins over the environment, that over the file, that over a credential, that over the default."""
    (tmp_path / "idagg_redis_url").write_text("redis://credential\n")
    flags = toml(tmp_path, 'redis_url = "redis://file"') | {"redis_url": "redis://flag"}
    environ = HOME | {"IDAGG_REDIS_URL": "redis://environment", "CREDENTIALS_DIRECTORY": str(tmp_path)}

    def in_force() -> tuple[str | None, str]:
        settings, origin = load(flags, environ)
        return settings.redis_url, origin["redis_url"]

    assert in_force() == ("redis://flag", "flag --redis-url")
    del flags["redis_url"]
    assert in_force() == ("redis://environment", "environment IDAGG_REDIS_URL")
    del environ["IDAGG_REDIS_URL"]
    assert in_force() == ("redis://file", f"file {flags['config']}")
    del flags["config"]
    assert in_force() == ("redis://credential", "credential idagg_redis_url")
    del environ["CREDENTIALS_DIRECTORY"]
    environ["IDAGG_DEFAULTS"] = "redis_url=redis://unit"
    assert in_force() == ("redis://unit", "environment IDAGG_DEFAULTS")
    del environ["IDAGG_DEFAULTS"]
    assert in_force() == (None, "default")


def test_defaults_of_a_unit(tmp_path: Path) -> None:
    """They may have spaces in quotes, and what is wrong with them is told like anything else."""
    given = HOME | {"IDAGG_DEFAULTS": "log_file='/var/log/a b.log' drain=5"}
    settings, _ = load(toml(tmp_path, "drain = 7"), given)
    assert (settings.log_file, settings.drain) == (Path("/var/log/a b.log"), 7)
    where = "environment IDAGG_DEFAULTS"
    assert problems({}, HOME | {"IDAGG_DEFAULTS": "drian=5 port workers=0"}) == [
        f"drian in {where} is no setting with a value; did you mean drain?",
        f"port in {where} is no setting with a value; did you mean port?",
        f"workers ({where}) cannot be '0': it is the number of worker processes, 1 to 256",
    ]
    [problem] = problems({}, HOME | {"IDAGG_DEFAULTS": "log_file='/var"})
    assert problem == f"{where} cannot be read: No closing quotation"


def test_sources_add_up(tmp_path: Path) -> None:
    """Settings from different sources are in force together."""
    flags = toml(tmp_path, 'host = "0.0.0.0"') | {"port": "80"}
    settings, origin = load(flags, HOME | {"IDAGG_WORKERS": "3"})
    assert (settings.host, settings.port, settings.workers) == ("0.0.0.0", 80, 3)
    assert (origin["host"], origin["port"], origin["workers"]) == (
        f"file {flags['config']}",
        "flag --port",
        "environment IDAGG_WORKERS",
    )


def test_every_setting_from_every_source(tmp_path: Path) -> None:
    """Each setting can be given as flag, variable and key, and means the same."""
    text = {
        name: ",".join(value) if isinstance(value, tuple) else str(value) for name, value in GIVEN.items()
    }
    # In TOML, numbers look as they do in Python, and booleans in lower case.
    keys = [
        f"{name} = {str(value).lower()}" if isinstance(value, int | float) else f"{name} = '{text[name]}'"
        for name, value in GIVEN.items()
    ]
    expected = Settings.model_validate(GIVEN)
    repeated = {name: list(getattr(expected, name)) for name in ("callback_allow", "admin_name")}
    assert load({**text, **repeated}, {})[0] == expected
    assert load({}, {variable(name): value for name, value in text.items()})[0] == expected
    assert load(toml(tmp_path, "\n".join(keys)), {})[0] == expected


def test_config_file_named_in_the_environment(tmp_path: Path) -> None:
    """IDAGG_CONFIG names the file, and --config wins over it."""
    flags = toml(tmp_path, "port = 1")
    other = tmp_path / "other.toml"
    other.write_text("port = 2")
    environ = HOME | {"IDAGG_CONFIG": str(other)}
    assert load({}, environ)[0].port == 2
    assert load(flags, environ)[0].port == 1


@pytest.mark.parametrize("name", SECRETS)
def test_credentials(tmp_path: Path, name: str) -> None:
    """Each secret can come from a systemd credential, whose last line break is not part of it."""
    (tmp_path / f"idagg_{name}").write_text(f"{GIVEN[name]}\n")
    settings, origin = load({}, HOME | {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert (getattr(settings, name), origin[name]) == (GIVEN[name], f"credential idagg_{name}")


def test_credentials_are_for_secrets_only(tmp_path: Path) -> None:
    """Other files among a unit's credentials are not settings."""
    (tmp_path / "idagg_port").write_text("1")
    assert load({}, HOME | {"CREDENTIALS_DIRECTORY": str(tmp_path)})[0].port == 8000


def test_credential_that_cannot_be_read(tmp_path: Path) -> None:
    """An unreadable credential stops the start instead of being passed over."""
    (tmp_path / "idagg_amqp_url").mkdir()
    (tmp_path / "idagg_callback_secret").write_bytes(b"\xff")
    [folder, binary] = problems({}, HOME | {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert folder.startswith("credential idagg_amqp_url cannot be read: ")
    assert binary.startswith("credential idagg_callback_secret cannot be read: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", "127.1"),
        ("host", "10.0.0.300"),
        ("host", "0x7f000001"),
        ("host", "-a.example"),
        ("host", "a..example"),
        ("host", "a b"),
        ("host", "exämple"),
        ("host", "a\n"),
        ("host", "[::1]"),
        ("host", "a" * 64),
        ("host", ".".join(["a" * 63] * 4)),
        ("admin_host", "*"),
        ("port", "-1"),
        ("port", "65536"),
        ("port", "http"),
        ("port", "80.5"),
        ("admin_port", "65536"),
        ("workers", "0"),
        ("workers", "257"),
        ("redis_url", "localhost:6379"),
        ("redis_url", "amqp://localhost"),
        ("redis_url", "REDIS://localhost"),
        ("redis_url", "redis:/localhost"),
        ("redis_url", "redis://"),
        ("redis_url", "redis://localhost:65536"),
        ("redis_url", "redis://localhost:0"),
        ("redis_url", "redis://[::1"),
        ("redis_url", "redis://local\nhost"),
        ("redis_url", "unix://"),
        ("redis_url", "unix:///"),
        ("redis_url", "redis://localhost?timeout=5"),
        ("redis_url", "redis://localhost?socket_timeout=30"),
        ("redis_url", "redis://localhost?protocol=3"),
        ("redis_url", "redis+cluster://"),
        ("redis_url", "redis+cluster://h1,,h2"),
        ("redis_url", "redis+cluster://h1:0"),
        ("redis_url", "redis+cluster://h1?ssl_ca_certs=/x"),
        ("redis_url", "redis+cluster://h1?sentinel_username=x"),
        ("redis_url", "redis+other://h1"),
        ("redis_url", "unix+sentinel://h1/main"),
        ("redis_url", "redis+sentinel://h1/main/first"),
        ("redis_url", "redis+sentinel://h1/main?timeout=1"),
        ("keepalive", "0"),
        ("keepalive", "3601"),
        ("keepalive", "7.5"),
        ("drain", "-1"),
        ("drain", "301"),
        ("max_connection_age", "0"),
        ("max_connection_age", "86401"),
        ("cors_origin", "a.example"),
        ("cors_origin", "https://a.example/"),
        ("cors_origin", "https://A.example"),
        ("cors_origin", "https://a.example, https://b.example"),
        ("cors_origin", "null"),
        ("redis_url", "redis://localhost?db=first"),
        ("redis_url", "redis://localhost?ssl_ca_certs=/x"),
        ("redis_url", "rediss://localhost?ssl_ca_cert=/x"),
        ("redis_url", "rediss://localhost?ssl_cert_reqs=perhaps"),
        ("namespace", "a:b"),
        ("namespace", "{a}"),
        ("namespace", "a\n"),
        ("namespace", "a" * 65),
        ("amqp_url", "redis://localhost"),
        ("amqp_url", "amqp:///vhost"),
        ("amqp_queue", "amq.counts"),
        ("amqp_queue", "ä" * 128),
        ("amqp_url", "amqp://h1,,h2/"),
        ("amqp_url", "amqp://h1:5672,h2:0/"),
        ("amqp_queue_type", "mirrored"),
        ("amqp_exchange", "e" * 256),
        ("amqp_routing_key", "k" * 256),
        ("amqp_connect_timeout", "0"),
        ("amqp_connect_timeout", "31"),
        ("amqp_publish_timeout", "10.1"),
        ("amqp_body", "JSON"),
        ("log_file", "a\0b"),
        ("window", "0"),
        ("window", "3601"),
        ("window", "1.5"),
        ("deadline", "0.04"),
        ("deadline", "10.1"),
        ("deadline", "nan"),
        ("deadline", "inf"),
        ("exact_limit", "-1"),
        ("exact_limit", str(10**12 + 1)),
        ("callback_limit", str(10**12 + 1)),
        ("keep_records", "-1"),
        ("rollups", "week"),
        ("keep_records", "3651"),
        ("keep_records", "1.5"),
        ("callback_allow", "10.0.0.1/8"),
        ("callback_allow", "10.0.0.0/33"),
        ("callback_allow", "a.example/8"),
        ("callback_allow", "http://a.example"),
        ("callbacks", "on"),
        ("callback_rate", "0"),
        ("callback_rate", "10001"),
        ("callback_limit", "0"),
        ("callback_proxy", "proxy.example:3128"),
        ("callback_proxy", "http://proxy.example"),
        ("callback_proxy", "https://proxy.example:3128"),
        ("callback_proxy", "http://proxy.example:0"),
        ("callback_proxy", "http://proxy.example:65536"),
        ("callback_proxy", "http://proxy.example:3128/x"),
        ("callback_proxy", "http://proxy.example:3128\n"),
        ("callback_proxy", "http://pro xy:3128"),
        *((name, "") for name in GIVEN),
        *((name, "\udcff") for name in GIVEN),  # what is not UTF-8 in the environment looks like this
    ],
)
def test_bad_value(name: str, value: str) -> None:
    """What a setting cannot be is refused in one sentence: its name, its source, the value, what it takes."""
    shown = "***" if name in ("callback_secret", "admin_token") else value
    meaning = Settings.model_fields[name].description
    assert problems({}, HOME | {variable(name): value}) == [
        f"{name} (environment {variable(name)}) cannot be {shown!r}: it is the {meaning}"
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", "0.0.0.0"),
        ("host", "fe80::1%eth0"),
        ("host", "a_b-1.example."),
        ("redis_url", "redis://:s3cret@[::1]:6379/0"),
        ("redis_url", "unix://ida:s3cret@/run/redis.sock?db=1"),
        ("redis_url", "redis+sentinel://ida:s3cret@h1:26379,h2,[::1]/main/1?sentinel_password=x"),
        ("redis_url", "rediss+cluster://ida:s3cret@h1,h2:7000/0?ssl_ca_certs=/not/there/yet"),
        ("redis_url", "rediss://localhost?ssl_ca_certs=/not/there/yet&ssl_check_hostname=false&db=1"),
        ("amqp_url", "amqp://localhost"),
        ("amqp_url", "amqps://u:p@h1,h2:5673/v?heartbeat=9&cafile=/ca.pem"),
        ("amqp_queue_type", "stream"),
        ("amqp_exchange", "e" * 255),
        ("log_file", "-"),
        ("deadline", "10"),
        ("window", "1"),
        ("exact_limit", str(10**12)),
        ("keep_records", "0"),
        ("keep_records", "3650"),
        ("callback_secret", secret(24)),
        ("callback_secret", secret(64)),
        ("callback_proxy", "http://proxy_1.example:3128"),
        ("callback_proxy", "http://ida:p%40ss@10.0.0.1:80/"),
        ("callback_limit", str(10**12)),
    ],
)
def test_good_value(name: str, value: str) -> None:
    """What is on the edge of the allowed is taken as it is."""
    assert str(getattr(load({name: value}, HOME)[0], name)).startswith(value)


NO_SECRET = "it is not whsec_ and base64: write whsec_ followed by the output of `openssl rand -base64 32`"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("any text", NO_SECRET),
        ("geheim", NO_SECRET),
        ("ä", NO_SECRET),
        ("whsec_", NO_SECRET),
        ("whsec_not base64", NO_SECRET),
        (secret().removesuffix("="), NO_SECRET),
        (secret().removesuffix("s=") + "t=", NO_SECRET),  # the same bytes, not as base64 writes them
        (f"{secret()},", NO_SECRET),
        (secret().replace("whsec_", "WHSEC_"), NO_SECRET),
        (
            secret().removeprefix("whsec_"),
            "receivers read bare base64 in different ways: write whsec_ in front of it",
        ),
        (
            f"{secret()},{secret(23)}",
            f"its key has 23 bytes, and the standard has 24 to 64: {NO_SECRET.partition(': ')[2]}",
        ),
        (secret(65), f"its key has 65 bytes, and the standard has 24 to 64: {NO_SECRET.partition(': ')[2]}"),
        (
            secret(64).replace("whsec_", "whsk_"),
            "whsk_ marks a private key, for signatures that idagg does not make: use whsec_",
        ),
    ],
)
def test_bad_secret(value: str, why: str) -> None:
    """A secret that no receiver could verify with is refused, unseen, with what to write instead."""
    told = f"callback_secret (environment IDAGG_CALLBACK_SECRET) cannot be '***': {why}"
    assert problems({}, HOME | {"IDAGG_CALLBACK_SECRET": value}) == [told]
    with pytest.raises(ValueError, match=r"^a callback secret "):
        Signer(value.split(","))


def test_three_secrets() -> None:
    """A third secret is none of a rotation."""
    [problem] = problems({"callback_secret": ",".join(3 * [secret()])})
    assert problem.endswith("it has more than two secrets: give the new one and the previous one")


TOKEN = "f" * 64


@pytest.mark.parametrize(
    "value", ["f" * 15, f"{TOKEN},", f"{TOKEN},,{TOKEN}", f"{TOKEN} x", "ü" * 16, "f=" * 16]
)
def test_bad_token(value: str) -> None:
    """A token that could be guessed, or that no header field can carry, is refused, unseen."""
    told = (
        "admin_token (environment IDAGG_ADMIN_TOKEN) cannot be '***': each token has 16 or more letters, "
        "digits and characters of ._~+/-: write the output of `openssl rand -hex 32`"
    )
    assert problems({}, HOME | {"IDAGG_ADMIN_TOKEN": value}) == [told]


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "10.0.0.7", "::", "::ffff:127.0.0.1", "admin.example", "a.localhost"]
)
def test_an_admin_listener_that_others_reach(host: str) -> None:
    """It needs a token, or the operator's word that everybody may read it."""
    reached = {"admin_host": host}
    told = (
        f"admin_host (flag --admin-host) cannot be '{host}': it is no loopback address, and whoever reaches "
        "it could read all counts: give --admin-token, or --admin-open if that is wanted"
    )
    assert problems(reached) == [told]
    load(reached | {"admin_token": TOKEN}, HOME)
    load(reached | {"admin_open": "on"}, HOME)
    with pytest.raises(SettingsError):
        load(reached | {"admin_open": "off"}, HOME)
    # One sentence about a bad token, not another one about its absence.
    (problem,) = problems(reached | {"admin_token": "short"})
    assert problem.startswith("admin_token ")
    # A supervisor and workers that are at work go on with what another version let in.
    held = Settings(state_dir=Path("/s")).model_copy(update=reached)
    assert Settings.from_json(held.to_json()).admin_host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST"])
def test_an_admin_listener_on_loopback(host: str) -> None:
    assert load({"admin_host": host}, HOME)[0].admin_host == host


def test_metrics_by_token_need_a_token() -> None:
    assert problems({"admin_metrics": "token"}) == [
        "admin_metrics (flag --admin-metrics) cannot be 'token': it needs --admin-token"
    ]


def test_secrets_from_everywhere(tmp_path: Path) -> None:
    """Two secrets are a text with a comma or a TOML list; line breaks at their ends are not part of them."""
    old, new = secret(24), secret(32)
    expected = f"{new},{old}"

    def read(flags: Mapping[str, object], environ: Mapping[str, str] = HOME) -> str | None:
        return load(flags, environ)[0].callback_secret

    assert read({"callback_secret": f"{new}, {old}\n"}) == expected
    assert read({}, HOME | {"IDAGG_CALLBACK_SECRET": f"{new}\n,{old}\r\n"}) == expected
    assert read(toml(tmp_path, f'callback_secret = ["{new}", "{old}\\n"]')) == expected
    assert read(toml(tmp_path, f'callback_secret = """\n{new}\n"""')) == new
    (tmp_path / "idagg_callback_secret").write_text(f"{new},{old}\r\n")
    assert read({}, HOME | {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == expected


def test_bad_ca(tmp_path: Path) -> None:
    """A file of CAs that cannot be used stops the start, but not a worker that is started later."""
    (tmp_path / "empty").touch()
    none = "the file has no CA certificate in PEM form"
    for path, why in (
        ("/no/such", "the file cannot be read: No such file or directory"),
        (str(tmp_path), "the file cannot be read: Is a directory"),
        (str(tmp_path / "empty"), none),
        (__file__, none),
    ):
        assert problems({"callback_ca": path}) == [
            f"callback_ca (flag --callback-ca) cannot be {path!r}: {why}"
        ]
    gone = tmp_path / "gone.pem"
    gone.write_bytes(CA.read_bytes())
    settings, _ = load({"callback_ca": str(gone)}, HOME)
    gone.unlink()
    assert Settings.from_json(settings.to_json()) == settings


def test_empty_flag() -> None:
    """A flag that a script left empty is refused, not passed over."""
    [problem] = problems({"redis_url": ""}, HOME | {"IDAGG_REDIS_URL": "redis://localhost"})
    assert problem.startswith("redis_url (flag --redis-url) cannot be '': ")


@pytest.mark.parametrize("toml_value", ["true", "[8000]", "{ port = 8000 }", "80.5", "2026-11-22"])
def test_bad_type_in_the_file(tmp_path: Path, toml_value: str) -> None:
    """A TOML value of another type is refused; true is not 1."""
    [problem] = problems(toml(tmp_path, f"port = {toml_value}"))
    assert problem.startswith(f"port (file {tmp_path}/idagg.toml) cannot be ")


def test_callback_allow_forms(tmp_path: Path) -> None:
    """Hosts are a repeated flag, a comma separated variable or a TOML list, and each bad one is named."""
    assert load({}, HOME | {"IDAGG_CALLBACK_ALLOW": "10.0.0.0/8, a.b"})[0].callback_allow == (
        "10.0.0.0/8",
        "a.b",
    )
    assert load(toml(tmp_path, 'callback_allow = ["::1"]'), HOME)[0].callback_allow == ("::1",)
    first, second = problems({"callback_allow": ["a/b", "c.d", "e f"]})
    assert first.startswith("callback_allow (flag --callback-allow) cannot be 'a/b': ")
    assert second.startswith("callback_allow (flag --callback-allow) cannot be 'e f': ")


@given(st.text("aA1-_.:/%\n é", max_size=12) | st.ip_addresses(network="10.0.0.0/30").map(str))
@example("fe80::1%eth0")
@example("10.0.0.0/255.0.0.0")
@example("A.example.")
@example("0x7f.0x1")
def test_the_guard_takes_what_settings_take(item: str) -> None:
    """No host gets past the settings that the callbacks' guard would then trip over."""
    try:
        settings = Settings(state_dir=Path("/s"), callback_allow=(item,))
    except pydantic.ValidationError:
        return
    Guard(settings.callback_allow)


@given(
    st.text(max_size=12)
    | st.binary(max_size=70).map(lambda key: f"whsec_{base64.b64encode(key).decode()}")
    | st.text("AZaz09+/=\n ", min_size=30, max_size=90).map("whsec_".__add__)
)
def test_signing_takes_what_settings_take(text: str) -> None:
    """No secret gets past the settings that signing would then trip over."""
    try:
        settings = Settings(state_dir=Path("/s"), callback_secret=text)
    except pydantic.ValidationError:
        if "," not in text and text == text.strip():
            with pytest.raises(ValueError, match=r"^a callback secret "):
                Signer([text])
        return
    assert Signer((settings.callback_secret or "").split(",")).headers("id", 1, b"")["webhook-signature"]


@given(st.text("aA1-_.:/@[]%\n é", max_size=14).map("http://".__add__))
@example("http://a:b@[::1]:8080/")
@example("http://a:00080")
@example("http://:@a:1")
def test_callbacks_take_what_settings_take(url: str) -> None:
    """No proxy gets past the settings that callbacks would then trip over, and none is held up by them."""
    try:
        Settings(state_dir=Path("/s"), callback_proxy=url)
    except pydantic.ValidationError:
        with pytest.raises(ValueError, match=r"^not "):
            Proxy.parse(url)
        return
    Proxy.parse(url)


def test_the_ca_is_trusted() -> None:
    """What settings take for a file of CAs is one to callbacks, too."""
    settings, _ = load({"callback_ca": str(CA)}, HOME)
    trusted = tls_context(str(settings.callback_ca)).get_ca_certs()
    assert [ca for ca in trusted if "idagg's tests" in str(ca["subject"])]


@pytest.mark.parametrize(
    ("flags", "origin"), [({"port": "8001"}, "default"), ({"admin_port": "8000"}, "flag --admin-port")]
)
def test_both_listeners_on_one_port(flags: dict[str, str], origin: str) -> None:
    """The admin listener cannot share the public listener's port, whichever of the two was moved."""
    [problem] = problems(flags)
    assert problem.startswith(f"admin_port ({origin}) cannot be ")
    assert problem.endswith("not the public listener's")


def test_same_port_without_a_clash() -> None:
    """Two free ports, and one port on two hosts, are no clash."""
    load({"port": "0", "admin_port": "0"}, HOME)
    load({"port": "80", "admin_port": "80", "host": "10.0.0.1"}, HOME)


@pytest.mark.parametrize(
    ("name", "value", "shown", "sentence"),
    [
        (
            "amqp_url",
            "amqps://u:hunter2@h/?cacertfile=/ca",
            "amqps://u:***@h/?cacertfile=/ca",
            "'cacertfile' in its query: use cafile",
        ),
        (
            "amqp_routing_key",
            "k",
            "k",
            "it needs --amqp-exchange; without one, the queue's name is the routing key",
        ),
    ],
)
def test_a_value_that_looks_well(name: str, value: str, shown: str, sentence: str) -> None:
    """Where what is meant can be told from what is written, the problem says what to write."""
    assert problems({name: value}) == [f"{name} (flag {flag(name)}) cannot be {shown!r}: {sentence}"]


def test_all_problems_at_once(tmp_path: Path) -> None:
    """Every problem of every source is told in one go."""
    flags = toml(tmp_path, 'prot = 1\namqp_body = "xml"') | {"window": "0", "admin_port": "8000"}
    environ = HOME | {
        "IDAGG_WORKERS": "many",
        "IDAGG_WINDOWS": "1",
        "CREDENTIALS_DIRECTORY": str(tmp_path),
    }
    (tmp_path / "idagg_redis_url").mkdir()
    (tmp_path / "idagg_amqp_url").write_text("http://localhost")
    told = [problem.split(" cannot be")[0].split(" is no ")[0] for problem in problems(flags, environ)]
    assert sorted(told) == sorted(
        [
            "credential idagg_redis_url",
            f"prot in file {tmp_path}/idagg.toml",
            "environment IDAGG_WINDOWS",
            "admin_port (flag --admin-port)",
            "workers (environment IDAGG_WORKERS)",
            "amqp_url (credential idagg_amqp_url)",
            f"amqp_body (file {tmp_path}/idagg.toml)",
            "window (flag --window)",
        ]
    )


def test_unknown_names(tmp_path: Path) -> None:
    """A name that no setting has is refused, with the nearest that exists, or where to find them all."""
    flags = toml(tmp_path, "redis-url = 1\nPORT = 1\nxyzzy = 1")
    config = flags["config"]
    environ = HOME | {"IDAGG_PROT": "1", "IDAGG_XYZZY": "1", "XIDAGG_PORT": "1"}
    assert problems(flags, environ) == [
        f"redis-url in file {config} is no setting; did you mean redis_url?",
        f"PORT in file {config} is no setting; did you mean port?",
        f"xyzzy in file {config} is no setting; `idagg config` lists them all",
        "environment IDAGG_PROT is no setting; did you mean IDAGG_PORT?",
        "environment IDAGG_XYZZY is no setting; `idagg config` lists them all",
    ]


@pytest.mark.parametrize(
    "value", ["", "after-seal", "before-lunch=kill", "after-seal=nap", "after-seal=nap@f"]
)
def test_unknown_failpoint(value: str) -> None:
    """A place or an action that there is not is refused, and what there is is named."""
    (problem,) = problems({}, HOME | {failpoints.VARIABLE: value})
    assert problem == (
        f"environment IDAGG_FAILPOINT cannot be {value!r}: it is one of "
        f"{', '.join(failpoints.PLACES)}, then =kill or =stall"
    )
    load({}, HOME | {failpoints.VARIABLE: "after-seal=kill@/x"})


def test_file_that_cannot_be_used(tmp_path: Path) -> None:
    """A named file that is missing, a folder, no TOML or no UTF-8 stops the start; so does an empty name."""
    assert problems({"config": "/no/such"}) == [
        "the settings file '/no/such' cannot be read: No such file or directory"
    ]
    assert problems({"config": ""}) == ["the settings file '' cannot be read: Is a directory"]
    assert problems({}, HOME | {"IDAGG_CONFIG": str(tmp_path)}) == [
        f"the settings file '{tmp_path}' cannot be read: Is a directory"
    ]
    [problem] = problems(toml(tmp_path, "port ="))
    assert problem.startswith(f"the settings file '{tmp_path}/idagg.toml' is not TOML: ")
    (tmp_path / "binary").write_bytes(b"\xff")
    [problem] = problems({"config": str(tmp_path / "binary")})
    assert problem.startswith(f"the settings file '{tmp_path}/binary' is not TOML: ")


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("redis_url", "redis://ida:hunter2@h:1/0", "redis://ida:***@h:1/0"),
        ("redis_url", "redis://:hunter2@h", "redis://:***@h"),
        ("redis_url", "redis://ida@h", "redis://ida@h"),
        ("redis_url", "redis://[::1]:1/0", "redis://[::1]:1/0"),
        ("redis_url", "unix:///s?password=hunter2&db=1", "unix:///s?password=***&db=1"),
        (
            "redis_url",
            "rediss+sentinel://ida:hunter2@h1,h2/main?sentinel_password=hunter2",
            "rediss+sentinel://ida:***@h1,h2/main?sentinel_password=***",
        ),
        ("amqp_url", "amqps://ida:hunter2@h/v", "amqps://ida:***@h/v"),
        ("callback_secret", secret(), "***"),
        ("callback_secret", None, None),
        ("callback_proxy", "http://ida:hunter2@h:1", "http://ida:***@h:1"),
        ("callback_proxy", "http://h:1", "http://h:1"),
    ],
)
def test_masked(name: str, value: str | None, shown: str | None) -> None:
    """Whatever prints settings prints no password, and leaves the rest of a URL readable."""
    settings, _ = load({name: value}, HOME)
    assert getattr(settings, name) == value
    assert settings.masked()[name] == shown
    for text in (repr(settings), str(settings), f"{settings}"):
        assert f"{name}={shown!r}" in text
        assert "hunter2" not in text


FRAME = "amqp://ida:***@rabbit.example:5672/vhost?heartbeat=5"


@given(password=st.text(min_size=2), scheme=st.sampled_from(["redis", "amqp"]))
@example(password="//hunter2", scheme="amqp")
@example(password="p@ss:w/o?r#d\n@", scheme="redis")
def test_no_password_gets_out(password: str, scheme: str) -> None:
    """However a password is written, and whether or not its URL is accepted, it is never shown."""
    assume(password not in FRAME)
    url = FRAME.replace("***", password).replace("amqp", scheme)
    for shown in ("amqp_url", "redis_url"):
        try:
            text = str(load({shown: url}, HOME)[0])
        except SettingsError as error:
            text = str(error)
        assert f"{scheme}://ida:***@rabbit.example" in text


@pytest.mark.parametrize("name", SECRETS)
def test_errors_are_masked(tmp_path: Path, name: str) -> None:
    """A bad secret is refused without being shown, whatever its type, and also by the model itself."""
    flags = toml(tmp_path, f'{name} = ["x:hunter2@y"]')
    for told in (
        *problems({name: "whsec_x:hunter2@y"}),
        *problems(flags),
    ):
        assert told.startswith(f"{name} (")
        assert "***" in told
        assert "hunter2" not in told
    with pytest.raises(pydantic.ValidationError) as caught:
        Settings.model_validate({name: "whsec_x:hunter2@y", "state_dir": "/s"})
    assert "hunter2" not in str(caught.value)


def test_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker gets back every setting with its secrets, whatever its own environment says."""
    assert GIVEN.keys() == Settings.model_fields.keys()
    defaults = load({}, HOME)[0]
    assert not [name for name, value in GIVEN.items() if getattr(defaults, name) == value]
    settings = Settings.model_validate(GIVEN)
    for name in GIVEN:
        monkeypatch.setenv(variable(name), "1")
    again = Settings.from_json(settings.to_json())
    assert again == settings
    assert dict(again) == GIVEN
    passed_on = InForce.from_json(settings.to_json())
    assert passed_on == settings.in_force()
    assert dataclasses.asdict(passed_on) == GIVEN
    assert "hunter2" not in repr(passed_on)
    assert "whsec_" not in repr(passed_on)


def test_the_settings_in_force_have_no_other_names_types_and_defaults() -> None:
    """Rules are written once, names, types and defaults twice."""
    assert get_type_hints(InForce) == {
        name: hint for name, hint in get_type_hints(Settings).items() if name in Settings.model_fields
    }
    defaults = {field.name: field.default for field in dataclasses.fields(InForce)}
    for name, field in Settings.model_fields.items():
        assert name == "workers" or defaults[name] == field.default


def test_frozen() -> None:
    """Settings cannot be changed once they are in force."""
    settings, _ = load({}, HOME)
    with pytest.raises(pydantic.ValidationError):
        settings.port = 1


def test_loading_leaves_the_process_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the environment that is passed in counts."""
    monkeypatch.setenv("IDAGG_PORT", "1")
    monkeypatch.setenv("IDAGG_XYZZY", "1")
    assert load({}, HOME)[0].port == 8000


def test_names_and_defaults_in_words() -> None:
    """Help and documents spell flags, variables and defaults the way they are used."""
    assert (flag("redis_url"), variable("redis_url")) == ("--redis-url", "IDAGG_REDIS_URL")
    assert {name: default_text(name) for name in Settings.model_fields} == {
        "host": "127.0.0.1",
        "port": "8000",
        "admin_token": "none",
        "admin_open": "off",
        "admin_host": "127.0.0.1",
        "admin_port": "8001",
        "admin_name": "none",
        "admin_metrics": "open",
        "keepalive": "75",
        "max_connection_age": "none",
        "drain": "0",
        "cors_origin": "none",
        "workers": "usable CPUs, at most 4",
        "redis_url": "none",
        "replicas": "0",
        "shards": "none",
        "namespace": "idagg",
        "amqp_url": "none",
        "amqp_queue": "counts_queue",
        "amqp_queue_type": "quorum",
        "amqp_exchange": "none",
        "amqp_routing_key": "none",
        "amqp_body": "json",
        "amqp_connect_timeout": "2",
        "amqp_publish_timeout": "2",
        "log_file": "unique_id_capture.log",
        "window": "60",
        "deadline": "2",
        "exact_limit": "10000000",
        "keep_records": "35",
        "rollups": "none",
        "callback_allow": "none",
        "callbacks": "public",
        "callback_rate": "50",
        "callback_limit": "none",
        "callback_secret": "none",
        "callback_ca": "none",
        "callback_proxy": "none",
        "state_dir": "$STATE_DIRECTORY, else the XDG state folder",
    }


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis+sentinel://h1,h2", "it needs the name of the service after its hosts"),
        ("redis+cluster://h1/1", "a cluster has the database 0 alone"),
        ("redis+cluster://h1?db=1", "a cluster has the database 0 alone"),
    ],
)
def test_urls_of_groups_that_say_too_little_or_too_much(url: str, why: str) -> None:
    """The sentence says what."""
    [problem] = problems({"redis_url": url}, HOME)
    assert f"cannot be '{url}': {why}" in problem
