"""Connections to participants: made where there is none, kept for a moment after use.

Rules
- A failure to connect is mapped once, here, to words for people: `NoConnection`.
- Servers close idle connections whenever they like, so one that was idle for longer than a server's
  shortest usual patience is not used again, and what is given out is quiet (`Connection.is_quiet`).
- There are so many at most, and so many to one origin, idle ones included: connections are files,
  and what uses up a node's files keeps its clients and its peers out. Who finds no place waits for
  one, or for a connection that gets free (`coordinator/places.py`).
- Only some begin in one turn of the loop. A new leader finds thousands of branches, perhaps each at
  a host of its own; what begins together goes on and fails together, and a turn of that would be
  longer than followers wait for their leader, and the next one would find the same.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections import defaultdict, deque

import aiohappyeyeballs

from coordinator.participant_connection import Connection, Origin
from coordinator.places import Places
from coordinator.resolver import Resolver
from coordinator.sockets import drop_unacknowledged, keep_alive

IDLE_S = 0.75
"""How long an unused connection is kept. Some servers close after one second, many after two or
five."""

NEXT_ADDRESS_S = 0.25
"""A name's next address is tried when the one before has been silent for so long (RFC 8305)."""

DIALS_A_TURN = 16
"""Two or three milliseconds, 0.17 for each that is refused."""

_QUIET_S, _ASK_EVERY_S, _ASK_TIMES, _UNACKNOWLEDGED_MS = 10, 5, 4, 30_000
"""A host that is silent for 10 s is asked for its connections; one that acknowledges nothing for
30 s is given up. Else calls would hang for as long as their transactions last."""


class NoConnection(Exception):
    """There is none, for a reason that the text tells. Nothing was sent."""


class Connections:
    """Of one kind of calls: what fills its places holds up no other kind. `most`: at one time."""

    def __init__(self, resolver: Resolver, *, most: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._resolver = resolver
        self._places: Places[Origin, asyncio.Future[Connection | None]] = Places(most)
        self._idle: defaultdict[Origin, list[Connection]] = defaultdict(list)
        """Those used last at the end."""
        self._open: dict[Connection, Origin] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._dials = 0
        """Begun in this turn of the loop; the next one is asked for if there are any."""
        self._in_line: deque[asyncio.Future[None]] = deque()
        self._closed = False

    def kept(self, origin: Origin) -> Connection | None:
        """One that is open and quiet, if there is one; it is the caller's then."""
        idle = self._idle.get(origin)
        if not idle:
            return None
        stale_s = self._loop.time() - IDLE_S
        while idle:
            connection = idle.pop()
            if connection.idle_since_s >= stale_s and connection.is_quiet():
                return connection
            connection.abort()
        return None

    async def made(self, origin: Origin) -> Connection:
        """A new one, or one that got free while there was no place; raises NoConnection."""
        while not self._places.take(origin):
            free = await self._free_one(origin)
            if free is None:
                break  # but a place for a new one
            if free.is_quiet():
                return free
            free.abort()
        try:
            await self._its_turn()
            connection = await self._dialed(origin)
        except BaseException:
            self._leave(origin)
            raise
        if connection.is_open:
            self._open[connection] = origin
        else:  # it has ended already, and said so when it was nobody's
            self._leave(origin)
        return connection

    async def _its_turn(self) -> None:
        if self._dials == 0:
            self._loop.call_soon(self._next_turn)
        if self._dials < DIALS_A_TURN:
            self._dials += 1
            return
        turn: asyncio.Future[None] = self._loop.create_future()
        self._in_line.append(turn)
        await turn

    def _next_turn(self) -> None:
        self._dials = 0
        while self._in_line and self._dials < DIALS_A_TURN:
            turn = self._in_line.popleft()
            if not turn.done():  # else who waited has given up
                turn.set_result(None)
                self._dials += 1
        if self._dials:
            self._loop.call_soon(self._next_turn)

    async def _free_one(self, origin: Origin) -> Connection | None:
        """Waits for a connection or a place (None); it is the caller's then."""
        if self._places.taken >= self._places.most:
            self._end_an_idle_one()
        future: asyncio.Future[Connection | None] = self._loop.create_future()
        self._places.wait(origin, future)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self._places.withdraw(origin, future)
            if future.done():  # it was given one in this moment
                given = future.result()
                if given is None:
                    self._leave(origin)
                else:
                    self._free(given)
            raise

    def _end_an_idle_one(self) -> None:
        """Of whatever origin: a place is worth more."""
        for idle in self._idle.values():
            if idle:
                idle.pop(0).abort()
                return

    def _leave(self, origin: Origin) -> None:
        waiter = self._places.leave(origin)
        if waiter is not None:
            waiter.set_result(None)

    async def _dialed(self, origin: Origin) -> Connection:
        try:
            addresses = await self._resolver.addresses(origin.host, origin.port)
        except OSError as error:
            what = f"host {origin.host!r} cannot be resolved: {error.strerror or error}"
            raise NoConnection(what) from error
        try:
            sock = await aiohappyeyeballs.start_connection(
                addresses, happy_eyeballs_delay=NEXT_ADDRESS_S, loop=self._loop
            )
            _notice_the_end(sock)
            _, connection = await self._loop.create_connection(
                functools.partial(Connection, self._loop, self._free),
                sock=sock,
                ssl=_verifying() if origin.is_tls else None,
                server_hostname=origin.host.rstrip(".") if origin.is_tls else None,
            )
        except ssl.SSLCertVerificationError as error:
            what = f"its TLS certificate is not accepted: {error.verify_message}"
            raise NoConnection(what) from error
        except ssl.SSLError as error:
            raise NoConnection(f"TLS failed: {error}") from error
        except OSError as error:
            raise NoConnection(f"no connection: {error.strerror or error}") from error
        return connection

    async def close(self) -> None:
        """Close all. Nothing may be under way any more."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in self._open:
            connection.close()
        self._idle.clear()
        await asyncio.sleep(0)  # connections that end say so in the loop's next turn

    def _free(self, connection: Connection) -> None:
        """What was under way on it is over, or it is lost itself."""
        origin = self._open.get(connection)
        if origin is None:
            return
        if not connection.is_open:
            del self._open[connection]
            self._leave(origin)
            return
        if self._closed:
            connection.close()
            return
        if self._places.waiting:
            waiter = self._places.next_of(origin)
            if waiter is not None:
                waiter.set_result(connection)
                return
            if self._places.is_wanted:
                connection.abort()
                return
        connection.idle_since_s = self._loop.time()
        self._idle[origin].append(connection)
        if self._sweep is None:
            self._sweep = self._loop.call_later(IDLE_S, self._close_idle)

    def _close_idle(self) -> None:
        """Those that nobody used for a while; again after the same time, if any are left."""
        self._sweep = None
        stale_s = self._loop.time() - IDLE_S
        for origin, idle in list(self._idle.items()):
            fresh = [each for each in idle if each.is_open and each.idle_since_s > stale_s]
            for connection in idle:
                if connection.is_open and connection.idle_since_s <= stale_s:
                    connection.close()
            if fresh:
                self._idle[origin] = fresh
            else:
                del self._idle[origin]
        if self._idle:
            self._sweep = self._loop.call_later(IDLE_S, self._close_idle)


def _notice_the_end(sock: socket.socket) -> None:
    """Of the other machine."""
    keep_alive(sock, quiet_s=_QUIET_S, every_s=_ASK_EVERY_S, times=_ASK_TIMES)
    drop_unacknowledged(sock, _UNACKNOWLEDGED_MS)


@functools.cache
def _verifying() -> ssl.SSLContext:
    """Made when it is first asked for: it reads the system's certificates."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
