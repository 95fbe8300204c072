"""Private, real servers for tests.

Each has its own folder, ports and data, is found by nobody else, and is ended by its process id; a service
of the same kind that runs on this machine is neither used nor disturbed.
"""

from __future__ import annotations

import collections
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

from kit import engines

# Debian's wrapper in /usr/sbin changes to the user rabbitmq and to its folder; this is what it calls.
RABBITMQ = Path("/usr/lib/rabbitmq/bin")

# A key, and a certificate that it has signed itself, for 127.0.0.1. Made for the tests alone: openssl req
# -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 -addext subjectAltName=IP:127.0.0.1
PEM = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg4+cjaqEIsevn1KVF
/07JJGDKI0Ozq6rx2Af/oAU8AB2hRANCAAT0uIVnPD+TOWYmoZfRMFQX9bDswsu8
X1FtsBOjlVgwY5EZOtND8fnIbb2Rut2W1xEQ3Sf47GZeMY5K0HIFxwhE
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBlDCCATqgAwIBAgIUTd9HbSck/WmJnsNJCZdJw3hyW4UwCgYIKoZIzj0EAwIw
FjEUMBIGA1UEAwwLaWRhZ2ctdGVzdHMwIBcNMjYxMTI2MDMwNjUzWhgPMjEyNjEx
MDIwMzA2NTNaMBYxFDASBgNVBAMMC2lkYWdnLXRlc3RzMFkwEwYHKoZIzj0CAQYI
KoZIzj0DAQcDQgAE9LiFZzw/kzlmJqGX0TBUF/Ww7MLLvF9RbbATo5VYMGORGTrT
Q/H5yG29kbrdltcREN0n+OxmXjGOStByBccIRKNkMGIwHQYDVR0OBBYEFD0/NoYW
XBJ2m36FN4QWlGAZ9IqRMB8GA1UdIwQYMBaAFD0/NoYWXBJ2m36FN4QWlGAZ9IqR
MA8GA1UdEQQIMAaHBH8AAAEwDwYDVR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNI
ADBFAiEAh6G5Y3Gu8RgmC7JvbSVg8H/9s1lyQKxne0Ozi+Qf6ucCIAdseqYf/gsx
dK3kcXMhbeBRWVTzIZXIzck+Q/V8k32q
-----END CERTIFICATE-----
"""

# Package of Debian 12 → how to see that it is there.
PACKAGES: dict[str, Callable[[], object]] = {
    "redis-server": lambda: shutil.which("redis-server"),
    "rabbitmq-server": RABBITMQ.is_dir,
    "libfaketime": lambda: libfaketime(),
    "iproute2": lambda: shutil.which("ip"),
    "haproxy": lambda: shutil.which("haproxy"),
    "varnish": lambda: shutil.which("varnishd"),
    "nginx": lambda: shutil.which("nginx"),
    "curl": lambda: shutil.which("curl"),
    "wrk": lambda: shutil.which("wrk"),
    "systemd": lambda: shutil.which("systemd-analyze"),
    "prometheus": lambda: shutil.which("promtool"),
    "chromium": lambda: shutil.which("chromium"),
    # Of the program that Playwright drives Chromium with.
    "libatomic1": lambda: next(Path("/usr/lib").glob("*/libatomic.so.1"), None),
    "default-jdk-headless": lambda: shutil.which("javac"),
}


def libfaketime() -> Path | None:
    """What lets a server see another time, where it is preloaded."""
    return next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


def ensure_installed() -> None:
    """Install the servers and clients where that is possible, else end the test run and say what to type.

    What a package starts as a service of the machine is not used by any test.
    """
    missing = [package for package, is_there in PACKAGES.items() if not is_there()]
    if not missing:
        return
    install = (
        ["apt-get", "update"],
        ["apt-get", "install", "-y", "--no-install-recommends", *missing],
    )
    need = f"The tests need {', '.join(missing)}"
    by_hand = " && ".join(f"sudo {shlex.join(command)}" for command in install)
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        pytest.exit(f"{need}; install them with: {by_hand}", 1)
    for command in install:
        print(f"{need}: {shlex.join(command)}", flush=True)  # noqa: T201  who waits for it wants to know
        if subprocess.run(command, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}).returncode != 0:
            pytest.exit(f"That failed. {need}; install them with: {by_hand}", 1)


# Of those that ``free_port`` gives. Chromium calls some below it by no means.
_LOWEST_PORT = 11_000
# Descriptors of UDP sockets, which no server here uses: they hold the ports that were given last.
_given: collections.deque[int] = collections.deque()
_MOST_GIVEN = 64


def free_port() -> int:
    """A port that nobody listens at, for a server that is started later, or for none.

    It is below the ports that the kernel chooses: no connection and no other listener gets it meanwhile. And
    no other process of these tests is given it.
    """
    end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(_LOWEST_PORT, max(end, 2 * _LOWEST_PORT))
        with socket.socket(type=socket.SOCK_DGRAM) as held:
            try:
                held.bind(("127.0.0.1", port))
                socket.create_server(("127.0.0.1", port)).close()
            except OSError:  # it is another's
                continue
            _given.append(held.detach())
        if len(_given) > _MOST_GIVEN:
            os.close(_given.popleft())
        return port


class Server:
    """One server process; ``start`` returns when it answers, ``close`` leaves nothing behind.

    Its folder is in ``parent``, or where temporary files are, which may be memory.
    """

    start_timeout_s = 30.0
    parent: Path | None = None

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="idagg-", dir=self.parent))
        self._process: subprocess.Popen[bytes] | None = None

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _environment(self) -> dict[str, str]:
        return {}

    def _answers(self) -> bool:
        raise NotImplementedError

    @property
    def pid(self) -> int:
        assert self._process is not None, "not running"
        return self._process.pid

    def start(self) -> None:
        assert self._process is None, "already running"
        output = self.folder / "output"
        with output.open("wb") as stream:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd=self.folder,
                env=os.environ | self._environment(),
            )
        deadline_s = time.monotonic() + self.start_timeout_s
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.kill()
                raise RuntimeError(f"{type(self).__name__} did not start:\n{output.read_text()}")
            time.sleep(0.002)

    def stop(self) -> None:
        """End it as an administrator does: SIGTERM, and wait."""
        self.thaw()
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as the kernel does: kill -9."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start; ports stay, and so does what the server keeps on disk."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Let it answer nothing from now on, its connections staying open."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)  # until its last thread has stopped

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        if self._process is not None:
            self.kill()
        shutil.rmtree(self.folder)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None, "not running"
        self._process.send_signal(number)
        self._process.wait(timeout=60)
        self._process = None


class RedisServer(Server):
    """One of ``kit.engines``; keeps nothing on disk unless ``appendonly`` is set.

    ``options`` are the server's own, with underscores: ``RedisServer(maxmemory="2mb", appendonly="yes")``.
    """

    def __init__(
        self,
        kind: str = "valkey",
        *,
        tcp: bool = False,
        **options: str,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.socket = self.folder / "s"
        self.port = free_port() if tcp else 0
        self.options = {"save": "", **options}

    @property
    def url(self) -> str:
        return f"unix://{self._login}{self.socket}"

    @property
    def tcp_url(self) -> str:
        assert self.port, "made without tcp=True"
        return f"redis://{self._login}127.0.0.1:{self.port}"

    @property
    def _login(self) -> str:
        password = self.options.get("requirepass")
        return f":{password}@" if password else ""

    def _command(self) -> list[str]:
        command = [engines.program(self.kind), "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--unixsocket", str(self.socket)]
        for name, value in self.options.items():
            command += [f"--{name.replace('_', '-')}", value]
        return command

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            try:
                client.connect(str(self.socket))
                client.sendall(b"PING\r\n")
                return client.recv(64).startswith((b"+PONG", b"-NOAUTH"))
            except OSError:
                return False


class RabbitServer(Server):
    """A RabbitMQ node of its own, without plugins, with an epmd of its own; ``tls_port`` is for amqps.

    ``beside`` is a node whose epmd and whose cookie it shares, as nodes of a cluster do.
    """

    start_timeout_s = 60.0

    def __init__(self, *, beside: RabbitServer | None = None) -> None:
        super().__init__()
        # By address: a bare machine may not know the name localhost.
        self.name = f"{self.folder.name}@127.0.0.1"
        self.configuration = self.folder / "rabbitmq.conf"
        self.port = free_port()
        self.tls_port = free_port()
        self.pem = self.folder / "pem"
        self.pem.write_text(PEM)
        self.configuration.write_text(
            f"listeners.tcp.default = 127.0.0.1:{self.port}\n"
            f"listeners.ssl.default = 127.0.0.1:{self.tls_port}\n"
            f"ssl_options.certfile = {self.pem}\n"
            f"ssl_options.keyfile = {self.pem}\n"
        )
        self._distribution_port = free_port()
        self._beside = beside
        self._home: Path = beside._home if beside else self.folder
        self._epmd_port: int = beside._epmd_port if beside else free_port()
        self._epmd: subprocess.Popen[bytes] | None = None
        (self.folder / "plugins").write_text("[].")
        (self.folder / "env.conf").touch()

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def ctl(self, *arguments: str) -> str:
        """What ``rabbitmqctl`` prints."""
        return subprocess.run(
            [RABBITMQ / "rabbitmqctl", "--quiet", *arguments],
            env=os.environ | self._environment(),
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        ).stdout

    def start(self) -> None:
        if self._epmd is None and self._beside is None:
            self._epmd = subprocess.Popen(["epmd", "-port", str(self._epmd_port), "-address", "127.0.0.1"])
        super().start()

    def close(self) -> None:
        super().close()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()

    def _command(self) -> list[str]:
        return [str(RABBITMQ / "rabbitmq-server")]

    def _environment(self) -> dict[str, str]:
        return {
            "HOME": str(self._home),  # of the Erlang cookie
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_AFLAGS": "-start_epmd false",  # it would become a daemon, and outlive the node
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_USE_LONGNAME": "true",
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "env.conf"),
            # The start script then becomes the node instead of its parent, so that the pid is the node's.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-noinput",
        }

    def _answers(self) -> bool:
        with socket.socket() as client:
            client.settimeout(1)
            try:
                client.connect(("127.0.0.1", self.port))
                client.sendall(b"AMQP\x00\x00\x09\x01")
                return client.recv(1) == b"\x01"  # the frame type of Connection.Start
            except OSError:
                return False
