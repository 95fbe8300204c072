"""Ports that tests choose beforehand."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from kit.servers import free_port


def test_each_is_given_once() -> None:
    """To nobody else, and not by the kernel; whoever it was given to can listen there."""
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == len(ports)
    assert max(ports) < int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in ports:
        with (
            socket.socket(type=socket.SOCK_DGRAM) as another,
            socket.create_server(("127.0.0.1", port)),
            pytest.raises(OSError, match="Address already in use"),
        ):
            another.bind(("127.0.0.1", port))
