"""The transport over real loopback sockets: who may speak, what is delivered, what is not."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from cluster.errors import DiskFailed, StorageError
from cluster.local.ports import free_ports
from cluster.raft import wire
from cluster.raft.transport import (
    NotLoopback,
    Transport,
    TransportLimits,
    _Acceptor,
    refuse_beyond_loopback,
)
from cluster.raft.wire import Frames, Hello, RaftMessage, Refused, TimeoutNow, Welcome, encode
from cluster.storage.disk import Disk
from cluster.storage.fellows import Fellows
from tests.memory_disk import MemoryDisk

DEADLINE_S = 30


def free_port() -> int:
    """One that stays free while nobody listens there, as far as that is up to the system."""
    return free_ports(("n",), ()).raft["n"]


def fellows_of(name: str, *known: str, disk: Disk | None = None) -> Fellows:
    """Everybody's birth is their name, here."""
    fellows = Fellows(Path("/fellows"), disk or MemoryDisk(), name.encode())
    for other in known:
        fellows.learn(other, other.encode())
    return fellows


class Node:
    """A transport and what it was told."""

    def __init__(
        self,
        name: str,
        ports: dict[str, int],
        *,
        limits: TransportLimits | None = None,
        seed: int = 1,
        fellows: Fellows | None = None,
    ) -> None:
        self.heard: asyncio.Queue[tuple[str, RaftMessage]] = asyncio.Queue()
        self.connected: asyncio.Queue[str] = asyncio.Queue()
        self.disconnected: asyncio.Queue[str] = asyncio.Queue()
        self.another: asyncio.Queue[str] = asyncio.Queue()
        self.failed: asyncio.Queue[StorageError] = asyncio.Queue()
        self.transport = Transport(
            node=name,
            cluster="test",
            peers={peer: ("127.0.0.1", port) for peer, port in ports.items() if peer != name},
            bind=("127.0.0.1", ports[name]),
            random=random.Random(f"{name} {seed}"),
            fellows=fellows or fellows_of(name),
            on_message=lambda peer, message: self.heard.put_nowait((peer, message)),
            on_connected=self.connected.put_nowait,
            on_disconnected=self.disconnected.put_nowait,
            on_another=self.another.put_nowait,
            on_failed=self.failed.put_nowait,
            limits=limits,
        )

    async def stop(self) -> None:
        self.transport.close()
        await self.transport.wait_closed()

    def say(self, peer: str, term: int) -> None:
        self.transport.send(peer, TimeoutNow(term))
        self.transport.flush()

    async def hears(self) -> tuple[str, RaftMessage]:
        return await self.heard.get()


class Stranger:
    """A hand-made stream to a node."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.frames = Frames(wire.MAX_FRAME_BYTES)

    @classmethod
    async def open(cls, port: int) -> Stranger:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    @classmethod
    async def welcomed(cls, port: int, boot: int, stream: int) -> Stranger:
        """One that greets n1 as n2, and is let in."""
        stranger = await cls.open(port)
        stranger.greet("n2", "n1", boot, stream)
        assert isinstance(await stranger.answer(), Welcome)
        return stranger

    def write(self, received: bytes) -> None:
        self.writer.write(received)

    def greet(
        self,
        sender: str,
        receiver: str,
        boot: int,
        stream: int,
        cluster: str = "test",
        founding: str = "",
    ) -> None:
        start = bytes([boot]) * 16
        hello = Hello(cluster, sender, receiver, start, stream, sender.encode(), b"", founding)
        self.write(encode(hello))

    async def answer(self) -> wire.Message | None:
        """The next message, or None when the stream has ended."""
        while True:
            try:
                received = await self.reader.read(4096)
            except ConnectionError:
                return None
            if not received:
                return None
            for message in self.frames.feed(received):
                return message

    def close(self) -> None:
        self.writer.transport.abort()


def run(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await scenario()
            await asyncio.sleep(0)

    asyncio.run(bounded())


async def until_told(caplog: pytest.LogCaptureFixture, line: str) -> None:
    while True:
        if line in caplog.text:
            return
        await asyncio.sleep(0.01)


async def pair() -> tuple[Node, Node]:
    ports = {"n1": free_port(), "n2": free_port()}
    first, second = Node("n1", ports), Node("n2", ports)
    await first.transport.start()
    await second.transport.start()
    assert await first.connected.get() == "n2"
    assert await second.connected.get() == "n1"
    first.say("n2", 0)
    second.say("n1", 0)
    assert await first.hears() == ("n2", TimeoutNow(0))
    assert await second.hears() == ("n1", TimeoutNow(0))
    return first, second


async def lone(limits: TransportLimits | None = None) -> Node:
    """n1, which has reached its peer n2 before. That never starts: strangers play it."""
    ports = {"n1": free_port(), "n2": free_port()}
    node = Node("n1", ports, limits=limits, fellows=fellows_of("n1", "n2"))
    await node.transport.start()
    return node


def test_messages_arrive_in_order_and_only_after_flush() -> None:
    async def scenario() -> None:
        first, second = await pair()
        for term in range(50):
            first.transport.send("n2", TimeoutNow(term))
        first.transport.send("n2", wire.VoteReply(50, True))
        second.say("n1", 99)
        assert await first.hears() == ("n2", TimeoutNow(99))
        assert second.heard.empty()
        first.transport.flush(only=(wire.VoteReply,))
        assert await second.hears() == ("n1", wire.VoteReply(50, True))
        first.transport.flush()
        assert [await second.hears() for _ in range(50)] == [
            ("n1", TimeoutNow(t)) for t in range(50)
        ]
        await first.stop()
        await second.stop()

    run(scenario)


def test_what_is_too_large_for_a_handshake_arrives_after_it() -> None:
    async def scenario() -> None:
        first, second = await pair()
        piece = wire.SnapshotPiece(1, 1, 1, 1, 1, 0, False, bytes(2 * wire.MAX_HELLO_BYTES))
        first.transport.send("n2", piece)
        first.transport.flush()
        assert await second.hears() == ("n1", piece)
        await first.stop()
        assert first.disconnected.empty(), "who closes is not told of streams that end by it"
        await second.stop()

    run(scenario)


def test_the_time_limit_of_a_handshake_goes_with_the_handshake() -> None:
    async def scenario() -> None:
        first, second = await pair()
        first.say("n2", 1)
        await second.hears()
        (dialer,), (acceptor,) = (
            first.transport._outbound.values(),
            second.transport.inbound.values(),
        )
        for stream in (dialer, acceptor):
            assert stream.timer is not None
            assert stream.timer.cancelled()
        await first.stop()
        await second.stop()

    run(scenario)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux has it")
def test_the_kernel_drops_a_stream_of_which_nothing_is_acknowledged() -> None:
    async def scenario() -> None:
        first, second = await pair()
        for node in (first, second):
            assert node.transport.streams
            for stream in node.transport.streams:
                assert stream.transport is not None
                sock = stream.transport.get_extra_info("socket")
                given = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                assert given == 4_000
                # Nothing is said between two followers: else none of them would ever know.
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                quiet_s, every_s, times = (
                    sock.getsockopt(socket.IPPROTO_TCP, option)
                    for option in (
                        socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT
                    )
                )  # fmt: skip
                assert quiet_s + every_s * times <= 20
        await first.stop()
        await second.stop()

    run(scenario)


async def until_out_of_touch(node: Node, peer: str) -> None:
    while node.transport.is_in_touch(peer):  # noqa: ASYNC110 - looks from outside; nothing tells
        await asyncio.sleep(0)


def test_a_peer_is_in_touch_as_long_as_a_stream_stands_in_either_direction() -> None:
    async def scenario() -> None:
        first, second = await pair()
        assert second.transport.is_in_touch("n1")
        await first.stop()
        await until_out_of_touch(second, "n1")
        await second.stop()

        node = await lone()
        assert not node.transport.is_in_touch("n2")
        speaker = await Stranger.welcomed(node.transport.port, 2, 1)
        assert node.transport.is_in_touch("n2")
        assert not node.transport.is_connected("n2")
        speaker.close()
        await until_out_of_touch(node, "n2")
        await node.stop()

    run(scenario)


def test_a_stream_that_breaks_is_dialed_again() -> None:
    async def scenario() -> None:
        first, second = await pair()
        first.transport.send("n2", TimeoutNow(0))  # queued for the stream that breaks: lost with it
        for stream in list(second.transport.inbound.values()):
            stream.abort()
        assert await first.disconnected.get() == "n2"
        assert await second.disconnected.get() == "n1", "who listens is told, too"
        first.transport.send("n2", TimeoutNow(1))  # not connected: dropped, not kept for later
        assert await first.connected.get() == "n2"
        first.say("n2", 2)
        assert await second.hears() == ("n1", TimeoutNow(2))
        await first.stop()
        await second.stop()

    run(scenario)


def test_a_peer_that_is_away_is_dialed_more_seldom_and_never_too_seldom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    established = iter([*[False] * 6, True, False])

    async def dialed(_: Transport, __: str) -> bool:
        return next(established)

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 8:
            raise asyncio.CancelledError

    class Middle(random.Random):
        def random(self) -> float:
            return 0.5

    async def scenario() -> None:
        node = Node("n1", {"n1": 0, "n2": 0})
        node.transport._random = Middle()
        monkeypatch.setattr(Transport, "_dial_once", dialed)
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "sleep", pause)
            with pytest.raises(asyncio.CancelledError):
                await node.transport._dial("n2")

    run(scenario)
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5, 0.05, 0.1]


def test_a_peer_that_restarts_is_reached_again() -> None:
    async def scenario() -> None:
        ports = {"n1": free_port(), "n2": free_port()}
        first = Node("n1", ports)
        await first.transport.start()
        for seed in (1, 2, 3):
            second = Node("n2", ports, seed=seed)
            await second.transport.start()
            assert await first.connected.get() == "n2"
            assert await second.connected.get() == "n1"
            second.say("n1", seed)
            assert await first.hears() == ("n2", TimeoutNow(seed))
            await second.stop()
            assert await first.disconnected.get() == "n2"
        await first.stop()

    run(scenario)


def test_blocked_peers_neither_hear_nor_are_heard() -> None:
    async def scenario() -> None:
        first, second = await pair()
        first.transport.blocked.add("n2")
        first.say("n2", 1)
        second.say("n1", 2)
        await asyncio.sleep(0.05)
        first.transport.blocked.clear()
        first.say("n2", 3)
        second.say("n1", 4)
        assert await second.hears() == ("n1", TimeoutNow(3))
        assert await first.hears() == ("n2", TimeoutNow(4))
        await first.stop()
        await second.stop()

    run(scenario)


@pytest.mark.parametrize(
    ("sender", "receiver", "cluster", "reason"),
    [
        ("n2", "n1", "other", "belongs to cluster 'test'"),
        ("n9", "n1", "test", "no peer 'n9'"),
        ("n2", "n3", "test", "this is n1"),
        ("n1", "n1", "test", "no peer 'n1'"),
    ],
)
def test_strangers_are_refused_with_a_reason(
    sender: str, receiver: str, cluster: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        node = await lone()
        stranger = await Stranger.open(node.transport.port)
        stranger.greet(sender, receiver, 1, 1, cluster)
        stranger.write(encode(TimeoutNow(7)))
        answer = await stranger.answer()
        assert isinstance(answer, Refused)
        assert reason in answer.reason
        assert await stranger.answer() is None
        assert node.heard.empty()
        assert reason in caplog.text
        stranger.close()
        await node.stop()

    run(scenario)


def test_a_peer_of_another_founding_is_refused_and_one_without_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        node = await lone()
        node.transport.belong_to("n1-5")
        for stream, founding in enumerate(["n1-5", "", "n2-5"], start=1):
            stranger = await Stranger.open(node.transport.port)
            stranger.greet("n2", "n1", 1, stream, founding=founding)
            answer = await stranger.answer()
            if founding == "n2-5":
                assert isinstance(answer, Refused)
                assert "founded by n1-5, that of n2 by n2-5" in answer.reason
                assert answer.reason in caplog.text
            else:
                assert answer == Welcome(node.transport.boot, b"n1", b"", "n1-5")
            stranger.close()
        await node.stop()

    run(scenario)


def test_a_peer_with_another_directory_is_refused_and_told_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        node = await lone()
        stranger = await Stranger.open(node.transport.port)
        stranger.write(encode(Hello("test", "n2", "n1", bytes(16), 1, b"another")))
        stranger.write(encode(TimeoutNow(7)))
        refusal = await stranger.answer()
        assert isinstance(refusal, Refused)
        assert refusal.is_another
        assert refusal.reason == "n1 knows n2 by another data directory than the one it has now"
        assert refusal.reason in caplog.text
        assert await stranger.answer() is None
        assert node.heard.empty()
        stranger.close()
        await node.stop()

    run(scenario)


def test_nobody_is_heard_before_this_node_has_reached_them_itself() -> None:
    """Else any stranger could say first by which directory a peer is to be known."""

    async def scenario() -> None:
        ports = {"n1": free_port(), "n2": free_port()}
        node = Node("n1", ports)
        await node.transport.start()
        early = await Stranger.welcomed(ports["n1"], 1, 1)
        early.write(encode(TimeoutNow(1)))
        await asyncio.sleep(0.05)
        assert node.heard.empty()
        assert not node.transport.is_in_touch("n2")
        peer = Node("n2", ports, fellows=fellows_of("n2", "n1"))
        await peer.transport.start()
        assert await node.connected.get() == "n2"
        early.write(encode(TimeoutNow(2)))
        assert await node.hears() == ("n2", TimeoutNow(2))
        early.close()
        await node.stop()
        await peer.stop()

    run(scenario)


def test_a_peer_that_is_reached_with_another_directory_is_not_spoken_to(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        ports = {"n1": free_port(), "n2": free_port()}
        first = Node("n1", ports, fellows=fellows_of("n1", "n2"))
        anew = Node("n2", ports, fellows=Fellows(Path("/fellows"), MemoryDisk(), b"another"))
        await first.transport.start()
        await anew.transport.start()
        assert await anew.another.get() == "n1"
        await until_told(caplog, "stream to n2 is cut: n1 knows n2 by another data directory")
        assert first.connected.empty()
        await first.stop()
        await anew.stop()

    run(scenario)


def test_a_peer_that_cannot_be_remembered_is_not_spoken_to() -> None:
    async def scenario() -> None:
        ports = {"n1": free_port(), "n2": free_port()}
        disk = MemoryDisk()
        disk.fail_at = 1
        first, second = Node("n1", ports, fellows=fellows_of("n1", disk=disk)), Node("n2", ports)
        await first.transport.start()
        await second.transport.start()
        assert isinstance(await first.failed.get(), DiskFailed)
        assert first.connected.empty()
        await first.stop()
        await second.stop()

    run(scenario)


def test_a_dialer_leaves_an_acceptor_of_another_founding(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        greeted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(4096)
            writer.write(encode(Welcome(bytes(16), b"n2", b"", "n2-5")))
            assert await reader.read() == b"", "it says nothing more, and ends"
            greeted.put_nowait(writer)

        ports = {"n1": free_port(), "n2": free_port()}
        server = await asyncio.start_server(accept, "127.0.0.1", ports["n2"])
        node = Node("n1", ports)
        node.transport.belong_to("n1-5")
        await node.transport.start()
        (await greeted.get()).close()
        assert node.connected.empty()
        assert "stream to n2 is cut: n1 and n2 are of two clusters" in caplog.text
        await node.stop()
        server.close()

    run(scenario)


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (encode(Refused("no room")), "n2 refuses this node: no room"),
        (
            encode(Welcome(bytes(16), b"n2")) + encode(TimeoutNow(1)),
            "the acceptor speaks out of turn",
        ),
    ],
)
def test_a_dialer_leaves_an_acceptor_that_refuses_it_or_says_more_than_welcome(
    frames: bytes, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        left: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(4096)
            writer.write(frames)
            with contextlib.suppress(ConnectionError):
                await reader.read()
            left.put_nowait(writer)

        ports = {"n1": free_port(), "n2": free_port()}
        server = await asyncio.start_server(accept, "127.0.0.1", ports["n2"])
        limits = TransportLimits(handshake_timeout_s=DEADLINE_S)
        node = Node("n1", ports, limits=limits)
        await node.transport.start()
        (await left.get()).close()
        assert said in caplog.text
        assert node.heard.empty()
        await node.stop()
        server.close()

    run(scenario)


def test_streams_are_cut_when_the_founding_comes_to_be_known() -> None:
    async def scenario() -> None:
        first, second = await pair()
        second.transport.belong_to("n2-5")
        first.transport.belong_to("n2-5")
        first.say("n2", 1)
        assert await second.hears() == ("n1", TimeoutNow(1)), "of the same log: nothing is cut"
        await first.stop()
        await second.stop()

        ports = {"n1": free_port(), "n2": free_port()}
        first, second = Node("n1", ports), Node("n2", ports)
        second.transport.belong_to("n2-5")
        await first.transport.start()
        await second.transport.start()
        assert await first.connected.get() == "n2"
        assert await second.connected.get() == "n1"
        first.transport.belong_to("n1-5")
        assert await first.disconnected.get() == "n2"
        assert await second.disconnected.get() == "n1"
        await first.stop()
        await second.stop()

    run(scenario)


@pytest.mark.parametrize(
    "frames",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x80\x04\x95" + b"x" * 100,
        encode(TimeoutNow(1)),
        wire.header(wire.WIRE_VERSION, 5000, 0) + b"x" * 5000,
        b"\x01" + encode(Hello("test", "n2", "n1", bytes(16), 1, b"n2"))[1:],
        encode(Hello("test", "n2", "n1", bytes(16), 1, b"n2")) * 2,
        encode(Hello("test", "n2", "n1", bytes(16), 1, b"n2"))
        + wire.header(wire.WIRE_VERSION, 0xFFFFFFFF, 0),
    ],
    ids=["http", "pickle", "no hello", "large hello", "version", "two hellos", "huge frame"],
)
def test_what_is_not_ours_ends_the_stream_and_nothing_else(frames: bytes) -> None:
    async def scenario() -> None:
        node = await lone()
        stranger = await Stranger.open(node.transport.port)
        stranger.write(frames)
        while await stranger.answer() is not None:
            pass
        assert node.heard.empty()
        stranger.close()
        peer = await Stranger.welcomed(node.transport.port, 9, 1)
        peer.close()
        await node.stop()

    run(scenario)


def test_a_superseded_stream_never_delivers_again() -> None:
    async def scenario() -> None:
        node = await lone()
        port = node.transport.port
        streams = []
        for number, (boot, stream) in enumerate(((1, 1), (1, 2), (2, 1))):
            superseded = node.transport.inbound.get("n2")
            peer = await Stranger.welcomed(port, boot, stream)
            streams.append(peer)
            peer.write(encode(TimeoutNow(number)))
            assert await node.hears() == ("n2", TimeoutNow(number))
            if superseded is not None:
                superseded.receive(TimeoutNow(66))  # what it had read before it was cut
        for peer in streams[:2]:
            peer.write(encode(TimeoutNow(66)))
        for peer in streams[:2]:
            assert await peer.answer() is None
        for boot, stream in (
            (1, 3),
            (2, 1),
            (2, 0),
        ):  # an earlier start, the same dial, an earlier dial
            late = await Stranger.open(port)
            late.greet("n2", "n1", boot, stream)
            late.write(encode(TimeoutNow(50)))
            assert isinstance(await late.answer(), Refused)
            late.close()
        streams[2].write(encode(TimeoutNow(3)))
        assert await node.hears() == ("n2", TimeoutNow(3))
        for peer in streams:
            peer.close()
        await node.stop()

    run(scenario)


def test_the_late_hello_of_a_start_that_is_over_does_not_retire_the_one_that_lives() -> None:
    """It lay unread while this node was stopped. Its process is gone, and never says more."""

    async def scenario() -> None:
        node = await lone()
        living = await Stranger.welcomed(node.transport.port, 2, 1)
        late = await Stranger.welcomed(node.transport.port, 1, 7)
        living.write(encode(TimeoutNow(1)))
        assert await node.hears() == ("n2", TimeoutNow(1))
        late.close()
        living.close()
        again = await Stranger.welcomed(node.transport.port, 2, 2)
        again.write(encode(TimeoutNow(2)))
        assert await node.hears() == ("n2", TimeoutNow(2))
        again.close()
        await node.stop()

    run(scenario)


def test_the_late_words_of_a_start_that_is_over_do_not_retire_the_one_that_lives() -> None:
    """It had been welcomed and had spoken, and its words were long under way:

    1. n2's start 2 dials and is welcomed; of what it says nothing arrives yet. It is killed.
    2. Its start 3 dials, is welcomed and heard.
    3. What start 2 had said arrives.
    """

    async def scenario() -> None:
        node = await lone()
        first = await Stranger.welcomed(node.transport.port, 1, 1)
        killed = await Stranger.welcomed(node.transport.port, 2, 1)
        living = await Stranger.welcomed(node.transport.port, 3, 1)
        living.write(encode(TimeoutNow(1)))
        assert await node.hears() == ("n2", TimeoutNow(1))
        killed.write(encode(TimeoutNow(2)))
        assert await killed.answer() is None
        living.write(encode(TimeoutNow(3)))
        assert await node.hears() == ("n2", TimeoutNow(3))
        for stranger in (first, killed, living):
            stranger.close()
        await node.stop()

    run(scenario)


def test_a_start_dials_as_often_as_it_must() -> None:
    async def scenario() -> None:
        node = await lone()
        for stream in (1, 2, 3):
            peer = await Stranger.welcomed(node.transport.port, 1, stream)
            peer.write(encode(TimeoutNow(stream)))
            assert await node.hears() == ("n2", TimeoutNow(stream))
            peer.close()
        await node.stop()

    run(scenario)


def test_an_order_of_streams_outlives_the_stream_in_use() -> None:
    async def scenario() -> None:
        node = await lone()
        newest = await Stranger.welcomed(node.transport.port, 1, 5)
        newest.close()
        async with asyncio.timeout(DEADLINE_S):
            while node.transport.inbound:  # noqa: ASYNC110 - nothing tells when a stream is gone
                await asyncio.sleep(0.001)
        late = await Stranger.open(node.transport.port)
        late.greet("n2", "n1", 1, 4)
        assert isinstance(await late.answer(), Refused)
        late.close()
        await node.stop()

    run(scenario)


def test_what_strangers_cause_is_not_logged_again_and_again_nor_remembered_without_bound(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        transport = Node("n1", {"n1": 0, "n2": 0}).transport
        for line in ("n8 is refused", "n9 is refused") * 2:
            transport.tell(line)
        assert caplog.text.count("n8 is refused") == caplog.text.count("n9 is refused") == 1
        for number in range(300):
            transport.tell(f"m{number} is refused")
        assert len(transport._told) <= 256

    run(scenario)


def test_a_stranger_who_says_nothing_is_cut_off() -> None:
    async def scenario() -> None:
        node = await lone(TransportLimits(handshake_timeout_s=0.05))
        stranger = await Stranger.open(node.transport.port)
        assert await stranger.answer() is None
        stranger.close()
        await node.stop()

    run(scenario)


def test_a_stream_that_is_accepted_when_all_has_ended_is_cut() -> None:
    """The kernel had it already when the listener was closed."""

    class Late(asyncio.Transport):
        aborted = False

        def abort(self) -> None:
            self.aborted = True

        def is_closing(self) -> bool:
            return self.aborted

    async def scenario() -> None:
        node = await lone()
        await node.stop()
        late = Late()
        _Acceptor(node.transport).connection_made(late)
        assert late.aborted

    run(scenario)


def test_only_so_many_strangers_are_listened_to_the_latest() -> None:
    async def scenario() -> None:
        node = await lone(TransportLimits(max_strangers=4, handshake_timeout_s=DEADLINE_S))
        strangers = [await Stranger.open(node.transport.port) for _ in range(6)]
        for cut in strangers[:2]:
            assert await cut.answer() is None
        assert sum(not stream.closing for stream in node.transport.streams) == 4
        for stranger in strangers:
            stranger.close()
        await node.stop()

    run(scenario)


def test_a_crowd_that_says_nothing_keeps_no_peer_out() -> None:
    """It kept a node that was started again from its peers, in both directions."""

    async def scenario() -> None:
        ports = {"n1": free_port(), "n2": free_port()}
        limits = TransportLimits(max_strangers=2, handshake_timeout_s=DEADLINE_S)
        first, second = Node("n1", ports, limits=limits), Node("n2", ports)
        await first.transport.start()
        crowd = [await Stranger.open(ports["n1"]) for _ in range(2)]
        await second.transport.start()
        assert await first.connected.get() == "n2"
        assert await second.connected.get() == "n1"
        for stranger in crowd:
            stranger.close()
        await first.stop()
        await second.stop()

    run(scenario)


def test_a_peer_that_does_not_read_is_disconnected() -> None:
    async def scenario() -> None:
        writers: list[asyncio.StreamWriter] = []

        async def greet_back(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(encode(Welcome(bytes(16), b"n2")))

        silent = await asyncio.start_server(greet_back, "127.0.0.1", 0)
        ports = {"n1": free_port(), "n2": silent.sockets[0].getsockname()[1]}
        node = Node("n1", ports, limits=TransportLimits(max_backlog_bytes=1 << 20))
        await node.transport.start()
        await node.connected.get()
        piece = wire.SnapshotPiece(1, 1, 1, 1, 1, 0, False, bytes(1 << 20))
        while node.disconnected.empty():
            node.transport.send("n2", piece)
            node.transport.flush()
            assert node.transport.backlog("n2") < 8 << 20
            await asyncio.sleep(0)
        await node.stop()
        for writer in writers:
            writer.transport.abort()
        silent.close()
        await silent.wait_closed()

    run(scenario)


def test_an_accept_that_fails_does_not_end_the_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stock transport unbinds its port for ever after one EMFILE (flaw L5)."""

    async def scenario() -> None:
        told: list[str] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(str(context["message"])))
        node = await lone()
        accept = socket.socket.accept
        failures = iter([OSError(24, "Too many open files")])

        def failing(listener: socket.socket) -> object:
            for error in failures:
                raise error
            return accept(listener)

        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "accept", failing)
            peer = await Stranger.welcomed(node.transport.port, 1, 1)
        assert any("accept" in line for line in told)
        peer.close()
        await node.stop()

    run(scenario)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "::", "example.org", ""])
def test_binding_beyond_loopback_is_refused(host: str) -> None:
    with pytest.raises(NotLoopback, match="bind it to"):
        Transport(
            node="n1",
            cluster="test",
            peers={},
            bind=(host, 0),
            random=random.Random(1),
            fellows=fellows_of("n1"),
            on_message=lambda *_: None,
            on_connected=lambda _: None,
            on_disconnected=lambda _: None,
            on_another=lambda _: None,
            on_failed=lambda _: None,
        )


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "::1"])
def test_binding_to_loopback_is_not(host: str) -> None:
    refuse_beyond_loopback((host, 7101))


def test_a_busy_port_is_an_error_at_start() -> None:
    async def scenario() -> None:
        node = await lone()
        other = Node("n1", {"n1": node.transport.port})
        with pytest.raises(OSError, match="address already in use"):
            await other.transport.start()
        await other.stop()
        await node.stop()

    run(scenario)
