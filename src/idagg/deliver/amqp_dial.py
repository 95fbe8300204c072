"""A connection to RabbitMQ's port, by whichever address of its name answers first (RFC 8305)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from aiohappyeyeballs import AddrInfoType, start_connection
from aiormq.connection import SSLContextProvider, TransportFactory
from yarl import URL

from idagg.errors import BrokerAwayError

# After which the next address is tried beside the one before. RFC 8305 recommends it.
NEXT_ADDRESS_S = 0.25


async def addresses(host: str, port: int | None) -> Sequence[AddrInfoType]:
    return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)


class Dial(TransportFactory):
    """uvloop itself would try one address after the other, each for as long as the kernel does."""

    async def create(
        self, url: URL, **options: SSLContextProvider
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        assert url.host is not None
        context = None
        if url.scheme == "amqps":
            try:
                context = await options["ssl_context_provider"].get_context()
            except OSError as error:  # ssl.SSLError is one
                raise BrokerAwayError(
                    f"a certificate that --amqp-url names cannot be read: {error.strerror or error}"
                ) from error
        found = await addresses(url.host, url.port)
        connected = await start_connection(found, happy_eyeballs_delay=NEXT_ADDRESS_S)
        try:
            return await asyncio.open_connection(
                sock=connected, ssl=context, server_hostname=url.host if context else None
            )
        except BaseException:
            connected.close()
            raise
