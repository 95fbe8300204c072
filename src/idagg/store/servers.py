"""The servers behind a URL, and clients of the shards that they hold."""

from __future__ import annotations

from idagg.store.client import Client


class Servers:
    def __init__(self, url: str) -> None:
        self._url = url

    def client(self, tag: str, *, timeout_s: float | None = None) -> Client:
        """A client, with a connection of its own, of the server that has the shard TAG; see ``Client``."""
        return Client(self._url, timeout_s=timeout_s)
