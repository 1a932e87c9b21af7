"""A connection of the load: HTTP/1.1 on a bare protocol, one request under way at a time.

It reads what nodes answer and no more: a status line, headers with a Content-Length, a body.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast
from urllib.parse import urlsplit

from cluster.bench.requests import Request


class Asker(Protocol):
    """Who is told what became of a request. `body` begins with the end of the head."""

    def answered(
        self, connection: Connection, request: Request, status: int, head: bytes, body: bytes
    ) -> None: ...

    def lost(self, connection: Connection, request: Request | None) -> None:
        """The connection is gone, perhaps with a request under way."""


class Connection(asyncio.Protocol):
    """One connection to the node at `url`, with at most one request under way."""

    def __init__(self, asker: Asker, url: str) -> None:
        parts = urlsplit(url)
        self.url = url
        self._asker = asker
        self._head = (
            f"POST /v1/transactions HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode("ascii")
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._needed = 0
        self.request: Request | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, and does not say so

    def send(self, request: Request) -> None:
        assert self._transport is not None
        self.request = request
        body = request.body
        self._transport.write(self._head + b"%d\r\n\r\n" % len(body) + body)

    def data_received(self, received: bytes) -> None:
        buffer = self._buffer + received if self._buffer else received
        if len(buffer) < self._needed:
            self._buffer = buffer
            return
        end = buffer.find(b"\r\n\r\n")
        length = -1 if end < 0 else _content_length(buffer, end)
        if length < 0 or len(buffer) < end + 4 + length:
            self._buffer = buffer
            self._needed = 0 if length < 0 else end + 4 + length
            return
        self._buffer, self._needed = b"", 0
        request, self.request = self.request, None
        if request is not None:
            self._asker.answered(self, request, int(buffer[9:12]), buffer[: end + 4], buffer[end:])

    def connection_lost(self, _: Exception | None) -> None:
        request, self.request = self.request, None
        self._asker.lost(self, request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _content_length(buffer: bytes, end: int) -> int:
    at = buffer.find(b"Content-Length: ", 0, end)
    if at < 0:
        raise AssertionError(f"an answer without Content-Length: {buffer[:end]!r}")
    return int(buffer[at + 16 : buffer.index(b"\r\n", at)])
