"""One connection as bytes of HTTP: requests are parsed, bodies read within limits.

aiohttp's parser does the reading; aiohttp's own server, which starts coroutines and makes request,
response and streams for each request, costs two to three times as much.

Rules
- The parser stops behind each request and goes on when its answer has left. A turn of the loop
  answers no more than `REQUESTS_PER_TURN`.
- A body is taken out of the parser with every piece. It is kept if `Api.admit` allows that and all
  connections together hold no more than they may (`bodies`), and only as much of it; else the
  answer leaves at once, and what comes of the body is thrown away.
- One that is large or compressed waits for its turn (`bodies`). Of those, a batch counts as held
  until its answer.
- What is no HTTP is answered in the API's one shape, and is the end of the connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import cast

from aiohttp import EMPTY_PAYLOAD, HttpVersion10, StreamReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError, HttpRequestParser, RawRequestMessage

from coordinator import api_connection
from coordinator.api_connection import LOG, READING, Common, Connection, Stage
from coordinator.api_errors import ApiError, overloaded, too_large
from coordinator.api_requests import REQUEST_HEADER, Answer, Later, Request, error_answer
from coordinator.bodies import LARGE_BYTES
from coordinator.http_wire import CONTINUE, answer_bytes, decompressed, unknown_encoding

REQUESTS_PER_TURN = 16
LINE_BYTES = 8_190
HEADERS = 128
"""aiohttp's limits: of the request line and of each header, and how many headers."""

BATCH_BYTES = 1024 * 1024
"""Larger is only a batch, which is decoded piece by piece, after those that came before it."""

_IDLE, _BODY, _DROPS = Stage.IDLE, Stage.BODY, Stage.DROPS  # looked up once
_NEVER_FULL = 1 << 30


class _NoFlowControl:
    """What the parser's streams ask to pause: they never fill up (see the rules)."""

    def pause_reading(self) -> None:
        raise AssertionError("a body was left in the parser")

    def resume_reading(self, resume_parser: bool = True) -> None:
        pass


_PARSER_OWNER = cast("BaseProtocol", _NoFlowControl())


class HttpConnection(Connection):
    """See the file's docstring."""

    def __init__(self, common: Common) -> None:
        super().__init__(common)
        self._parser = HttpRequestParser(
            _PARSER_OWNER,
            self._loop,
            _NEVER_FULL,
            max_line_size=LINE_BYTES,
            max_field_size=LINE_BYTES,
            max_headers=HEADERS,
            auto_decompress=False,
            max_msg_queue_size=1,
        )
        self._message: RawRequestMessage | None = None
        """The head of the present request."""
        self._payload: StreamReader = EMPTY_PAYLOAD
        """Where the parser puts its body."""
        self._request: Request
        """Whose body is being read."""
        self._body = bytearray()
        """What has come of it; at most `_limit` bytes may."""
        self._limit = 0
        self._held = 0
        """Bytes of this connection that are counted in `bodies`."""

    def _read_on(self, data: bytes) -> None:
        left = REQUESTS_PER_TURN
        while True:
            try:
                messages, _, _ = self._parser.feed_data(data)
            except HttpProcessingError as error:
                self._refuse_bytes(error)
                return
            if messages:
                self._begin(*messages[0])
            elif self._stage in (_BODY, _DROPS):
                self._read_body()
            elif (
                data and self._stage is _IDLE
            ):  # one that began behind a request: with its next byte
                self._enter(Stage.HEAD, api_connection.HEAD_TIMEOUT_S)
            if self._stage not in READING:
                return
            if self._stage is _IDLE and (data or messages):  # the parser may have another
                data = b""
                left -= 1
                if not left:
                    self._yield()
                    return
            elif self._ahead:
                data, self._ahead = self._ahead, b""
            else:
                self._await_bytes()
                return

    def _begin(self, message: RawRequestMessage, payload: StreamReader) -> None:
        """A request whose head is there, and its body as far as it came in the same piece."""
        target: str | None = message.path
        if target is None:  # as the parser reads "CONNECT" with nothing behind it
            self._refuse(no_http("it names no target"))
            return
        if not target.startswith("/"):  # "GET http://host/path HTTP/1.1", as proxies are asked
            target = message.url.raw_path_qs
        path, _, query = target.partition("#")[0].partition("?")
        headers = message.headers
        whole = payload.is_eof() and message.compression is None
        body = payload.read_nowait() if whole else b""
        request = Request(message.method, path, query, headers, body, self._address)
        self._message = message
        self._payload = payload
        self._request_name = headers.get(REQUEST_HEADER)
        # aiohttp's parser loses what follows a request to change the protocol.
        self._closes = message.should_close or message.upgrade
        if "Expect" in headers and headers["Expect"].lower() != "100-continue":
            what = "Expect: only 100-continue is understood."
            self._give(error_answer(ApiError(417, "expectation_failed", what)))
        elif payload is EMPTY_PAYLOAD:
            self._respond(request)
        elif message.compression is None and (encoding := _unknown_encoding(headers)):
            self._give(error_answer(unknown_encoding(encoding)))
        elif whole:
            self._respond(request)
        else:
            self._begin_body(message, request)

    # --- bodies that have not come with their head, or are compressed

    def _begin_body(self, message: RawRequestMessage, request: Request) -> None:
        """Read the body only if the answer needs it: a client that is sent on to the leader need
        not send 16 MiB first.
        """
        admitted = self._common.api.admit(request)
        if isinstance(admitted, Answer):
            self._give(admitted)
            return
        if not admitted:
            self._respond(request)
            return
        announced = int(message.headers.get("Content-Length", 0))
        if announced > admitted:
            self._give(error_answer(too_large("The body", announced, admitted)))
            return
        if "Expect" in message.headers and not self._has_come() and not self._is_old():
            self._transport.write(CONTINUE)
        self._request, self._body, self._limit = request, bytearray(), admitted
        self._enter(_BODY, api_connection.BODY_TIMEOUT_S)
        self._read_body()

    def _read_body(self) -> None:
        """Take what has come of it out of the parser."""
        piece = self._payload.read_nowait()
        if self._stage is _DROPS:
            if self._has_come():
                self._free()
            return
        self._body += piece
        if len(self._body) > self._limit:
            self._give(error_answer(too_large("The body", len(self._body), self._limit)))
        elif not self._hold(len(piece)):
            self._give(error_answer(overloaded()))
        elif self._has_come():
            self._take_up_body()

    def _hold(self, size: int) -> bool:
        """Whether so much more of the body may be held."""
        if not self._common.bodies.take(size):
            return False
        self._held += size
        return True

    def _drop_body(self) -> None:
        self._body = bytearray()
        self._common.bodies.give_back(self._held)
        self._held = 0

    def _take_up_body(self) -> None:
        assert self._message is not None
        if self._message.compression is None and len(self._body) <= LARGE_BYTES:
            self._respond_to_body()
            return
        turn = self._common.bodies.turn()
        self._await(Later(turn, asyncio.Future.result))
        turn.add_done_callback(self._turn_has_come)

    def _turn_has_come(self, turn: asyncio.Future[None]) -> None:
        awaited, self._awaited = self._awaited, None
        if awaited is None or turn.cancelled() or self._transport.is_closing():
            return  # nobody waits for it any more
        self._respond_to_body()
        self._read_ahead()

    def _respond_to_body(self) -> None:
        assert self._message is not None
        body = bytes(self._body)
        self._body = bytearray()
        try:
            if body and self._message.compression is not None:
                body = decompressed(body, self._message.compression, self._limit)
                if not self._hold(len(body)):
                    raise overloaded()
        except ApiError as error:
            self._give(error_answer(error))
            return
        self._respond(self._request._replace(body=body))
        if len(body) <= BATCH_BYTES:
            self._drop_body()

    def _has_come(self) -> bool:
        return self._payload.is_eof()

    # --- answers

    def _send(self, answer: Answer, *, closes: bool) -> None:
        if self._body or self._held:
            self._drop_body()
        connection = "close" if closes else "keep-alive" if self._is_old() else None
        is_head = self._message is not None and self._message.method == "HEAD"
        self._transport.write(
            answer_bytes(answer, int(time.time()), connection=connection, without_body=is_head)
        )

    def _is_old(self) -> bool:
        return self._message is not None and self._message.version == HttpVersion10

    def _free(self) -> None:
        self._message, self._payload = None, EMPTY_PAYLOAD
        self._parser.message_consumed()
        super()._free()

    def _let_go(self) -> None:
        super()._let_go()
        self._drop_body()

    def _refuse_bytes(self, error: HttpProcessingError) -> None:
        """What came is no HTTP. Anybody who reaches the port can send that: it fills no log."""
        if self._stage is _DROPS:
            self._linger()  # its request has been answered
            return
        LOG.debug("%s sent what is no HTTP: %r", self._transport.get_extra_info("peername"), error)
        first_line = (error.message or "it cannot be read").strip().split("\n", 1)[0].rstrip(": ")
        self._refuse(no_http(first_line[:200]))


def _unknown_encoding(headers: Mapping[str, str]) -> str | None:
    """The `Content-Encoding`, where the parser does not know it: compressed twice, for example."""
    said = headers.get("Content-Encoding")
    return None if said is None or said.lower() == "identity" else said


def no_http(why: str) -> ApiError:
    what = f"This is no HTTP request: {why}; the connection is closed."
    return ApiError(400, "bad_request", what)
