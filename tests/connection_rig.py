"""One connection of the API's server without a socket, and an API that answers as the path says.

    async def test(rig: Rig) -> None:
        rig.feed(b"GET /now HTTP/1.1\r\nHost: h\r\n\r\n")
        assert rig.answers() == [...]
    run(test)

`/now` is answered at once and `/later` when `rig.api.go_on()` is called, with what was asked;
`/large` with more than the transport takes; `/rests` for overload. Time stands still but for
`rig.pass_s`.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, cast

from coordinator.api import Api
from coordinator.api_connection import Common
from coordinator.api_errors import ApiError, too_large
from coordinator.api_requests import Answer, Later, Request, error_answer, json_answer
from coordinator.http_connection import HttpConnection

LIMIT = 1_000
"""How much of a body the API takes."""

BODIES = 3 * LIMIT
"""How much of all bodies together."""

LARGE = 100_000
HIGH_WATER = 65_536


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time stands still."""

    now_s = 1_000.0

    def time(self) -> float:
        return self.now_s


class FakeApi:
    """In the place of `Api`. `refuses`: what it says before it has the body."""

    bodies_bytes = BODIES

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.under_way: list[tuple[Request, asyncio.Future[Any]]] = []
        self.refuses: Answer | None = None

    def admit(self, request: Request) -> Answer | int:
        return self.refuses or (0 if request.path == "/bodiless" else LIMIT)

    def respond(self, request: Request) -> Answer | Later:
        if self.refuses is not None:
            return self.refuses
        if len(request.body) > LIMIT:
            return error_answer(too_large("The body", len(request.body), LIMIT))
        self.asked.append(request)
        match request.path:
            case "/later":
                future = asyncio.get_running_loop().create_future()
                self.under_way.append((request, future))
                return Later(future, asyncio.Future.result)
            case "/large":
                return Answer(200, b"x" * LARGE)
            case "/rests":
                return error_answer(ApiError(429, "at_capacity", "too much"))._replace(rests=True)
            case "/two-headers":
                return Answer(200, b"", headers={"X": "a\r\nY: b"})
        return self.echo(request)

    @staticmethod
    def echo(request: Request) -> Answer:
        body = "" if request.path == "/bodiless" else request.body.decode(errors="replace")
        asked = [request.method, request.path, request.query, request.headers.get("X"), body]
        return json_answer(200, {"asked": asked})

    def go_on(self) -> None:
        """Answer what is under way."""
        waiting, self.under_way = self.under_way, []
        for request, future in waiting:
            if not future.done():
                future.set_result(self.echo(request))


class Wire(asyncio.Transport):
    """A transport that keeps what is written; its client takes as much as `taken` says."""

    def __init__(self) -> None:
        super().__init__()
        self.connection: HttpConnection
        self.written = b""
        self.unsent = 0
        self.client_reads = True
        self.is_paused = self.is_half_closed = self.is_aborted = self._is_closing = False
        self.most_unsent = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data
        assert not self.is_half_closed
        assert not self._is_closing
        if not self.client_reads:
            was, self.unsent = self.unsent, self.unsent + len(data)
            if was <= HIGH_WATER < self.unsent:
                self.connection.pause_writing()

    def take(self, size: int) -> None:
        """The client reads so much of what has not been sent."""
        was, self.unsent = self.unsent, self.unsent - size
        if was > HIGH_WATER >= self.unsent:
            self.connection.resume_writing()
        if self._is_closing and not self.unsent:
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def write_eof(self) -> None:
        self.is_half_closed = True

    def pause_reading(self) -> None:
        assert not self.is_paused
        self.is_paused = True

    def resume_reading(self) -> None:
        assert self.is_paused
        self.is_paused = False

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            if not self.unsent:
                asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    def abort(self) -> None:
        assert not self.is_aborted
        self.is_aborted = self._is_closing = True
        asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    def breaks(self) -> None:
        """What was written last met an error; `connection_lost` is still to come."""
        self._is_closing = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        del name
        return default


class Read(NamedTuple):
    """An answer as a client reads it; names of headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def asked(self) -> list[Any]:
        """[method, path, query, X, body]"""
        return cast("list[Any]", json.loads(self.body)["asked"])

    @property
    def code(self) -> str:
        assert self.headers["content-type"] == "application/json"
        return cast("str", json.loads(self.body)["error"]["code"])


class Rig:
    """A connection that has just been made."""

    def __init__(self) -> None:
        self.api = FakeApi()
        self.common = Common(cast("Api", self.api), most=10_000)
        self.loop = cast("Clock", asyncio.get_running_loop())
        self.connection, self.wire = self.connect()

    def connect(self) -> tuple[HttpConnection, Wire]:
        connection, wire = HttpConnection(self.common), Wire()
        wire.connection = connection
        connection.connection_made(wire)
        return connection, wire

    def feed(self, data: bytes) -> None:
        """The client sends this, in pieces as a transport reads them."""
        for at in range(0, len(data), 65_536):
            if not self.wire.is_closing():
                self.connection.data_received(data[at : at + 65_536])

    def ends(self) -> None:
        """The client ends its direction."""
        if not self.connection.eof_received():
            self.wire.close()

    async def turn(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def pass_s(self, seconds: float) -> None:
        self.loop.now_s += seconds
        await self.turn()

    def answers(self) -> list[Read]:
        """All that the client has been sent."""
        return read(self.wire.written)

    @property
    def is_gone(self) -> bool:
        return self.connection not in self.common.connections


def read(written: bytes) -> list[Read]:
    """The answers in these bytes, which are whole; of none a HEAD was the request."""
    answers = []
    while written:
        head, _, rest = written.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        match = re.fullmatch(r"HTTP/1\.1 (\d{3}) [A-Z][A-Za-z -]*", first)
        assert match, first
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        size = int(headers.get("content-length", "0"))
        assert len(rest) >= size
        answers.append(Read(int(match[1]), headers, rest[:size]))
        written = rest[size:]
    return answers


def run(test: Callable[[Rig], Awaitable[None]]) -> None:
    """The test, in a world of its own, in which nothing may be left at the end."""

    failures = []

    async def main() -> None:
        rig = Rig()
        rig.loop.set_exception_handler(lambda _, context: failures.append(context))
        await test(rig)
        for connection in list(rig.common.connections):
            connection.abort()
        await rig.turn()
        assert not rig.common.connections
        assert not len(rig.common.bell)
        assert not rig.common.bodies.held

    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(main())
    assert not failures
