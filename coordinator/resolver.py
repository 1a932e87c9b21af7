"""The addresses of participants' hosts, looked up in threads.

Rules
- A thread is given to one name until its server has answered, which a silent one does not for many
  seconds; nothing can end that. So there are so many threads at most, and names that were never
  found here have half of them: however many of those are silent, names in use are looked up.
- Names that were found before go first. Of each kind the one that came first does.
- Who has given up waits no more: a lookup that nobody waits for any more, and that has not begun,
  never does.
- What was found is remembered for a while, and whoever asks meanwhile waits for the same lookup. A
  failure is not remembered.
- The process ends without waiting for any name server: the threads are daemons.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import socket
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TypeAlias

_THREADS = 64
_THREADS_FOR_STRANGERS = 32

_REMEMBERED_S = 10.0
"""Short enough to follow a participant that moves."""

_MOST_REMEMBERED = 1_000

Address: TypeAlias = tuple[
    socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]
]
"""As `socket.getaddrinfo` gives it."""


@dataclass(slots=True, eq=False)
class _Lookup:
    """Of one name and port; `asking`: how many wait for it. `began_s`: None while it waits."""

    host: str
    port: int
    is_stranger: bool
    found: asyncio.Future[list[Address]]
    asking: int = field(default=0)
    began_s: float | None = field(default=None)


class Resolver:
    """Of one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lookups: dict[tuple[str, int], _Lookup] = {}
        self._waiting: dict[bool, OrderedDict[_Lookup, None]] = {
            False: OrderedDict(),
            True: OrderedDict(),
        }
        """Those that have no thread yet; by whether they are strangers."""
        self._threads = 0
        self._threads_for_strangers = 0
        self._were_found: OrderedDict[str, None] = OrderedDict()
        self._closed = False

    async def addresses(self, host: str, port: int) -> list[Address]:
        """Raises OSError."""
        literal = _literal(host, port)
        if literal is not None:
            return [literal]
        lookup = self._lookups.get((host, port))
        if lookup is None or self._is_old(lookup):
            lookup = self._new_lookup(host, port)
        lookup.asking += 1
        try:
            return await asyncio.shield(lookup.found)
        finally:
            lookup.asking -= 1
            if not lookup.asking and lookup.began_s is None:
                self._waiting[lookup.is_stranger].pop(lookup, None)
                self._forget(lookup)

    async def close(self) -> None:
        """Waits for no name server."""
        self._closed = True
        for lookup in self._lookups.values():
            lookup.found.cancel()
        self._lookups.clear()

    def _is_old(self, lookup: _Lookup) -> bool:
        if not lookup.found.done() or lookup.began_s is None:
            return False
        return self._loop.time() >= lookup.began_s + _REMEMBERED_S

    def _new_lookup(self, host: str, port: int) -> _Lookup:
        if len(self._lookups) >= _MOST_REMEMBERED:
            under_way = [each for each in self._lookups.items() if not each[1].found.done()]
            self._lookups = dict(under_way)
        is_stranger = host not in self._were_found
        lookup = _Lookup(host, port, is_stranger, self._loop.create_future())
        self._lookups[host, port] = lookup
        self._waiting[is_stranger][lookup] = None
        self._begin()
        return lookup

    def _begin(self) -> None:
        """As many of those that wait as there are threads for."""
        known, strangers = self._waiting[False], self._waiting[True]
        while self._threads < _THREADS and not self._closed:
            if known:
                lookup = known.popitem(last=False)[0]
            elif strangers and self._threads_for_strangers < _THREADS_FOR_STRANGERS:
                lookup = strangers.popitem(last=False)[0]
                self._threads_for_strangers += 1
            else:
                return
            self._threads += 1
            lookup.began_s = self._loop.time()
            thread = threading.Thread(
                target=self._look_up, args=(lookup,), name=f"resolver {lookup.host}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:
                what = "the system gives no thread to look it up"
                self._loop.call_soon(self._looked_up, lookup, OSError(errno.EAGAIN, what))

    def _look_up(self, lookup: _Lookup) -> None:
        """In a thread of its own."""
        found: list[Address] | Exception
        try:
            found = _addresses(lookup.host, lookup.port)
        except Exception as error:
            found = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._looked_up, lookup, found)

    def _looked_up(self, lookup: _Lookup, found: list[Address] | Exception) -> None:
        self._threads -= 1
        self._threads_for_strangers -= lookup.is_stranger
        if not lookup.found.done():
            if isinstance(found, Exception):
                lookup.found.set_exception(found)
                lookup.found.exception()  # who asked may have gone: not an error of ours
                self._forget(lookup)
            else:
                lookup.found.set_result(found)
                self._was_found(lookup.host)
        self._begin()

    def _was_found(self, host: str) -> None:
        self._were_found[host] = None
        self._were_found.move_to_end(host)
        if len(self._were_found) > _MOST_REMEMBERED:
            self._were_found.popitem(last=False)

    def _forget(self, lookup: _Lookup) -> None:
        key = lookup.host, lookup.port
        if self._lookups.get(key) is lookup:
            del self._lookups[key]


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
