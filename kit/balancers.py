"""What stands before idagg where it is deployed: private instances of real load balancers and caches."""

from __future__ import annotations

import contextlib
import csv
import socket
from pathlib import Path

from kit.servers import Server, free_port


class Balancer(Server):
    """Listens on ``port``, and passes requests on to idagg at ``target``, a port on loopback."""

    def __init__(self, target: int) -> None:
        super().__init__()
        self.target = target
        self.port = free_port()

    def close(self) -> None:
        """End it with its children."""
        if self._process is not None:
            self.stop()
        super().close()

    def _write(self, name: str, text: str) -> Path:
        file = self.folder / name
        file.write_text(text)
        return file

    def _answers(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0


class Varnish(Balancer):
    """With its built-in VCL: it keeps every answer for 120 s unless that says something else."""

    start_timeout_s = 60.0  # it compiles its VCL

    def _command(self) -> list[str]:
        return [
            *("varnishd", "-F", "-j", "none", "-n", str(self.folder / "varnish")),
            *("-a", f"127.0.0.1:{self.port}", "-b", f"127.0.0.1:{self.target}"),
            *("-T", "none", "-S", "none", "-s", "malloc,16m"),
        ]


class HAProxy(Balancer):
    """With one server, checked ten times a second as ``check`` says."""

    def __init__(self, target: int, *check: str) -> None:
        super().__init__(target)
        self._check = check
        self._stats = self.folder / "stats"

    def state(self) -> str:
        """What it thinks of the server: UP, DOWN, or on its way."""
        return self._row()["status"]

    def last_check(self) -> str | None:
        """How the last check ended: ``L7OK`` is well; None before there was one."""
        outcome = self._row()["check_status"].removeprefix("* ")
        return None if outcome == "INI" else outcome

    def _answers(self) -> bool:
        with contextlib.suppress(
            OSError
        ):  # the listener comes first, and the socket's name before it listens
            return super()._answers() and bool(self._row())
        return False

    def _row(self) -> dict[str, str]:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self._stats))
            client.sendall(b"show stat\n")
            text = b""
            while data := client.recv(65536):
                text += data
        rows = csv.DictReader(text.decode().removeprefix("# ").splitlines())
        return next(row for row in rows if row["svname"] == "idagg")

    def _command(self) -> list[str]:
        lines = [
            "global",
            f"    stats socket {self._stats}",
            "defaults",
            "    mode http",
            "    timeout connect 5s",
            "    timeout client 10s",
            "    timeout server 10s",
            "listen all",
            f"    bind 127.0.0.1:{self.port}",
            # Otherwise that is the interval, and a busy machine looks like a server that is down.
            "    timeout check 10s",
            *(f"    {line}" for line in self._check),
            f"    server idagg 127.0.0.1:{self.target} check inter 100ms fall 2 rise 2",
        ]
        return ["haproxy", "-db", "-f", str(self._write("haproxy.cfg", "\n".join(lines) + "\n"))]


class DocumentedHAProxy(Balancer):
    """With ``config``, its sections as the documents show them."""

    def __init__(self, config: str) -> None:
        super().__init__(0)
        self._config = config.replace("bind :80", f"bind 127.0.0.1:{self.port}")

    def _command(self) -> list[str]:
        timeouts = ["connect 1s", "client 10s", "server 10s"]
        lines = ["defaults", "    mode http", *(f"    timeout {line}" for line in timeouts), self._config]
        return ["haproxy", "-db", "-f", str(self._write("haproxy.cfg", "\n".join(lines) + "\n"))]


class Nginx(Balancer):
    """One process that passes everything on, with these lines more in its ``location``."""

    def __init__(self, target: int, *location: str) -> None:
        super().__init__(target)
        self._location = location

    def _command(self) -> list[str]:
        passing = "".join(f" {line}" for line in self._location)
        return self._nginx(f"""
    upstream idagg {{ server 127.0.0.1:{self.target}; keepalive 16; }}
    server {{
        listen 127.0.0.1:{self.port};
        keepalive_requests 100000;
        location / {{ proxy_pass http://idagg;{passing} }}
    }}
""")

    def _nginx(self, servers: str) -> list[str]:
        paths = "".join(
            f" {kind}_temp_path {self.folder / kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config = f"""
daemon off; master_process off; error_log stderr; pid {self.folder / "pid"};
events {{ worker_connections 512; }}
http {{
    access_log off;{paths}
{servers}
}}
"""
        return ["nginx", "-c", str(self._write("nginx.conf", config)), "-p", str(self.folder)]


class DocumentedNginx(Nginx):
    """With ``config``, its blocks as the documents show them."""

    def __init__(self, config: str) -> None:
        super().__init__(0)
        self._config = config.replace("listen 80", f"listen 127.0.0.1:{self.port}")

    def _command(self) -> list[str]:
        return self._nginx(self._config)
