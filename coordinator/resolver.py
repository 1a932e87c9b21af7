"""The addresses of participants' hosts, looked up in threads of their own.

A name whose server is silent holds up nobody else's threads. What was found is remembered for a
while, and whoever asks meanwhile waits for the same lookup.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

_THREADS = 64
"""Lookups at one time. A name whose server is silent holds one, and must not hold up others."""

_REMEMBERED_S = 10.0
"""Short enough to follow a participant that moves."""

_MOST_REMEMBERED = 1_000

Address: TypeAlias = tuple[
    socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]
]
"""As `socket.getaddrinfo` gives it."""


class Resolver:
    """Of one event loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="resolver")
        self._lookups: dict[tuple[str, int], tuple[float, asyncio.Future[list[Address]]]] = {}
        """When each began; it may be under way still."""

    async def addresses(self, host: str, port: int) -> list[Address]:
        """Raises OSError."""
        literal = _literal(host, port)
        if literal is not None:
            return [literal]
        loop = asyncio.get_running_loop()
        key = host, port
        since_s, lookup = self._lookups.get(key, (0.0, None))
        if lookup is None or (lookup.done() and loop.time() >= since_s + _REMEMBERED_S):
            if len(self._lookups) >= _MOST_REMEMBERED:
                self._lookups.clear()
            lookup = loop.run_in_executor(self._threads, _addresses, host, port)
            self._lookups[key] = loop.time(), lookup
            lookup.add_done_callback(functools.partial(self._looked_up, key))
        return await asyncio.shield(lookup)

    async def close(self) -> None:
        """Waits for no name server."""
        for _, lookup in self._lookups.values():
            lookup.cancel()
        self._lookups.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _looked_up(self, key: tuple[str, int], lookup: asyncio.Future[list[Address]]) -> None:
        """A failure is not remembered."""
        if lookup.cancelled() or lookup.exception() is not None:
            self._lookups.pop(key, None)


@functools.lru_cache(maxsize=1024)
def _literal(host: str, port: int) -> Address | None:
    """The address that is written out already."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if address.version == 4:
        return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port)
    return socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port, 0, 0)


def _addresses(host: str, port: int) -> list[Address]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)  # type: ignore[return-value]  # of the kinds that are asked for
