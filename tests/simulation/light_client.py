"""HTTP as messages, the client's side: instead of aiohttp's `ClientSession` and `TCPConnector`, and
of the bytes of a connection to a participant.

Of aiohttp's only as much as the project uses: `request`, `get`, `post`, a pool of kept connections,
one timeout, redirects. Whoever asks is told what aiohttp would tell: the same exceptions for a
refused, a reset, an ended connection; one repeat of an idempotent request whose kept connection has
ended.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Generator, Mapping
from types import TracebackType
from typing import Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from multidict import CIMultiDict
from yarl import URL

from coordinator.participant_connection import Connection, Target
from tests.simulation.light_server import Answer, Request
from tests.simulation.network import Endpoint

_REDIRECTS = 10
_REDIRECTING = (301, 302, 303, 307, 308)
_IDEMPOTENT = ("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE")


class LightConnection(Connection):
    """A connection to a participant: all as it is, but for what the parser would be given."""

    def message_received(self, answer: Answer) -> None:
        if self._asker is None:
            self.data_received(b"unasked")
            return
        self._begun = True
        fits = len(answer.body) <= self._limit
        self._spent |= answer.closes or answer.twice or not fits
        self._reply(answer.status, answer.headers, answer.body if fits else None)

    def _write(self, target: Target, traceparent: str | None, body: bytes) -> None:
        headers = CIMultiDict(
            {"Content-Type": "application/json", "Content-Length": str(len(body))}
        )
        if traceparent is not None:
            headers["traceparent"] = traceparent
        cast("Endpoint", self.transport).send(Request("POST", target.path, headers, body))


class LightSession:
    """`aiohttp.ClientSession`."""

    def __init__(
        self,
        *,
        connector: LightConnector | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: aiohttp.ClientTimeout | None = None,
        **_: Any,
    ) -> None:
        self._connector = connector or LightConnector()
        self._headers = CIMultiDict(headers or {})
        self._timeout = timeout or aiohttp.ClientTimeout()

    async def close(self) -> None:
        self._connector.close()

    def get(self, url: str | URL, **named: Any) -> _Asking:
        return self.request("GET", url, **named)

    def post(self, url: str | URL, **named: Any) -> _Asking:
        return self.request("POST", url, **named)

    def request(
        self,
        method: str,
        url: str | URL,
        *,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        allow_redirects: bool = True,
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> _Asking:
        redirects = _REDIRECTS if allow_redirects else 0
        all_headers = self._headers.copy()
        all_headers.update(headers or {})
        total_s = (timeout or self._timeout).total
        return _Asking(self._ask(method, url, data, all_headers, redirects, total_s))

    async def _ask(
        self,
        method: str,
        text: str | URL,
        data: bytes | None,
        headers: CIMultiDict[str],
        redirects: int,
        total_s: float | None,
    ) -> LightResponse:
        url = _usable(text)
        async with asyncio.timeout(total_s):
            while True:
                answer, line = await self._exchange(method, url, data, headers)
                location = answer.headers.get("Location")
                if answer.status not in _REDIRECTING or not redirects or location is None:
                    return LightResponse(answer, line)
                url = url.join(URL(location, encoded=True))
                redirects -= 1

    async def _exchange(
        self, method: str, url: URL, data: bytes | None, headers: CIMultiDict[str]
    ) -> tuple[Answer, _Line]:
        line = await self._connector.line(url)
        try:
            return await line.exchange(method, url.raw_path_qs, data, headers), line
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
            if method not in _IDEMPOTENT or data is not None:
                raise
        line = await self._connector.line(url)
        return await line.exchange(method, url.raw_path_qs, data, headers), line


class _Asking:
    """A request under way: to be awaited, or entered."""

    def __init__(self, asking: Coroutine[Any, Any, LightResponse]) -> None:
        self._asking = asking

    def __await__(self) -> Generator[Any, Any, LightResponse]:
        return self._asking.__await__()

    async def __aenter__(self) -> LightResponse:
        return await self._asking

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """It has let go of its connection already."""


class LightResponse:
    """`aiohttp.ClientResponse`, and its `content`: all of it is there."""

    connection = None

    def __init__(self, answer: Answer, line: _Line) -> None:
        self._line = line
        self.status = answer.status
        self.headers = answer.headers
        self.content = self
        self._body = answer.body
        self._at_eof = False

    def at_eof(self) -> bool:
        return self._at_eof

    async def readany(self) -> bytes:
        self._at_eof = True
        return self._body

    async def iter_any(self) -> AsyncIterator[bytes]:
        yield self._body

    async def read(self) -> bytes:
        return self._body

    def close(self) -> None:
        """The connection carries nothing more. It was let go of when the answer was there, and
        nobody has taken it since, if this is called at once."""
        self._line.close()


class LightConnector:
    """`aiohttp.TCPConnector`: connections, kept for a while when they are not used."""

    def __init__(
        self, *, keepalive_timeout: float = 15.0, force_close: bool = False, **_: Any
    ) -> None:
        self._keep_s = 0.0 if force_close else keepalive_timeout
        self._kept: dict[tuple[str, int], deque[tuple[float, _Line]]] = {}
        self._lines: dict[_Line, None] = {}
        self._closed = False

    def close(self) -> None:
        self._closed = True
        for line in list(self._lines):
            line.close()

    async def line(self, url: URL) -> _Line:
        """A connection on which nothing is under way; raises ClientConnectorError."""
        assert url.raw_host is not None
        assert url.port is not None
        place = url.raw_host, url.port
        kept = self._kept.get(place)
        while kept:
            since, line = kept.popleft()
            if asyncio.get_running_loop().time() - since <= self._keep_s and line.is_usable:
                return line
            line.close()
        loop = asyncio.get_running_loop()
        try:
            _, line = await loop.create_connection(lambda: _Line(self, place), *place)
        except OSError as error:
            key = ConnectionKey(*place, False, True, None, None, None, None)
            raise aiohttp.ClientConnectorError(key, error) from error
        return line

    def keep(self, line: _Line) -> None:
        """Nothing is under way on it any more."""
        if not self._keep_s or self._closed:
            line.close()
            return
        loop = asyncio.get_running_loop()
        self._kept.setdefault(line.place, deque()).append((loop.time(), line))
        loop.call_later(self._keep_s, self._close_idle, line.place)

    def opened(self, line: _Line) -> None:
        self._lines[line] = None

    def ended(self, line: _Line) -> None:
        self._lines.pop(line, None)

    def _close_idle(self, place: tuple[str, int]) -> None:
        kept = self._kept[place]
        until = asyncio.get_running_loop().time() - self._keep_s
        while kept and kept[0][0] <= until:
            kept.popleft()[1].close()


class _Line(ResponseHandler):
    """A connection, for one exchange at a time."""

    def __init__(self, owner: LightConnector, place: tuple[str, int]) -> None:
        super().__init__(asyncio.get_running_loop())
        self.place = place
        self._owner = owner
        self._answer: asyncio.Future[Answer] | None = None
        self._unasked = False

    @property
    def should_close(self) -> bool:
        return self._unasked

    @property
    def is_usable(self) -> bool:
        return self.is_connected() and not self._unasked

    async def exchange(
        self, method: str, target: str, data: bytes | None, headers: CIMultiDict[str]
    ) -> Answer:
        """Raises ClientConnectionError and its like; whatever it raises ends the connection."""
        self._answer = asyncio.get_running_loop().create_future()
        try:
            self._send(method, target, data or b"", headers)
            answer = await self._answer
        except BaseException:
            self._answer.cancel()
            self.close()
            raise
        self._answer = None
        if answer.closes:
            self.close()
        else:
            self._owner.keep(self)
        return answer

    def _send(self, method: str, target: str, body: bytes, headers: CIMultiDict[str]) -> None:
        endpoint = cast("Endpoint | None", self.transport)
        if endpoint is None or endpoint.is_closing():
            raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")
        if body or method != "GET":
            headers["Content-Length"] = str(len(body))
        endpoint.send(Request(method, target, headers, body))

    # --- what the connection tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._owner.opened(self)

    def message_received(self, answer: Answer) -> None:
        if self._answer is None or self._answer.done():
            self._unasked = True
        else:
            self._answer.set_result(answer)

    def eof_received(self) -> None:
        """Nothing more will come: the transport closes."""

    def connection_lost(self, error: BaseException | None) -> None:
        self.transport = None
        self._owner.ended(self)
        if self._answer is None or self._answer.done():
            return
        if isinstance(error, OSError):
            self._answer.set_exception(aiohttp.ClientOSError(*error.args))
        else:
            self._answer.set_exception(aiohttp.ServerDisconnectedError())


def _usable(text: str | URL) -> URL:
    """Raises what aiohttp does for a URL that is none."""
    try:
        url = text if isinstance(text, URL) else URL(text)
        if url.scheme in ("http", "https") and url.raw_host and url.port is not None:
            return url
    except (ValueError, TypeError) as error:
        raise aiohttp.InvalidURL(text) from error
    if url.scheme and url.scheme not in ("http", "https"):
        raise aiohttp.NonHttpUrlClientError(text)
    raise aiohttp.InvalidURL(text)
