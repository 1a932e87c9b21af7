"""HTTP as messages, the server's side: neither parsed nor written.

A request arrives whole, as a `Request`, and an `Answer` goes back, over the same simulated
connections that bytes would take: in order, late, lost with the connection, half-open. All else is
real: of the coordinator's API its `Connection`, of a participant aiohttp's application, routers and
handlers, with the requests and responses that they take and give; a stopping server closes these
connections as its own.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from aiohttp import EMPTY_PAYLOAD, HttpVersion11, StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from coordinator import api_requests
from coordinator.api_connection import Common, Connection, Stage
from coordinator.api_requests import REQUEST_HEADER
from coordinator.http_connection import HttpConnection
from tests.simulation.astray import is_struck, lost_its_way, passed_no_answer_on
from tests.simulation.manners import TWICE
from tests.simulation.network import Endpoint

LOG = logging.getLogger(__name__)

_READ_LIMIT = 1 << 26
_NONE = cast("Any", None)
"""A request's writer and task, which only what is written bit by bit has."""


class Request(NamedTuple):
    """`target`: path and query."""

    method: str
    target: str
    headers: CIMultiDict[str]
    body: bytes


class Answer(NamedTuple):
    """`closes`: no other request is taken on this connection. `twice`: what follows it at once is
    the same once more.
    """

    status: int
    headers: CIMultiDict[str]
    body: bytes
    closes: bool
    twice: bool = False


def serving(factory: Callable[[], asyncio.BaseProtocol]) -> Callable[[], asyncio.BaseProtocol]:
    """What is to listen in the place of `factory`: if that serves HTTP, this file's."""
    if isinstance(factory, functools.partial) and factory.func is HttpConnection:
        return functools.partial(_ApiConnection, *factory.args)
    if isinstance(factory, web.Server):
        server = factory
        return lambda: _AppConnection(server)
    return factory


class _ApiConnection(Connection):
    """In the place of `HttpConnection`."""

    def __init__(self, common: Common) -> None:
        super().__init__(common)
        self._waiting: deque[Request] = deque()

    def message_received(self, request: Request) -> None:
        self._waiting.append(request)
        if self._stage is Stage.IDLE:
            self._read_on(b"")

    def _read_on(self, data: bytes) -> None:
        assert not data
        while self._stage is Stage.IDLE and self._waiting:
            method, target, headers, body = self._waiting.popleft()
            endpoint = cast("Endpoint", self._transport)
            if is_struck(endpoint):
                endpoint.send(Answer(*lost_its_way(endpoint), closes=False))
                continue
            path, _, query = target.partition("?")
            self._request_name = headers.get(REQUEST_HEADER)
            request = api_requests.Request(method, path, query, headers, body, self._address)
            self._respond(request)

    def _send(self, answer: api_requests.Answer, *, closes: bool) -> None:
        headers = CIMultiDict(answer.headers)
        endpoint = cast("Endpoint", self._transport)
        message = Answer(answer.status, headers, answer.body, closes)
        if is_struck(endpoint):
            endpoint.send(Answer(*passed_no_answer_on(endpoint), closes=closes))
            return
        endpoint.send(message)
        self._send_again(endpoint, message)

    def _send_again(self, endpoint: Endpoint, message: Answer) -> None:
        """Perhaps, later."""
        world = endpoint.process.owner.world
        draw = world.draw("before nodes")
        if world.faulty and draw.random() < world.environment.nodes_twice:
            world.count("nodes' answers that came twice")
            again_after_s = draw.random() * world.environment.nodes_twice_s
            self._loop.call_later(again_after_s, endpoint.send, message)

    def _has_come(self) -> bool:
        return True


class _AppConnection(BaseProtocol):
    """In the place of `web.RequestHandler`, as far as requests, applications and runners ask."""

    ssl_context = None

    def __init__(self, server: web.Server) -> None:
        super().__init__(asyncio.get_running_loop(), parser=None)
        self._server = server
        self._waiting: deque[Request] = deque()
        self._handling: asyncio.Task[None] | None = None
        self.peername: Any = None
        self.sockname: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.peername = transport.get_extra_info("peername")
        self.sockname = transport.get_extra_info("sockname")
        self._server.connection_made(cast("Any", self), cast("asyncio.Transport", transport))

    def connection_lost(self, error: BaseException | None) -> None:
        """What is being handled goes on; its answer reaches nobody."""
        if self.transport is not None:
            self._server.connection_lost(cast("Any", self), error)
        self._waiting.clear()
        super().connection_lost(error)

    def message_received(self, request: Request) -> None:
        self._waiting.append(request)
        if self._handling is None:
            self._handling = asyncio.get_running_loop().create_task(self._handle_all())

    @property
    def _task_handler(self) -> asyncio.Task[None] | None:
        """The server asks for it when the connection is lost: what it still waits for."""
        return self._handling

    async def _handle_all(self) -> None:
        while self._waiting:
            answer, again_after_s = await self._answer(self._waiting.popleft())
            endpoint = cast("Endpoint | None", self.transport)
            if endpoint is None:
                break
            endpoint.send(answer)
            if again_after_s:
                asyncio.get_running_loop().call_later(again_after_s, endpoint.send, answer)
            if answer.closes:
                endpoint.close()
        self._handling = None

    async def _answer(self, request: Request) -> tuple[Answer, float | None]:
        """And after how many seconds it comes once more, if it does (0: along with it)."""
        server = self._server
        message = RawRequestMessage(
            request.method,
            request.target,
            HttpVersion11,
            CIMultiDictProxy(request.headers),
            (),
            False,
            None,
            False,
            False,
            URL(request.target, encoded=True),
        )
        made = server.request_factory(
            message, self._payload(request.body), cast("Any", self), _NONE, _NONE
        )
        try:
            response = await server.request_handler(made)
        except web.HTTPException as error:
            response = error
        except Exception:
            LOG.exception("%s %s failed", request.method, request.target)
            response = web.Response(status=500)
        assert isinstance(response, web.Response)
        body = response.body or b""
        assert isinstance(body, bytes)
        closes = response.headers.get("Connection", "").lower() == "close"
        again_after_s = response.get(TWICE)
        twice = again_after_s == 0.0
        return Answer(response.status, response.headers, body, closes, twice), again_after_s

    def _payload(self, body: bytes) -> StreamReader:
        """A body that has come with its head."""
        if not body:
            return EMPTY_PAYLOAD
        payload = StreamReader(self, _READ_LIMIT, loop=asyncio.get_running_loop())
        payload.feed_data(body)
        payload.feed_eof()
        return payload

    # --- what a stopping runner asks of each of its connections

    def close(self) -> None:
        if self._handling is None and self.transport is not None:
            self.transport.close()

    async def shutdown(self, timeout: float) -> None:
        """What is being handled may end in this time."""
        if self._handling is not None:
            await asyncio.wait([self._handling], timeout=timeout)
            if self._handling is not None:
                self._handling.cancel()
        if self.transport is not None:
            self.transport.close()
