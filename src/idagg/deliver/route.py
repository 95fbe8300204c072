"""The routes of a callback: the addresses of its host that the guard allows."""

from __future__ import annotations

import socket
from typing import NamedTuple

from idagg.deliver.guard import BlockedAddressError, Guard, dialled, refused_port
from idagg.deliver.resolve import Resolver
from idagg.deliver.schedule import Destination


class Route(NamedTuple):
    """``address`` is dialled; None: the proxy resolves the host."""

    address: str | None
    destination: Destination


class Router:
    """Finds the routes to a host, by the guard, the resolver and the proxy setting."""

    def __init__(self, guard: Guard, resolver: Resolver, *, has_proxy: bool) -> None:
        self._guard = guard
        self._resolver = resolver
        self._has_proxy = has_proxy

    async def routes(self, host: str, port: int) -> list[Route]:
        """The routes to the host, at least one.

        Raises BlockedAddressError if the guard allows none, OSError if the name cannot be resolved. With a
        proxy, a name is not resolved here: the proxy has to refuse forbidden addresses.
        """
        if refused_port(port):
            raise BlockedAddressError(f"port {port} belongs to another service")
        if self._has_proxy and not _is_literal(host):
            is_named = self._guard.for_host(host) is not self._guard
            if self._guard.only_allowed and not is_named:
                raise BlockedAddressError(f"{host} is not listed")
            return [Route(None, Destination(host, is_paced=not is_named))]
        addresses = await self._resolver.addresses(host, self._guard)
        return [
            Route(
                None if self._has_proxy else address,
                Destination(dialled(address), is_paced=not self._guard.is_exempt(host, address)),
            )
            for address in addresses
        ]


def _is_literal(host: str) -> bool:
    """Whether resolvers read ``host`` as an address, as they do 127.1 and 0x7f000001."""
    try:
        socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except OSError:
        return False
    return True
