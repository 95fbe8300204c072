"""A TCP connection to RabbitMQ, to the first of its addresses that answers (RFC 8305)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from aiohappyeyeballs import AddrInfoType, start_connection
from aiormq.connection import SSLContextProvider, TransportFactory
from yarl import URL

from idagg.errors import BrokerAwayError

# Delay before the next address is tried beside the previous one. RFC 8305 recommends it.
NEXT_ADDRESS_S = 0.25


async def addresses(host: str, port: int | None) -> Sequence[AddrInfoType]:
    return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)


class Dial(TransportFactory):
    """Connects by Happy Eyeballs, because uvloop waits for the kernel's timeout at each address in turn."""

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
