"""The settings: meaning, allowed values and default of each. ``sources`` has where their values come from."""

from __future__ import annotations

import base64
import ipaddress
import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from idagg import cpus
from idagg.amqp_url import one_per_host
from idagg.credentials import SECRETS
from idagg.errors import UnfitError
from idagg.in_force import InForce

MAX_WORKERS = 256
# Four answer some 200,000 requests a second, and one Redis takes little more. Each further worker makes
# batches smaller, and costs Redis and the machine CPU (docs/sizing.rst).
_DEFAULT_WORKERS = 4
MAX_SHARDS = 64
# Below STOP_S of run/child.py: a worker that stops answers its requests first.
MAX_DEADLINE_S = 10
# Lua writes whole numbers up to this without an exponent.
MAX_LIMIT = 10**12

INHERITED_VARIABLE = "_IDAGG_INHERITED"
"""Names the descriptor from which a supervisor reads what its predecessor left (``run/reload.py``)."""

# RFC 1123, and underscores, which container names have. A last label that begins with a digit is refused: it
# is a mistyped address, or a form that only resolvers read (127.1, 0x7f000001).
_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)(?:(?!-)[\w-]{1,63}(?<!-)\.)*(?=[A-Za-z])[\w-]{1,63}(?<!-)\.?", re.ASCII
)

_PROXY = re.compile(
    r"http://(?:[^\s:@/]*(?::[^\s@/]*)?@)?(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}/?"
)

# RFC 6750's b64token: what a Bearer field may carry without quotes.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
# Shorter ones could be guessed: nothing slows a client down that tries them.
_MIN_TOKEN = 16

_MAKE_ONE = "write whsec_ followed by the output of `openssl rand -base64 32`"

# Validation context after a reload: the rehearsal has checked these values already.
_PASSED_ON = {"passed_on": True}


def _host(value: str) -> str:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        if not _HOST_NAME.fullmatch(value):
            raise
    return value


def _host_or_network(value: str) -> str:
    if "/" not in value:
        return _host(value)
    ipaddress.ip_network(value)
    return value


def _url(*schemes: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        parts = urlsplit(value)  # raises on a bad IPv6 host, `.port` on a bad port
        place = parts.path.strip("/") if parts.scheme == "unix" else parts.hostname
        # urlsplit accepts capitals, a lone slash, line breaks and tabs; the client libraries do not.
        scheme = value.partition("://")[0]
        if scheme not in schemes or not place or parts.port == 0 or re.search(r"\s", value):
            raise ValueError("not a URL of this kind")
        return value

    return check


def _redis_url(value: str) -> str:
    # Imported late: settings without Redis do not need it.
    from idagg.store.address import check

    if "+" not in value.partition("://")[0]:
        _url("redis", "rediss", "unix")(value)
    check(value)
    return value


def _amqp_url(value: str) -> str:
    one_per_host(value)
    return value


def _short(value: str) -> str:
    if len(value.encode()) > 255:
        raise ValueError("more than AMQP's short string holds")
    return value


def _queue(value: str) -> str:
    # RabbitMQ refuses to declare names with its own prefix.
    if value.startswith("amq."):
        raise ValueError("not a queue name for us")
    return _short(value)


def _origin(value: str) -> str:
    # As browsers send it (RFC 6454 6.2): in lower case, without path or slash.
    if value != "*" and not re.fullmatch(r"https?://([a-z0-9._-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?", value):
        raise ValueError("not an origin")
    return value


def _secrets(value: object) -> object:
    """Join the secrets to one text, without the white space that an editor adds at their ends."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise ValueError("neither text nor a list of it")
    return ",".join(part.strip() for part in parts)


def _callback_secrets(value: str) -> str:
    secrets = value.split(",")
    if len(secrets) > 2:
        raise UnfitError("it has more than two secrets: give the new one and the previous one")
    for secret in secrets:
        if secret.startswith("whsk_"):
            raise UnfitError("whsk_ marks a private key, for signatures that idagg does not make: use whsec_")
        encoded = secret.removeprefix("whsec_")
        try:
            key = base64.b64decode(encoded, validate=True)
        except ValueError:
            key = b""
        if not key or base64.b64encode(key).decode() != encoded:
            raise UnfitError(f"it is not whsec_ and base64: {_MAKE_ONE}")
        if encoded == secret:
            raise UnfitError("receivers read bare base64 in different ways: write whsec_ in front of it")
        if not 24 <= len(key) <= 64:
            raise UnfitError(f"its key has {len(key)} bytes, and the standard has 24 to 64: {_MAKE_ONE}")
    return value


def _admin_tokens(value: str) -> str:
    for token in value.split(","):
        if not _TOKEN.fullmatch(token) or len(token) < _MIN_TOKEN:
            raise UnfitError(
                f"each token has {_MIN_TOKEN} or more letters, digits and characters of ._~+/-: "
                "write the output of `openssl rand -hex 32`"
            )
    return value


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a listener there. Of names, only localhost is known to be so."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _ca_file(value: Path, info: ValidationInfo) -> Path:
    """Check the file when an operator starts idagg. Later, a missing file must not stop the counting."""
    if info.context != _PASSED_ON:
        import ssl  # imported late: settings without this file do not need it

        try:
            ssl.create_default_context(cafile=value)
        except ssl.SSLError as error:
            raise UnfitError("the file has no CA certificate in PEM form") from error
        except OSError as error:
            raise UnfitError(f"the file cannot be read: {error.strerror}") from error
    return value


def _proxy(value: str) -> str:
    if not _PROXY.fullmatch(value) or not urlsplit(value).port:
        raise ValueError("not a proxy's URL")
    return value


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _once_each(value: tuple[Literal["hour", "day"], ...]) -> tuple[Literal["hour", "day"], ...]:
    return tuple(dict.fromkeys(value))


def _default_workers() -> int:
    return min(cpus.usable(), _DEFAULT_WORKERS)


_Host = Annotated[str, AfterValidator(_host)]
_Port = Annotated[int, Field(ge=0, le=65535)]
_Secrets = Annotated[str, BeforeValidator(_secrets), AfterValidator(_callback_secrets)]
_Tokens = Annotated[str, BeforeValidator(_secrets), AfterValidator(_admin_tokens)]


class Settings(BaseModel):
    """All settings and their rules. ``load`` builds them from the operator's input. ``in_force`` has the bare
    values, for workers and the callback process.

    Printing them shows no secret. Each description is a noun phrase with unit and range, because help, README
    and error messages show it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)

    host: _Host = Field(default="127.0.0.1", description="address or host name of the public listener")
    port: _Port = Field(default=8000, description="port of the public listener, 0 to 65535 (0: any free one)")
    admin_token: _Tokens | None = Field(
        default=None,
        description="token that clients of the admin listener must send, 16 or more characters; several, "
        "separated by commas, during a rotation; none: they need none",
    )
    admin_open: bool = Field(
        default=False,
        description="whether a client from another machine may read the admin listener without a token: on "
        "or off",
    )
    admin_host: _Host = Field(
        default="127.0.0.1",
        description="address or host name of the admin listener: counts, status, metrics, health; if it is "
        "no loopback address, admin_token or admin_open is needed",
    )
    admin_port: _Port = Field(
        default=8001,
        description="port of the admin listener, 0 to 65535 (0: any free one); not the public listener's",
    )
    admin_name: Annotated[tuple[Annotated[str, AfterValidator(_host)], ...], BeforeValidator(_split)] = Field(
        default=(),
        description="host name by which clients may address the admin listener, besides addresses, "
        "localhost, admin_host and the names of this machine; repeatable",
    )
    admin_metrics: Literal["open", "token"] = Field(
        default="open",
        description="whether /metrics needs the admin token: open (it does not) or token (it does)",
    )
    keepalive: int = Field(
        default=75,
        ge=1,
        le=3600,
        description="time an idle connection stays open, 1 to 3600 whole seconds; "
        "set it above the load balancer's own",
    )
    max_connection_age: int | None = Field(
        default=None,
        ge=1,
        le=86_400,
        description="age after which a connection is closed with its next answer, 1 to 86400 whole seconds, "
        "at random up to a tenth earlier; none: no limit",
    )
    drain: float = Field(
        default=0,
        ge=0,
        le=300,
        description="time from a stop signal, when /readyz begins to answer 503, until the listeners close, "
        "0 to 300 seconds; set it above the time in which the load balancer's checks notice",
    )
    cors_origin: Annotated[str, AfterValidator(_origin)] | None = Field(
        default=None,
        description="origin whose pages may read the answers, scheme://host[:port], or * for all",
    )
    workers: int = Field(
        default_factory=_default_workers,
        ge=1,
        le=MAX_WORKERS,
        description="number of worker processes, 1 to 256",
    )
    redis_url: Annotated[str, AfterValidator(_redis_url)] | None = Field(
        default=None,
        description="URL of the store: redis://, rediss:// or unix://; of a group: redis+sentinel://, "
        "redis+cluster:// or rediss+…; none: the embedded store",
    )
    replicas: int = Field(
        default=0,
        ge=0,
        le=16,
        description="number of the store's replicas that must have an id before it is answered ok, 0 to 16",
    )
    shards: int | None = Field(
        default=None,
        ge=1,
        le=MAX_SHARDS,
        description="number of shards a window's ids are spread over, 1 to 64; "
        "none: 16 with a cluster, else 1",
    )
    namespace: str = Field(
        default="idagg",
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="prefix of every key and message id, 1 to 64 letters, digits, dots, hyphens, underscores",
    )
    amqp_url: Annotated[str, AfterValidator(_amqp_url)] | None = Field(
        default=None,
        description="URL of RabbitMQ, amqp:// or amqps://, hosts separated by commas; its query may have "
        "heartbeat, name, auth and, with amqps, cafile, capath, cadata, certfile, keyfile; "
        "none: counts go to the log file",
    )
    amqp_queue: Annotated[str, AfterValidator(_queue)] = Field(
        default="counts_queue",
        description="queue to publish to, 1 to 255 bytes, not starting with amq.; "
        "if it is missing, idagg declares it as a durable queue",
    )
    amqp_queue_type: Literal["quorum", "classic", "stream"] = Field(
        default="quorum", description="type of the queue if idagg declares it: quorum, classic or stream"
    )
    amqp_exchange: Annotated[str, AfterValidator(_short)] | None = Field(
        default=None,
        description="exchange to publish to, 1 to 255 bytes; it must exist, and no queue is declared then; "
        "none: the default exchange, which routes to the queue",
    )
    amqp_routing_key: Annotated[str, AfterValidator(_short)] | None = Field(
        default=None,
        description="routing key of messages to --amqp-exchange, 1 to 255 bytes; none: the queue's name",
    )
    amqp_body: Literal["json", "text"] = Field(
        default="json", description="body of a message: json (the window's record) or text (the bare number)"
    )
    amqp_connect_timeout: float = Field(
        default=2,
        ge=0.1,
        le=30,
        description="time limit of a connection to RabbitMQ, and then of the check of its queue or exchange, "
        "0.1 to 30 seconds",
    )
    amqp_publish_timeout: float = Field(
        default=2,
        ge=0.1,
        le=MAX_DEADLINE_S,
        description="time RabbitMQ may take to confirm a message before the count goes to the log file, "
        f"0.1 to {MAX_DEADLINE_S} seconds",
    )
    log_file: Path = Field(
        default=Path("unique_id_capture.log"),
        description="log file for counts and callback responses; - or /dev/stdout: standard output",
    )
    window: int = Field(default=60, ge=1, le=3600, description="length of a window, 1 to 3600 whole seconds")
    deadline: float = Field(
        default=2,
        ge=0.05,
        le=MAX_DEADLINE_S,
        description="time a request may wait for the store before it is answered failed, "
        f"0.05 to {MAX_DEADLINE_S} seconds",
    )
    exact_limit: int = Field(
        default=10_000_000,
        ge=0,
        le=MAX_LIMIT,
        description=f"number of ids per window counted exactly, 0 to {MAX_LIMIT}; above it the count is an "
        "estimate",
    )
    keep_records: int = Field(
        default=35,
        ge=0,
        le=3650,
        description="time for which records of windows can be read back, 0 to 3650 whole days; 0: not at all",
    )
    rollups: Annotated[
        tuple[Literal["hour", "day"], ...], BeforeValidator(_split), AfterValidator(_once_each)
    ] = Field(
        default=(),
        description="estimates delivered beside the windows' counts: hour, day, or both, "
        "separated by a comma; none: none",
    )
    callback_allow: Annotated[
        tuple[Annotated[str, AfterValidator(_host_or_network)], ...], BeforeValidator(_split)
    ] = Field(
        default=(),
        description="CIDR, address or host name that callbacks may reach even if it is private; repeatable",
    )
    callbacks: Literal["public", "listed", "off"] = Field(
        default="public",
        description="endpoints that may be called: public (those at public addresses or in callback_allow), "
        "listed (only those in callback_allow) or off (none)",
    )
    callback_rate: int = Field(
        default=50,
        ge=1,
        le=10_000,
        description="maximum number of callbacks per second to one address, 1 to 10000; "
        "hosts of callback_allow are exempt",
    )
    callback_limit: int | None = Field(
        default=None,
        ge=1,
        le=MAX_LIMIT,
        description=f"maximum number of callbacks per window to one address, 1 to {MAX_LIMIT}; "
        "hosts of callback_allow are exempt; none: no limit",
    )
    callback_secret: _Secrets | None = Field(
        default=None,
        description="secret that signs callbacks (Standard Webhooks), whsec_ and the base64 of 24 to 64 "
        "bytes; two, separated by a comma, during a rotation",
    )
    callback_ca: Annotated[Path, AfterValidator(_ca_file)] | None = Field(
        default=None,
        description="file of CA certificates (PEM) that callbacks trust besides the system's; "
        "none: only the system's",
    )
    callback_proxy: Annotated[str, AfterValidator(_proxy)] | None = Field(
        default=None,
        description="HTTP proxy for callbacks, http://[user:pass@]host:port; it resolves their host names; "
        "none: direct connections",
    )
    state_dir: Path | None = Field(default=None, description="folder of the embedded store's data")

    @field_validator("*", mode="before")
    @classmethod
    def _no_accident(cls, value: object, info: ValidationInfo) -> object:
        # An empty variable was left empty by mistake, and pydantic would read true as 1. A path cannot have a
        # NUL, and JSON cannot have a name that is not UTF-8 (`encode` raises).
        is_stray = isinstance(value, bool) and not is_switch(str(info.field_name))
        if value == "" or is_stray or b"\0" in str(value).encode():
            raise ValueError("not a value of any setting")
        return value

    @field_validator("admin_port")
    @classmethod
    def _own_port(cls, admin_port: int, info: ValidationInfo) -> int:
        public = info.data.get("host"), info.data.get("port")
        if admin_port and public == (info.data.get("admin_host"), admin_port):
            raise ValueError("the public listener's port")
        return admin_port

    @field_validator("admin_host")
    @classmethod
    def _guarded(cls, admin_host: str, info: ValidationInfo) -> str:
        """Refuse to start. A worker and a supervisor that reloads go on with what is in force."""
        is_guarded = info.data.get("admin_token", "") is not None or info.data.get("admin_open", True)
        if not is_guarded and not is_loopback(admin_host) and info.context != _PASSED_ON:
            raise UnfitError(
                "it is no loopback address, and whoever reaches it could read all counts: give "
                "--admin-token, or --admin-open if that is wanted"
            )
        return admin_host

    @field_validator("admin_metrics")
    @classmethod
    def _of_a_token(cls, admin_metrics: str, info: ValidationInfo) -> str:
        if admin_metrics == "token" and info.data.get("admin_token", "") is None:
            raise UnfitError("it needs --admin-token")
        return admin_metrics

    @field_validator("amqp_routing_key")
    @classmethod
    def _key_of_an_exchange(cls, key: str | None, info: ValidationInfo) -> str | None:
        if key is not None and info.data.get("amqp_exchange") is None:
            raise UnfitError("it needs --amqp-exchange; without one, the queue's name is the routing key")
        return key

    @field_validator("replicas")
    @classmethod
    def _replicas_of_a_server(cls, replicas: int, info: ValidationInfo) -> int:
        if replicas and info.data.get("redis_url", "") is None:
            raise UnfitError("the embedded store has no replicas: give --redis-url, or leave --replicas out")
        return replicas

    @field_validator("state_dir")
    @classmethod
    def _needed_by_the_embedded_store(cls, state_dir: Path | None, info: ValidationInfo) -> Path | None:
        if state_dir is None and info.data.get("redis_url", "") is None:
            raise UnfitError(
                "the embedded store needs a folder for its data, and neither STATE_DIRECTORY, "
                "XDG_STATE_HOME nor HOME is set: give --state-dir, or --redis-url"
            )
        return state_dir

    def to_json(self) -> bytes:
        """All settings, secrets included, for another process."""
        return self.model_dump_json().encode()

    def in_force(self) -> InForce:
        return InForce(**dict(self))

    @classmethod
    def from_json(cls, data: bytes) -> Settings:
        """Read a supervisor's ``to_json``. Settings that only another version has are ignored."""
        given = orjson.loads(data)
        known = {name: value for name, value in given.items() if name in cls.model_fields}
        return cls.model_validate_json(orjson.dumps(known), context=_PASSED_ON)

    def masked(self) -> dict[str, object]:
        """The values, with secrets masked."""
        return {name: masked(name, value) for name, value in self}

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return self.masked().items()


def masked(name: str, value: object) -> object:
    if name not in SECRETS or value is None:
        return value
    if name in ("callback_secret", "admin_token"):
        return "***"
    # From the colon after the user to the last @: an unescaped password may contain both characters.
    text = re.sub(r"\A((?:[\w+.-]+://)?+[^:]*):.*@", r"\1:***@", str(value), flags=re.DOTALL)
    return re.sub(r"(?<=password=)[^&#]*", "***", text)


def described(name: str) -> str | None:
    return Settings.model_fields[name].description


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    return "IDAGG_" + name.upper()


def is_switch(name: str) -> bool:
    """Whether the setting is on or off."""
    return Settings.model_fields[name].annotation is bool


def default_text(name: str) -> str:
    """The default as text, for help and README."""
    computed = {
        "workers": f"usable CPUs, at most {_DEFAULT_WORKERS}",
        "state_dir": "$STATE_DIRECTORY, else the XDG state folder",
    }
    default = Settings.model_fields[name].default
    if is_switch(name):
        return "on" if default else "off"
    return computed.get(name) or ("none" if default in (None, ()) else str(default))


def example() -> str:
    """A settings file in which every setting stands with its meaning and default, as a comment."""
    lines = [
        "# Settings of idagg (TOML). Remove the # in front of a line to change it.",
        "# Everyone can read this file. If one of these holds a password, put it into a file of its own name",
        f"# in the folder credentials instead: {', '.join(SECRETS)}.",
    ]
    for name, field in Settings.model_fields.items():
        lines += [
            "",
            *textwrap.wrap(f"{field.description}", 100, initial_indent="# ", subsequent_indent="# "),
        ]
        default = field.default
        is_plain = isinstance(default, str | int | float | Path)
        value = (
            orjson.dumps(default, default=str).decode() if is_plain else f"  # default: {default_text(name)}"
        )
        lines.append(f"#{name} = {value}")
    return "\n".join(lines) + "\n"
