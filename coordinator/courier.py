"""One call to a participant over HTTP, and everything that can become of it. The only file that
knows aiohttp's client.

Rules
- Nothing that a participant, a proxy, a name server or the network does comes out of here as an
  exception: every failure is mapped once, here, to a `Failed` that says whether the message may
  have arrived.
- A message that may have arrived is never sent again by this file, unless it is a commit or a
  rollback, which may be repeated. What surely never left may go again, over a new connection.
- Memory is bounded: of a body `answer_bytes` are read, of the head some 8 KiB a line and 128
  lines; nothing is decompressed. Time is bounded: everything ends at `end_at`, and the connection
  with it.
- Redirects are answers. No cookies, no proxies out of the environment.

How it is known whether a message left: aiohttp holds the head back until the body is written, so
a body that is asked to write itself (`_Parcel`) knows the moment. At that moment it also looks at
the connection a last time. Servers close idle connections whenever they like, so:

1. a connection that was idle for longer than a server's shortest usual patience is not used again;
2. one that has ended, or brings bytes that nobody asked for, is found out before the message
   leaves, and the message goes over a new one (unasked bytes would otherwise be read as this
   call's answer: a vote that the participant never gave);
3. there remains a server that closes while the message is on the wire. A commit or rollback is
   sent again at once. A prepare is not: it fails, with `broken` set.
"""

from __future__ import annotations

import asyncio
import logging
import select
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError, StreamWriter
from aiohttp.payload import Payload

from coordinator.lane import Impression
from coordinator.resolver import Resolver
from participants.contract import (
    DECLARATION_HEADER,
    MAX_REASON_CHARS,
    PROXY_STATUSES,
    Acknowledged,
    EndAnswer,
    Failed,
    Operation,
    PrepareAnswer,
    Voted,
    batch_body,
    read_batch_answers,
    read_end_answer,
    read_prepare_answer,
)

_log = logging.getLogger(__name__)

_IDLE_SECONDS = 0.75
"""How long an unused connection is kept. Some servers close after one second, many after two or
five."""

_DNS_SECONDS = 10
"""How long a name's addresses are remembered: short enough to follow a participant that moves."""

_BATCH_ANSWER_BYTES = 16 << 20

Answer = PrepareAnswer | EndAnswer

_SERVED = (Acknowledged, Voted)

_HEADERS = {
    "User-Agent": "assent",
    "Accept": "application/json",
    "Accept-Encoding": "identity",  # nothing is decompressed: no small answer grows large here
}


class Message(Protocol):
    """What is to be carried. `body` is JSON; `end_at` is a time of the event loop's clock."""

    operation: Operation
    url: str
    transaction_id: str
    branch_id: str
    body: bytes
    end_at: float
    traceparent: str | None


class Delivery(NamedTuple):
    """What became of a request: an answer to each of its messages, and what it says of the
    participant.

    `impression` is that of the answers that did not serve (`impressions`). `answered` is whether
    the participant itself did, `heard` whether in a way that would have carried its declaration;
    `declaration` is that header's value.
    """

    answers: Sequence[Answer]
    impression: Impression
    heard: bool = False
    declaration: str | None = None
    answered: bool = False

    def impressions(self) -> list[tuple[Impression, int]]:
        """What the answers say of the participant, in their order; how many in a row say it."""
        served = [isinstance(answer, _SERVED) for answer in self.answers]
        if all(served):
            return [(Impression.SERVED, len(served))]
        return [(Impression.SERVED if each else self.impression, 1) for each in served]


@dataclass(frozen=True, slots=True)
class _Request:
    """One HTTP request. `may_repeat`: doing it twice is as good as doing it once."""

    url: str
    body: bytes
    end_at: float
    may_repeat: bool
    answer_bytes: int
    traceparent: str | None


@dataclass(frozen=True, slots=True)
class _Response:
    """What came back; `body` is None if it was longer than allowed."""

    status: int
    body: bytes | None
    declaration: str | None
    retry_after: str | None

    @property
    def heard(self) -> bool:
        return self.declaration is not None or 200 <= self.status < 300


class _Lost(NamedTuple):
    """No response: why, and what that says of the participant."""

    failed: Failed
    impression: Impression


class Courier:
    """Carries messages; as many at one time as it is asked to."""

    def __init__(self, *, answer_bytes: int) -> None:
        self._answer_bytes = answer_bytes
        self._known: weakref.WeakSet[asyncio.BaseTransport] = weakref.WeakSet()

    async def start(self) -> None:
        self._resolver = Resolver()
        self._pooled = self._session(
            aiohttp.TCPConnector(
                limit=0,  # the lanes limit, per participant; a limit here would be shared by all
                keepalive_timeout=_IDLE_SECONDS,
                ttl_dns_cache=_DNS_SECONDS,
                resolver=self._resolver,
            )
        )
        self._fresh = self._session(
            aiohttp.TCPConnector(
                limit=0, force_close=True, ttl_dns_cache=_DNS_SECONDS, resolver=self._resolver
            )
        )

    async def stop(self) -> None:
        """Close every connection. Nothing may be under way any more."""
        await self._pooled.close()
        await self._fresh.close()
        await self._resolver.close()
        await asyncio.sleep(0)  # connections that were aborted say so in the loop's next turn

    async def carry(self, message: Message) -> Delivery:
        """Send it and say what became of it. Raises nothing, save that it may be cancelled."""
        request = _Request(
            message.url,
            message.body,
            message.end_at,
            message.operation is not Operation.PREPARE,
            self._answer_bytes,
            message.traceparent,
        )
        response = await self._request(request)
        if isinstance(response, _Lost):
            return Delivery((response.failed,), response.impression)
        return _understood(message, response, self._answer_bytes)

    async def carry_batch(self, url: str, messages: Sequence[Message]) -> Delivery:
        """Send all in one request to `url`, and say what became of each; all prepares, or none."""
        request = _Request(
            url,
            batch_body([(message.operation, message.body) for message in messages]),
            max([message.end_at for message in messages]),
            messages[0].operation is not Operation.PREPARE,
            min(self._answer_bytes * len(messages), _BATCH_ANSWER_BYTES),
            None,
        )
        response = await self._request(request)
        if isinstance(response, _Lost):
            return Delivery((response.failed,) * len(messages), response.impression)
        answers = read_batch_answers(
            response.status,
            response.body or b"",
            [(m.operation, m.transaction_id, m.branch_id) for m in messages],
        )
        return _delivered(answers, response)

    async def _request(self, request: _Request) -> _Response | _Lost:
        """The response, or the failure that took its place."""
        parcels: list[_Parcel] = []
        try:
            async with asyncio.timeout_at(request.end_at):
                return await self._ask(request, parcels)
        except TimeoutError:
            left = any(parcel.left for parcel in parcels)
            what = "no answer in time" if left else "no connection in time"
            return _Lost(Failed(what, arrived=left), Impression.UNREACHED)
        except Exception as error:
            return _explained(error, arrived=any(parcel.left for parcel in parcels))
        finally:
            for parcel in parcels:
                parcel.close_unless_done()

    async def _ask(self, request: _Request, parcels: list[_Parcel]) -> _Response:
        """Over a kept connection if there is one; once more over a new one, if that is allowed."""
        parcel = _Parcel(request.body, self._known)
        parcels.append(parcel)
        try:
            return await self._exchange(self._pooled, request, parcel)
        except (aiohttp.ClientError, OSError):
            may_repeat = parcel.left and parcel.reused and request.may_repeat
            if not (parcel.withheld or may_repeat):
                raise
        parcel = _Parcel(request.body, self._known)
        parcels.append(parcel)
        return await self._exchange(self._fresh, request, parcel)

    async def _exchange(
        self, session: aiohttp.ClientSession, request: _Request, parcel: _Parcel
    ) -> _Response:
        traced = {"traceparent": request.traceparent} if request.traceparent else None
        response = await session.post(
            request.url, data=parcel, headers=traced, allow_redirects=False
        )
        try:
            if not parcel.left:
                parcel.withheld = True
                raise aiohttp.ClientConnectionError("answered before anything was asked")
            body = await _read(response, request.answer_bytes)
            # Still holding its connection, it has not taken all of the message, or not given all of
            # its answer.
            parcel.done = response.connection is None
            return _Response(
                response.status,
                body,
                response.headers.get(DECLARATION_HEADER),
                response.headers.get("Retry-After"),
            )
        finally:
            response.close()

    def _session(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            headers=_HEADERS,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # `end_at` is the timeout
            auto_decompress=False,
            trust_env=False,
            read_bufsize=min(self._answer_bytes, 65_536),
        )


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes | None:
    """The body, or None if it is longer than `limit`."""
    pieces: list[bytes] = []
    size = 0
    while not response.content.at_eof():
        piece = await response.content.readany()
        size += len(piece)
        if size > limit:
            return None
        pieces.append(piece)
    return b"".join(pieces)


def _understood(message: Message, response: _Response, answer_bytes: int) -> Delivery:
    status, body = response.status, response.body
    answer: Answer
    if message.operation is not Operation.PREPARE:
        # Any 2xx acknowledges, whatever the body: one that is too long is not looked at.
        answer = read_end_answer(message.operation, status, body or b"", message.transaction_id)
    elif body is None:
        own = status not in PROXY_STATUSES
        answer = Failed(f"answered {status} with more than {answer_bytes} bytes", answered=own)
    else:
        answer = read_prepare_answer(status, body, message.transaction_id, response.retry_after)
    return _delivered((answer,), response)


def _delivered(answers: Sequence[Answer], response: _Response) -> Delivery:
    own = response.status not in PROXY_STATUSES
    impression = _impression(response.status)
    return Delivery(answers, impression, response.heard, response.declaration, own)


def _impression(status: int) -> Impression:
    """Of what was answered with this status and did not serve."""
    return Impression.UNREACHED if status in PROXY_STATUSES else Impression.REFUSED


def _explained(error: Exception, *, arrived: bool) -> _Lost:
    """What an exception of aiohttp or the system means. `arrived`: the message may have left."""
    impression = Impression.UNREACHED
    broken = False
    match error:
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError() | UnicodeError():
            what = "not a usable URL"
            impression = Impression.REFUSED
        case aiohttp.ClientConnectorDNSError():
            what = f"host {error.host!r} cannot be resolved: {error.os_error.strerror}"
        case aiohttp.ClientConnectorCertificateError():
            what = f"its TLS certificate is not accepted: {error.certificate_error}"
        case aiohttp.ClientSSLError():
            what = f"TLS failed: {error.os_error}"
        case aiohttp.ClientConnectorError():
            what = f"no connection: {error.os_error.strerror or error.os_error}"
        case aiohttp.ClientResponseError() | HttpProcessingError():
            what = f"its answer is not HTTP: {error.message}"
            impression = Impression.REFUSED
        case aiohttp.ClientPayloadError():
            what = "the connection broke in the middle of its answer"
            broken = True
        case aiohttp.ClientConnectionError() | OSError():
            what = "the connection broke without an answer"
            broken = True
        case _:
            # Nobody foresaw it: the call has failed all the same, and the log has the rest.
            _log.warning("a call failed in an unforeseen way", exc_info=error)
            what = f"failed: {type(error).__name__}: {error}"
            impression = Impression.REFUSED
    what = " ".join(what.split())[:MAX_REASON_CHARS].encode("utf-8", "replace").decode("utf-8")
    return _Lost(Failed(what, arrived=arrived, broken=broken and arrived), impression)


class _Parcel(Payload):
    """A request's body that knows whether it may have left, and does not board a connection gone
    stale.

    `left`: some of the message may have been sent. `withheld`: surely none of it was, or ever
    will be. `reused`: over a connection that had carried another message before.
    """

    _autoclose = True
    _value: bytes

    def __init__(self, content: bytes, known: weakref.WeakSet[asyncio.BaseTransport]) -> None:
        super().__init__(content, content_type="application/json")
        self._size = len(content)
        self._known = known
        self._transport: asyncio.Transport | None = None
        self.left = False
        self.withheld = False
        self.reused = False
        self.done = False

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Called by aiohttp on a connection, before anything, even the head, has been sent."""
        assert isinstance(writer, StreamWriter)
        transport = writer.transport
        self.reused = transport in self._known
        if self.withheld or transport is None or not _is_quiet(writer, transport, self.reused):
            self.withheld = True
            raise ConnectionError("the connection ended before anything was sent")
        self._known.add(transport)
        self._transport = transport
        self.left = True
        await writer.write(self._value)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self._value.decode(encoding, errors)

    def close_unless_done(self) -> None:
        """End the connection of an unfinished exchange at once.

        A mere close would first send what is buffered, which a participant that does not read can
        hold up for ever.
        """
        self.withheld = True
        if self._transport is not None and not self.done:
            self._transport.abort()


def _is_quiet(writer: StreamWriter, transport: asyncio.Transport, reused: bool) -> bool:
    """Whether the connection is open and brings nothing that nobody asked for."""
    if transport.is_closing():
        return False
    if not reused:
        return True
    protocol = writer.protocol
    assert isinstance(protocol, ResponseHandler)
    if protocol.should_close:  # true as well when an answer lies there that belongs to no question
        return False
    # What the kernel has and the event loop has not yet read: an end, or bytes.
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return not poll.poll(0)
