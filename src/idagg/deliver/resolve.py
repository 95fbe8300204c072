"""The addresses of an endpoint's host, of which only those that the guard lets through are told."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import socket
import threading

from idagg.deliver.guard import BlockedAddressError, Guard

# A name's owner chooses how many it has.
_ADDRESSES = 8
# The system's default is 8 MiB of address space each, which counts where that is limited.
_STACK_BYTES = 524_288


class Resolver:
    """Asks the system's resolver, on threads of its own.

    The loop's threads are few and serve others, too, and a dead name server holds a thread for longer than an
    attempt lasts: a lookup whose caller has gone goes on, and those that wait for a thread are dropped.
    """

    def __init__(self, threads: int) -> None:
        self._threads = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="callback-dns")

    async def addresses(self, host: str, guard: Guard) -> list[str]:
        """Literals, best first; a numeric ``host`` in whatever form (``127.1``, ``0x7f000001``) is one, too.

        Raises BlockedAddressError if the guard refuses all of them, ``socket.gaierror`` if there are none.
        """
        lookup = functools.partial(
            socket.getaddrinfo, host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
        outside = threading.stack_size(_STACK_BYTES)  # the thread is started here, if it is
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
        """Lookups that run end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)
