"""What is carried to a participant over HTTP, and everything that can become of it.

Rules
- Nothing that a participant, a proxy, a name server or the network does comes out of here as an
  exception: every failure is mapped once, here, to a `Failed` that says whether the message may
  have arrived.
- A message that may have arrived is never sent again by this file, unless it is a commit or a
  rollback, which may be repeated. What surely never left may go again, over a new connection.
- Time is bounded: a request ends when whoever sends it says, and the connection with it.
- Prepares and the ends of branches have connections of their own, half of all each: prepares that
  hang, however many, never hold up a commit.
- Redirects are answers. No cookies, no proxies out of the environment.
- Whoever sends is told once, on the event loop, and never from within `carry`.

How it is known whether a message left: it is written in one piece, and only to a connection that
is open and quiet at that moment (`participant_connection`). There remains a server that closes a
kept connection while the message is on the wire. A commit or rollback is sent again at once. A
prepare is not: it fails, with `broken` set.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from coordinator.lane import Impression
from coordinator.participant_connection import (
    Broken,
    Connection,
    NoReply,
    NotHttp,
    Target,
    TooLate,
    target_of,
)
from coordinator.participant_connections import Connections, NoConnection
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

_BATCH_ANSWER_BYTES = 1 << 10
"""Read of the answer to a batch for each of its messages, beside what is read of any answer: an
honest one takes some 100. What is decoded in one turn of the loop holds up everybody: 500 messages'
share takes 25 ms at worst. A longer one is no answer, and the messages go one by one."""

_MANY_FILES = 10_000
"""Connections where the system sets no limit of open files."""

_new = tuple.__new__  # a third of the time, for the delivery of every request

_PREPARE, _SERVED = Operation.PREPARE, Impression.SERVED  # looked up once: 90 ns each time

Answer = PrepareAnswer | EndAnswer

_SERVES = (Acknowledged, Voted)


class Message(Protocol):
    """What is to be carried; `body` is JSON."""

    operation: Operation
    url: str
    transaction_id: str
    branch_id: str
    body: bytes
    traceparent: str | None


class Delivery(NamedTuple):
    """What became of a request: an answer to each of its messages, and what it says of the
    participant.

    `impressions` are what each answer says of it. `answered` is whether the participant itself did,
    `heard` whether in a way that would have carried its declaration; `declaration` is that header's
    value. `refused_batch`: it was not the participant's batch call that answered, or it took none
    of the messages. `gave_up`: nothing came in the time allowed.
    """

    answers: Sequence[Answer]
    impressions: Sequence[Impression]
    heard: bool = False
    declaration: str | None = None
    answered: bool = False
    refused_batch: bool = False
    gave_up: bool = False


def most_connections() -> int:
    """Half of the files that this process may have open; the rest is for clients and for the log.

    Looked at when it starts, after `participants.process` has raised the limit.
    """
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MANY_FILES if files == resource.RLIM_INFINITY else files // 2


class Courier:
    """Carries messages; as many at one time as it is asked to."""

    def __init__(self, *, answer_bytes: int) -> None:
        self._answer_bytes = answer_bytes
        self._errands: dict[_Errand, None] = {}

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._resolver = Resolver()
        most = most_connections() // 2
        self._to_prepare = Connections(self._resolver, most=most)
        self._to_end = Connections(self._resolver, most=most)

    async def stop(self) -> None:
        """What is under way has failed; every connection is closed."""
        dialing = [errand.dialing for errand in self._errands if errand.dialing is not None]
        for errand in list(self._errands):
            if errand.connection is not None:
                errand.connection.abort()
            if errand.dialing is not None:
                errand.dialing.cancel()
            self.end(errand, _lost(errand, "this node is stopping", Impression.UNREACHED))
        if dialing:
            await asyncio.wait(dialing)
        await self._to_prepare.close()
        await self._to_end.close()
        await self._resolver.close()

    def carry(self, message: Message, until_s: float, told: Callable[[Delivery], None]) -> None:
        """Send it, and wait until then; `told` gets what became of it."""
        errand = _Errand(self, (message,), message.body, self._answer_bytes, until_s, told)
        errand.traceparent = message.traceparent
        self._set_out(errand, message.url)

    def carry_batch(
        self,
        url: str,
        messages: Sequence[Message],
        until_s: float,
        told: Callable[[Delivery], None],
    ) -> None:
        """Send all in one request to `url`; all are prepares, or none is. `told` gets what became
        of each.
        """
        body = batch_body([(m.operation, m.body, m.traceparent) for m in messages])
        limit = self._answer_bytes + _BATCH_ANSWER_BYTES * len(messages)
        errand = _Errand(self, messages, body, limit, until_s, told)
        errand.is_batch = True
        self._set_out(errand, url)

    # --- an errand from its beginning to its end ---

    def _set_out(self, errand: _Errand, url: str) -> None:
        self._errands[errand] = None
        try:
            errand.target = target_of(url)
        except ValueError:
            unusable = _lost(errand, "not a usable URL", Impression.REFUSED)
            self._loop.call_soon(self.end, errand, unusable)
            return
        errand.connections = self._to_prepare if errand.is_prepare else self._to_end
        connection = errand.connections.kept(errand.target.origin)
        if connection is None:
            self._dial(errand)
        else:
            errand.ask(connection)

    def _dial(self, errand: _Errand) -> None:
        """A new connection, and the message over it."""
        errand.dialing = self._loop.create_task(self._dialed(errand))

    async def _dialed(self, errand: _Errand) -> None:
        try:
            async with asyncio.timeout_at(errand.until_s):
                connection = await errand.connections.made(errand.target.origin)
        except NoConnection as error:
            self.end(errand, _lost(errand, str(error), Impression.UNREACHED))
            return
        except TimeoutError:
            self.end(errand, _too_late(errand))
            return
        except Exception as error:  # nobody foresaw it: the message has failed all the same
            self.end(errand, _unforeseen(errand, error))
            return
        errand.dialing = None
        if connection.is_open:
            errand.ask(connection)
        else:
            what = "the connection ended before anything was sent"
            self.end(errand, _lost(errand, what, Impression.UNREACHED))

    def failed(self, errand: _Errand, error: NoReply) -> None:
        """No answer will come over the connection that the message left on."""
        if isinstance(error, TooLate):
            self.end(errand, _too_late(errand))
            return
        if errand.over_used and not errand.again and not errand.is_prepare:
            errand.again = True
            self._dial(errand)
            return
        match error:
            case NotHttp():
                delivery = _lost(errand, f"its answer is not HTTP: {error}", Impression.REFUSED)
            case Broken(begun=True):
                what = "the connection broke in the middle of its answer"
                delivery = _lost(errand, what, Impression.UNREACHED, broken=True)
            case Broken():
                what = "the connection broke without an answer"
                delivery = _lost(errand, what, Impression.UNREACHED, broken=True)
        self.end(errand, delivery)

    def end(self, errand: _Errand, delivery: Delivery) -> None:
        """This is what became of it."""
        if errand not in self._errands:
            return  # it has ended
        del self._errands[errand]
        errand.connection = errand.dialing = None
        errand.told(delivery)


class _Errand:
    """A request on its way, and who is told what becomes of it.

    `left`: some of it may have been sent. `over_used`: over a connection that had carried another
    message before. `again`: it is sent once more, over a new one.
    """

    __slots__ = (
        "_courier",
        "again",
        "body",
        "connection",
        "connections",
        "dialing",
        "is_batch",
        "is_prepare",
        "left",
        "limit",
        "messages",
        "over_used",
        "target",
        "told",
        "traceparent",
        "until_s",
    )

    target: Target
    connections: Connections

    def __init__(
        self,
        courier: Courier,
        messages: Sequence[Message],
        body: bytes,
        limit: int,
        until_s: float,
        told: Callable[[Delivery], None],
    ) -> None:
        self._courier = courier
        self.messages = messages
        self.body = body
        self.limit = limit
        self.until_s = until_s
        self.told = told
        self.traceparent: str | None = None
        self.connection: Connection | None = None
        self.dialing: asyncio.Task[None] | None = None
        self.is_prepare = messages[0].operation is _PREPARE
        self.is_batch = self.left = self.over_used = self.again = False

    def ask(self, connection: Connection) -> None:
        self.connection = connection
        self.left = True
        self.over_used = connection.used
        connection.ask(self.target, self.traceparent, self.body, self.limit, self.until_s, self)
        if self.is_prepare:
            self.body = b""  # it leaves once, and may be under way for an hour

    def replied(self, status: int, headers: Mapping[str, str], body: bytes | None) -> None:
        """The participant, or something in its place, has answered."""
        try:
            delivery = _understood(self, status, headers, body)
        except Exception as error:
            delivery = _unforeseen(self, error)
        self._courier.end(self, delivery)

    def failed(self, error: NoReply) -> None:
        """See `participant_connection.Asker`."""
        self.connection = None
        self._courier.failed(self, error)


# --- what it means ---


def _understood(
    errand: _Errand, status: int, headers: Mapping[str, str], body: bytes | None
) -> Delivery:
    own = status not in PROXY_STATUSES
    otherwise = Impression.REFUSED if own else Impression.UNREACHED
    declaration = headers.get(DECLARATION_HEADER)
    answers: Sequence[Answer]
    impressions: Sequence[Impression]
    refused_batch = False
    if errand.is_batch:
        given = _batch_answers(errand, status, body)
        refused_batch = own and isinstance(given, Failed)
        answers = [given] * len(errand.messages) if isinstance(given, Failed) else given
        impressions = [_SERVED if isinstance(each, _SERVES) else otherwise for each in answers]
    else:
        answer = _answer(errand, status, headers, body, declared=declaration is not None)
        answers = (answer,)
        impressions = (_SERVED if isinstance(answer, _SERVES) else otherwise,)
    heard = 200 <= status < 300
    return _new(Delivery, (answers, impressions, heard, declaration, own, refused_batch, False))


def _batch_answers(errand: _Errand, status: int, body: bytes | None) -> list[Answer] | Failed:
    if body is None:
        return Failed(f"answered a batch with {status} and more than {errand.limit} bytes")
    messages = [(m.operation, m.transaction_id, m.branch_id) for m in errand.messages]
    return read_batch_answers(status, body, messages)


def _answer(
    errand: _Errand,
    status: int,
    headers: Mapping[str, str],
    body: bytes | None,
    *,
    declared: bool,
) -> Answer:
    message = errand.messages[0]
    branch = message.transaction_id, message.branch_id
    if not errand.is_prepare and not (declared and body is None):
        # Any 2xx of a plain one acknowledges, whatever the body: a long one is not looked at.
        return read_end_answer(message.operation, status, body or b"", branch, declared=declared)
    if body is None:
        own = status not in PROXY_STATUSES
        return Failed(f"answered {status} with more than {errand.limit} bytes", answered=own)
    return read_prepare_answer(status, body, branch, headers)


def _lost(errand: _Errand, what: str, impression: Impression, *, broken: bool = False) -> Delivery:
    """There is no response: why, and what that says of the participant."""
    what = " ".join(what.split())[:MAX_REASON_CHARS].encode("utf-8", "replace").decode("utf-8")
    failed = Failed(what, arrived=errand.left, broken=broken)
    count = len(errand.messages)
    return Delivery((failed,) * count, (impression,) * count)


def _too_late(errand: _Errand) -> Delivery:
    what = "no answer in time" if errand.left else "no connection in time"
    return _lost(errand, what, Impression.UNREACHED)._replace(gave_up=True)


def _unforeseen(errand: _Errand, error: Exception) -> Delivery:
    """The log has the rest."""
    url = errand.messages[0].url
    _log.error("a request to %s failed in an unforeseen way", url, exc_info=error)
    what = "failed in an unforeseen way; the node's log says how"
    return _lost(errand, what, Impression.UNREACHED)
