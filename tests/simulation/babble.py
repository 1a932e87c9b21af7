"""Bytes that no node sends, thrown at a node's two ports by a stranger on a machine of its own.

What a node makes of them is nobody's business as long as it goes on and serves (I18): a node that
stops by itself because of them is noticed as any that does (I17).
"""

from __future__ import annotations

import asyncio
import zlib
from contextvars import copy_context
from random import Random

import msgpack

from cluster.raft import wire
from tests.simulation.loop import PROCESS, Process
from tests.simulation.network import Machine
from tests.simulation.world import API_PORT, CLUSTER, RAFT_PORT, NodeHost, World

ADDRESS = "127.0.3.250"
LISTENS_S = 2.0


class _Stranger(Machine):
    """Where it comes from."""

    def __init__(self, world: World) -> None:
        super().__init__("stranger", ADDRESS)
        self.world = world
        self.process = Process("stranger", 1, self)


def babble(world: World, host: NodeHost) -> None:
    """Say something senseless to the node, beside everything else that goes on."""
    stranger = world.network.machines.get(ADDRESS)
    if not isinstance(stranger, _Stranger):
        stranger = _Stranger(world)
        world.network.add(stranger)
    context = copy_context()
    context.run(PROCESS.set, stranger.process)
    draw = Random(world.draw("babble").getrandbits(48))
    world.keep(world.loop.create_task(_say(world, host, draw), context=context))


async def _say(world: World, host: NodeHost, draw: Random) -> None:
    to_raft = not world.environment.http_in_bytes or draw.random() < 0.6
    port = RAFT_PORT if to_raft else API_PORT
    said = _frames(world, host, draw) if to_raft else _request(draw)
    try:
        transport, _ = await world.loop.create_connection(asyncio.Protocol, host.address, port)
    except OSError:
        return
    for piece in said:
        transport.write(piece)
        await asyncio.sleep(draw.random() * 0.05)
    await asyncio.sleep(LISTENS_S)
    transport.abort()


def _frames(world: World, host: NodeHost, draw: Random) -> list[bytes]:
    """For the Raft port: the second piece comes as if the first had been liked."""
    peers = [node.name for node in world.nodes if node is not host]
    boot = draw.randbytes(wire.BOOT_BYTES)
    hello = wire.encode(wire.Hello(CLUSTER, draw.choice(peers), host.name, boot, 1, boot))
    begins = [
        draw.randbytes(draw.randint(1, 300)),
        wire.encode(wire.Hello("another", peers[0], host.name, boot, 1, boot)),
        wire.encode(wire.Hello(CLUSTER, "n99", host.name, boot, 1, boot)),
        wire.encode(wire.Hello(CLUSTER, peers[0], "n99", boot, 1, boot)),
        wire.header(wire.WIRE_VERSION + 1, 10, 0) + draw.randbytes(10),
        wire.header(wire.WIRE_VERSION, 0xFFFFFFFF, 0) + draw.randbytes(100),
        hello[: draw.randrange(len(hello))],
        _frame(draw.randbytes(draw.randint(0, 60))),
        _frame(msgpack.packb(_random_fields(draw))),
        wire.encode(wire.Append(99, 1, 0, 5, 5, 99)),
    ]
    return [draw.choice(begins), wire.encode(wire.Append(1 << 40, 1, 0, 5, 5, 99))]


def _frame(body: bytes) -> bytes:
    return wire.header(wire.WIRE_VERSION, len(body), zlib.crc32(body)) + body


def _random_fields(draw: Random) -> list[object]:
    kinds: list[object] = [None, -1, 2**63, 1.5, "text", b"bytes", [], {}, True]
    return [draw.randint(-2, 20), *(draw.choice(kinds) for _ in range(draw.randint(0, 8)))]


def _request(draw: Random) -> list[bytes]:
    """For the API: what is not HTTP, or ends in the middle."""
    head = b"POST /v1/transactions HTTP/1.1\r\nHost: n\r\nContent-Type: application/json\r\n"
    return draw.choice(
        (
            [draw.randbytes(draw.randint(1, 400))],
            [b"GET / HTTP/9.9\r\n\r\n"],
            [b"GET /v1/transactions\x00/x HTTP/1.1\r\nHost: n\r\n\r\n"],
            [head + b"Content-Length: -5\r\n\r\n"],
            [head + b"Content-Length: 99999\r\n\r\n", b"{"],
            [head + b"Transfer-Encoding: chunked\r\n\r\n", b"zz\r\n{}\r\n"],
            [head + b"X: " + b"a" * 20_000 + b"\r\n\r\n"],
            [head + b"Content-Length: 3\r\n\r\n{}}GET"],
        )
    )
