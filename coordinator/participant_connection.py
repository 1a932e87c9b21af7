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
- An exchange ends when its asker says, and the connection with it. Its time is looked at by one
  timer for each connection, which nearly always finds a later exchange under way, or none.
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

from coordinator.alarms import NEVER_S

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


class NotHttp(Exception):
    """What came is no HTTP response."""


class Broken(Exception):
    """The connection ended before the response did; `begun`: in the middle of it."""

    def __init__(self, *, begun: bool) -> None:
        super().__init__()
        self.begun = begun


class TooLate(Exception):
    """There was no response in the time allowed."""


NoReply = NotHttp | Broken | TooLate


class Asker(Protocol):
    """Who waits for an answer; told one of these, once."""

    def replied(self, status: int, headers: Mapping[str, str], body: bytes | None) -> None:
        """An HTTP response; `body` is None if it is longer than was allowed."""

    def failed(self, error: NoReply) -> None: ...


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
        "_rings_s",
        "_spent",
        "_timer",
        "_until_s",
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
        self._timer: asyncio.TimerHandle | None = None
        self._rings_s = NEVER_S

    def ask(
        self,
        target: Target,
        traceparent: str | None,
        body: bytes,
        limit: int,
        until_s: float,
        asker: Asker,
    ) -> None:
        """Send `body`, which is JSON; of the answer's body at most `limit` bytes are read. There is
        time until then, by the event loop's clock.
        """
        assert self._asker is None
        self.used = True
        self._asker = asker
        self._limit = limit
        self._message: Any = None
        self._body = bytearray()
        self._begun = False
        self._interim = 0
        self._until_s = until_s
        if until_s < self._rings_s:
            self._arm()
        # A new one each time, for a microsecond: the one before may hold the beginning of an answer
        # that nobody asked for, whose end would be taken for this one.
        self._parser = HttpResponseParser(
            self, self._loop, _BUFFER_BYTES, read_until_eof=True, auto_decompress=False
        )
        self._write(target, traceparent, body)

    @property
    def is_open(self) -> bool:
        """Whether the next message may go over it, as far as is known here."""
        transport = self.transport
        return not (self._spent or transport is None or transport.is_closing())

    def is_quiet(self) -> bool:
        """Whether it is open and brings nothing that nobody asked for: of what the event loop has
        not read yet, too, an end or bytes.
        """
        if not self.is_open:
            return False
        if not self.used:
            return True
        if self._poll is None:
            assert self.transport is not None
            self._poll = select.poll()
            self._poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not self._poll.poll(0)

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
            if self._message is not None:
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
        self._silence()
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
        self.transport.write(
            b"%b%bContent-Length: %d\r\n\r\n%b" % (target.head, traced, len(body), body)
        )

    def _arm(self) -> None:
        self._silence()
        self._rings_s = self._until_s
        self._timer = self._loop.call_at(self._rings_s, self._ring)

    def _silence(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._rings_s = None, NEVER_S

    def _ring(self) -> None:
        self._silence()
        if self._asker is None:
            return
        if self._loop.time() < self._until_s:
            self._arm()
        else:
            self._fail(TooLate())

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
        head, stream = self._message
        body = stream.read_nowait() if stream.total_bytes else b""
        is_whole = stream.is_eof()
        if self._body or not is_whole:  # it came in pieces
            self._body += body
            body = self._body
        if len(body) > self._limit:
            self._spent = True
            self._reply(head.code, head.headers, None)
        elif is_whole:
            self._spent |= head.should_close or head.code == _SWITCHED
            self._reply(head.code, head.headers, bytes(body))

    def _reply(self, status: int, headers: Mapping[str, str], body: bytes | None) -> None:
        asker = self._asker
        assert asker is not None
        self._end()
        asker.replied(status, headers, body)

    def _fail(self, error: NoReply) -> None:
        asker = self._asker
        assert asker is not None
        self._spent = True
        self._end()
        asker.failed(error)

    def _end(self) -> None:
        """The exchange is over. Who has not taken all of the message gets no other one."""
        self._asker = self._message = None
        transport = self.transport
        if transport is not None and (self._spent or transport.get_write_buffer_size()):
            transport.abort()
        self._free(self)
