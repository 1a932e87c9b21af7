"""The API over HTTP: bodies are read within limits, answers are written. All that knows aiohttp.

aiohttp's low-level server, without its router, applications and middlewares, which would cost as
much again. An answer leaves in one write. What is no HTTP is answered in the API's one shape.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import re
import time
from email.utils import formatdate
from http import HTTPStatus

from aiohttp import EMPTY_PAYLOAD, HttpVersion10, web
from aiohttp.abc import AbstractStreamWriter

from coordinator.admission import Rests
from coordinator.api import Api
from coordinator.api_errors import ApiError, too_large
from coordinator.api_requests import Answer, Request, error_answer

BODY_TIMEOUT_S = 30.0
"""For a whole body to arrive; a client that sends a byte a minute is not waited for longer."""

LOG = logging.getLogger("assent.api")

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def runner(api: Api, *, shutdown_timeout_s: float) -> web.ServerRunner:
    """What serves the API, on the sites that are made with it."""
    return web.ServerRunner(_Server(api), shutdown_timeout=shutdown_timeout_s)


class _Server(web.Server):
    def __init__(self, api: Api) -> None:
        super().__init__(functools.partial(_handle, api, Rests()))

    def __call__(self) -> web.RequestHandler:
        loop = asyncio.get_running_loop()
        # aiohttp takes "no access log" for it, and says otherwise in its types.
        return _Connection(self, loop=loop, access_log=None)  # type: ignore[arg-type]


class _Connection(web.RequestHandler):
    """aiohttp's end of a connection, but for what it answers on its own account.

    That is plain text, and a line of the log with a traceback, for bytes that are no HTTP: anybody
    who reaches the port could fill the log, and a client would have a second shape to read.
    """

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("a part of the answer has left already")
        if status == 400:
            LOG.debug("%s sent what is no HTTP: %r", request.remote, exc)
            first_line = (message or "it cannot be read").strip().split("\n", 1)[0].rstrip(": ")
            what = f"This is no HTTP request: {first_line[:200]}; the connection is closed."
            error = ApiError(400, "bad_request", what)
        else:
            LOG.error("a request ended with %d; this is a defect", status, exc_info=exc)
            what = "The node failed on this request; its log says how."
            error = ApiError(status, "internal_error", what)
        return _Response(request, error_answer(error), closes=True)


async def _handle(api: Api, rests: Rests, http: web.BaseRequest) -> web.StreamResponse:
    """One request. A body that did not come with the head is read only where it is needed: to be
    sent to the leader, nobody has to send 16 MiB first.
    """
    target = http.raw_path
    if not target.startswith("/"):  # "GET http://host/path HTTP/1.1", as proxies are asked
        target = http.rel_url.raw_path_qs
    path, _, query = target.partition("#")[0].partition("?")
    content = http.content
    try:
        expects = "Expect" in http.headers and _expects_word(http)
        body = b""
        if not content.is_eof():
            admitted = api.admit(Request(http.method, path, query, http.headers))
            if isinstance(admitted, Answer):
                return _Response(http, admitted)
            if admitted:
                if expects:
                    await _continue(http)
                body = await _read_body(http, admitted)
        elif content is not EMPTY_PAYLOAD:
            body = _read_at_once(http)
    except ApiError as error:
        return _Response(http, error_answer(error), closes=error.status == 408)
    answer = api.respond(Request(http.method, path, query, http.headers, body))
    if not isinstance(answer, Answer):
        answer = await answer
    if not answer.rests:
        return _Response(http, answer)
    rest_s = rests.rest_s(asyncio.get_running_loop().time())
    later = {**answer.headers, "Retry-After": str(math.ceil(rest_s))}
    return _Response(http, answer._replace(headers=later), rest_s=rest_s)


def _expects_word(http: web.BaseRequest) -> bool:
    """Whether the client waits for a word before it sends its body, as curl does with a large one;
    raises ApiError where it expects something else.
    """
    if http.headers["Expect"].lower() != "100-continue":
        what = "Expect: only 100-continue is understood."
        raise ApiError(417, "expectation_failed", what)
    return True


async def _continue(http: web.BaseRequest) -> None:
    await http.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    http.writer.output_size = 0  # aiohttp: what was written so far is no part of the answer


async def _read_body(http: web.BaseRequest, limit: int) -> bytes:
    """The whole body, at most `limit` bytes of it; raises ApiError."""
    announced = http.content_length
    if announced is not None and announced > limit:
        raise too_large("The body", announced, limit)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while len(body) <= limit and (piece := await http.content.readany()):
                body += piece
    except TimeoutError:
        what = f"The body did not arrive within {BODY_TIMEOUT_S:.0f} s; send it again."
        raise ApiError(408, "body_timeout", what) from None
    except Exception as error:
        raise _unreadable(http, error) from None
    if len(body) > limit:
        raise too_large("The body", len(body), limit)
    return bytes(body)


def _read_at_once(http: web.BaseRequest) -> bytes:
    """A body that has come with its head, as small ones do."""
    try:
        return http.content.read_nowait()
    except Exception as error:
        raise _unreadable(http, error) from None


def _unreadable(http: web.BaseRequest, error: Exception) -> ApiError:
    """Whatever aiohttp raises while it reads, it is the client's body or connection."""
    LOG.debug("%s %s: body: %r", http.method, http.path, error)
    what = "The body broke off, or its encoding is damaged; send it again."
    return ApiError(400, "unreadable_body", what)


class _Response(web.StreamResponse):
    """An answer as aiohttp wants it. Head and body leave in one write, and what aiohttp's own does
    for cookies, compression and chunks, which costs as much as the rest of the request, does not
    happen.
    """

    def __init__(
        self, http: web.BaseRequest, answer: Answer, *, closes: bool = False, rest_s: float = 0.0
    ) -> None:
        super().__init__(status=answer.status)
        self._http = http
        self._answer = answer
        self._keeps = http.keep_alive and not closes
        self._rest_s = rest_s

    @property
    def keep_alive(self) -> bool:
        return self._keeps

    async def prepare(self, _: web.BaseRequest) -> AbstractStreamWriter:
        return self._http.writer

    async def write_eof(self, data: bytes = b"") -> None:
        assert not data
        http, answer = self._http, self._answer
        head = _head(answer.status, answer.content_type, int(time.time()))
        if answer.headers:
            head += "".join(f"{name}: {_safe(value)}\r\n" for name, value in answer.headers.items())
        if not self._keeps:
            head += "Connection: close\r\n"
        elif http.version == HttpVersion10:
            head += "Connection: keep-alive\r\n"
        head += f"Content-Length: {len(answer.body)}\r\n\r\n"
        body = b"" if http.method == "HEAD" else answer.body
        await http.writer.write(head.encode("utf-8", "surrogateescape") + body)
        if self._rest_s:
            await asyncio.sleep(self._rest_s)  # only then the connection is read again


@functools.lru_cache(maxsize=64)
def _head(status: int, content_type: str, unix_s: int) -> str:
    """What answers of the same second have in common. RFC 9110, section 6.6.1, wants the date."""
    return (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        f"Content-Type: {content_type}\r\nDate: {formatdate(unix_s, usegmt=True)}\r\n"
    )


def _safe(value: str) -> str:
    if _CONTROL.search(value):
        raise ValueError(f"control characters in a header: {value[:200]!r}")
    return value
