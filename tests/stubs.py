"""Participants that misbehave: a bare HTTP/1.1 server on a free port, whose answers are written
by hand.

A `Stub` is given a behaviour: what it does with a request once it has read it. A behaviour writes
bytes as it likes, closes, or never returns. What arrived, and over how many connections, is kept
to be looked at.

    async with Stub(answer(b"true")) as stub:
        ... stub.url, stub.received, stub.connections

`Stub(per_operation(prepare=..., commit=..., rollback=...))` behaves differently for each call.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Received:
    """One request. `operation` is the last part of its path; `connection` counts from 1."""

    operation: str
    path: str
    headers: Mapping[str, str]
    body: Any
    connection: int


Behaviour = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


class Stub:
    """A server that does what its behaviour says; `behaviour` may be replaced at any time."""

    def __init__(
        self,
        behaviour: Behaviour,
        *,
        listener: socket.socket | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.behaviour = behaviour
        self.received: list[Received] = []
        self.connections = 0
        self.under_way = 0
        self.most_under_way = 0
        self.arrived = asyncio.Condition()
        self._listener = listener or bound_socket()
        self._tls = tls
        self._serving: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._serve, sock=self._listener, backlog=1024, ssl=self._tls
        )
        self.url = url_of(self._listener)
        if self._tls is not None:
            self.url = self.url.replace("http:", "https:").replace("127.0.0.1", "localhost")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*list(self._serving), return_exceptions=True)
        await self._server.wait_closed()
        await asyncio.sleep(0)

    async def until_received(self, count: int) -> None:
        """Return once `count` requests have been read."""
        async with self.arrived:
            await self.arrived.wait_for(lambda: len(self.received) >= count)

    def hang_up(self) -> None:
        """End every connection this instant, before any event loop can notice."""
        for writer in self._serving.values():
            writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving[task] = writer
        self.connections += 1
        connection = self.connections
        try:
            while not writer.is_closing():
                received = await _read(reader, connection)
                self.received.append(received)
                async with self.arrived:
                    self.arrived.notify_all()
                self.under_way += 1
                self.most_under_way = max(self.most_under_way, self.under_way)
                try:
                    await self.behaviour(received, writer)
                    await writer.drain()
                finally:
                    self.under_way -= 1
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            del self._serving[task]
            writer.transport.abort()


async def _read(reader: asyncio.StreamReader, connection: int) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    request, *lines = head.strip().split("\r\n")
    path = request.split(" ")[1]
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(
        path.rsplit("/", 1)[-1], path, headers, json.loads(body) if body else None, connection
    )


def bound_socket() -> socket.socket:
    """A socket that holds a free port and does not listen: connections to it are refused.

    Given to a `Stub` later, it is a participant that comes up.
    """
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    return held


def url_of(held: socket.socket) -> str:
    return f"http://127.0.0.1:{held.getsockname()[1]}"


# --- behaviours -----------------------------------------------------------------------------------


def response(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole HTTP answer."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def answer(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Behaviour:
    return send(response(body, status, headers))


def send(raw: bytes) -> Behaviour:
    """Send exactly these bytes and wait for the next request."""

    async def behave(_received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)

    return behave


def answer_and_close(body: bytes) -> Behaviour:
    """Answer, and close the connection at once without having announced it."""

    async def behave(_received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(response(body))
        writer.close()

    return behave


def endless(head: bytes, piece: bytes, pause: float = 0.0) -> Behaviour:
    """Send `head`, then `piece` again and again until the other side has had enough."""

    async def behave(_received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)

    return behave


async def hang(_received: Received, _writer: asyncio.StreamWriter) -> None:
    """Never answer, and keep the connection open."""
    await asyncio.get_running_loop().create_future()


async def close(_received: Received, writer: asyncio.StreamWriter) -> None:
    """Close the connection without an answer."""
    writer.close()


async def reset(_received: Received, writer: asyncio.StreamWriter) -> None:
    """Reset the connection without an answer."""
    writer.transport.abort()


def per_operation(
    *, prepare: Behaviour, commit: Behaviour | None = None, rollback: Behaviour | None = None
) -> Behaviour:
    """A behaviour for each call; commit and rollback answer 200 unless told otherwise."""
    fine = answer(b"{}")
    table = {"prepare": prepare, "commit": commit or fine, "rollback": rollback or fine}

    async def behave(received: Received, writer: asyncio.StreamWriter) -> None:
        await table[received.operation](received, writer)

    return behave


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """The first request meets the first behaviour, and so on; the last one stays."""
    left = list(behaviours)

    async def behave(received: Received, writer: asyncio.StreamWriter) -> None:
        chosen = left.pop(0) if len(left) > 1 else left[0]
        await chosen(received, writer)

    return behave
