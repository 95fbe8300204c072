"""The servers behind a URL, and clients of the shards that they hold."""

from __future__ import annotations

from collections.abc import Callable

from idagg.store.client import Client
from idagg.store.topology import Source, nodes


class Servers:
    """What a process knows of its store's servers. ``replicas`` of each have what a script has done before
    its answer counts. For ``read_again`` see ``Source``."""

    def __init__(
        self, url: str, *, replicas: int = 0, read_again: Callable[[], str | None] = lambda: None
    ) -> None:
        self._source = Source(url, read_again)
        self._nodes = nodes(self._source)
        self._replicas = replicas

    def client(self, tag: str, *, timeout_s: float | None = None) -> Client:
        """A client, with a connection of its own, of the server that has the shard TAG; see ``Client``."""
        return Client(
            self._source.url,
            tag=tag,
            timeout_s=timeout_s,
            replicas=self._replicas,
            at=(self._source, self._nodes),
        )
