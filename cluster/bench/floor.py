"""The floor of latency: what one transaction must wait for, with nothing of ours in between.

    client round trip     a request and an answer on a bare protocol, and over aiohttp on both sides
    prepare round trip    the same over aiohttp: the coordinator's call to the slowest participant
    quorum round          append and fdatasync here, while two others do the same after a round trip
                          on loopback; it ends with ours and the first of theirs

    python -m cluster.bench.floor http|peer PORT DIR     the other ends, a process each

Each figure is of rounds one after another, as one client sees them.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any, cast

import aiohttp
from aiohttp import web

from cluster.local.child_process import ChildProcess
from cluster.local.ports import HOST, free_ports

ROUNDS = 1_000
_WARM_UP = 100
_ENTRY = b"e" * 512
_REQUEST = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 300\r\n\r\n" + b"x" * 300
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 600\r\n\r\n" + b"y" * 600

Floor = dict[str, dict[str, float]]
"""p50 and p99 in milliseconds, by what was measured."""


async def measure_floor(directory: Path) -> Floor:
    """Start the other ends, measure, end them. `directory`: on the disk that is to be synced."""
    names = ("bare", "http", "peer1", "peer2")
    ports = free_ports((), names).services
    children = []
    for name in names:
        kind = name.rstrip("12")
        command = [sys.executable, "-m", "cluster.bench.floor", kind, str(ports[name])]
        child = ChildProcess(name, [*command, str(directory)], directory / f"{name}.log")
        child.start()
        children.append(child)
    try:
        return await _measured(ports, directory)
    finally:
        for child in children:
            child.signal(SIGTERM)
        await asyncio.gather(*(child.ended(5.0) for child in children))
        for child in children:
            child.signal(SIGKILL)


async def _measured(ports: Any, directory: Path) -> Floor:
    bare = await _connected(ports["bare"])
    peers = [await _connected(ports["peer1"]), await _connected(ports["peer2"])]
    await (await _connected(ports["http"])).close()
    file = os.open(directory / "floor", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def sync() -> None:
        os.write(file, _ENTRY)
        os.fdatasync(file)

    async def bare_round() -> None:
        await bare.ask(_REQUEST, len(_ANSWER))

    async def sync_round() -> None:
        sync()

    async def quorum_round() -> None:
        asked = [asyncio.ensure_future(peer.ask(_ENTRY, 1)) for peer in peers]
        await asyncio.sleep(0)  # the entries travel while ours is synced
        sync()
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait(asked)

    async with aiohttp.ClientSession() as session:

        async def http_round() -> None:
            async with session.post(f"http://{HOST}:{ports['http']}/", data=b"x" * 300) as answer:
                await answer.read()

        floor = {
            "http round trip, bare": await _timed(bare_round),
            "http round trip, aiohttp": await _timed(http_round),
            "append and fdatasync": await _timed(sync_round),
            "quorum round, synced": await _timed(quorum_round),
        }
    os.close(file)
    for other in (bare, *peers):
        await other.close()
    quorum = floor["quorum round, synced"]
    for kind in ("bare", "aiohttp"):
        trip = floor[f"http round trip, {kind}"]
        floor[f"transaction, {kind}"] = {q: 2 * trip[q] + quorum[q] for q in ("p50", "p99")}
    return floor


async def _timed(round_: Callable[[], Awaitable[None]]) -> dict[str, float]:
    took = []
    for number in range(_WARM_UP + ROUNDS):
        began = time.perf_counter()
        await round_()
        if number >= _WARM_UP:
            took.append(time.perf_counter() - began)
    took.sort()
    return {"p50": took[ROUNDS // 2] * 1000, "p99": took[ROUNDS * 99 // 100] * 1000}


class _Link(asyncio.Protocol):
    """Our end of a connection: asks, and counts the bytes of the answer."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._missing = 0
        self._answered: asyncio.Future[None] | None = None
        self._closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    async def ask(self, message: bytes, answer_bytes: int) -> None:
        assert self._transport is not None
        self._missing = answer_bytes
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        await self._answered

    def data_received(self, received: bytes) -> None:
        self._missing -= len(received)
        if self._missing <= 0 and self._answered is not None and not self._answered.done():
            self._answered.set_result(None)

    def connection_lost(self, _: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(ConnectionError("the other end is gone"))
        self._closed.set_result(None)

    async def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            await self._closed


async def _connected(port: int) -> _Link:
    loop = asyncio.get_running_loop()
    for _ in range(600):
        try:
            _, link = await loop.create_connection(_Link, HOST, port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        return link
    raise ConnectionError(f"nobody listens on port {port}")


# --- the other ends -----------------------------------------------------------------------------


class _Answers(asyncio.Protocol):
    """Answers whenever as many bytes have come as a question has; `before` is done first."""

    def __init__(self, question: int, answer: bytes, before: Callable[[], None]) -> None:
        self._question, self._answer, self._before = question, answer, before
        self._have = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, received: bytes) -> None:
        self._have += len(received)
        while self._have >= self._question:
            self._have -= self._question
            self._before()
            self._transport.write(self._answer)


async def _serve(kind: str, port: int, directory: Path) -> None:
    if kind == "http":

        async def answer(request: web.Request) -> web.Response:
            await request.read()
            return web.Response(body=b"y" * 600)

        application = web.Application()
        application.router.add_post("/", answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, HOST, port).start()
    else:
        file = os.open(directory / f"{port}", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

        def sync() -> None:
            os.write(file, _ENTRY)
            os.fdatasync(file)

        def make() -> _Answers:
            if kind == "peer":
                return _Answers(len(_ENTRY), b"k", sync)
            return _Answers(len(_REQUEST), _ANSWER, lambda: None)

        await asyncio.get_running_loop().create_server(make, HOST, port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
