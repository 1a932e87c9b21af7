"""The addresses of participants' hosts, looked up in threads of their own."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult

_DNS_THREADS = 64
"""Lookups at one time. A name whose server is silent holds one, and must not hold up others."""


class Resolver(AbstractResolver):
    """Looks names up in threads of its own, so that a silent name server holds up nobody else's
    threads."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_DNS_THREADS, thread_name_prefix="resolver")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, _addresses, host, port, family)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=found_family,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found_family, protocol, address in found
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _addresses(
    host: str, port: int, family: socket.AddressFamily
) -> list[tuple[socket.AddressFamily, int, str]]:
    found = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, family=family, flags=socket.AI_ADDRCONFIG
    )
    return [(kind, protocol, str(address[0])) for kind, _, protocol, _, address in found]
