"""The resolver: the addresses of an endpoint's host that the guard allows."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import socket
import threading

from idagg.deliver.guard import BlockedAddressError, Guard

# A limit is needed, because the owner of a name chooses the number of its addresses.
_ADDRESSES = 8
# The system's default is 8 MiB of address space per thread, too much if address space is limited.
_STACK_BYTES = 524_288


class Resolver:
    """Queries the system's resolver, in its own threads.

    The event loop's default threads are few and shared. A dead name server blocks a thread for longer than an
    attempt lasts. If a caller is cancelled, its running lookup goes on, and a lookup still queued is dropped.
    """

    def __init__(self, threads: int) -> None:
        self._threads = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="callback-dns")

    async def addresses(self, host: str, guard: Guard) -> list[str]:
        """The host's addresses as literals, best first. A numeric host (``127.1``, ``0x7f000001``) has one.

        Raises BlockedAddressError if the guard refuses all of them, ``socket.gaierror`` if there are none.
        """
        lookup = functools.partial(
            socket.getaddrinfo, host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
        outside = threading.stack_size(_STACK_BYTES)  # for a thread that starts below
        try:
            future = asyncio.get_running_loop().run_in_executor(self._threads, lookup)
        finally:
            threading.stack_size(outside)
        found = dict.fromkeys(str(info[4][0]) for info in await future)
        guard = guard.for_host(host)
        lawful = [address for address in list(found)[:_ADDRESSES] if not guard.refusal(address)]
        if not lawful:
            raise BlockedAddressError(f"{host} has no address that may be called")
        return lawful

    def close(self) -> None:
        """Drop queued lookups. Running ones end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)
