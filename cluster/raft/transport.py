"""Messages between nodes over TCP: one stream for each direction, dialed by the one who speaks.

Rules
- A stream begins with `Hello`, answered by `Welcome` or `Refused`; then frames flow from dialer to
  acceptor and nothing flows back. Who is refused: `cluster/raft/handshakes.py`.
- Peers whose logs were founded apart do not hear each other, also when that is known only after
  they were connected.
- Of one peer only the newest stream delivers: what travelled on another is lost, never late.
- `send` queues; `flush` lets go. The replica calls `flush` when the journal holds what the messages
  claim. A message to a peer that is not connected is dropped: the protocol above repeats itself.
- Buffers are bounded: a peer that does not read is disconnected; so is one whose machine is gone.
- Traffic is neither encrypted nor authenticated yet (`Hello.credential` is the place), so binding
  beyond loopback is refused.

Only `loop.create_server` and `loop.create_connection` are used, so that another loop can put
another network in their place.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Final, TypeAlias, cast

from cluster.errors import StorageError
from cluster.raft import wire
from cluster.raft.handshakes import Handshakes
from cluster.raft.wire import BadFrame, Frames, Hello, Message, RaftMessage, Refused, Welcome
from cluster.storage.fellows import Fellows
from coordinator.sockets import drop_unacknowledged, keep_alive

log = logging.getLogger(__name__)

Address: TypeAlias = tuple[str, int]

_UNACKNOWLEDGED_MS: Final = 4000
"""A connection whose bytes were not acknowledged for so long is dropped, else a healed partition
would stay closed until the kernel's next try."""
_SAME_LINE_S: Final = 10.0


class NotLoopback(ValueError):
    """The Raft port was to be bound where others than this machine can reach it."""


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """Times and sizes of the transport."""

    connect_timeout_s: float = 2.0
    handshake_timeout_s: float = 3.0
    reconnect_min_s: float = 0.05
    reconnect_max_s: float = 0.5
    max_backlog_bytes: int = 64 * 1024 * 1024
    """Unsent bytes after which a peer counts as not reading: its stream is cut."""
    max_strangers: int = 64
    """Streams to this node whose handshake is not over. With one more the oldest is cut: a crowd
    that says nothing does not keep the peers out, whose handshakes take no time."""


class Transport:
    """One node's streams to and from its peers. All of it runs on the event loop's thread."""

    def __init__(
        self,
        *,
        node: str,
        cluster: str,
        peers: Mapping[str, Address],
        bind: Address,
        random: Random,
        fellows: Fellows,
        on_message: Callable[[str, RaftMessage], None],
        on_connected: Callable[[str], None],
        on_disconnected: Callable[[str], None],
        on_another: Callable[[str], None],
        on_failed: Callable[[StorageError], None],
        limits: TransportLimits | None = None,
        boot: bytes | None = None,
    ) -> None:
        """`peers` are the other nodes and where they are reached; `bind` is where this one listens.

        `boot`, `wire.BOOT_BYTES` long, must differ from that of any earlier start of this node:
        peers refuse streams that seem to come from before. Drawn from `random` by default.
        `on_connected` tells of a stream towards a peer, the one we send on, `on_disconnected` that
        a stream has ended, in either direction (`is_connected` and `is_in_touch` say what is left);
        `on_another` that a peer knows this node by another data directory; `on_failed` of a disk.
        """
        refuse_beyond_loopback(bind)
        self.node = node
        self.cluster = cluster
        self.limits = limits or TransportLimits()
        self.boot = random.randbytes(wire.BOOT_BYTES) if boot is None else boot
        self.handshakes = Handshakes(node, cluster, peers, fellows)
        self.blocked: set[str] = set()
        """Peers that this node neither hears nor reaches: a partition, for tests."""
        self.on_message = on_message
        self.on_connected = on_connected
        self.on_disconnected = on_disconnected
        self.on_another = on_another
        self.on_failed = on_failed
        self.inbound: dict[str, _Acceptor] = {}
        self.streams: dict[_Stream, None] = {}
        self.dials = 0
        self._peers = dict(peers)
        self._bind = bind
        self._random = random
        self._outbound: dict[str, _Dialer] = {}
        self._outbox: list[tuple[str, RaftMessage]] = []
        self._server: asyncio.Server | None = None
        self._dialing: list[asyncio.Task[None]] = []
        self._closed = False
        self._told: dict[str, float] = {}

    async def start(self) -> None:
        """Listen and begin to dial. Raises OSError when the port is busy."""
        loop = asyncio.get_running_loop()
        host, port = self._bind
        self._server = await loop.create_server(lambda: _Acceptor(self), host, port)
        self._dialing = [loop.create_task(self._dial(peer)) for peer in self._peers]

    @property
    def port(self) -> int:
        """The port that is listened on; what was given as 0 is known after `start`."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Cut every stream at once and stop listening. What is queued is lost."""
        if self._closed:
            return
        self._closed = True
        for task in self._dialing:
            task.cancel()
        if self._server is not None:
            self._server.close()
        for stream in list(self.streams):
            stream.abort()

    async def wait_closed(self) -> None:
        """After `close`: until nothing of it runs any more."""
        await asyncio.gather(*self._dialing, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    def belong_to(self, founding: str) -> None:
        """This node's log is the one of that founding: peers with another one are cut off."""
        self.handshakes.founding = founding
        for stream in list(self.streams):
            stream.refuse_foreign()

    def knows(self, peer: str) -> bool:
        return peer in self._peers

    def is_connected(self, peer: str) -> bool:
        return peer in self._outbound

    def is_in_touch(self, peer: str) -> bool:
        """Whether a stream stands, in either direction: of a process that was killed none does."""
        return peer in self._outbound or peer in self.inbound

    def backlog(self, peer: str) -> int:
        """Bytes that wait to be sent to `peer`."""
        stream = self._outbound.get(peer)
        return stream.unsent() if stream is not None else 0

    def send(self, peer: str, message: RaftMessage) -> None:
        """Queue `message` until `flush`."""
        if peer in self._outbound:
            self._outbox.append((peer, message))

    def flush(self, only: tuple[type[RaftMessage], ...] | None = None) -> None:
        """Let go what is queued, in order; with `only`, messages of these types, the rest stays."""
        if not self._outbox:
            return
        stay: list[tuple[str, RaftMessage]] = []
        frames: dict[int, bytes] = {}  # one message to several peers is encoded once
        outgoing: dict[str, list[bytes]] = {}
        for peer, message in self._outbox:
            if only is not None and not isinstance(message, only):
                stay.append((peer, message))
            elif peer not in self.blocked:
                frame = frames.get(id(message))
                if frame is None:
                    frame = frames[id(message)] = wire.encode(message)
                outgoing.setdefault(peer, []).append(frame)
        self._outbox = stay
        for peer, parts in outgoing.items():
            stream = self._outbound[peer]
            if stream.unsent() > self.limits.max_backlog_bytes:
                self.tell(
                    f"{peer} reads nothing: its stream is cut with {stream.unsent()} B unsent"
                )
                stream.abort()
            else:
                stream.write(b"".join(parts))

    def tell(self, line: str) -> None:
        """Log `line`, not more often than every few seconds: peers repeat themselves."""
        now = asyncio.get_running_loop().time()
        if now - self._told.get(line, -_SAME_LINE_S) >= _SAME_LINE_S:
            if len(self._told) >= 256:
                self._told.clear()
            self._told[line] = now
            log.warning("%s: %s", self.node, line)

    @property
    def closed(self) -> bool:
        return self._closed

    def objection(self, hello: Hello) -> Refused | None:
        """Why the stream that begins with `hello` is refused, or None."""
        return (
            Refused("blocked") if hello.sender in self.blocked else self.handshakes.objection(hello)
        )

    def accepted(self, stream: _Acceptor, hello: Hello) -> None:
        """From now on `stream` alone delivers what its sender says."""
        self.handshakes.counts(hello)
        superseded = self.inbound.get(hello.sender)
        self.inbound[hello.sender] = stream
        if superseded is not None:
            superseded.abort()

    def dialed(self, stream: _Dialer) -> None:
        self._outbound[stream.peer] = stream
        self.on_connected(stream.peer)

    def lost(self, stream: _Dialer) -> None:
        if self._outbound.get(stream.peer) is stream:
            del self._outbound[stream.peer]
            self._outbox = [
                (peer, message) for peer, message in self._outbox if peer != stream.peer
            ]
            if not self._closed:
                self.on_disconnected(stream.peer)

    async def _dial(self, peer: str) -> None:
        """Keep a stream to `peer` for as long as the transport lives."""
        delay = self.limits.reconnect_min_s
        while True:
            if peer not in self.blocked and await self._dial_once(peer):
                delay = self.limits.reconnect_min_s
            await asyncio.sleep(delay * (0.5 + self._random.random()))
            delay = min(delay * 2, self.limits.reconnect_max_s)

    async def _dial_once(self, peer: str) -> bool:
        """One stream from its first to its last byte; whether it was ever established."""
        host, port = self._peers[peer]
        self.dials += 1
        stream = _Dialer(self, peer, self.dials)
        try:
            async with asyncio.timeout(self.limits.connect_timeout_s):
                await asyncio.get_running_loop().create_connection(lambda: stream, host, port)
        except OSError:
            return False
        return await stream.ended


class _Stream(asyncio.Protocol):
    """What both ends of a stream share: frames, the handshake's time limit, the end."""

    def __init__(self, owner: Transport) -> None:
        self.owner = owner
        self.frames = Frames()
        self.ready = False
        self.peer = ""
        self.founding = ""
        """Of the peer's log, as it was when the stream began."""
        self.transport: asyncio.Transport | None = None
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.owner.streams[self] = None
        if self.owner.closed:
            self.abort()
            return
        loop = asyncio.get_running_loop()
        self.timer = loop.call_later(self.owner.limits.handshake_timeout_s, self.abort)
        connection = transport.get_extra_info("socket")
        if connection is not None:
            drop_unacknowledged(connection, _UNACKNOWLEDGED_MS)
            keep_alive(connection, quiet_s=10, every_s=2, times=3)  # followers say nothing else

    def data_received(self, received: bytes) -> None:
        try:
            for message in self.frames.feed(received):
                if self.closing:
                    return
                self.receive(message)
        except BadFrame as error:
            self.cut(str(error))

    def connection_lost(self, error: Exception | None) -> None:
        del error  # a stream ends as it ends; the dialer tries again
        self.owner.streams.pop(self, None)
        if self.timer is not None:
            self.timer.cancel()

    def receive(self, message: Message) -> None:
        raise NotImplementedError

    @property
    def name(self) -> str:
        raise NotImplementedError

    @property
    def closing(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    def unsent(self) -> int:
        return self.transport.get_write_buffer_size() if self.transport is not None else 0

    def write(self, frames: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(frames)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def cut(self, why: str) -> None:
        self.owner.tell(f"stream {self.name} is cut: {why}")
        self.abort()

    def refuse_foreign(self) -> None:
        """Cut this stream if its peer's log is another one than this node's."""
        objection = self.owner.handshakes.is_foreign(self.peer, self.founding)
        if objection is not None:
            self.cut(objection)

    def establish(self) -> None:
        self.ready = True
        self.frames.limit = wire.MAX_FRAME_BYTES
        if self.timer is not None:
            self.timer.cancel()


class _Dialer(_Stream):
    """Our stream towards a peer."""

    def __init__(self, owner: Transport, peer: str, number: int) -> None:
        super().__init__(owner)
        self.peer = peer
        self.number = number
        self.ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Resolves when the stream is lost: with True if it had been established."""

    @property
    def name(self) -> str:
        return f"to {self.peer}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        owner = self.owner
        hello = Hello(
            cluster=owner.cluster,
            sender=owner.node,
            receiver=self.peer,
            boot=owner.boot,
            stream=self.number,
            birth=owner.handshakes.birth,
            founding=owner.handshakes.founding,
        )
        self.write(wire.encode(hello))

    def receive(self, message: Message) -> None:
        match message:
            case Welcome() if not self.ready:
                self._welcomed(message)
            case Refused(reason, is_another) if not self.ready:
                self.owner.tell(f"{self.peer} refuses this node: {reason}")
                self.abort()
                if is_another:
                    self.owner.on_another(self.peer)
            case _:
                raise BadFrame("the acceptor speaks out of turn")

    def _welcomed(self, welcome: Welcome) -> None:
        self.founding = welcome.founding
        try:
            objection = self.owner.handshakes.objection_to(self.peer, welcome)
        except StorageError as error:
            self.owner.on_failed(error)
            return
        if objection is not None:
            self.cut(objection)
            return
        self.establish()
        self.owner.dialed(self)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self.owner.lost(self)
        if not self.ended.done():
            self.ended.set_result(self.ready)


class _Acceptor(_Stream):
    """A stream from a peer, or from a stranger until its `Hello` was read."""

    def __init__(self, owner: Transport) -> None:
        super().__init__(owner)
        self.hello: Hello | None = None
        self.counts = False
        """It alone delivers what its sender says. Of another start only from its first message on:
        a `Hello` may have lain unread until its start was over, and nobody answers our `Welcome`
        then. It must not retire the start that lives."""
        self.heard_before: bytes | None = None
        """The start that counted when `hello` was read. If a third one does by now, which is the
        later? What a dead one had said may arrive last. Who lives dials again."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        streams = self.owner.streams
        strangers = [s for s in streams if isinstance(s, _Acceptor) and not (s.ready or s.closing)]
        if len(strangers) > self.owner.limits.max_strangers:
            strangers[0].abort()

    @property
    def name(self) -> str:
        if self.hello is not None:
            return f"from {self.hello.sender}"
        remote = self.transport.get_extra_info("peername") if self.transport is not None else None
        return f"from a stranger at {remote[0] if remote else 'an unknown address'}"

    def receive(self, message: Message) -> None:
        owner = self.owner
        if self.hello is None:
            self._greet(message)
            return
        if isinstance(message, Hello | Welcome | Refused):
            raise BadFrame("a second handshake")
        if not self.counts and not self._begin_to_count(self.hello):
            return
        sender = self.hello.sender
        if owner.inbound.get(sender) is self and sender not in owner.blocked:
            owner.on_message(sender, message)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        owner = self.owner
        if owner.inbound.get(self.peer) is self:
            del owner.inbound[self.peer]
            if not owner.closed:
                owner.on_disconnected(self.peer)

    def _greet(self, message: Message) -> None:
        if not isinstance(message, Hello):
            raise BadFrame(f"{type(message).__name__} before Hello")
        refusal = self.owner.objection(message)
        if refusal is not None:
            self.owner.tell(f"stream {self.name} is refused: {refusal.reason}")
            self.write(wire.encode(refusal))
            if self.transport is not None:
                self.transport.close()
            return
        self.hello = message
        self.peer, self.founding = message.sender, message.founding
        self.heard_before = self.owner.handshakes.start_heard(message.sender)
        if self.heard_before in (None, message.boot):
            self._begin_to_count(message)
        self.establish()
        ours = self.owner.handshakes
        self.write(wire.encode(Welcome(self.owner.boot, ours.birth, founding=ours.founding)))

    def _begin_to_count(self, hello: Hello) -> bool:
        """False, and it is cut, if another stream of this sender has begun to count meanwhile;
        False as long as this node has not reached the sender itself."""
        handshakes, refusal = self.owner.handshakes, self.owner.objection(hello)
        reason = None if refusal is None else refusal.reason
        if handshakes.start_heard(hello.sender) not in (self.heard_before, hello.boot):
            reason = "another start of it was heard of meanwhile"
        if reason is not None:
            self.cut(reason)
            return False
        if not handshakes.knows(hello.sender):
            return False
        self.counts = True
        self.owner.accepted(self, hello)
        return True


def refuse_beyond_loopback(bind: Address) -> None:
    """Raise NotLoopback unless only this machine can reach what is bound there."""
    host = bind[0]
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise NotLoopback(
            f"the Raft port may not be bound to {host!r}: its traffic is not secured yet,"
            " and whoever reaches it could act as a node; bind it to 127.0.0.1"
        )
