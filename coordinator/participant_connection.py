"""One connection to a participant: one HTTP request at a time, and the answer to it.

aiohttp's parser on a protocol of our own. What aiohttp's client does beside that, for cookies,
redirects, proxies, bodies that stream and a coroutine for each of them, costs several times as much
CPU as the request itself.

Rules
- An answer is read within bounds: of a body as many bytes as the asker allows, of a head some 8 KiB
  a line and 128 lines. Nothing is decompressed.
- A connection carries another message only if it is in order: the participant keeps it open, has
  taken all of the message before, and has sent nothing that nobody asked for.
- `is_quiet` looks at it a last time before a message leaves, into the kernel, too. Bytes that
  nobody asked for would be read as the next call's answer: a vote that was never given.
- Whoever asks is told once, and never from within `ask`: the reply, or why there is none.
"""

from __future__ import annotations

import asyncio
import functools
import select
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError
from aiohttp.http_parser import HttpResponseParser
from yarl import URL

_BUFFER_BYTES = 1 << 30
"""For the parser, which is to hold up nothing: it is emptied whenever something comes."""

_SWITCHED = 101

MOST_INTERIM = 16
"""Interim responses before an answer; who sends more would keep the event loop busy with them."""


class Origin(NamedTuple):
    """Where connections lead."""

    host: str
    port: int
    is_tls: bool


class Target(NamedTuple):
    """Where requests go. `head`: the lines that all of them begin with; `path` has its query."""

    origin: Origin
    path: str
    head: bytes


@functools.lru_cache(maxsize=4096)
def target_of(url: str) -> Target:
    """Raises ValueError for what is no URL of HTTP."""
    parsed = URL(url)
    host, port = parsed.raw_host, parsed.port
    if parsed.scheme not in ("http", "https") or not host or not port:
        raise ValueError("not a URL of HTTP")
    host.encode("idna")  # a name with a part that is too long is none
    lines = (
        f"POST {parsed.raw_path_qs} HTTP/1.1",
        f"Host: {parsed.host_port_subcomponent}",
        "User-Agent: assent",
        "Accept: application/json",
        "Accept-Encoding: identity",  # nothing is decompressed: no small answer grows large here
        "Content-Type: application/json",
    )
    head = "".join(f"{line}\r\n" for line in lines).encode("ascii")
    return Target(Origin(host, port, parsed.scheme == "https"), parsed.raw_path_qs, head)


class Reply(NamedTuple):
    """An HTTP response; `body` is None if it is longer than was allowed."""

    status: int
    headers: Mapping[str, str]
    body: bytes | None


class NotHttp(Exception):
    """What came is no HTTP response."""


class Broken(Exception):
    """The connection ended before the response did; `begun`: in the middle of it."""

    def __init__(self, *, begun: bool) -> None:
        super().__init__()
        self.begun = begun


class Asker(Protocol):
    """Who waits for an answer; told one of these, once."""

    def replied(self, reply: Reply) -> None: ...

    def failed(self, error: NotHttp | Broken) -> None: ...


class Connection(BaseProtocol):
    """`free` is told when an exchange is over, just before its asker, and when the connection is:
    it may carry another message if it `is_open` then.

    `used`: it has carried a message. `idle_since_s` belongs to the owner. `_spent`: it will carry
    no other one.
    """

    __slots__ = (
        "_asker",
        "_begun",
        "_body",
        "_free",
        "_interim",
        "_limit",
        "_message",
        "_poll",
        "_spent",
        "idle_since_s",
        "used",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, free: Callable[[Connection], None]) -> None:
        super().__init__(loop)
        self.used = False
        self.idle_since_s = 0.0
        self._free = free
        self._asker: Asker | None = None
        self._spent = False
        self._poll: select.poll | None = None

    def ask(
        self, target: Target, traceparent: str | None, body: bytes, limit: int, asker: Asker
    ) -> None:
        """Send `body`, which is JSON; of the answer's body at most `limit` bytes are read."""
        assert self._asker is None
        self.used = True
        self._asker = asker
        self._limit = limit
        self._message: Any = None
        self._body = bytearray()
        self._begun = False
        self._interim = 0
        # A new one each time, for a microsecond: the one before may hold the beginning of an answer
        # that nobody asked for, whose end would be taken for this one.
        self._parser = HttpResponseParser(
            self, self._loop, _BUFFER_BYTES, read_until_eof=True, auto_decompress=False
        )
        self._write(target, traceparent, body)

    @property
    def is_open(self) -> bool:
        """Whether the next message may go over it, as far as is known here."""
        return self.transport is not None and not self.transport.is_closing() and not self._spent

    def is_quiet(self) -> bool:
        """Whether it is open and brings nothing that nobody asked for."""
        return self.is_open and not (self.used and self._has_unread())

    def close(self) -> None:
        """Nothing is under way on it, and nothing will be."""
        assert self._asker is None
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """End it at once, without a word to who asks.

        A mere close would first send what is buffered, which a participant that does not read can
        hold up for ever.
        """
        self._asker = None
        if self.transport is not None:
            self.transport.abort()

    # --- what the transport tells ---

    def data_received(self, data: bytes) -> None:
        if self._asker is None:
            self._spent = True
            self.abort()
            return
        assert self._parser is not None
        self._begun = True
        try:
            messages, _, rest = self._parser.feed_data(data)
            for message in messages:
                self._head_came(message)
            if rest:
                self._spent = True
            self._read_body()
        except HttpProcessingError as error:
            self._fail(NotHttp(error.message))

    def eof_received(self) -> None:
        """What ends an answer without a length ends it now. The transport closes itself."""
        if self._asker is None or self._message is None:
            return
        assert self._parser is not None
        try:
            self._parser.feed_eof()
            self._read_body()
        except HttpProcessingError:
            pass  # it broke off: that is told when the connection is lost

    def connection_lost(self, error: BaseException | None) -> None:
        super().connection_lost(error)
        self._parser = None
        if self._asker is None:
            self._free(self)
        else:
            self._fail(Broken(begun=self._begun))

    # --- what aiohttp's parser asks of its owner ---

    def pause_reading(self) -> None:
        """Its buffer is never full: a body that is too long is not read to its end."""

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Nothing was paused."""

    # --- below ---

    def _write(self, target: Target, traceparent: str | None, body: bytes) -> None:
        assert self.transport is not None
        traced = b"traceparent: %b\r\n" % traceparent.encode("ascii") if traceparent else b""
        length = b"Content-Length: %d\r\n\r\n" % len(body)
        self.transport.write(b"".join((target.head, traced, length, body)))

    def _has_unread(self) -> bool:
        """What the kernel has and the event loop has not yet read: an end, or bytes."""
        if self._poll is None:
            assert self.transport is not None
            self._poll = select.poll()
            self._poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(self._poll.poll(0))

    def _head_came(self, message: tuple[Any, Any]) -> None:
        status = message[0].code
        if 100 <= status < 200 and status != _SWITCHED:
            self._interim += 1  # an interim response: the answer is still to come
            if self._interim > MOST_INTERIM:
                raise HttpProcessingError(message="it sends interim responses without end")
            return
        if self._message is None:
            self._message = message
        else:
            self._spent = True

    def _read_body(self) -> None:
        """All that is there of the body; if that is all, the exchange is over."""
        if self._message is None:
            return
        head, stream = self._message
        if stream.is_eof() and not self._body:
            body = stream.read_nowait()  # in one piece, as nearly always
        else:
            self._body += stream.read_nowait()
            body = self._body
        if len(body) > self._limit:
            self._spent = True
            self._reply(Reply(head.code, head.headers, None))
        elif stream.is_eof():
            self._spent |= head.should_close or head.code == _SWITCHED
            self._reply(Reply(head.code, head.headers, bytes(body)))

    def _reply(self, reply: Reply) -> None:
        asker = self._asker
        self._end()
        assert asker is not None
        asker.replied(reply)

    def _fail(self, error: NotHttp | Broken) -> None:
        asker = self._asker
        self._spent = True
        self._end()
        assert asker is not None
        asker.failed(error)

    def _end(self) -> None:
        """The exchange is over. Who has not taken all of the message gets no other one."""
        self._asker = self._message = None
        transport = self.transport
        if transport is not None and (self._spent or transport.get_write_buffer_size()):
            transport.abort()
        self._free(self)
