"""One connection of the API's server: a request at a time, its answer, and an end to every wait.

How requests and answers are carried is a subclass's: `http_connection` for bytes of HTTP.

Rules
- One request at a time. What a client sends ahead is not read meanwhile, save one piece.
- Whatever is waited for has an end: `_until_s`, which one alarm looks after.
- No answer is made for a client that does not take those that it has.
- There are so many connections at most, for they are files, and without a free one a node cannot
  write its log. One too many takes the place of one that is idle, or is refused.
- Nobody's going away ends a transaction. A client that has ended its direction may still read, so
  it is answered, for a while; once the connection is lost, what is awaited is cancelled.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import math
import socket
from itertools import islice
from typing import Any, cast

from coordinator.admission import Rests
from coordinator.api import Api
from coordinator.api_errors import ApiError, overloaded, unreadable
from coordinator.api_requests import Answer, Later, Request, error_answer, named
from coordinator.bell import Bell
from coordinator.bodies import Bodies

KEEP_S = 3630.0
"""An idle connection is closed then: longer than proxies keep theirs, so that it is they who close,
and no request meets a connection that is just being closed. As aiohttp has it."""

IDLE_S = 1.0
"""A connection that has been idle for so long may be closed for another one's sake."""

LOOKED_AT = 64
"""Connections that are looked at for one that is idle, so that a crowd at the door costs little."""

HEAD_TIMEOUT_S = 30.0
BODY_TIMEOUT_S = 30.0
"""For a whole head, a whole body to arrive; a client that sends a byte a minute is not waited for
longer."""

SEND_TIMEOUT_S = 60.0
"""For a client to take something of an answer."""

LINGER_S = 10.0
"""How long a body that nobody needs, or what follows an error, is read and thrown away. A
connection closed with unread bytes is reset, and the answer lost with it (RFC 9112, 9.6)."""

HALF_CLOSED_S = 30.0
"""How long a client that will send nothing more is still answered. Most have gone altogether."""

HELD_BACK_S = 0.4
"""The first answer on a connection, if it is a refusal for load, waits as long as the connection is
to rest, but no longer: else who opens a connection for each request would rest never. Within half a
second whoever asks is to know that there is no room."""

LOG = logging.getLogger("assent.api")


class Stage(enum.Enum):
    IDLE = "between two requests"
    HEAD = "a part of a head has come"
    BODY = "the body is being read"
    DROPS = "the answer has left; the rest of the body is thrown away"
    ANSWER = "the API is at work"
    HELD = "the answer is held back for a while"
    RESTS = "the next request is not looked at for a while"
    FULL = "the client does not take its answers"
    LEAVES = "the last answer has left; what comes is thrown away"
    CLOSED = "closed, at the latest when all has been sent"


# Looked up once: 90 ns each time.
_IDLE, _HEAD, _BODY, _DROPS = Stage.IDLE, Stage.HEAD, Stage.BODY, Stage.DROPS
_ANSWER, _HELD, _RESTS, _FULL = Stage.ANSWER, Stage.HELD, Stage.RESTS, Stage.FULL
READING = (_IDLE, _HEAD, _BODY, _DROPS)
_NOT_YET = (_ANSWER, _HELD, _RESTS, _FULL)
"""What comes has to wait."""


class Common:
    """What the connections of a server share. `most`: how many of them there may be."""

    def __init__(self, api: Api, *, most: int) -> None:
        self.api = api
        self.most = most
        self.rests = Rests()
        self.bodies = Bodies(api.bodies_bytes)
        self.is_stopping = False
        self.connections: dict[Connection, None] = {}
        self.bell = Bell(Connection.woken)


class Connection(asyncio.Protocol):
    """See the file's docstring."""

    def __init__(self, common: Common) -> None:
        self._common = common
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._address = ""
        self._stage = _IDLE
        self._until_s = math.inf
        """When the stage has lasted too long."""
        self._alarm_s = math.inf
        """When an alarm rings: not later than `_until_s`, perhaps earlier."""
        self._ahead = b""
        """What came while nothing was read; then nothing more is asked for."""
        self._is_paused = False
        """Nothing is read from the transport."""
        self._is_full = False
        """The transport holds more than the client takes at present."""
        self._unsent = math.inf
        """Bytes of answers that the client had not taken when it was last looked at."""
        self._has_ended = False
        """The client sends nothing more."""
        self._closes = False
        """After the present answer."""
        self._rest_s = 0.0
        """After the present request."""
        self._has_answered = False
        self._request_name: str | None = None
        """The header `Assent-Request` of the present request, set by the subclass that reads it."""
        self._refusal: Answer | None = None
        """The answer that is held back (HELD)."""
        self._awaited: Later | None = None
        self._lost: asyncio.Future[None] | None = None

    # --- what a way to carry requests must say

    def _read_on(self, data: bytes) -> None:
        """Take `data`, and begin requests until one is under way or no whole one is there."""
        raise NotImplementedError

    def _send(self, answer: Answer, *, closes: bool) -> None:
        """Raises ValueError for an answer that cannot be sent."""
        raise NotImplementedError

    def _has_come(self) -> bool:
        """Whether the whole body of the present request has been read."""
        raise NotImplementedError

    # --- what the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self._address = peer[0] if peer else ""
        accepted = transport.get_extra_info("socket")
        if accepted is not None:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._common.connections[self] = None
        self._enter(_IDLE, KEEP_S)
        if self._common.is_stopping:  # it was being taken already
            self.close()
        elif len(self._common.connections) > self._common.most and not self._make_room():
            self._send(error_answer(overloaded()), closes=True)
            self.close()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        self._stage = Stage.CLOSED
        self._common.bell.clear(self)
        self._common.connections.pop(self, None)
        self._let_go()
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self._stage in READING:
            self._read_on(data)
        elif self._stage in _NOT_YET:
            self._ahead += data
            if not self._is_paused:
                self._is_paused = True
                self._transport.pause_reading()

    def eof_received(self) -> bool:
        """Whether the connection stays open."""
        self._has_ended = True
        if self._stage is _BODY:
            self._refuse(unreadable())
        elif self._stage is _ANSWER:
            self._enter(_ANSWER, HALF_CLOSED_S)
        if self._stage in _NOT_YET:
            return True
        self.close()
        return False

    def pause_writing(self) -> None:
        self._is_full = True
        self._unsent = math.inf

    def resume_writing(self) -> None:
        self._is_full = False
        if self._stage is _FULL:
            self._go_on()

    def _make_room(self) -> bool:
        """Close another connection that is idle; whether there was one."""
        connections = self._common.connections
        since_s = self._loop.time() - IDLE_S
        for other in list(islice(connections, LOOKED_AT)):
            if other._stage is _IDLE and other._until_s - KEEP_S <= since_s:
                other.close()
                return True
            connections[other] = connections.pop(other)  # looked at again after all others
        return False

    # --- what the server and the clock tell

    def end(self) -> asyncio.Future[None]:
        """Close, after the answer to the request that is under way; done when that has happened."""
        self._lost = self._loop.create_future()
        if self._stage in (_BODY, _ANSWER):
            self._closes = True
        elif self._stage is _HELD:
            self._closes = True
            self._give_refusal()
        else:
            self.close()
        return self._lost

    def close(self) -> None:
        """What has been written is still sent."""
        if self._stage is not Stage.CLOSED:
            self._let_go()
            self._transport.close()
            self._enter(Stage.CLOSED, SEND_TIMEOUT_S)

    def abort(self) -> None:
        self._let_go()
        self._transport.abort()

    def woken(self) -> None:
        """Perhaps too early: the alarm of an earlier stage is not cleared."""
        self._alarm_s = math.inf
        if self._loop.time() < self._until_s:
            self._set_alarm()
            return
        if self._transport.is_closing() and self._stage is not Stage.CLOSED:
            return  # it broke: `connection_lost` is to follow
        match self._stage:
            case Stage.HEAD:
                what = f"The head did not arrive within {HEAD_TIMEOUT_S:.0f} s; send it again."
                self._refuse(ApiError(408, "head_timeout", what))
            case Stage.BODY:
                what = f"The body did not arrive within {BODY_TIMEOUT_S:.0f} s; send it again."
                self._refuse(ApiError(408, "body_timeout", what))
            case Stage.HELD:
                self._give_refusal()
            case Stage.RESTS:
                self._go_on()
            case Stage.FULL | Stage.CLOSED:
                self._abort_if_stuck()
            case _:
                self.close()

    def _abort_if_stuck(self) -> None:
        """A slow client may take as long as it likes, if only it takes something."""
        unsent = self._transport.get_write_buffer_size()
        if unsent < self._unsent:
            self._unsent = unsent
            self._enter(self._stage, SEND_TIMEOUT_S)
        else:
            self.abort()

    # --- a request and its answer

    def _respond(self, request: Request) -> None:
        answer = self._common.api.respond(request)
        if isinstance(answer, Answer):
            self._give(answer)
            return
        self._await(answer)
        answer.future.add_done_callback(self._answered)

    def _await(self, answer: Later) -> None:
        self._enter(_ANSWER, HALF_CLOSED_S if self._has_ended else math.inf)
        self._awaited = answer

    def _answered(self, future: asyncio.Future[Any]) -> None:
        awaited, self._awaited = self._awaited, None
        if awaited is None or self._transport.is_closing():
            return  # nobody waits for it any more
        try:
            answer = awaited.made(future)
        except asyncio.CancelledError:  # the event loop ends
            self.close()
            return
        self._give(answer)
        self._read_ahead()

    def _give(self, answer: Answer) -> None:
        """The answer to the present request."""
        if answer.rests:
            self._rest_s = self._common.rests.rest_s(self._loop.time())
            if not self._has_answered:
                self._hold_back(answer)
                return
            answer = self._with_rest(answer)
        self._has_answered = True
        if self._request_name is not None:
            answer = named(answer, self._request_name)
        try:
            self._send(answer, closes=self._closes)
        except ValueError:
            LOG.exception("an answer cannot be sent; this is a defect")
            self.close()
            return
        if self._closes:
            self._leave()
        elif self._has_come():
            self._free()
        else:
            self._enter(_DROPS, LINGER_S)

    def _hold_back(self, refusal: Answer) -> None:
        held_s = min(self._rest_s, HELD_BACK_S)
        self._rest_s -= held_s
        self._refusal = self._with_rest(refusal)._replace(rests=False)
        self._enter(_HELD, held_s)

    def _with_rest(self, refusal: Answer) -> Answer:
        later = {**refusal.headers, "Retry-After": str(max(1, math.ceil(self._rest_s)))}
        return refusal._replace(headers=later)

    def _give_refusal(self) -> None:
        refusal, self._refusal = self._refusal, None
        assert refusal is not None
        self._give(refusal)
        self._read_ahead()

    def _free(self) -> None:
        """The answer has left, and the whole request has come."""
        if self._transport.is_closing():
            self._stage = Stage.CLOSED  # it broke: `connection_lost` is to follow
        elif self._rest_s:
            rest_s, self._rest_s = self._rest_s, 0.0
            self._enter(_RESTS, rest_s)
        elif self._is_full:
            self._enter(_FULL, SEND_TIMEOUT_S)
        else:
            self._enter(_IDLE, KEEP_S)

    def _yield(self) -> None:
        """The next request is for the next turn of the loop."""
        self._enter(_RESTS, math.inf)
        self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """Nothing hinders the next request any more."""
        if self._stage in (_RESTS, _FULL):
            self._free()
            self._read_ahead()

    def _read_ahead(self) -> None:
        """A wait has ended: begin what has come meanwhile, if nothing hinders the next request."""
        if self._stage is _IDLE:
            self._read_on(b"")

    def _await_bytes(self) -> None:
        """All that has come is read."""
        if self._has_ended:
            self.close()
        elif self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()

    # --- the end

    def _refuse(self, error: ApiError) -> None:
        """A last answer, to what is no whole request."""
        self._send(error_answer(error), closes=True)
        self._linger()

    def _leave(self) -> None:
        """The last answer has left."""
        if self._has_come():
            self.close()
        else:
            self._linger()

    def _linger(self) -> None:
        """Nothing more is answered; what still comes is thrown away."""
        self._enter(Stage.LEAVES, LINGER_S)
        self._transport.write_eof()
        self._await_bytes()

    def _enter(self, stage: Stage, seconds: float) -> None:
        """Be in this stage, for no longer than this."""
        self._stage = stage
        self._until_s = self._loop.time() + seconds
        if self._until_s < self._alarm_s:
            self._set_alarm()

    def _set_alarm(self) -> None:
        if self._until_s < math.inf:
            self._alarm_s = self._until_s
            self._common.bell.set(self, self._until_s)

    def _let_go(self) -> None:
        awaited, self._awaited = self._awaited, None
        if awaited is not None:
            # Not at once: a coroutine that has not begun would be "never awaited".
            self._loop.call_soon(awaited.future.cancel)
