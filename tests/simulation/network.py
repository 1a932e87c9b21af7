"""A network of machines: TCP as programs see it, and everything that goes wrong on its way.

Rules
- A direction of a connection delivers what was written in order, or the connection ends. A piece is
  late by a drawn time; one that is lost is sent again after a timeout that doubles, as TCP does, so
  a partition that heals lets the connection go on after a while.
- A program that is killed is hung up by its kernel: what it wrote still goes, then an end or a
  reset. A machine without power says nothing; whoever speaks to it afterwards is reset.
- A stopped program (SIGSTOP) is still connected: its kernel accepts and acknowledges.
- Every direction draws from a generator of its own, so that the order in which a program closes
  its connections changes nothing but that.

Left out: send buffers that fill up (`write` always takes everything), and pieces longer than a
segment arrive whole or split once.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import Context, copy_context
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol, cast

from tests.simulation.loop import PROCESS, Process, SimLoop

FIRST_TIMEOUT_S = 0.2
Factory = Callable[[], asyncio.BaseProtocol]
LAST_TIMEOUT_S = 4.0
"""Linux goes on doubling up to two minutes; shorter keeps the time after a healing short."""


@dataclass(slots=True)
class Weather:
    """How the network is. `split`: the share of pieces that arrive in two."""

    least_s: float = 0.0002
    mean_s: float = 0.001
    lost: float = 0.0
    split: float = 0.0
    reset: float = 0.0


class Machine:
    """Something with an address; at most one program runs on it."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.has_power = True
        self.listeners: dict[int, Listener] = {}
        self.endpoints: dict[Endpoint, None] = {}

    def hang_up(self, process: Process, *, silently: bool, draw: Random) -> None:
        """What the kernel does when a program ends; `silently`: the kernel is gone, too."""
        for port, listener in list(self.listeners.items()):
            if listener.process is process:
                del self.listeners[port]
        for endpoint in list(self.endpoints):
            if endpoint.process is process:
                endpoint.abandon(silently=silently, reset=draw.random() < 0.5)


@dataclass(slots=True)
class Listener:
    """A port that is listened on."""

    factory: Factory
    process: Process
    context: Context


class SimNetwork:
    """All machines, their links, and what is cut."""

    def __init__(self, loop: SimLoop, random: Random) -> None:
        self.loop = loop
        self.weather = Weather()
        self.machines: dict[str, Machine] = {}
        self.cuts: dict[tuple[str, str], int] = {}
        """(from, to) → how many faults cut this direction now."""
        self.delays: dict[tuple[str, str], tuple[float, float]] = {}
        """(from, to) → by how much everything is later at least, and by how much more at most."""
        self.connections = self.resets = self.flipped = 0
        self.flips = 0.0
        """The share of pieces of which a bit is another one when they arrive, TCP's checksum right
        all the same, to and from `flips_at`."""
        self.flips_at = 0
        self.serving: Callable[[Factory], Factory] = lambda factory: factory
        """What listens in the place of a factory of protocols."""
        self._random = random
        self._outside = Context()

    def add(self, machine: Machine) -> None:
        self.machines[machine.address] = machine

    def cut(self, pairs: Iterable[tuple[str, str]]) -> None:
        for pair in pairs:
            self.cuts[pair] = self.cuts.get(pair, 0) + 1

    def mend(self, pairs: Iterable[tuple[str, str]]) -> None:
        for pair in pairs:
            left = self.cuts[pair] - 1
            if left:
                self.cuts[pair] = left
            else:
                del self.cuts[pair]

    def is_cut(self, source: Machine, target: Machine) -> bool:
        return bool(self.cuts) and (source.name, target.name) in self.cuts

    def latency(self, draw: Random, source: Machine, target: Machine) -> float:
        weather = self.weather
        late = weather.least_s + draw.expovariate(1.0) * weather.mean_s
        if self.delays:
            least_s, more_s = self.delays.get((source.name, target.name), (0.0, 0.0))
            late += least_s + more_s * draw.random()
        if weather.lost and draw.random() < weather.lost:
            late += FIRST_TIMEOUT_S
        return late

    def perhaps_flipped(self, piece: bytes, draw: Random) -> bytes:
        if draw.random() >= self.flips:
            return piece
        self.flipped += 1
        changed = bytearray(piece)
        changed[draw.randrange(len(piece))] ^= 1 << draw.randrange(8)
        return bytes(changed)

    def later(self, when: float, callback: Callable[..., None], *args: Any) -> None:
        self.loop.call_at(when, callback, *args, context=self._outside)

    def endpoints(self) -> list[Endpoint]:
        """The dialing ends of all connections, in the order of their machines."""
        return [
            endpoint
            for machine in self.machines.values()
            for endpoint in machine.endpoints
            if endpoint.dialed
        ]

    # --- what the loop asks

    async def create_server(self, factory: Factory, host: Any, port: Any) -> Any:
        machine = self.machines[host]
        process = PROCESS.get()
        assert process is not None
        if port in machine.listeners:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        machine.listeners[port] = Listener(self.serving(factory), process, copy_context())
        return Server(machine, port)

    async def create_connection(
        self, factory: Factory, host: Any, port: Any, sock: Any
    ) -> tuple[Any, asyncio.BaseProtocol]:
        endpoint = sock if isinstance(sock, Endpoint) else await self.connect(host, port)
        protocol = factory()
        endpoint.begin(protocol)
        return endpoint, protocol

    async def connect(self, host: str, port: int) -> Endpoint:
        """A connection from the machine of the running process; raises OSError."""
        process = PROCESS.get()
        assert process is not None
        source: Machine = process.owner
        target = self.machines[host]
        self.connections += 1
        draw = Random(self._random.getrandbits(48))
        attempt = 0
        while True:
            await asyncio.sleep(self.latency(draw, source, target))
            cut = self.is_cut(source, target) or self.is_cut(target, source)
            if not cut and target.has_power:
                break
            await asyncio.sleep(min(2.0**attempt, LAST_TIMEOUT_S))
            attempt += 1
        listener = target.listeners.get(port)
        if listener is None:
            await asyncio.sleep(self.latency(draw, target, source))
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        number = 30_000 + self.connections % 30_000
        near = Endpoint(self, source, process, copy_context(), (source.address, number))
        near.dialed = True
        far = Endpoint(
            self, target, listener.process, listener.context.copy(), (target.address, port)
        )
        near.join(far, draw)
        far.join(near, Random(draw.getrandbits(48)))
        self.loop.call_soon(far.accept, listener.factory, context=far.context)
        try:
            await asyncio.sleep(self.latency(draw, target, source))
        except asyncio.CancelledError:
            near.abort()
            raise
        return near


class Server:
    """What `create_server` gives, as far as it is used."""

    def __init__(self, machine: Machine, port: int) -> None:
        self._machine = machine
        self._port = port
        self._listener = machine.listeners[port]
        self.sockets = [self]

    def getsockname(self) -> tuple[str, int]:
        return self._machine.address, self._port

    def is_serving(self) -> bool:
        return self._machine.listeners.get(self._port) is self._listener

    def close(self) -> None:
        if self.is_serving():
            del self._machine.listeners[self._port]

    async def wait_closed(self) -> None:
        """The connections are the business of their protocols."""


Message = tuple[Any, ...]
"""What programs agree on to send whole, in the place of bytes."""


class _End:
    """The last thing that a direction carries."""

    __slots__ = ("reset",)

    def __init__(self, *, reset: bool) -> None:
        self.reset = reset


_FIN, _RST = _End(reset=False), _End(reset=True)
Piece = bytes | Message | _End


class MessageProtocol(Protocol):
    """A protocol that takes messages; bytes never come to it, nor messages to others."""

    def message_received(self, message: Any) -> None: ...


class Endpoint(asyncio.Transport):
    """One end of a connection, and the direction that leads away from it."""

    family = 0
    """Of neither IPv4 nor IPv6: aiohttp leaves such sockets' options alone."""

    def __init__(
        self,
        network: SimNetwork,
        machine: Machine,
        process: Process,
        context: Context,
        address: tuple[str, int],
    ) -> None:
        super().__init__()
        self.network = network
        self.machine = machine
        self.process = process
        self.context = context
        self.address = address
        self.dialed = False
        self.peer: Endpoint
        self.protocol: asyncio.BaseProtocol | None = None
        self.user_timeout_s: float | None = None
        self._draw: Random
        self._queue: deque[tuple[float, Piece]] = deque()
        self._queued_bytes = 0
        self._last = 0.0
        self._pumping = False
        self._timeout_s = FIRST_TIMEOUT_S
        self._unanswered_since: float | None = None
        self._closing = False
        self._lost = False
        self._gone = False
        """The kernel does not know this connection any more: what comes for it is reset."""
        self._reading = True
        self._unread: deque[Piece] = deque()
        self._on_its_way_up = 0
        machine.endpoints[self] = None

    def join(self, peer: Endpoint, draw: Random) -> None:
        self.peer = peer
        self._draw = draw

    # --- its program's side: asyncio.Transport, and what is asked of its socket

    def begin(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol
        protocol.connection_made(self)
        self._read_on()

    def accept(self, factory: Factory) -> None:
        self.begin(factory())

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        match name:
            case "socket":
                return self
            case "sockname":
                return self.address
            case "peername":
                return self.peer.address
        return default

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """Of those that are set TCP_USER_TIMEOUT is played; nothing is kept alive here."""
        if (level, option) == (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT):
            self.user_timeout_s = value / 1000

    def fileno(self) -> int:
        return id(self)

    @property
    def has_unread(self) -> bool:
        """Whether the kernel has something that the program has not read yet."""
        return self._on_its_way_up > 0 or bool(self._unread)

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self.protocol is not None
        return self.protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self.network.loop.call_soon(self._read_on, context=self.context)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return self._queued_bytes

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._send(_FIN)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or not data or not self.process.alive:
            return
        piece = bytes(data)
        network, weather, draw = self.network, self.network.weather, self._draw
        if network.flips and network.flips_at in (self.address[1], self.peer.address[1]):
            piece = network.perhaps_flipped(piece, draw)
        if weather.reset and draw.random() < weather.reset:
            self.reset()
            return
        if weather.split and len(piece) > 1 and draw.random() < weather.split:
            at = draw.randrange(1, len(piece))
            self._send(piece[:at])
            piece = piece[at:]
        self._send(piece)

    def send(self, message: Message) -> None:
        """A message, which arrives whole or not at all."""
        if self._closing or not self.process.alive:
            return
        if self.network.weather.reset and self._draw.random() < self.network.weather.reset:
            self.reset()
            return
        self._send(message)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        if self._closing or not self.process.alive:
            return
        self._closing = True
        self._send(_FIN)
        self.network.loop.call_soon(self._connection_lost, None, context=self.context)

    def abort(self) -> None:
        if self._lost or not self.process.alive:
            return
        self._closing = True
        self._forget_queue()
        self._send(_RST)
        self.network.loop.call_soon(self._connection_lost, None, context=self.context)

    def _connection_lost(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._leave()
        if self.protocol is not None:
            self.protocol.connection_lost(error)

    def _read_on(self) -> None:
        while self._unread and self._reading and self.protocol is not None and not self._lost:
            piece = self._unread.popleft()
            if isinstance(piece, bytes):
                assert isinstance(self.protocol, asyncio.Protocol)
                if not self._closing:
                    self.protocol.data_received(piece)
            elif not isinstance(piece, _End):
                if not self._closing:
                    cast("MessageProtocol", self.protocol).message_received(piece)
            elif piece.reset:
                reset = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
                self._connection_lost(reset)
            else:
                assert isinstance(self.protocol, asyncio.Protocol)
                if not self._closing and not self.protocol.eof_received():
                    self.close()

    # --- the wire's side

    def reset(self) -> None:
        """Something on the way ends the connection for both."""
        self.network.resets += 1
        self._forget_queue()
        self.peer._forget_queue()
        self._send(_RST)
        self.peer._send(_RST)

    def abandon(self, *, silently: bool, reset: bool) -> None:
        """Its program is gone."""
        self._lost = self._closing = True
        if silently:
            self._forget_queue()
        else:
            self._send(_RST if reset else _FIN)
        self._leave()

    def _leave(self) -> None:
        self._gone = True
        self.machine.endpoints.pop(self, None)

    def _forget_queue(self) -> None:
        self._queue.clear()
        self._queued_bytes = 0

    def _send(self, piece: Piece) -> None:
        network = self.network
        ready = network.loop.now + network.latency(self._draw, self.machine, self.peer.machine)
        if ready <= self._last:
            ready = self._last + 1e-6
        self._last = ready
        self._queue.append((ready, piece))
        if isinstance(piece, bytes):
            self._queued_bytes += len(piece)
        if not self._pumping:
            self._pumping = True
            network.later(ready, self._pump)

    def _pump(self) -> None:
        """Deliver what is due, or try again later."""
        self._pumping = False
        network, target = self.network, self.peer.machine
        now = network.loop.now
        if not self._queue:
            return
        if not self.machine.has_power:
            self._forget_queue()
            return
        through = target.has_power and not network.is_cut(self.machine, target)
        if through and not network.is_cut(target, self.machine):
            self._unanswered_since = None
            self._timeout_s = FIRST_TIMEOUT_S
        elif self._unanswered_since is None:
            self._unanswered_since = now
        elif self.user_timeout_s and now - self._unanswered_since > self.user_timeout_s:
            self._forget_queue()
            timed_out = TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            network.loop.call_soon(self._connection_lost, timed_out, context=self.context)
            return
        if not through:
            self._pumping = True
            self._timeout_s = min(self._timeout_s * 2, LAST_TIMEOUT_S)
            network.later(now + self._timeout_s * (0.5 + self._draw.random() / 2), self._pump)
            return
        while self._queue and self._queue[0][0] <= now:
            _, piece = self._queue.popleft()
            if isinstance(piece, bytes):
                self._queued_bytes -= len(piece)
            self.peer._arrive(piece)
        if self._queue and not self._pumping:
            self._pumping = True
            network.later(self._queue[0][0], self._pump)

    def _arrive(self, piece: Piece) -> None:
        """In the kernel of its machine."""
        if self._gone:
            if not isinstance(piece, _End) and self.machine.has_power:
                self._send(_RST)
            return
        self._on_its_way_up += 1
        self.network.loop.call_soon(self._receive, piece, context=self.context)

    def _receive(self, piece: Piece) -> None:
        self._on_its_way_up -= 1
        self._unread.append(piece)
        self._read_on()
